"""What an import does with files of doubtful conventions, and with files that cannot be used."""

import logging
import re

import numpy as np
import pytest

from causal_diffusion.data.motion_npz import read_file
from causal_diffusion.errors import UserError
from causal_diffusion.motion.bvh_text import parse
from causal_diffusion.motion.skeleton import HUMANML3D
from causal_diffusion.motion_import import FILES, import_folder, main
from tests.motion.bvh_bodies import renamed, six_channels, written

FACE = dict(pose=(np.pi / 2, 0, 0), lower=0.75)
BACK = dict(pose=(-np.pi / 2, 0, 0), lower=0.75)


def brought(folder, **options):
    return import_folder(folder, folder.parent / "clips", **dict(progress=False, holdout=0.0) | options)


def clips_of(folder):
    clips, _ = read_file(folder.parent / "clips" / FILES["train"])
    assert all(np.isfinite(clip.positions).all() for clip in clips)
    return {clip.name: clip for clip in clips}


def heights(folder):
    return {name: float(np.ptp(clip.positions[..., 1])) for name, clip in clips_of(folder).items()}


@pytest.fixture
def folder(tmp_path):
    """Two walks of one body."""
    for name in "ab":
        written(tmp_path / f"bvh/{name}.bvh")
    return tmp_path / "bvh"


def edit(path, pattern, new):
    text = re.sub(pattern, new, path.read_text(), count=1)
    assert text != path.read_text()
    path.write_text(text)


@pytest.mark.parametrize("up, unit", [("y", "in"), ("z", "cm"), ("z", "m"), ("x", "ft")])
def test_one_decision_for_a_folder(tmp_path, up, unit, caplog):
    """Some stand and some lie: all have the axis and the unit of the folder, which are said."""
    folder = tmp_path / "bvh"
    for name, pose in (("a", {}), ("b", {}), ("face", FACE), ("back", BACK)):
        written(folder / f"{name}.bvh", up, unit, **pose)
    made = brought(folder)
    assert made.conventions == [f"4 files (a.bvh, b.bvh, back.bvh and 1 more): up = {up}, unit = {unit}, positions = "
                                "absolute"]  # fmt: skip
    tall = heights(folder)
    assert all(1.5 < tall[name] < 1.7 for name in "ab") and all(tall[name] < 0.9 for name in ("face", "back"))


def test_linked_files_and_folders_are_used_once(folder, caplog):
    other = written(folder.parent / "elsewhere/c.bvh")
    (folder / "linked").symlink_to(other.parent)
    (folder / "again").symlink_to(other.parent)
    (folder / "loop").symlink_to(folder)
    (folder / "a2.bvh").symlink_to(folder / "a.bvh")
    (folder / "gone.bvh").symlink_to(folder / "nowhere")
    (folder / "notes.txt").touch()
    made = brought(folder)
    assert set(clips_of(folder)) == {"a", "b", "again/c"}
    assert made.left_out == [f"{folder / 'gone.bvh'}: broken link"]
    (line,) = [line for line in caplog.messages if line.startswith("not used: ")]
    for part in ("broken link (gone.bvh)", "the same file as a.bvh (a2.bvh)", "used under another name (linked, loop)"):
        assert part in line
    with pytest.raises(UserError, match="gone.bvh: broken link"):
        brought(folder, strict=True)


