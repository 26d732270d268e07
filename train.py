"""Trains a system from its config.

    python train.py --config=configs/quickstart.py --workdir=runs/quickstart
    python train.py --config=configs/quickstart.py --workdir=runs/short --config.train.steps=200
    python train.py --config=configs/quickstart.py --dry_run

Any key of the config can be set as --config.section.key=value. The same command goes on where it was stopped.
"""

from causal_diffusion.cli import run, train_main

if __name__ == "__main__":
    run(train_main)
