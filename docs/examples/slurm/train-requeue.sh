#!/bin/bash
# Train on all GPUs of one node for longer than a job may run. Two minutes before its time is up SLURM sends SIGUSR1 to
# this script: the training writes a checkpoint and ends, and the job is queued again and goes on from there.
#   sbatch train-requeue.sh --student mobilenetv3 --labels /shared/labels --epochs 300 --out /shared/runs/mobilenetv3
#SBATCH --job-name=train
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

torchrun --standalone --nproc-per-node "${PROCESSES:-4}" -m softlabels train "$@" &
training=$!

requeue=no
trap 'requeue=yes; kill -TERM "$training"' USR1
trap 'kill -TERM "$training"' TERM # SLURM queues a preempted job again itself

# A signal that is trapped ends `wait` early, with a code above 128.
wait "$training"; code=$?
while kill -0 "$training" 2> /dev/null; do
    wait "$training"; code=$?
done

if [ "$requeue" = yes ] && [ "$code" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
