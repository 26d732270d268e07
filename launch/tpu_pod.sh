#!/usr/bin/env bash
# Trains on a Cloud TPU pod slice, one process per host. From anywhere with gcloud:
#
#   gcloud compute tpus tpu-vm create my-pod --zone=us-east5-a --accelerator-type=v5p-64 --version=v2-alpha-tpuv5 --spot
#   gcloud compute tpus tpu-vm ssh my-pod --zone=us-east5-a --worker=all --command="git clone REPOSITORY causal_diffusion
#       && cd causal_diffusion && python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
#   launch/tpu_pod.sh my-pod us-east5-a configs/quickstart.py gs://my-bucket/runs/quickstart --config.mesh.fsdp=32
#
# Name, zone, config, workdir (in a bucket or on storage that all hosts see); the rest goes to train.py as it is.
set -euo pipefail

pod=${1:?name of the TPU}
zone=${2:?its zone}
config=${3:?the config, as configs/quickstart.py}
workdir=${4:?the folder of the run, as gs://bucket/runs/quickstart}
shift 4

# --cluster=tpu: JAX asks the metadata server who the other hosts are. exec: SIGTERM reaches train.py itself.
train="set -a; source launch/xla_tpu.env; set +a
exec .venv/bin/python -u train.py --cluster=tpu --config=${config@Q} --workdir=${workdir@Q} ${*@Q}"

# The same command goes on from the newest checkpoint. A host that is taken away ends it (code 75 where it had the time
# to save, 134 or 255 where not): wait until the slice is there again, and start it. Other codes are mistakes and bugs.
for start in {1..100}; do
  code=0
  gcloud compute tpus tpu-vm ssh "$pod" --zone="$zone" --worker=all \
    --command="cd causal_diffusion && { $train; }" || code=$?
  if ((code < 3)); then
    exit "$code"
  fi
  echo "start $start ended with code $code: waiting for $pod" >&2
  until [[ $(gcloud compute tpus tpu-vm describe "$pod" --zone="$zone" --format='value(state)') == READY ]]; do
    sleep 60
  done
done
exit "$code"
