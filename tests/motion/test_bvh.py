import os
from pathlib import Path

import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.motion import bvh
from causal_diffusion.motion import rotations as rot
from causal_diffusion.motion.skeleton import HUMANML3D, Skeleton, forward

SHARED = Path(os.environ.get("CD_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")) / "motion"
BANDAI = ("dataset-1_bow_normal_001", "dataset-1_kick_normal_001", "dataset-1_walk_normal_002",
          "dataset-1_walk_tired_001", "dataset-2_walk-turn-left_elderly_001",
          "dataset-2_wave-both-hands_youthful_001")  # fmt: skip
DRAWINGS = {"cmu1_jumping_jacks": (31, 125, 30.0), "dab": (27, 339, 30.0), "wave_hello": (27, 839, 120 / 1.001)}

SMALL = """HIERARCHY
ROOT Hips
{
\tOFFSET 7 7 7
\tCHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
\tJOINT Head {
\t\tOFFSET 0 1 0
\t\tCHANNELS 1 Xrotation
\t\tEnd Site { OFFSET 0 0.5 0 }
\t}
\tJOINT Hand
\t{
\t\tOFFSET 1 0 0
\t\tCHANNELS 4 Zposition Yrotation Xrotation Zrotation
\t\tEnd Site
\t\t{
\t\t\tOFFSET 0.25 0 0
\t\t}
\t}
}
MOTION
Frames: 2
Frame Time: 0.05

0 1 0 0 0 0 0   3 0 0 0
2 1 0 90 0 0 90 3 90 0 0
"""


def shared(*parts):
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the shared motion is not here (CD_SHARED_DATA): {path}")
    return path


def small(tmp_path, old="", new="", text=SMALL):
    assert old in text
    path = tmp_path / "small.bvh"
    path.write_text(text.replace(old, new, 1))
    return path


def test_a_file_by_hand(tmp_path):
    """The position channels of Hips and the one of Hand replace what OFFSET says; Head has one rotation."""
    m = bvh.read(small(tmp_path), up="y", scale=1.0, ends=True)
    assert m.skeleton.names == ("Hips", "Head", "Head_end", "Hand", "Hand_end") and m.fps == 20.0
    assert m.skeleton.parents == (-1, 0, 1, 0, 3)
    np.testing.assert_array_equal(m.skeleton.offsets, [[0, 0, 0], [0, 1, 0], [0, 0.5, 0], [1, 0, 3], [0.25, 0, 0]])
    first = [[0, 1, 0], [0, 2, 0], [0, 2.5, 0], [1, 1, 3], [1.25, 1, 3]]
    second = [[2, 1, 0], [1, 1, 0], [1, 1, 0.5], [2, 2, 3], [2, 2, 2.75]]
    np.testing.assert_allclose(m.positions, [first, second], atol=1e-15)
    np.testing.assert_array_equal(m.root, [[0, 1, 0], [2, 1, 0]])
    without = bvh.read(small(tmp_path), up="y", scale=1.0)
    assert without.skeleton.names == ("Hips", "Head", "Hand")
    np.testing.assert_array_equal(without.positions, m.positions[:, [0, 1, 3]])
    np.testing.assert_array_equal(without.rotations, m.rotations[:, [0, 1, 3]])


@pytest.mark.parametrize("space", ["\t", "   ", " \t"])
def test_any_space_parts_words(tmp_path, space):
    path = small(tmp_path)
    plain = bvh.read(path, up="y", scale=1.0)
    path.write_bytes(path.read_text().replace(" ", space).replace("\n", f"{space}\r\n").encode())
    np.testing.assert_array_equal(bvh.read(path, up="y", scale=1.0).positions, plain.positions)


def test_axes_and_units(tmp_path):
    given = bvh.read(small(tmp_path), up="y", scale=1.0)
    turned = bvh.read(small(tmp_path), up="z", scale=0.5)
    x, y, z = np.moveaxis(given.positions / 2, -1, 0)
    np.testing.assert_allclose(turned.positions, np.stack([x, z, -y], axis=-1), atol=1e-15)
    np.testing.assert_allclose(forward(turned.skeleton, turned.rotations, turned.root), turned.positions, atol=1e-15)


