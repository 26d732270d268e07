import io
import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from causal_diffusion.errors import UserError
from causal_diffusion.motion import bvh
from causal_diffusion.motion.inverse_kinematics import rest_offsets
from causal_diffusion.motion.skeleton import HUMANML3D, of
from causal_diffusion.render import figure, motion
from causal_diffusion.render.figure import NIGHT, PAPER
from tests.walking_stream import NAMES, PARENTS, walk

SHARED = Path(os.environ.get("CD_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
BODY = of(NAMES, PARENTS)
SMALL = dict(size=(120, 120))


def near(picture, colour, hue=0.08):
    """Pixels of about a colour's hue, shaded or not."""
    pixels, colour = np.asarray(picture, float) + 1, np.array(colour, float) + 1
    shares = pixels / pixels.sum(axis=-1, keepdims=True)
    return (np.abs(shares - colour / colour.sum()) < hue).all(axis=-1) & (pixels.max(axis=-1) > 60)


def middle(mask):
    return np.array([axis.mean() for axis in np.nonzero(mask)])[::-1]


def in_place(frames=20):
    """Faces +z all the time."""
    x = walk(1, 30).repeat(frames, axis=0)
    x[:, 6] += [0.0, 0.2, 0.1]  # a hand
    return x


def test_frames_are_pictures_of_the_right_size():
    clip = motion.frames(walk(3, 30), BODY, size=(90, 130))
    assert clip.shape == (3, 130, 90, 3) and clip.dtype == np.uint8
    assert not np.array_equal(clip[0], clip[2])


def test_left_and_right_have_their_colours_and_places():
    """Seen from the front, the left limbs are on the right of the picture."""
    (picture,) = motion.frames(in_place(1), BODY, azimuth=0.0, **SMALL)
    left, right = middle(near(picture, NIGHT.left)), middle(near(picture, NIGHT.right))
    assert left[0] > right[0] + 8
    (behind,) = motion.frames(in_place(1), BODY, azimuth=np.pi, **SMALL)
    assert middle(near(behind, NIGHT.left))[0] < middle(near(behind, NIGHT.right))[0] - 8
    (plain,) = motion.frames(in_place(1), PARENTS, azimuth=0.0, **SMALL)
    assert not near(plain, NIGHT.left, 0.04).any() and not near(plain, NIGHT.right, 0.04).any()


@pytest.mark.parametrize("turn", [0.0, 1.0, 2.5, -2.0])
def test_the_camera_stands_half_in_front_wherever_the_body_faces(turn):
    c, s = np.cos(turn), np.sin(turn)
    x = in_place(1) @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    found = figure.heading(figure.figure_of(x, BODY), x)
    np.testing.assert_allclose(np.exp(1j * found), np.exp(1j * turn), atol=1e-6)


def test_a_following_camera_keeps_the_body_in_the_middle_and_a_still_one_does_not():
    x = in_place(40)
    x[..., 0] += np.linspace(0, 4, 40)[:, None]  # at an even pace
    places = {}
    for follow in (True, False):
        clip = motion.frames(x, BODY, follow=follow, azimuth=0.0, **SMALL)[[8, 31]]
        places[follow] = [middle(near(picture, NIGHT.left) | near(picture, NIGHT.right))[0] for picture in clip]
    assert abs(np.diff(places[True])[0]) < 4 and np.diff(places[False])[0] > 30


def test_the_whole_body_is_in_the_picture_in_every_frame():
    x = walk(30, 10)
    for follow in (True, False):
        clip = motion.frames(x, BODY, follow=follow, captions="a few words", **SMALL)
        for picture in clip[::6]:
            body = near(picture, NIGHT.left) | near(picture, NIGHT.right)
            edge = np.ones_like(body)
            edge[1:-1, 1:-1] = False
            assert body.any() and not (body & edge).any()


def test_there_is_a_shadow_and_it_is_darker_than_the_floor():
    x = in_place(1)
    seen = figure.figure_of(x, BODY)
    camera = motion.fitted(motion._padded(x), 0.4, 0.4, 120, 120)
    shade = figure.shadow_of(camera, seen, x)
    assert 0.3 < shade.max() <= 0.62 and 0.01 < (shade > 0.2).mean() < 0.2
    lit, dark = (figure.floor_picture(camera, NIGHT, (0, 0), 5.0, s) for s in (0.0, shade))
    assert dark[shade > 0.3].mean() < 0.8 * lit[shade > 0.3].mean()
    assert np.array_equal(dark[shade == 0], lit[shade == 0])


def test_captions_change_with_time_and_so_does_the_path():
    x = walk(24, 10)
    changed = motion.frames(x, BODY, captions={0: "walks", 12: "goes on"}, **SMALL)
    same = motion.frames(x, BODY, captions="walks", **SMALL)
    top = np.s_[:, :28]
    assert np.array_equal(changed[:12][top], same[:12][top])
    assert not np.array_equal(changed[12:][top], same[12:][top])
    first, second = (near(changed[-1], colour, 0.04).sum() for colour in NIGHT.paths[:2])
    assert first > 5 and second > 5 and not near(same[-1], NIGHT.paths[1], 0.04).any()


@pytest.mark.parametrize("look", [NIGHT, PAPER], ids=["night", "paper"])
def test_a_strip_has_its_poses_in_order_and_later_ones_stand_out(look):
    picture = motion.strip(in_place(), BODY, 4, "stands", width=480, height=160, fps=30, look=look)
    assert picture.dtype == np.uint8 and picture.shape[1:] == (480, 3) and len(picture) < 210
    body = np.ptp(picture[40:], axis=-1) > 24  # limbs have colours, the rest has not
    columns = np.flatnonzero(body.any(axis=0))
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > 12) + 1)
    assert len(groups) == 4
    strength = [np.ptp(picture[40:, g][body[:, g]], axis=-1).mean() for g in groups]
    assert strength[0] < strength[1] < strength[2] < strength[3] and strength[0] < 0.7 * strength[3]


