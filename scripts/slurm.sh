#!/bin/bash
# Trains on SLURM, on one node or several, over as many jobs as it takes:
#   sbatch --nodes=1 --gpus-per-node=8 --time=24:00:00 scripts/slurm.sh attention=ba backbone=resnet50 data.root=/data/imagenet
#
# Ten minutes before the time limit, SIGUSR1 asks the run to save and end; the job is then queued again, until the run's DONE
# is there. A job that failed is queued again only if it left a newer checkpoint than it found: a run that cannot start, or stops at
# the same step again, is not repeated forever. `scancel` ends it for good. Preemption is SLURM's own business: with
# PreemptMode=REQUEUE the job comes back by itself, and continues.
#
# Environment: PYTHON (default: .venv/bin/python, else python), RANKS_PER_NODE (default: the GPUs of the node), MAX_RESTARTS of
# torchrun after a dead rank (default 3), TRAIN (default train.py).
#SBATCH --job-name=attn
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --signal=USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -u
cd "${SLURM_SUBMIT_DIR:-.}" || exit 1
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
read -r -a train <<< "${TRAIN:-train.py}"

# The config is checked, and the run's folder found, before any GPU is touched.
run_dir=$("$python" train.py "$@" --cfg job --resolve --package run_dir) || exit 1
mkdir -p "$run_dir" || exit 1
started=$(mktemp "$run_dir/started.XXXXXX") || exit 1 # in this folder, because the clock of the file server may differ
trap 'rm -f "$started"' EXIT
trap : USR1 # meant for the ranks; if it reaches this shell too, the job must still be queued again

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
ranks=${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-gpu}}
# Without this variable, ranks restarted by torchrun on several nodes meet the keys of the dead ones and hang.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
torchrun=("$python" -m torch.distributed.run)
if "${torchrun[@]}" --help | grep -q -e --signals-to-handle; then
  # Signals that are not listed would kill torchrun alone, and its workers would keep running.
  torchrun+=(--max-restarts="${MAX_RESTARTS:-3}" --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1)
else
  # An older torchrun cannot list them. It ignores SIGUSR1, of which SLURM tells the ranks as well; and since it would start them
  # again when they have saved, it restarts nothing: the job comes back by the queue.
  torchrun=(bash -c 'trap "" USR1; exec "$@"' bash "${torchrun[@]}" --max-restarts=0)
fi
srun --kill-on-bad-exit=0 "${torchrun[@]}" \
  --nnodes="${SLURM_NNODES:-1}" --nproc-per-node="$ranks" \
  --rdzv-backend=c10d --rdzv-endpoint="$head:$((20000 + SLURM_JOB_ID % 40000))" --rdzv-id="$SLURM_JOB_ID" \
  "${train[@]}" "$@"

if [ -e "$run_dir/DONE" ]; then
  echo "finished: $run_dir"
elif [ "$run_dir/last.pt" -nt "$started" ]; then
  echo "not finished: job $SLURM_JOB_ID is queued again"
  scontrol requeue "$SLURM_JOB_ID"
else
  echo "error: this job left no new checkpoint in $run_dir; not requeued" >&2
  exit 1
fi
