#!/usr/bin/env bash
# Trains on a Slurm cluster, one process per GPU. From the checkout:
#
#   sbatch launch/slurm.sh configs/quickstart.py runs/quickstart --config.mesh.fsdp=16
#
# The first argument is the config, the second the workdir, on a file system that all nodes see; the rest goes to
# train.py as it is. train.py finds the other processes through the variables that srun sets.
#
#SBATCH --job-name=causal_diffusion
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
# Slurm may take the nodes away and start the job again, with one log over all starts.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x.%j.log
# SIGTERM to all processes five minutes before the time is up: they agree on a step, save it and end with code 75.
#SBATCH --signal=TERM@300
set -euo pipefail

config=${1:?the config, as configs/quickstart.py}
workdir=${2:?the folder of the run}
shift 2

set -a # what the file sets is exported
# shellcheck source=launch/xla_gpu.env
source "${XLA_ENV:-launch/xla_gpu.env}"
set +a

# --wait: when one process has ended, the others have two minutes. A preempted run is over in good order by then; a run
# that has lost a process does not hold the nodes any longer. --kill-on-bad-exit=0: or else they would have none.
code=0
srun --label --wait=120 --kill-on-bad-exit=0 \
  python -u train.py --config="$config" --workdir="$workdir" "$@" || code=$?

if ((code == 75)); then # saved, and to be continued
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
