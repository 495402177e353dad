#!/usr/bin/env bash
# Trains on a Cloud TPU with one or more workers, and leaves nothing running:
# creates the TPU, installs this checkout's last commit on all workers, runs the
# config, fetches the run folder, and deletes the TPU.
#
#   PROJECT=P ZONE=Z CONFIG=configs/NAME.py launch/tpu_vm.sh [--print] [-- FLAGS]
#
# FLAGS are passed to dnal_jax.main. --print prints every command, quoted for a
# shell, and runs none. Worker 0 prints the run's progress here.
#
# Several workers need a shared folder. With BUCKET, they mount that Cloud
# Storage bucket with gcsfuse, and WORKDIR is a folder in it. A checkpoint is
# written to a temporary folder and then moved, so create the bucket with
# --enable-hierarchical-namespace (and --uniform-bucket-level-access), and give
# the TPU's service account the role storage.objectUser on it. The same command
# resumes a run in a bucket. One worker (such as ACCELERATOR=v5litepod-4) needs
# no bucket: WORKDIR is then in its home folder, which is fetched, then deleted.
#
# Exits with 0 when the run is finished; with 2 if the input is wrong, as far as
# can be checked before anything is created; with 75 if the run was stopped early
# more than RETRIES times; else with the code of the command that failed, 130
# after Ctrl-C. From the request for the TPU on, every exit except SIGKILL
# deletes it.
set -euo pipefail

PROJECT=${PROJECT:-}                     # required; of Google Cloud
ZONE=${ZONE:-}                           # required; that has the TPU
CONFIG=${CONFIG:-}                       # required; of the run
NAME=${NAME:-dnal-jax}                   # of the TPU, which must not exist yet
ACCELERATOR=${ACCELERATOR:-v5litepod-16} # 4 workers with 4 chips each
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}  # the image for that accelerator
SPOT=${SPOT:-0}                          # 1: cheaper, can be preempted any time
BUCKET=${BUCKET:-}                       # without gs://
WORKDIR=${WORKDIR:-runs/$NAME}           # in BUCKET, or in the home folder
DATA=${DATA:-}                           # TFDS_DATA_DIR, relative to ~/dnal_jax
FETCH_TO=${FETCH_TO:-runs}               # local folder for the run folder
RETRIES=${RETRIES:-2}                    # after exit code 75, on the same TPU
PAUSES=${PAUSES:-0 30 90}                # seconds before each try to delete
GCSFUSE=${GCSFUSE:-3.11.1}               # version

say() { echo "tpu_vm.sh: $*" >&2; }

mistake() {
  echo "error: $*" >&2
  exit 2
}

