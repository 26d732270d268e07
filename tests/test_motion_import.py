import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from causal_diffusion.data.config import DataConfig
from causal_diffusion.data.motion_clips import MotionClips
from causal_diffusion.data.motion_npz import read_file
from causal_diffusion.errors import UserError
from causal_diffusion.motion.skeleton import HUMANML3D, of
from causal_diffusion.motion_import import FILES, caption_of, import_folder, main
from causal_diffusion.render.motion import write_bvh
from tests.walking_stream import NAMES, PARENTS, walk

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("CD_SHARED_DATA", ROOT.parent / "shared" / "data")) / "motion"


@pytest.fixture
def folder(tmp_path):
    """Five takes: a walk at 30 and one at 60 frames a second, of bodies of two sizes, and others."""
    (tmp_path / "bvh/takes").mkdir(parents=True)
    skeleton = of(NAMES, PARENTS)
    for name, fps, size, frames in (("a_walkLeft_01", 30, 1.0, 31), ("b_walk", 60, 1.1, 61), ("takes/c", 30, 1.0, 46),
                                    ("takes/d", 30, 1.0, 25), ("takes/e", 20, 1.0, 20)):  # fmt: skip
        write_bvh(tmp_path / f"bvh/{name}.bvh", size * walk(frames, fps) + [1, 0.5, 2], skeleton, fps)
    return tmp_path / "bvh"


def brought(folder, out=None, **options):
    return import_folder(folder, out or folder.parent / "clips", **dict(progress=False) | options)


def clips_of(out, split="train"):
    clips, skeletal = read_file(out / FILES[split])
    return {clip.name: clip for clip in clips}, skeletal


def say(folder, *lines):
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(line) if isinstance(line, dict) else line
                                                     for line in lines))  # fmt: skip


def test_clips_have_one_skeleton_and_one_rate_and_stand_on_the_floor(folder):
    made, out = brought(folder, holdout=0.0), folder.parent / "clips"
    clips, skeletal = clips_of(out)
    assert (made.train, made.test, made.left_out) == (5, 0, []) and not (out / FILES["test"]).exists()
    assert skeletal.fps == 20.0 and sorted(skeletal.joint_names) == sorted(NAMES)  # a BVH file goes depth first
    assert {name: len(clip.positions) for name, clip in clips.items()} == {
        "a_walkLeft_01": 21, "b_walk": 21, "takes/c": 31, "takes/d": 17, "takes/e": 20}  # fmt: skip
    skeleton = of(skeletal.joint_names, skeletal.parents)
    lengths = np.median(skeleton.bone_lengths(clips["a_walkLeft_01"].positions), axis=0)
    for clip in clips.values():
        assert abs(clip.positions[..., 1].min()) < 1e-6
        np.testing.assert_array_equal(clip.positions[0, 0, [0, 2]], 0.0)
        bones = skeleton.bone_lengths(clip.positions)
        np.testing.assert_allclose(bones, np.broadcast_to(lengths, bones.shape), atol=2e-3)
    order = [NAMES.index(name) for name in skeletal.joint_names]
    wanted = walk(20, 20)[:, order]  # at 20 frames a second nothing was resampled
    wanted[..., 1] -= wanted[..., 1].min()
    wanted[..., [0, 2]] -= wanted[:1, :1, [0, 2]]
    np.testing.assert_allclose(clips["takes/e"].positions, wanted, atol=3e-3)


def test_training_reads_what_was_written(folder):
    brought(folder, holdout=0.2)
    for representation, channels in (("joints", 56), ("essential", 55)):
        data = DataConfig(source="motion_clips", path=str(folder.parent / "clips"), frames=8, stride=8, height=0,
                          width=0, channels=channels, representation=representation, mirror=True)  # fmt: skip
        train, test = (MotionClips(data, split) for split in ("train", "test"))
        assert (train.clips, test.clips, train.fps) == (8, 1, 20.0) and np.isfinite(train[0]["video"]).all()


def test_the_held_out_files_stay_the_same(folder):
    brought(folder, holdout=0.4)
    names = set(clips_of(folder.parent / "clips", "test")[0])
    say(folder, {"file": f"{sorted(names)[0]}.bvh", "caption": "one"}, {"file": sorted(names)[0], "caption": "two"})
    again = brought(folder, folder.parent / "again", holdout=0.4)
    test, _ = read_file(folder.parent / "again" / FILES["test"])
    assert {clip.name for clip in test} == names and len(names) == 2 and (again.train, again.test) == (3, 3)
    assert not names & set(clips_of(folder.parent / "again")[0])


