#!/bin/bash
# One task of the job array that launch.slurm submits: one row of a sweep through both binaries. Its arguments are
#   CHECKOUT PYTHON SWEEP SPLIT ROWS
# and line n + 1 of the file ROWS names the row of task n. Nothing is pasted into this text, so nothing in it needs quoting.
cd "$1" || exit
row=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$5")
# Not SLURM_JOB_ID: that of one task is that of the whole array.
task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

# Since Slurm 22.05 srun does not take over what sbatch was given. It is this job's own: launch.slurm hands nothing on of the session
# that it was called from.
[ -n "$SLURM_CPUS_PER_TASK" ] && export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

"$2" -m launch.local --sweep="$3" --split="$4" --rows="$row" --through='srun --kill-on-bad-exit=0' &
launcher=$!
# Some time before the limit this shell alone gets a USR1. The launcher starts nothing more and passes it on to srun, and srun to
# the processes, which save and end. (A TERM to srun would kill them. Nor would `scancel --signal` do: where tasks of the array are
# pending Slurm 22.05 sends the signal, reports that it could not, and scancel sends it again, which ends what is saving.)
trap 'kill -USR1 "$launcher"' USR1
# scancel, preemption and the limit itself send a TERM to every process of the job: there is nothing to pass on.
trap : TERM
while kill -0 "$launcher" 2>/dev/null; do wait "$launcher"; done
wait "$launcher"
status=$?

# 75: saved, run me again. A task that was cancelled would come back, too; its state is no longer RUNNING.
if [ "$status" = 75 ] && [ "$(squeue --noheader --jobs="$task" --format=%T)" = RUNNING ]; then
  scontrol requeue "$task"
fi
exit "$status"