# Prints a command quoted for a shell.
quoted() {
  local word line=
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      word="'${word//\'/\'\\\'\'}'"
    fi
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# In the background, so that this shell can handle a signal at once.
child=
run() {
  if ((print)); then
    quoted "$@"
    return
  fi
  quoted "$@" >&2
  local code=0
  "$@" </dev/null &
  child=$!
  wait "$child" || code=$?
  child=
  return "$code"
}

tpu() { run gcloud compute tpus tpu-vm "$@" --project="$PROJECT" --zone="$ZONE"; }

everywhere() {
  # Idle connections are closed, and workers other than 0 print nothing.
  tpu ssh "$NAME" --worker=all --ssh-flag=-oServerAliveInterval=60 \
    --command="$1"
}

# True only if Google Cloud says so; leaves its output in `description`.
is_gone() {
  ! description=$(gcloud compute tpus tpu-vm describe "$NAME" \
    --project="$PROJECT" --zone="$ZONE" 2>&1 </dev/null) &&
    [[ $description == *NOT_FOUND* ]]
}

# shellcheck disable=SC2329  # the trap calls it, by `leave`
delete() {
  local pause
  for pause in $PAUSES; do # a TPU cannot be deleted while it is being created
    sleep "$pause"
    if tpu delete "$NAME" --quiet || is_gone; then return; fi
  done
  say "'$NAME' MAY STILL BE RUNNING; delete it with:"
  quoted gcloud compute tpus tpu-vm delete "$NAME" --project="$PROJECT" \
    --zone="$ZONE" >&2
  return 1
}

# shellcheck disable=SC2329
leave() {
  local code=$?
  trap '' INT TERM HUP
  if [[ -n $child ]]; then kill "$child" || true; fi
  delete || code=$((code ? code : 1))
  exit "$code"
}

check() {
  local key plain='^[A-Za-z0-9_./:@-]+$'
  for key in PROJECT ZONE CONFIG; do
    [[ -n ${!key} ]] ||
      mistake "$key is not set; give $key=... before the command"
  done
  [[ $NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    mistake "NAME is '$NAME'; use a-z, 0-9 and -, and begin with a letter"
  for key in PROJECT ZONE CONFIG ACCELERATOR RUNTIME WORKDIR FETCH_TO GCSFUSE
  do
    [[ ${!key} =~ $plain ]] ||
      mistake "$key is '${!key}'; use letters, digits and _./:@- only"
  done
  [[ $BUCKET =~ ^([a-z0-9][a-z0-9._-]*)?$ ]] ||
    mistake "BUCKET is '$BUCKET'; give the name alone, without gs://"
  [[ $WORKDIR != /* && /$WORKDIR/ != */../* ]] ||
    mistake "WORKDIR is '$WORKDIR'; give a path relative to BUCKET or home"
  [[ $SPOT == [01] ]] || mistake "SPOT is '$SPOT'; it must be 0 or 1"
  [[ $RETRIES =~ ^[0-9]{1,3}$ ]] ||
    mistake "RETRIES is '$RETRIES'; it must be a number, 0 or more"
  [[ $PAUSES =~ ^[0-9]+( [0-9]+)*$ ]] ||
    mistake "PAUSES is '$PAUSES'; it must be seconds, such as '0 30 90'"
  [[ -f dnal_jax/main.py ]] ||
    mistake "start this in the root of the checkout, as launch/tpu_vm.sh"
  [[ -f ${CONFIG%%:*} ]] ||
    mistake "CONFIG is '$CONFIG', and there is no file '${CONFIG%%:*}'"
}

check_here() {
  command -v gcloud >/dev/null ||
    mistake "gcloud is not on PATH; install the Google Cloud CLI and log in"
  git rev-parse --verify --quiet HEAD >/dev/null ||
    mistake "this is not a git checkout; the workers get its last commit"
  is_gone ||
    mistake "NAME is '$NAME', a TPU that exists or cannot be looked up;" \
      "gcloud says: ${description//$'\n'/ }"
  git diff --quiet HEAD || say "uncommitted changes are not sent to the workers"
}

print=0
while (($#)) && [[ $1 != -- ]]; do
  [[ $1 == --print ]] ||
    mistake "unknown argument '$1'; give flags of dnal_jax.main after --"
  print=1
  shift
done
if (($#)); then shift; fi
check

on_worker=${BUCKET:+bucket/}$WORKDIR # relative to the home folder
install="rm -rf dnal_jax env && git clone --quiet dnal_jax.bundle dnal_jax"
# Runtime images have Python 3.10, or a pip that refuses to install by default.
install+=" && export PIP_BREAK_SYSTEM_PACKAGES=1"
install+=" && python3 -m pip install --quiet --user uv"
install+=" && python3 -m uv venv --quiet --python 3.12 env"
install+=" && python3 -m uv pip install --quiet --python env/bin/python"
install+=" -r dnal_jax/requirements.txt 'jax[tpu]'"
if [[ -n $BUCKET ]]; then
  package=gcsfuse_${GCSFUSE}_amd64.deb
  install+=" && curl -sSfLO https://github.com/GoogleCloudPlatform/gcsfuse"
  install+="/releases/download/v$GCSFUSE/$package"
  install+=" && sudo apt-get -o DPkg::Lock::Timeout=600 install --yes ./$package"
  # Without caches, workers see each other's writes at once.
  install+=" && mkdir -p bucket && gcsfuse --implicit-dirs"
  install+=" --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0"
  install+=" $BUCKET bucket"
fi
train="cd dnal_jax && ${DATA:+TFDS_DATA_DIR=$(quoted "$DATA") }"
train+="../env/bin/python -u -m dnal_jax.main --distributed=on"
train+=" $(quoted --config="$CONFIG" --workdir="../$on_worker" "$@")"
create=(create "$NAME" --accelerator-type="$ACCELERATOR" --version="$RUNTIME")
if ((SPOT)); then create+=(--spot); fi

if ((!print)); then check_here; fi
run mkdir -p build "$FETCH_TO"
run git bundle create --quiet "build/$NAME.bundle" HEAD

trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
trap leave EXIT
tpu "${create[@]}"
tpu scp "build/$NAME.bundle" "$NAME:dnal_jax.bundle" --worker=all
everywhere "$install"
code=0
everywhere "$train" || code=$?
for ((left = RETRIES; code == 75 && left; left--)); do
  say "the run was stopped early and resumes; restarts left: $left"
  code=0
  everywhere "$train" || code=$?
done
if ((code == 0 || code == 75)); then
  tpu scp "$NAME:$on_worker" "$FETCH_TO" --recurse --worker=0 ||
    code=$((code ? code : $?))
fi
exit "$code"