@pytest.mark.parametrize("unit, expected", [(1.0, 1.0), (100.0, 0.01), (1000.0, 0.001), (17.0, None)])
@pytest.mark.parametrize("up", ["y", "z"])
def test_axis_and_unit_are_found(tmp_path, unit, expected, up):
    """A body of 1.3 (0.5 + 0.8) = 1.69 m that bows in one frame of three, in files of several units."""
    names = ("Hips", "Spine", "Head", "LeftUpLeg", "LeftLeg", "LeftFoot")
    offsets = np.array([[0, 0, 0], [0, 0.2, 0], [0, 0.3, 0], [0.1, 0, 0], [0, -0.4, 0], [0, -0.4, 0]])
    body = Skeleton(names, (-1, 0, 1, 0, 3, 4), offsets)
    q = np.tile(rot.IDENTITY, (3, 6, 1))
    q[1, 0] = rot.from_euler([1.5, 0, 0], "XYZ")
    root = np.array([[0, 0.9, 0], [0, 0.9, 0.1], [0, 0.9, 0.2]])
    x = forward(body, q, root)
    if up == "z":
        quarter = rot.from_euler([np.pi / 2, 0, 0], "XYZ")
        body = body.with_offsets(rot.rotate(quarter, offsets))
        q, root = rot.multiply(rot.multiply(quarter, q), rot.inverse(quarter)), rot.rotate(quarter, root)
    bvh.write(tmp_path / "a.bvh", body, q, root, 30, scale=1 / unit)
    m = bvh.read(tmp_path / "a.bvh")
    scale = unit * expected if expected else bvh.TALL / 1.69
    np.testing.assert_allclose(m.positions, scale * x, atol=1e-5)


def test_a_helper_root_moves_the_body_and_is_dropped(tmp_path):
    six = "CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation"
    helper = SMALL.replace("ROOT Hips\n{", f"ROOT helper\n{{\nOFFSET 0 0 0\n{six}\nJOINT Hips\n{{")
    helper = helper.replace("}\nMOTION", "}\n}\nMOTION")
    helper = helper.replace("\n0 1 0 0", "\n9 0 0 90 0 0 0 1 0 0").replace("\n2 1 0 90", "\n0 0 8 0 0 0 2 1 0 90")
    m = bvh.read(small(tmp_path, text=helper), up="y", scale=1.0)
    plain = bvh.read(small(tmp_path), up="y", scale=1.0)
    assert m.skeleton == plain.skeleton
    x, y, z = np.moveaxis(plain.positions[0], -1, 0)
    np.testing.assert_allclose(m.positions[0], np.stack([9 - y, x, z], axis=-1), atol=1e-15)
    np.testing.assert_allclose(m.positions[1], plain.positions[1] + [0, 0, 8], atol=1e-15)
    np.testing.assert_allclose(forward(m.skeleton, m.rotations, m.root), m.positions, atol=1e-15)


@pytest.mark.parametrize("text, fps", [
    ("0.0333333", 30.0), (".03333", 30.0), ("0.008342", 120 / 1.001), ("0.008333", 120.0), ("0.0166667", 60.0),
    ("0.033367", 30 / 1.001), ("0.05", 20.0), ("0.04", 25.0), ("0.0417", 24.0),
    ("0.01666", 60.0), ("0.03", 1 / 0.03), ("0.07", 1 / 0.07),
    ("5e-2", 20.0), ("0.1", 10.0),
])  # fmt: skip
def test_frame_rates_are_those_that_the_time_is_rounded_from(tmp_path, text, fps):
    assert bvh.read(small(tmp_path, "0.05", text), up="y", scale=1.0).fps == fps


