#!/usr/bin/env bash
# Trains on GPU nodes of a SLURM cluster, one process a GPU, and goes on after preemptions and time limits.
#
#   NODES=2 GPUS=8 ./launch/slurm.sh [--dry-run] -m walt.train_denoiser --config=FILE --workdir=DIR
#
# Called so, on a login node, it submits itself; what follows is for .venv/bin/python, which is told --distributed=auto
# besides. --dry-run prints the submission and what the job would run. .venv (launch/install.sh cuda) and DIR have to be
# in a file system that all nodes share.
#
#   NODES    how many                                    TIME    limit of one stay in the cluster: 24:00:00
#   GPUS     of a node                                   GRACE   seconds before it at which a run saves: 120
#   CPUS     cores for each GPU's process: 8             LOGS    folder of logs: runs/slurm
#   NAME     of the job: walt
#
# Account, partition and the like are sbatch's own variables: SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_QOS,
# SBATCH_CONSTRAINT, ... The job's environment is that of the submission.
#
# SIGTERM, sent GRACE seconds before the limit and by preemption, makes the run save at one step and end with exit code
# 143; the job is then put into the queue again, and goes on from the newest checkpoint. Any other code ends the job.
set -euo pipefail

fail() { echo "launch/slurm.sh: $*" >&2; exit 2; }
quoted() { local words; printf -v words '%q ' "$@"; echo "${words% }"; }

# In the job: in the folder that sbatch was given, since SLURM runs a copy of this file.
if [[ ${1:-} == --in-job ]]; then
  shift
  source launch/environment.sh
  # srun takes --cpus-per-task from the job no longer (22.05). No GPU is bound to a task: JAX picks the one of its local
  # number among all. One that has saved first must not end the others, but they may not stay for ever either.
  step=(srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 --wait=600 --open-mode=append
    --output="$LOGS/%x-%j-%t.log" .venv/bin/python "$@" --distributed=auto)
  if [[ ${DRY_RUN:-} ]]; then
    quoted "${step[@]}"
    quoted scontrol requeue "$SLURM_JOB_ID"
    exit
  fi
  trap : TERM # the processes have it too; this shell is still needed when they have ended
  code=0
  "${step[@]}" || code=$?
  if [[ $code == 143 ]]; then
    echo "saved after SIGTERM: job $SLURM_JOB_ID goes into the queue again"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$code"
fi

cd "$(dirname "$0")/.."
dry=''
if [[ ${1:-} == --dry-run ]]; then
  dry=yes
  shift
fi
for name in NODES GPUS; do
  [[ ${!name:-} =~ ^[1-9][0-9]*$ ]] || fail "$name has to be a number, 1 or more, not '${!name:-}'"
done
[[ $# -gt 0 && $1 != --* ]] || fail "give what to run, for example -m walt.train_denoiser and its flags, not '${1:-}'"
export LOGS=${LOGS:-runs/slurm}
job=(sbatch --job-name="${NAME:-walt}" --nodes="$NODES" --ntasks-per-node="$GPUS" --gpus-per-node="$GPUS"
  --cpus-per-task="${CPUS:-8}" --time="${TIME:-24:00:00}" --signal="TERM@${GRACE:-120}" --requeue --open-mode=append
  --output="$LOGS/%x-%j.log" --chdir="$PWD" --export=ALL launch/slurm.sh --in-job "$@")
if [[ $dry ]]; then
  quoted "${job[@]}"
  DRY_RUN=yes SLURM_JOB_ID=JOB SLURM_CPUS_PER_TASK=${CPUS:-8} launch/slurm.sh --in-job "$@"
  exit
fi
[[ -x .venv/bin/python ]] || { echo 'no .venv/bin/python: run launch/install.sh cuda first' >&2; exit 1; }
mkdir -p "$LOGS"
"${job[@]}"