def test_conventions_can_be_stated(tmp_path, capsys):
    folder = tmp_path / "bvh"
    written(folder / "face.bvh", "z", "cm", **BACK)
    main([str(folder), str(tmp_path / "clips"), "--up=z", "--unit=cm", "--positions=absolute", "--holdout=0"])
    assert "1 files (face.bvh): up = z, unit = cm, positions = absolute\n" in capsys.readouterr().out
    assert heights(folder)["face"] < 0.9
    for option, message in (("--up=up", "argument --up: invalid choice"), ("--unit=yard", "--unit is 'yard': one of m"),
                            ("--positions=delta", "argument --positions: invalid choice")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            main([str(folder), str(tmp_path / "clips"), option])
    with pytest.raises(UserError, match="--unit is cm and --scale is 1: give one of them"):
        brought(folder, unit="cm", scale=1.0)


def test_a_file_that_looks_as_if_another_axis_were_up_is_told(folder, caplog):
    for name in "cd":
        written(folder / f"{name}.bvh")
    written(folder / "z.bvh", "z")
    brought(folder)
    assert caplog.messages == ["1 files look as if another axis were up, and are taken to lie: z.bvh; import them by "
                               "themselves, or try --up, if they do not"]  # fmt: skip


def test_six_channels_of_both_meanings_are_one_body(folder):
    six_channels(folder / "a.bvh", relative=True)
    six_channels(folder / "b.bvh", relative=False)
    made = brought(folder)
    clips = clips_of(folder)
    np.testing.assert_allclose(clips["a"].positions, clips["b"].positions, atol=1e-3)
    assert sorted(line.rpartition(" = ")[2] for line in made.conventions) == ["absolute", "relative"]


def collapse(path):
    """All joints are at the hips."""
    path.write_text(re.sub(r"OFFSET .*", "OFFSET 0 0 0", path.read_text()))


@pytest.mark.parametrize("spoil, why", [
    (lambda p: written(p, size=12.0), r"its body is 23\.\d m tall, and bodies are 0.6 to 2.6 m"),
    (lambda p: written(p, unit="mm"), r"its body is 19\.\d m tall"),
    (lambda p: edit(p, r"Frame Time: \S+", "Frame Time: 0"), "12 frames of 0.0 s"),
    (lambda p: edit(p, r"Frame Time: \S+", "Frame Time: nan"), "Frame Time has nan"),
    (lambda p: edit(p, r"Frame Time: \S+", "Frame Time: -0.05"), "12 frames of -0.05 s"),
    (lambda p: edit(p, r"Frame Time: \S+", "Frame Time: 1e-300"), "Frame Time is 1e-300 s, beyond 0.0005 to 1 s"),
    (lambda p: edit(p, r"Frame Time: \S+", "Frame Time: 1e8"), r"Frame Time is 1e\+08 s, beyond"),
    (lambda p: edit(p, r"Frame Time: \S+", "Frame Time: 33.33"), "Frame Time is 33.33 s, beyond"),
    (lambda p: edit(p, r"Frames: \d+", "Frames: " + "9" * 5000), "where 'Frames: 100' is due"),
    (lambda p: edit(p, r"Frames: \d+", "Frames: 14"), "is cut short: it has 12 frames and says 'Frames: 14'"),
    (lambda p: edit(p, r"(Frame Time: \S+\n)\S+", r"\g<1>1e30"), r"frame 0 has 1e\+30 for Hips Xposition"),
    (lambda p: edit(p, r"(Frame Time: \S+\n)\S+", r"\g<1>9e6"), r"its hips move at .* m/s in frame 1 of the clip"),
    (lambda p: collapse(p), "body is 0 m tall"),
    (lambda p: edit(p, r"(JOINT UpperLeg_L\s*\{\s*OFFSET) \S+", r"\1 9000"), "is 90 m from the first joint"),
    (lambda p: p.write_bytes(b"\0" * 99), "is not UTF-8 text: byte 0 is zero"),
    (lambda p: p.write_bytes(b""), "'nothing' where a BVH file begins"),
])  # fmt: skip
def test_what_is_no_motion_is_left_out_by_name(folder, spoil, why, caplog):
    """The others are imported; alone it is an error, and nothing is written."""
    bad = written(folder / "bad.bvh")
    spoil(bad)
    with caplog.at_level(logging.ERROR):
        made = brought(folder)
    assert set(clips_of(folder)) == {"a", "b"}
    (left_out,) = made.left_out
    assert re.search(rf"bad.bvh.*({why})", left_out) and "\n" not in left_out
    if "m tall" not in why:  # alone, the unit would be another
        for name in "ab":
            (folder / f"{name}.bvh").unlink()
        with pytest.raises(UserError, match="no BVH file in .* can be used"):
            import_folder(folder, folder.parent / "other", progress=False)
        assert not (folder.parent / "other").exists()


@pytest.mark.parametrize("off, kept", [(-1, True), (1, True), (-2, False), (2, False)])
def test_frame_counts_that_are_off_by_one(folder, off, kept, caplog):
    edit(folder / "b.bvh", r"Frames: 12", f"Frames: {12 + off}")
    made = brought(folder)
    assert ("b" in clips_of(folder)) == kept == (not made.left_out)
    assert (f"b.bvh says 'Frames: {12 + off}' and has 12 frames, which are used" in caplog.messages[-1]) == kept
    if kept:
        assert len(parse(folder / "b.bvh").rows) == 12


@pytest.mark.parametrize("text, fps", [
    ("0.033", 30.0), ("0.0333", 30.0), ("0.0083", 120.0), ("0.008", 120.0), ("0.017", 60.0), ("0.0167", 60.0),
    ("0.042", 24.0), ("0.041708", 24 / 1.001), ("0.016683", 60 / 1.001), ("0.04", 25.0), ("0.02", 50.0),
    ("3.33e-2", 30.0), ("0.016", 62.5), ("0.03", 1 / 0.03), ("0.07", 1 / 0.07), ("0.05", 20.0), ("0.08", 12.5),
])  # fmt: skip
def test_frame_times_of_few_digits(folder, text, fps):
    edit(folder / "a.bvh", r"Frame Time: \S+", f"Frame Time: {text}")
    assert parse(folder / "a.bvh").fps == pytest.approx(fps, rel=1e-12)


@pytest.mark.parametrize("content", ["text", "json"])
def test_joints_are_mapped_by_a_file(folder, content):
    """Names that say nothing; the roles that HumanML3D's body needs give its 22 joints, other names those joints."""
    short = {"Hips": "n0", "Head": "n3", "Neck": "n2"} | {
        f"{part}_{side}": f"n {at} {side}" for side in "LR" for at, part in enumerate(
            "UpperArm LowerArm Hand UpperLeg LowerLeg Foot Toes".split())}  # fmt: skip
    for name in "ab":
        renamed(folder / f"{name}.bvh", lambda joint: short.get(joint, "other"))
    with pytest.raises(UserError, match="no joint for 'left_knee': .* its joints are n0, .*; --joints=FILE maps names"):
        brought(folder)
    roles = dict(zip("UpperArm LowerArm Hand UpperLeg LowerLeg Foot Toes".split(),
                     "shoulder elbow wrist hip knee ankle toe".split(), strict=True))  # fmt: skip
    sides = dict(L="left", R="right")
    lines = {"hips": "n0", "neck": "n2", "head": "n3"} | {
        f"{sides[side]}_{role}": short[f"{part}_{side}"] for part, role in roles.items() for side in "LR"
    }
    path = folder.parent / f"names.{content}"
    if content == "json":
        path.write_text(str(lines).replace("'", '"'))
    else:
        path.write_text("\ufeff# joints\n\n" + "\n".join(f"{new} = {old}  # {new}" for new, old in lines.items()))
    assert brought(folder, joints=str(path)).skeleton == HUMANML3D and 1.4 < heights(folder)["a"] < 1.7
    path.write_text("\n".join(f"{new}={old}" for new, old in lines.items() if new not in ("neck", "left_wrist")))
    made = brought(folder, joints=str(path))
    assert made.skeleton.names[:2] == ("hips", "head") and made.skeleton.joints == 15
    for text, message in (("hips n0", "line 1: two names"), ("hips = n0\nhips = n2", "line 2: two names"),
                          ("hips = nobody", "no joint is named 'nobody'"), ("# none", "names no joint"),
                          ('{"hips": 3}', "key 'hips': two names"), ('{"hips"', "cannot be read")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UserError, match=message) as error:
            brought(folder, joints=str(path))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="--joints is nowhere.txt, and there is no such file"):
        brought(folder, joints="nowhere.txt")


def test_lines_of_captions_that_cannot_be_used_are_left_out(folder, caplog):
    good = [f'{{"file": "{name}.bvh", "caption": "{text}"}}' for name in "ab" for text in ("walks", "goes", "strolls")]
    latin = '{"file": "a.bvh", "caption": "geht \u00fcber"}'.encode("latin-1")
    nobody = b'{"file": "nobody.bvh", "caption": "walks"}'
    path = folder / "captions.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([line.encode() for line in good] + [latin, nobody]))
    assert brought(folder).train == 6
    assert re.search(
        r"left out 1 of 8 lines of captions: .*captions.jsonl, line 7: has the byte 0xFC", caplog.messages[-2]
    )
    assert "captions for clips that do not exist: nobody.bvh" in caplog.messages[-1]
    path.write_bytes(b"\n".join([good[0].encode(), latin]))
    with pytest.raises(UserError, match="1 of 2 lines of captions.jsonl cannot be used, more than 33%; .*line 2"):
        brought(folder)
    path.write_text("\n".join(good), "utf-16")
    assert brought(folder).train == 6