@pytest.mark.parametrize("order", ["ZXY", "XYZ", "ZYX", "yxz"])
def test_what_is_written_is_read_back(tmp_path, order):
    """In centimetres; the joints of HUMANML3D come back depth first."""
    rng = np.random.default_rng(0)
    lengths = rng.uniform(0.1, 0.4, (22, 1))
    offsets = rng.standard_normal((22, 3))
    body = HUMANML3D.with_offsets(lengths * offsets / np.linalg.norm(offsets, axis=-1, keepdims=True))
    q = rng.standard_normal((6, 22, 4))
    q /= np.linalg.norm(q, axis=-1, keepdims=True)
    q[0], root = rot.IDENTITY, rng.standard_normal((6, 3))
    bvh.write(tmp_path / "a.bvh", body, q, root, 119.88, order)
    m = bvh.read(tmp_path / "a.bvh", up="y", scale=0.01)
    back = [m.skeleton.index(name) for name in body.names]
    assert m.fps == pytest.approx(119.88, rel=1e-5) and m.skeleton.names != body.names
    np.testing.assert_allclose(m.positions[:, back], forward(body, q, root), atol=1e-6)
    np.testing.assert_allclose(rot.to_matrix(m.rotations[:, back]), rot.to_matrix(q), atol=1e-7)
    np.testing.assert_allclose(np.array(m.skeleton.offsets)[back][1:], np.array(body.offsets)[1:], atol=1e-7)


@pytest.mark.parametrize("name", BANDAI)
def test_real_files_are_where_the_converted_set_has_them(name):
    m = bvh.read(shared("bvh", "bandai", f"{name}.bvh"))
    np.testing.assert_allclose(forward(m.skeleton, m.rotations, m.root), m.positions, atol=1e-9)
    assert m.fps == 30.0
    for path in sorted(SHARED.glob("*.npz")):
        with np.load(path) as data:
            if name not in data["name"]:
                continue
            clip = list(data["name"]).index(name)
            rows = slice(*data["clip_start"][clip : clip + 2])
            assert m.skeleton.names == tuple(data["joint_names"]) and m.skeleton.parents == tuple(data["parents"])
            x = data["positions"][rows].astype(np.float64)
            x[..., ::2] += (data["root_xz"][rows] + data["origin_xz"][clip])[:, None]
            np.testing.assert_allclose(m.positions, x, atol=5e-4)  # what float16 keeps
            return
    pytest.skip(f"{name} is in none of the npz files")


@pytest.mark.parametrize("name", DRAWINGS)
def test_real_files_of_other_dialects(name, tmp_path):
    m = bvh.read(shared("bvh", "animated_drawings", f"{name}.bvh"))
    assert (m.skeleton.joints, len(m.root), m.fps) == DRAWINGS[name]
    np.testing.assert_allclose(forward(m.skeleton, m.rotations, m.root), m.positions, atol=1e-12)
    roles = m.skeleton.roles
    head, feet = m.positions[:, roles["head"], 1], m.positions[:, [roles["left_toe"], roles["right_toe"]], 1]
    assert (head - feet.max(axis=1) > 0.9).all() and (head < 1.7).all() and (feet > -0.1).all() and (feet.min() < 0.1)
    bvh.write(tmp_path / "a.bvh", m.skeleton, m.rotations, m.root, m.fps, "YXZ")
    back = bvh.read(tmp_path / "a.bvh")
    assert back.skeleton.names == m.skeleton.names and back.fps == m.fps
    np.testing.assert_allclose(back.positions, m.positions, atol=1e-5)
    np.testing.assert_allclose(rot.to_matrix(back.rotations), rot.to_matrix(m.rotations), atol=1e-5)