def test_captions(folder, caplog):
    say(folder, {"file": "a_walkLeft_01.bvh", "caption": " a person  walks to the left "}, "",
        {"file": "takes/c", "caption": "über"}, {"file": "takes/c.BVH", "caption": "round"})  # fmt: skip
    made = brought(folder, holdout=0.0)
    clips, _ = read_file(folder.parent / "clips" / FILES["train"])
    assert made.train == 6 and [(clip.name, clip.caption) for clip in clips] == [
        ("a_walkLeft_01", "a person walks to the left"), ("b_walk", "b walk"), ("takes/c", "über"),
        ("takes/c", "round"), ("takes/d", "d"), ("takes/e", "e")]  # fmt: skip
    assert caplog.messages == ["3 files have no caption and get the words of their names: b_walk, takes/d, takes/e"]


@pytest.mark.parametrize("name, words", [
    ("takes/walk_turnLeft_02", "walk turn left"), ("dataset-1_walk_normal_002", "dataset walk normal"),
    ("01_02", "a person moves"), ("CMUWalk", "cmu walk"),
])  # fmt: skip
def test_names_as_captions(name, words):
    assert caption_of(name) == words


@pytest.mark.parametrize("lines, message", [
    ([{"file": "nobody.bvh", "caption": "x"}, {"file": "b_walk", "caption": "x"}],
     "captions for clips that do not exist: nobody.bvh; remove these lines"),
    ([{"file": f"{i}.bvh", "caption": "x"} for i in range(5)], "do not exist: 0.bvh, 1.bvh, 2.bvh and 2 more;"),
    ([{"file": "b_walk", "caption": "x"}, {"file": "b_walk"}],
     'line 2: {"file": "walk.bvh", "caption": "a person walks"} would do'),
    (["not json"], "line 1: "), (["[1]"], "line 1: "), ([{"file": "b_walk", "caption": " "}], "line 1: "),
    ([{"file": 3, "caption": "x"}], "line 1: "),
])  # fmt: skip
def test_captions_that_are_wrong_are_told(folder, lines, message):
    say(folder, *lines)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        brought(folder)
    assert "captions.jsonl" in str(error.value) and "\n" not in str(error.value)


