#!/usr/bin/env bash
# Trains on the GPUs of several nodes, as a Slurm job that goes on by itself.
#
#   CONFIG=configs/NAME.py WORKDIR=DIR sbatch [OPTIONS] launch/slurm.sh [-- FLAGS]
#
# FLAGS go to dnal_jax.main. Submit it in the root of the checkout, which, like
# WORKDIR, is on a file system of all nodes; OPTIONS of sbatch, such as --nodes,
# --partition and --time, outweigh the block below. Each node has one process,
# which takes all the node's GPUs.
#
# Two minutes before the time limit, Slurm signals the processes; they save and
# exit with 75, and the job queues itself again, REQUEUES times at most. A job
# that is cancelled or preempted saves, too, but leaves it to Slurm whether it
# runs again.
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

CONFIG=${CONFIG:-}                  # of the run; must be given
WORKDIR=${WORKDIR:-}                # of the run; must be given
PYTHON=${PYTHON:-.venv/bin/python}  # which has the requirements and jax[cuda12]
REQUEUES=${REQUEUES:-20}            # so that a job that cannot go on ends

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
  mistake "submit it in the root of the checkout, as launch/slurm.sh"
[[ -n ${SLURM_JOB_ID:-} ]] || mistake "start it by sbatch"
command -v "$PYTHON" >/dev/null || mistake "PYTHON is '$PYTHON', which cannot run"
if (($#)); then
  [[ $1 == -- ]] ||
    mistake "unknown argument '$1'; flags of dnal_jax.main come after --"
  shift
fi

# JAX would give each process of Slurm one GPU.
if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi
# srun does not take this over from sbatch by itself.
if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi

# A node that ends early must not have the others killed before they have saved.
srun --kill-on-bad-exit=0 "$PYTHON" -u -m dnal_jax.main --config="$CONFIG" \
  --workdir="$WORKDIR" "$@" &
job=$!
# At the time limit only the processes are signalled. This shell is where Slurm
# takes the whole job down; srun hands the signal on.
told=0
trap 'told=1; kill -TERM "$job" || true' TERM
while :; do
  code=0 before=$told
  wait "$job" || code=$?
  if ((told == before)); then break; fi # else the signal ended the wait
done

if ((code == 75 && !told)); then
  if ((${SLURM_RESTART_COUNT:-0} < REQUEUES)); then
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "slurm.sh: requeued $REQUEUES times; submit it again to go on" >&2
  fi
fi
exit "$code"
