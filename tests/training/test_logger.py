"""The record of a run: means, pending losses, and the cut back to a checkpoint."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.training.logger import Logger

LOSSES = [float(np.float32(x)) for x in np.random.default_rng(0).uniform(0.1, 2.0, 12)]


def log(workdir, start, stop, every=3, pending=()):
    """A run from step ``start`` to ``stop``; returns the logger, closed, and what was pending."""
    logger = Logger(workdir, len(LOSSES), start, every, list(pending))
    try:
        for step in range(start + 1, stop + 1):
            metrics = {"loss": jnp.float32(LOSSES[step - 1]), "loss_by_frame": jnp.zeros(4), "lr": jnp.float32(step)}
            logger.step(step, metrics)
        return logger.pending()
    finally:
        logger.close()


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_line_has_the_mean_loss_and_the_last_scalars(tmp_path):
    pending = log(tmp_path, 0, 8)
    assert lines(tmp_path) == [
        {"step": 3, "loss": float(np.mean(LOSSES[:3])), "lr": 3.0},
        {"step": 6, "loss": float(np.mean(LOSSES[3:6])), "lr": 6.0},
    ]
    assert pending == LOSSES[6:8]


@pytest.mark.parametrize("stop", range(13))
def test_stopped_and_resumed_it_is_the_same_bytes(tmp_path, stop):
    log(tmp_path / "whole", 0, 12)
    pending = log(tmp_path / "parts", 0, stop)
    log(tmp_path / "parts", stop, 12, pending=pending)
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_lines_after_the_checkpoint_and_half_a_line_are_cut(tmp_path):
    """Killed at step 11, with the checkpoint of step 7: lines 9 and a half 12 are on disk."""
    log(tmp_path / "whole", 0, 12)
    log(tmp_path / "killed", 0, 11)
    with (tmp_path / "killed/metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "loss": 0.12')
    log(tmp_path / "killed", 7, 12, pending=LOSSES[6:7])
    assert (tmp_path / "killed/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == ["metrics.jsonl", "tensorboard"]


@pytest.mark.parametrize("garbage", ['{"step": 9', '{"step": 9, "loss"', "\0\0\0\0", "null"])
def test_whatever_a_crash_left_at_the_end_is_cut(tmp_path, garbage):
    log(tmp_path, 0, 6)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole + garbage.encode())
    log(tmp_path, 12, 12)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_evaluation_lines_of_the_checkpoints_own_step_stay(tmp_path):
    logger = Logger(tmp_path, 12, 0, 3, [])
    logger.scalars(6, {"held_out/loss": 0.5})
    logger.close()
    log(tmp_path, 6, 6)
    assert lines(tmp_path) == [{"step": 6, "held_out/loss": 0.5}]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, value):
    logger = Logger(tmp_path, 12, 0, 2, [])
    logger.step(1, {"loss": jnp.float32(1.0)})
    with pytest.raises(UserError, match=rf"the loss is {value} at step 2: a smaller train.lr"):
        logger.step(2, {"loss": jnp.float32(value)})
    logger.close()


def test_the_bar_shows_loss_speed_and_time_left(tmp_path, capsys):
    log(tmp_path, 0, 6)
    bar = capsys.readouterr().err
    assert f"loss {np.mean(LOSSES[3:6]):.4f}" in bar
    assert "step/s" in bar and "6/12" in bar and "<" in bar
