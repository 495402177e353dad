#!/usr/bin/env bash
# Trains on the GPUs of several nodes, as a Slurm job that resumes by itself.
#
#   CONFIG=configs/NAME.py WORKDIR=DIR sbatch [OPTIONS] launch/slurm.sh [-- FLAGS]
#
# FLAGS are passed to dnal_jax.main. Submit this in the root of the checkout;
# the checkout and WORKDIR must be on a file system that all nodes share. OPTIONS
# of sbatch, such as --nodes, --partition and --time, override the block below.
# Each node runs one process, which uses all GPUs of the node.
#
# Two minutes before the time limit, Slurm signals the processes; they save and
# exit with 75, and the job requeues itself, at most REQUEUES times. A cancelled
# or preempted job also saves, but does not requeue itself.
#
#SBATCH --job-name=dnal_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

CONFIG=${CONFIG:-}                  # required; of the run
WORKDIR=${WORKDIR:-}                # required; of the run
PYTHON=${PYTHON:-.venv/bin/python}  # with the requirements and jax[cuda12]
REQUEUES=${REQUEUES:-20}            # limit for a job that makes no progress

mistake() {
  echo "error: $*" >&2
  exit 2
}

for key in CONFIG WORKDIR; do
  [[ -n ${!key} ]] || mistake "$key is not set; give $key=... before sbatch"
done
[[ $REQUEUES =~ ^[0-9]{1,3}$ ]] ||
  mistake "REQUEUES is '$REQUEUES'; it must be a number, 0 or more"
[[ -f dnal_jax/main.py ]] ||
  mistake "submit this in the root of the checkout, as launch/slurm.sh"
[[ -n ${SLURM_JOB_ID:-} ]] || mistake "SLURM_JOB_ID is not set; use sbatch"
command -v "$PYTHON" >/dev/null ||
  mistake "PYTHON is '$PYTHON', which is not executable"
if (($#)); then
  [[ $1 == -- ]] ||
    mistake "unknown argument '$1'; give flags of dnal_jax.main after --"
  shift
fi

# By default JAX gives each Slurm process one GPU.
if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi
# srun does not inherit this from sbatch.
if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi

# The other nodes must not be killed before they have saved.
srun --kill-on-bad-exit=0 "$PYTHON" -u -m dnal_jax.main --config="$CONFIG" \
  --workdir="$WORKDIR" "$@" &
job=$!
# At the time limit Slurm signals the processes only. It signals this shell when
# the whole job is cancelled or preempted; srun forwards the signal.
cancelled=0
trap 'cancelled=1; kill -TERM "$job" || true' TERM
while :; do
  code=0 before=$cancelled
  wait "$job" || code=$?
  if ((cancelled == before)); then break; fi # else the signal ended `wait`
done

if ((code == 75 && !cancelled)); then
  if ((${SLURM_RESTART_COUNT:-0} < REQUEUES)); then
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "slurm.sh: requeued $REQUEUES times; submit it again to resume" >&2
  fi
fi
exit "$code"
