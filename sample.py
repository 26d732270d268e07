"""Streams from a trained system into a video file.

    python sample.py --checkpoint=runs/quickstart --frames=256 --batch=4 --out=clip.mp4

Elastic keys of the config can be changed as --config.schedule.steps=4.
"""

from causal_diffusion.cli import run, sample_main

if __name__ == "__main__":
    run(sample_main)
