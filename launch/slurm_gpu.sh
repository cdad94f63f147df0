#!/usr/bin/env bash
# GPUs under Slurm: a process for each GPU, and back into the queue when the time is up.
#
#   NODES=... GPUS_PER_NODE=... launch/slurm_gpu.sh [SBATCH OPTIONS --] FLAGS
#
# submits itself; the job runs python -m tarflow_jax.main FLAGS --distributed=on, from the folder
# and with the environment of the one who submits. Two minutes before the end of its time the run
# is told to save itself (status 143), the job is queued again, and resumes from the workdir. It is
# not queued again when the run is done (0) or failed (1), its command was invalid (2), or after
# scancel.
#
# Settings: NODES, GPUS_PER_NODE; DRY_RUN=1 prints the command and runs nothing. Everything else
# is sbatch's: options before --, or its own variables (SBATCH_PARTITION, SBATCH_ACCOUNT, ...).
# All nodes must see the workdir. Output is added to slurm-JOB.out.
#
#   NODES=2 GPUS_PER_NODE=8 launch/slurm_gpu.sh --partition=gpu --time=24:00:00 -- \
#     --config=configs/afhq256.py --workdir=/scratch/me/afhq

#SBATCH --job-name=tarflow_jax
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
# Without B: the signal goes to the processes of the steps, which save themselves, and not to the
# shell of this script, which would end and take them along. A job that Slurm itself ends (scancel,
# preemption, time limit) has its shell signalled too: then queueing it again is up to Slurm.
set -euo pipefail

if [[ -n ${SLURM_JOB_ID-} ]]; then # in the job
  status=0 ended_by_slurm='' options=()
  trap 'ended_by_slurm=1' TERM
  # Since Slurm 22.05 srun does not take it from sbatch.
  [[ -z ${SLURM_CPUS_PER_TASK-} ]] || options=("--cpus-per-task=$SLURM_CPUS_PER_TASK")
  # The first process to leave must not have the others killed: they may still be saving. All see
  # all GPUs of their node; JAX takes the one of SLURM_LOCALID.
  srun --kill-on-bad-exit=0 --wait=120 --gpu-bind=none ${options[@]+"${options[@]}"} \
    python -m tarflow_jax.main "$@" --distributed=on || status=$?
  # The status of srun is the highest of its processes.
  if ((status == 143)) && [[ -z $ended_by_slurm ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
  exit "$status"
fi

# shellcheck disable=SC1091
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
case ${1-} in
  -h | --help) manual && exit ;;
  '') manual && exit 2 ;;
esac
example="NODES=2 GPUS_PER_NODE=8 $0 --partition=gpu --time=24:00:00 -- --config=FILE --workdir=DIR"
need "$example" NODES GPUS_PER_NODE
whole_number NODES "$NODES" 1
whole_number GPUS_PER_NODE "$GPUS_PER_NODE" 1
options=()
for word; do
  if [[ $word == -- ]]; then
    while [[ $1 != -- ]]; do
      options+=("$1")
      shift
    done
    shift
    break
  fi
done
(($# > 0)) || fail "there are no flags of the run after --, for example: $example"
run_or_print sbatch --nodes="$NODES" --gpus-per-node="$GPUS_PER_NODE" \
  --ntasks-per-node="$GPUS_PER_NODE" ${options[@]+"${options[@]}"} "${BASH_SOURCE[0]}" "$@"