@pytest.mark.parametrize("old, new, message", [
    ("HIERARCHY", "HIERARCHIE", "line 1: 'HIERARCHIE' where a BVH file begins with 'HIERARCHY'"),
    (SMALL, "", "line 1: 'nothing' where a BVH file begins"),
    ("Frames: 2", "Frames: 4", "is cut short: it has 2 frames and says 'Frames: 4'"),
    ("Frames: 2\nFrame Time: 0.05\n\n", "Frames: 1\nFrame Time: 0.05\n\n0 1 0 0 0 0 0   3 0 0 0\n",
     "goes on after its end: it has 3 frames and says 'Frames: 1'"),
    ("Frames: 2", "Frames: two", "line 22: 'Frames: two' where 'Frames: 100' is due"),
    ("Frames: 2", "Frames: 0", "0 frames of 0.05 s: one or more"),
    ("Frame Time: 0.05", "", "line 25: '0 1 0 .*' where 'Frame Time: 0.033333' is due"),
    ("0.05", "-0.05", "2 frames of -0.05 s"),
    ("0.05", "nan", "line 23: Frame Time has nan"),
    (" 3 90 0 0\n", "", "line 26: frame 1 has 7 numbers of 11"),
    ("0 1 0 0 0", "0 1 0 0 nan", "line 25: frame 0 has nan for Hips Xrotation"),
    ("90 3 90", "90 inf 90", "line 26: frame 1 has inf for Hand Zposition"),
    ("90 3 90", "90 3,5 90", "line 26: frame 1: '3,5' is no number"),
    ("\tOFFSET 0 1 0", "\tOFFSET 0 1", "line 7: OFFSET has 2 numbers of 3"),
    ("\tOFFSET 0 1 0", "\tOFFSET 0 x 0", "line 7: OFFSET: 'x' is no number"),
    ("\tOFFSET 0 1 0", "", "joint Head ends without OFFSET"),
    ("CHANNELS 1 Xrotation", "", "joint Head ends without CHANNELS"),
    ("CHANNELS 1 Xrotation", "CHANNELS 2 Xrotation", "line 8: CHANNELS 2 is followed by 1 names"),
    ("1 Xrotation", "1 Wrotation", "line 8: unknown channel 'Wrotation': 'Xposition' or 'Zrotation' would do"),
    ("JOINT Head {", "JOINT Head", "line 7: 'OFFSET 0 1 0' where '{' is due"),
    ("JOINT Hand", "ROOT Hand", "line 11: 'ROOT Hand' has no place here"),
    ("JOINT Hand", "JOINT Head", "joints 1 and 2 are both named 'Head': rename one"),
    ("}\nMOTION", "MOTION", "'MOTION' has no place here"),
    ("MOTION", "}\nMOTION", "'}' has no place here"),
    (SMALL[SMALL.index("MOTION"):], "", "line 20: the file is cut short: no MOTION follows the joints"),
    (SMALL[SMALL.index("\tJOINT Hand"):], "", "the file is cut short: no MOTION follows"),
    (SMALL[SMALL.index("Frames"):], "", "line 21: the file is cut short where 'Frames: 100' is due"),
])  # fmt: skip
def test_a_file_that_is_wrong_is_named_with_its_line(tmp_path, old, new, message):
    with pytest.raises(UserError, match=message) as error:
        bvh.read(small(tmp_path, old, new))
    assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path / "small.bvh"))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.02, 0.5, 0.999])
def test_a_real_file_that_is_cut_short_is_refused(tmp_path, share):
    text = shared("bvh", "bandai", f"{BANDAI[2]}.bvh").read_text()
    path = tmp_path / "cut.bvh"
    path.write_text(text[: int(share * len(text))])
    with pytest.raises(UserError, match="cut.bvh.*(line|cut short)") as error:
        bvh.read(path)
    assert "\n" not in str(error.value)


def test_bad_arguments_are_named(tmp_path):
    body, q = Skeleton(("a", "b"), (-1, 0), np.ones((2, 3))), np.tile(rot.IDENTITY, (3, 2, 1))
    root, path, broken = np.zeros((3, 3)), tmp_path / "a.bvh", np.zeros((3, 3))
    broken[1, 1] = np.nan
    for call, message in (
        (lambda: bvh.read(tmp_path / "none.bvh"), r"none.bvh cannot be read \(No such file or directory\)"),
        (lambda: bvh.read(tmp_path), "cannot be read"),
        (lambda: bvh.read(small(tmp_path), up="w"), "up is 'w': one of y, z, x, -y, -z, -x would do"),
        (lambda: bvh.read(small(tmp_path), scale=0.0), "scale is 0.0: metres per unit, 0.01 would do"),
        (lambda: bvh.write(path, body, q[:, :1], root, 30), r"\[frames, 2, 4\] and \[frames, 3\] would do"),
        (lambda: bvh.write(path, body, q, broken, 30), "frame 1 has a number that is not finite"),
        (lambda: bvh.write(path, body, q, root, 0), "fps is 0"),
        (lambda: bvh.write(path, body, q, root, 30, "XYX"), "a rotation order has X, Y and Z once each"),
        (lambda: bvh.write(path, body.with_offsets(None), q, root, 30), "the skeleton has no offsets"),
        (lambda: bvh.write(tmp_path / "no" / "a.bvh", body, q, root, 30), "a.bvh cannot be written"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert not path.exists()