def test_a_strip_of_a_walk_is_left_where_it_was():
    x = walk(60, 15)
    there, apart = (motion.strip(x, BODY, 3, width=320, height=200, spread=spread) for spread in (None, True))
    assert np.array_equal(there, motion.strip(x, BODY, 3, width=320, height=200, spread=False))
    assert not np.array_equal(there, apart)
    assert near(there, NIGHT.paths[0], 0.04).sum() > 20 and near(apart, NIGHT.paths[0], 0.04).sum() == 0


def test_a_strip_of_one_frame_and_of_a_body_without_names():
    one = motion.strip(in_place(1), PARENTS, 5, width=160, height=160)
    assert one.shape[1] == 160
    humanml = np.random.default_rng(0).normal(size=(4, 22, 3)) * 0.2 + [0, 0.9, 0]
    assert motion.strip(humanml, HUMANML3D, 2, width=160, height=160).shape[1] == 160


def test_a_sheet_holds_every_strip():
    clips = {"stands": in_place(), "a long caption that needs more than one line in a narrow strip": walk(40, 10)}
    options = dict(width=240, height=120)
    tall = motion.sheet(clips, BODY, 3, title="both", **options)
    first = motion.strip(clips["stands"], BODY, 3, "stands", **options)
    assert np.array_equal(tall[44 : 44 + len(first)], first)
    rest = tall[44 + len(first) + 10 :]
    assert tall.shape[1] == 240 and len(rest) > 100 and near(rest, NIGHT.left).any()
    side = motion.sheet([*clips.items(), ("again", in_place())], BODY, 3, across=2, **options)
    assert side.shape[1] == 480
    assert (side[-20:, 240:] == NIGHT.sky).all()  # the fourth place is empty


def test_write_clip(tmp_path):
    x = walk(5, 10)
    path = motion.write_clip(tmp_path / "clip.mp4", x, BODY, fps=10, **SMALL)
    with av.open(path) as video:
        stream = video.streams.video[0]
        assert (stream.frames, stream.average_rate, stream.width) == (5, 10, 120)
    with Image.open(io.BytesIO(motion.write_clip(tmp_path / "clip.gif", x, BODY, fps=10, **SMALL).read_bytes())) as gif:
        assert (gif.n_frames, gif.size) == (5, (120, 120))
    with pytest.raises(UserError, match="avi"):
        motion.write_clip(tmp_path / "clip.avi", x, BODY, **SMALL)


def test_write_bvh_is_read_back_within_a_centimetre(tmp_path):
    x = walk(12, 30).astype(np.float64)
    path = motion.write_bvh(tmp_path / "walk.bvh", x, BODY, 30)
    known = motion.write_bvh(tmp_path / "known.bvh", x, BODY.with_offsets(rest_offsets(x, BODY)), 30)
    assert path.read_bytes() == known.read_bytes()
    read = bvh.read(path)
    order = [read.skeleton.names.index(name) for name in NAMES]
    assert np.linalg.norm(read.positions[:, order] - x, axis=-1).mean() < 0.01
    assert read.fps == 30


@pytest.mark.parametrize("wrong, said", [
    (dict(positions=np.zeros((3, 18))), r"\(3, 18\)"),
    (dict(positions=np.zeros((3, 17, 3))), "18 joints"),
    (dict(positions=np.full((3, 18, 3), np.nan)), "joint 0 of frame 0"),
    (dict(parents=(0, *PARENTS[1:])), "parent"),
    (dict(names=NAMES[:5]), "5 names"),
    (dict(captions={7: "later"}), "frame 7"),
    (dict(columns=0), "columns is 0"),
])  # fmt: skip
def test_what_does_not_fit_is_told(wrong, said):
    given = dict(positions=in_place(3), parents=PARENTS, names=NAMES, width=100, height=100) | wrong
    with pytest.raises(UserError, match=said) as error:
        motion.strip(**given)
    assert "\n" not in str(error.value)


def test_real_clips_are_drawn():
    path = SHARED / "motion" / "bandai_test.npz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    data = np.load(path)
    start, end = data["clip_start"][:2]
    x = data["positions"][start:end].astype(np.float32)
    x[..., [0, 2]] += data["root_xz"][start:end, None]
    body, text = of(data["joint_names"], data["parents"]), str(data["text"][0])
    picture = motion.strip(x, body, 3, text, width=320, height=150)
    assert near(picture, NIGHT.left).sum() > 100 and near(picture, NIGHT.right).sum() > 100
