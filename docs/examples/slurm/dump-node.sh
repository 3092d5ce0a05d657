#!/bin/bash
# Label with all GPUs of one node, a process for each, into one store.
#   sbatch dump-node.sh --teacher resnet50 --weights default --data imagenet --views 8 --out /shared/labels
#SBATCH --job-name=dump
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail

exec softlabels dump --devices "${DEVICES:-all}" "$@"
