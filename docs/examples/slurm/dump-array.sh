#!/bin/bash
# Label with the jobs of an array: each writes a part of the shards into one store on a shared file system.
# A job that was killed or preempted goes on where it stopped when it is started again.
#   sbatch dump-array.sh --teacher resnet50 --weights default --data imagenet --views 8 --out /shared/labels
#SBATCH --job-name=dump
#SBATCH --array=0-3
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail

# The count is that of the whole array, also when one of its jobs is started again alone.
exec softlabels dump --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" "$@"