def cut(path, change):
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize("change, why", [
    (lambda text: text[: len(text) // 2], "b_walk.bvh, line .*: frame .* has .* numbers of 57"),
    (lambda text: text.replace("Frames: 61", "Frames: 59"), "b_walk.bvh goes on after its end"),
    (lambda text: re.sub(r"\n-?\d+\.\d+ ", "\nnan ", text, count=1), "b_walk.bvh, line .*: frame 0 has nan"),
    (lambda text: text.replace("JOINT Neck", "JOINT Nick"),
     "b_walk.bvh: it has no joint 'Neck' as the first file has: --joints=humanml3d may fit both"),
    (lambda text: re.sub(r"Frame Time: \S+", "Frame Time: 0.001", text),
     "b_walk.bvh: it has 2 frames at 20 a second: a clip has 4 or more"),
])  # fmt: skip
def test_a_file_that_is_wrong_is_named_and_left_out(folder, caplog, change, why):
    cut(folder / "b_walk.bvh", change)
    made = brought(folder, holdout=0.0)
    assert made.train == 4 and "b_walk" not in clips_of(folder.parent / "clips")[0]
    (message,) = caplog.messages
    assert re.match(f"left out: .*{why}", message) and message == f"left out: {made.left_out[0]}"
    assert "\n" not in message
    with pytest.raises(UserError, match=why):
        brought(folder, strict=True)


def test_some_joints(folder):
    brought(folder, joints="Hips, UpperLeg_L,LowerLeg_L,Foot_L,UpperLeg_R,LowerLeg_R,Foot_R,Head", holdout=0.0)
    _, skeletal = clips_of(folder.parent / "clips")
    assert skeletal.joints == 8 and skeletal.joint_names[-1] == "Head" and skeletal.parents[-1] == 0


@pytest.mark.parametrize("options, message", [
    (dict(joints="Hips,UpperLeg_L,Foot"), "a_walkLeft_01.bvh: --joints: no joint is named 'Foot': 'Foot_R' would do"),
    (dict(joints="Foot_L,Hips"), "'Foot_L' is selected before 'Hips'"),
    (dict(joints="Hips,Head"), "no BVH file in .* can be used, 5 are there: .*no joint for 'left_knee'"),
    (dict(fps=0), "--fps is 0: --fps=20 would do"), (dict(holdout=1), "--holdout is 1: --holdout=0.1 would do"),
    (dict(scale=-1), "--scale is -1: --scale=0.01 would do"), (dict(up="w"), "--up is w: --up=z would do"),
    (dict(captions="/nowhere.jsonl"), "/nowhere.jsonl cannot be read"),
])  # fmt: skip
def test_options_that_are_wrong_are_told(folder, options, message):
    with pytest.raises(UserError, match=message) as error:
        brought(folder, **options)
    assert "\n" not in str(error.value)


def test_folders_that_are_wrong_are_told(folder, tmp_path):
    with pytest.raises(UserError, match="nowhere is no folder"):
        brought(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no BVH file in .*empty"):
        brought(tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*file/motion_train_00-of-01.npz"):
        brought(folder, tmp_path / "file")
    (tmp_path / "other_train_00-of-02.npz").touch()
    with pytest.raises(UserError, match="holds other clips, other_train_00-of-02.npz: choose another folder"):
        brought(folder, tmp_path)


def test_a_second_import_takes_the_place_of_the_first(folder):
    brought(folder, holdout=0.4)
    made = brought(folder, holdout=0.0, fps=10.0)
    assert not (folder.parent / "clips" / FILES["test"]).exists() and made.train == 5
    assert clips_of(folder.parent / "clips")[1].fps == 10.0


def test_the_command(folder, capsys):
    main([str(folder), str(folder.parent / "clips"), "--joints=Hips,UpperLeg_L,LowerLeg_L,Foot_L,UpperLeg_R,LowerLeg_R,"
          "Foot_R", "--holdout=0.2"])  # fmt: skip
    said = capsys.readouterr()
    assert "4 training and 1 held-out clips of 7 joints, 0 files left out\n" in said.out and "channels=22" in said.out
    assert "5/5" in said.err
    for arguments, message in (([str(folder)], "required: out; "), ([str(folder), "x", "--no"], "--no; ")):
        with pytest.raises(UserError, match=message):
            main(arguments)


@pytest.mark.full
def test_the_command_line_ends_with_one_line_and_code_2(tmp_path):
    command = (sys.executable, "-m", "causal_diffusion.motion_import", tmp_path / "nowhere", tmp_path / "out")
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def shared(*parts):
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the shared motion is not here (CD_SHARED_DATA): {path}")
    return path


def test_it_agrees_with_the_shared_clips(tmp_path):
    """The same recordings, brought to arrays by another program; there feet are up to 5 cm above the floor."""
    made = import_folder(shared("bvh", "bandai"), tmp_path, fps=30.0, holdout=0.0, progress=False)
    clips, skeletal = clips_of(tmp_path)
    assert made.train == 6 and not made.left_out
    found = 0
    for file in ("bandai_test.npz", "bandai_train_00-of-05.npz"):
        theirs, of_theirs = read_file(shared(file))
        assert (of_theirs.joint_names, of_theirs.parents) == (skeletal.joint_names, skeletal.parents)
        for clip in theirs:
            if clip.name in clips:
                wanted = clip.positions - [0, clip.positions[..., 1].min(), 0]
                np.testing.assert_allclose(clips[clip.name].positions, wanted, atol=1.5e-3)
                found += 1
    assert found == 2


def test_files_of_three_conventions_come_to_one_body(tmp_path):
    made = import_folder(shared("bvh"), tmp_path, joints="humanml3d", holdout=0.2, progress=False)
    assert (made.train, made.test, made.left_out) == (7, 2, []) and made.skeleton == HUMANML3D
    lengths = []
    for split in FILES:
        for clip in clips_of(tmp_path, split)[0].values():
            assert 1.2 < clip.positions[..., 1].max() < 2.1 and abs(clip.positions[..., 1].min()) < 1e-6
            lengths.append(np.median(HUMANML3D.bone_lengths(clip.positions), axis=0))
    np.testing.assert_allclose(lengths, np.broadcast_to(lengths[0], np.shape(lengths)), atol=1e-3)
