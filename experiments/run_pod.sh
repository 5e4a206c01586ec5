#!/usr/bin/env bash
# Trains a config on every worker of a Cloud TPU slice. Run it on your own machine.
#
#   TPU=my-slice ZONE=us-west4-a BUCKET=my-bucket \
#     experiments/run_pod.sh configs/ms1m_r100_arcface.py ms1m_r100 --config.data_dir=/mnt/data
#
# It expects gcloud, logged in; the slice TPU in ZONE, ready; on each of its workers gcsfuse, this
# repository in ~/ida_jax, installed with pip install -e '.[tpu]', and the data set under
# --config.data_dir; and a bucket BUCKET in the slice's region, with hierarchical namespace (there a
# checkpoint's folder is renamed in one step), which is mounted on ~/bucket. The run's files are in
# its folder runs/ms1m_r100. Whether a config fits the slice, ida-jax plan says before.
#
# jax.distributed tells the workers of one another, and of several slices where TPU names them.
# The workers train on when this ends or its connection breaks; it only shows the first one's log. To
# stop them, with the state saved:
#   gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command='pkill -f ida_jax.main'
# After that, a preemption or an error the same command goes on from the last checkpoint. Curves in
# the bucket are complete after the run; during it, files that are being appended to may lag there.
set -euo pipefail

: "${TPU:?name the slice}" "${ZONE:?name its zone}" "${BUCKET:?name a bucket for the results}"
config=${1:?a config, such as configs/ms1m_r100_arcface.py}
name=${2:?the name of the run, a folder in the bucket}
shift 2

# Quoted once more, for the workers' shells.
flags=$(printf '%q ' --config="$config" --workdir="../bucket/runs/$name" "$@")
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="
  set -e
  mkdir -p ~/bucket
  mountpoint -q ~/bucket || gcsfuse --implicit-dirs $BUCKET ~/bucket
  mkdir -p ~/bucket/runs
  cd ~/ida_jax
  nohup python -m ida_jax.main $flags \
    > ~/ida_jax.log 2>&1 < /dev/null &"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=0 --command="
  tail -F --retry ~/ida_jax.log"
