#!/usr/bin/env bash
# Trains on a multi-host TPU slice in GKE: fills in launch/gke_tpu.yaml, which
# lists what the cluster must provide, and applies it with kubectl.
#
#   IMAGE=... BUCKET=... CONFIG=configs/NAME.py launch/gke.sh [--print] [-- FLAGS]
#
# FLAGS are passed to dnal_jax.main. --print prints the manifest and applies
# nothing. Build IMAGE with launch/Dockerfile. Exits with 2 if the input is
# wrong, else with kubectl's code; the run itself continues in the cluster.
set -euo pipefail

IMAGE=${IMAGE:-}                              # required
BUCKET=${BUCKET:-}                            # required; without gs://
CONFIG=${CONFIG:-}                            # required; of the run
NAME=${NAME:-dnal-jax}                        # of the JobSet
WORKDIR=${WORKDIR:-runs/$NAME}                # in BUCKET
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-dnal-jax}  # of Kubernetes

mistake() {
  echo "error: $*" >&2
  exit 2
}

print=0
while (($#)) && [[ $1 != -- ]]; do
  [[ $1 == --print ]] ||
    mistake "unknown argument '$1'; give flags of dnal_jax.main after --"
  print=1
  shift
done
if (($#)); then shift; fi
for key in IMAGE BUCKET CONFIG NAME WORKDIR SERVICE_ACCOUNT; do
  [[ -n ${!key} ]] || mistake "$key is not set; give $key=... before the command"
  [[ ${!key} =~ ^[A-Za-z0-9_./:@-]+$ ]] ||
    mistake "$key is '${!key}'; use letters, digits and _./:@- only"
done
[[ $BUCKET != *[:/]* ]] ||
  mistake "BUCKET is '$BUCKET'; give the name alone, without gs://"
[[ -f launch/gke_tpu.yaml ]] ||
  mistake "start this in the root of the checkout, as launch/gke.sh"
[[ -f ${CONFIG%%:*} ]] ||
  mistake "CONFIG is '$CONFIG', and there is no file '${CONFIG%%:*}'"

manifest() {
  local line key flag flags="\${FLAGS}"
  while IFS= read -r line; do
    if [[ $line == *"$flags" ]]; then
      for flag in "$@"; do # single quotes of YAML
        printf '%s\n' "${line%"$flags"}'${flag//\'/\'\'}'"
      done
      continue
    fi
    for key in IMAGE BUCKET CONFIG NAME WORKDIR SERVICE_ACCOUNT; do
      line=${line//"\${$key}"/${!key}}
    done
    printf '%s\n' "$line"
  done <launch/gke_tpu.yaml
}

if ((print)); then
  manifest "$@"
  exit
fi
command -v kubectl >/dev/null || mistake "kubectl is not on PATH; install it"
manifest "$@" | kubectl apply --filename=-
first=jobset.sigs.k8s.io/jobset-name=$NAME
first+=,batch.kubernetes.io/job-completion-index=0
echo "follow:  kubectl logs --follow --container=main --selector=$first"
echo "delete:  kubectl delete jobset $NAME"
