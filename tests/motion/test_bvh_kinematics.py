"""Positions of joints against an independent forward kinematics, on real files and on generated ones."""

import os
from pathlib import Path

import numpy as np
import pytest

from causal_diffusion.motion import bvh, bvh_conventions
from causal_diffusion.motion.bvh_text import parse
from tests.motion.bvh_bodies import independent, six_channels, written

SHARED = Path(os.environ.get("CD_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
REAL = ("data/motion/bvh/bandai/*.bvh", "data/motion/bvh/animated_drawings/*.bvh", "cases/bvh_*/*.bvh")
TO_Y_UP = {
    "y": lambda v: v,
    "z": lambda v: v[..., [0, 2, 1]] * [1, 1, -1],
    "x": lambda v: v[..., [1, 0, 2]] * [-1, 1, 1],
}


def conventions_of(path):
    ((conventions, _),) = bvh_conventions.decide([bvh_conventions.evidence(parse(path, 64))])
    return conventions


def agrees(path):
    m, read_as = bvh.read(path), conventions_of(path)
    theirs = independent(path, read_as.positions == "relative")
    wanted = np.stack([TO_Y_UP[read_as.up](theirs[name]) * read_as.scale for name in m.skeleton.names], axis=1)
    np.testing.assert_allclose(m.positions, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("pattern", REAL)
def test_real_files(pattern):
    paths = sorted(SHARED.parent.glob(pattern))
    if not paths:
        pytest.skip(f"the shared motion is not here (CD_SHARED_DATA): {SHARED.parent / pattern}")
    for path in paths:
        agrees(path)


@pytest.mark.parametrize("up", ["y", "z", "x"])
@pytest.mark.parametrize("dialect", ["three", "absolute", "relative"])
def test_generated_files(tmp_path, up, dialect):
    path = written(tmp_path / "a.bvh", up=up, frames=5)
    if dialect != "three":
        six_channels(path, dialect == "relative")
    assert conventions_of(path)[:3] == (up, 0.01, "relative" if dialect == "relative" else "absolute")
    agrees(path)


@pytest.mark.parametrize("seed", range(4))
def test_any_channels_in_any_order(tmp_path, seed):
    """Trees whose joints have some of six channels, in orders of their own, with both readings of positions."""
    rng = np.random.default_rng(seed)
    lines, count = ["HIERARCHY"], 0
    for j in range(6):
        some = rng.permutation([f"{axis}{kind}" for axis in "XYZ" for kind in ("position", "rotation")])
        some = some[: rng.integers(0, 7)]
        count += len(some)
        lines += [f"{'JOINT' if j else 'ROOT'} joint {j} {{", f"OFFSET {' '.join(map(str, rng.uniform(-9, 9, 3)))}"]
        lines += [f"CHANNELS {len(some)} {' '.join(some)}", f"JOINT side {j} {{", "OFFSET 1 2 3", "CHANNELS 0", "}"]
    lines = "\n".join(lines)
    rows = "\n".join(" ".join(map(str, row)) for row in rng.uniform(-180, 180, (3, count)))
    path = tmp_path / "a.bvh"
    path.write_text(f"{lines}\n{'}' * 6}\nMOTION\nFrames: 3\nFrame Time: 0.05\n{rows}\n")
    for positions in ("absolute", "relative"):
        m = bvh.read(path, up="y", scale=1.0, positions=positions)
        theirs = independent(path, positions == "relative")
        wanted = np.stack([theirs[name] for name in m.skeleton.names], axis=1)
        np.testing.assert_allclose(m.positions, wanted, atol=1e-9 * np.abs(wanted).max())
