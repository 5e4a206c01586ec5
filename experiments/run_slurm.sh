#!/usr/bin/env bash
# Trains a config on several GPU nodes under SLURM, one process a node with all of its GPUs.
#
#   sbatch --nodes=4 --gpus-per-node=8 experiments/run_slurm.sh \
#     configs/ms1m_r100_arcface.py /shared/runs/ms1m_r100 --config.data_dir=/shared/data
#
# It expects to be submitted from this repository, with ida_jax[cuda] installed in the active
# environment (venv or conda), and the repository, data and workdir on a file system that all nodes
# see. ida_jax finds the other processes by SLURM's own variables.
#
# Before the time limit or a preemption SLURM sends SIGTERM, on which the run saves and ends. The
# same command goes on from the last checkpoint; a requeued job does so by itself.
#SBATCH --job-name=ida_jax
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
set -euo pipefail

config=${1:?a config, such as configs/ms1m_r100_arcface.py}
workdir=${2:?a folder that all nodes see}
shift 2

# Of SLURM's tasks jax takes one GPU each, unless told otherwise.
gpus=${SLURM_GPUS_ON_NODE:?submit it with sbatch --gpus-per-node=N}
JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))
export JAX_LOCAL_DEVICE_IDS

exec srun --kill-on-bad-exit=1 \
  python -m ida_jax.main --config="$config" --workdir="$workdir" "$@"
