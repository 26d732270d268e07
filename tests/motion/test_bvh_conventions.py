"""Axis, unit and meaning of positions are decided from the evidence of a folder."""

import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.motion import bvh, bvh_conventions
from causal_diffusion.motion.bvh_conventions import AXES, UNITS, Conventions
from causal_diffusion.motion.bvh_text import parse
from tests.motion.bvh_bodies import TURNS, renamed, six_channels, written

FACE, BACK, SIDE, CRAWL, HANDSTAND = (
    ((np.pi / 2, 0, 0), 0.75), ((-np.pi / 2, 0, 0), 0.75), ((0, 0, np.pi / 2), 0.75), ((np.pi / 3, 0, 0), 0.5),
    ((np.pi, 0, 0), 0.0),
)  # fmt: skip
POSES = {"face": FACE, "back": BACK, "side": SIDE, "crawl": CRAWL, "handstand": HANDSTAND}


def decided(*paths, **given):
    return bvh_conventions.decide([bvh_conventions.evidence(parse(path, 64)) for path in paths], **given)


def tall(motion):
    return np.ptp(motion.positions[..., 1])


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("up", TURNS)
def test_a_walk_in_any_axis_and_unit_is_one_walk(tmp_path, up, unit):
    path = written(tmp_path / "a.bvh", up, unit)
    ((conventions, uncertain),) = decided(path)
    assert conventions == Conventions(up, UNITS[unit].metres, "absolute", unit) and not uncertain
    plain = bvh.read(written(tmp_path / "b.bvh", "y", "cm"))
    m = bvh.read(path)
    np.testing.assert_allclose(m.positions, plain.positions, atol=2e-4)
    assert 1.5 < tall(m) < 1.7


@pytest.mark.parametrize("pose", POSES)
def test_a_body_that_lies_is_not_stood_up(tmp_path, pose):
    """Alone: its rest pose and the floor say so."""
    turned, lower = POSES[pose]
    path = written(tmp_path / "a.bvh", "y", "cm", turned, lower)
    assert decided(path)[0].conventions.up == "y"
    np.testing.assert_allclose(bvh.read(path).positions, bvh.read(path, up="y", scale=0.01).positions, atol=1e-9)


@pytest.mark.parametrize("up", ["y", "z"])
def test_files_of_one_rig_share_one_axis(tmp_path, up):
    paths = [written(tmp_path / f"{name}.bvh", up, "cm", *POSES[name]) for name in ("face", "back", "side", "crawl")]
    paths.append(written(tmp_path / "stands.bvh", up, "cm"))
    found = decided(*paths)
    assert {conventions for conventions, _ in found} == {Conventions(up, 0.01, "absolute", "cm")}


def test_other_rigs_decide_where_a_rig_does_not_say(tmp_path):
    """A body without a rest pose that stands, lying with its head along +z, among others that stand with y up."""
    lies = written(tmp_path / "lies.bvh", "y", "m", *FACE)
    lies.write_text(lies.read_text().replace("OFFSET 0.000000 -0.4", "OFFSET 0.000000 0.4"))  # legs up at rest
    stands = [renamed(written(tmp_path / f"{i}.bvh", "y", "cm"), lambda name: f"b_{name}") for i in range(2)]
    assert [found.conventions.up for found in decided(lies, *stands)] == ["y"] * 3
    z_up = [renamed(written(tmp_path / f"z{i}.bvh", "z", "cm"), lambda name: f"b_{name}") for i in range(2)]
    assert [found.conventions.up for found in decided(*stands, lies, *z_up)][-2:] == ["z", "z"]


def test_a_t_pose_at_first_changes_nothing(tmp_path):
    path = written(tmp_path / "a.bvh", "y", "in", *CRAWL)
    lines = path.read_text().split("\n")
    first = next(i for i, line in enumerate(lines) if line.startswith("Frame Time")) + 1
    numbers = lines[first].split()
    lines[first] = " ".join([*numbers[:3], *("0" for _ in numbers[3:])])
    path.write_text("\n".join(lines))
    assert decided(path)[0].conventions == Conventions("y", 0.0254, "absolute", "in")


@pytest.mark.parametrize("relative", [False, True])
def test_position_channels_are_read_as_they_are_meant(tmp_path, relative):
    plain = bvh.read(written(tmp_path / "a.bvh"))
    path = six_channels(written(tmp_path / "b.bvh"), relative)
    np.testing.assert_allclose(bvh.read(path).positions, plain.positions, atol=1e-6)
    wrong = bvh.read(path, up="y", scale=0.01, positions="absolute" if relative else "relative")
    assert not np.allclose(wrong.positions, plain.positions, atol=0.1)


@pytest.mark.parametrize("size, unit", [(1.0, "cm"), (0.6, "cm"), (1.3, "cm"), (0.95, "in"), (1.05, "in"), (1.0, "ft")])
def test_sizes_of_bodies_keep_their_unit(tmp_path, size, unit):
    assert decided(written(tmp_path / "a.bvh", unit=unit, size=size))[0].conventions.unit == unit


def test_what_is_uncertain_is_told(tmp_path):
    ((conventions, uncertain),) = decided(written(tmp_path / "a.bvh", unit="m", size=18.0))
    assert conventions.scale * 18 == pytest.approx(1.0, rel=0.2) and "is scaled to 1.7 m: try unit" in uncertain
    ((conventions, uncertain),) = decided(written(tmp_path / "b.bvh", "y", "cm", *FACE))
    assert uncertain == "up is taken to be y and may be z: try up = z"
    assert not decided(tmp_path / "b.bvh", up="y")[0].uncertain


def test_what_is_given_is_not_decided(tmp_path):
    path = written(tmp_path / "a.bvh", "y", "cm")
    for up in AXES:
        assert decided(path, up=up, scale=0.5, positions="relative")[0].conventions == Conventions(
            up, 0.5, "relative", ""
        )
        x, y = bvh.read(path, up=up).positions, bvh.read(path, up="y").positions
        sign = -1 if up.startswith("-") else 1
        np.testing.assert_allclose(x[..., 1], sign * y[..., "xyz".index(up[-1])], atol=1e-9)
        np.testing.assert_allclose(np.linalg.det(np.linalg.lstsq(y[0], x[0])[0]), 1.0, atol=1e-6)  # no mirror image
    assert tall(bvh.read(path, unit="mm")) == pytest.approx(0.1 * tall(bvh.read(path, unit="cm")))
    for values, message in (
        (dict(unit="yards"), "unit is 'yards': one of m, cm, mm, in, ft, or metres per unit, 0.0254"),
        (dict(unit="-1"), "unit is '-1'"), (dict(unit="cm", scale=1.0), "unit is cm and scale is 1: give one of them"),
        (dict(positions="delta"), "positions is 'delta': one of absolute, relative would do"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            bvh.read(path, **values)
