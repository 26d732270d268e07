"""Folders of published motion: rates and lengths of each data set, and single items that are bad."""

import numpy as np
import pytest

from causal_diffusion.data import humanml3d
from causal_diffusion.data.clip_list import CLIP_LIST, read_clip_list
from causal_diffusion.data.config import DataConfig
from causal_diffusion.data.humanml3d import LAYOUTS, HumanML3D
from causal_diffusion.data.motion_npz import read_file
from causal_diffusion.data.snapmogen import SnapMoGen
from causal_diffusion.errors import UserError
from tests.data import test_snapmogen

WHOLE = "a person walks.#a/DET person/NOUN walk/VERB#0.0#0.0\n"
folder_of_snapmogen = test_snapmogen.folder


def made(folder, lengths, channels=263):
    """A folder with clips of those lengths, named by them, in train.txt."""
    for name in ("new_joint_vecs", "texts"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, frames in lengths.items():
        np.save(folder / f"new_joint_vecs/{name}.npy", rng.standard_normal((frames, channels)).astype(np.float32))
        (folder / f"texts/{name}.txt").write_text(WHOLE)
    (folder / "train.txt").write_text("\n".join(lengths))
    np.save(folder / "Mean.npy", np.zeros(channels))
    np.save(folder / "Std.npy", np.ones(channels))
    return folder


def read(folder, channels=263, **values):
    values = dict(frames=24, stride=24, channels=channels, height=0, width=0, shortest=4) | values
    return HumanML3D(DataConfig(source="humanml3d", path=str(folder), **values), "train")


@pytest.mark.parametrize("channels, fps, least, most, what", [
    (263, 20.0, 40, 199, {}), (251, 12.5, 24, 199, {}), (119, 30.0, 4, 10**6, dict(fps=30.0)),
    (275, 20.0, 4, 10**6, dict(fps=20.0)),
])  # fmt: skip
def test_each_layout_has_its_rate_and_lengths(tmp_path, channels, fps, least, most, what):
    lengths = {f"n{n}": n for n in (4, 5, 23, 24, 25, 39, 40, 41, 198, 199, 200, 201, 400)}
    folder = made(tmp_path, lengths, channels)
    (folder / "texts/n199.txt").write_text(WHOLE + "he turns.#he/PRON turn/VERB#1.0#4.5\n")
    source = read(folder, channels, **what)
    assert source.fps == source.body.fps == fps
    part = f"n199[{int(fps)}:{int(4.5 * fps)}]"
    assert set(source.names) == {name for name, n in lengths.items() if least <= n <= most} | {part}


def test_a_frame_of_no_known_data_set_needs_a_rate(tmp_path):
    folder = made(tmp_path, {"a": 40}, 119)
    with pytest.raises(UserError, match="data.fps is 0, and no published data set has frames of 119 numbers"):
        read(folder, 119)
    with pytest.raises(UserError, match="data.fps is 20: these clips have 12.5 frames per second"):
        read(made(tmp_path / "kit", {"a": 40}, 251), 251, fps=20.0)
    assert set(LAYOUTS) == {263, 251} and humanml3d.OTHER.least == 4


BAD_LINES = {
    "hash": "man #1 walks.#a/DET#0.0#0.0", "end first": "he.#he/PRON#3.0#2.0", "no times": "he.#he/PRON#0.0#soon",
    "latin-1": "er geht \u00fcber.#er/PRON#0.0#0.0", "no text": "#he/PRON#0.0#0.0", "two fields": "he walks#he/PRON",
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_LINES)
def test_one_bad_line_of_captions_is_left_out(tmp_path, bad, caplog):
    folder = made(tmp_path, {"a": 40, "b": 41})
    (folder / "texts/a.txt").write_bytes(f"{BAD_LINES[bad]}\n".encode("latin-1") + WHOLE.encode())
    assert read(folder).captions == ["a person walks."] * 2
    (message,) = caplog.messages
    assert message.startswith("left out 1 of 3 lines of captions: ") and "a.txt" in message and "line 1" in message


def test_a_clip_without_any_usable_caption_is_left_out(tmp_path, caplog):
    folder = made(tmp_path, {name: 40 for name in "abc"})
    (folder / "texts/a.txt").write_text("\n".join(list(BAD_LINES.values())[:3]))
    (folder / "new_joint_vecs/b.npy").write_bytes(b"\x93NUMPY")
    assert read(folder).names == ["c"]
    assert [message.partition(":")[0] for message in caplog.messages] == ["left out 1 of 3 clips of train.txt"] * 2


def test_many_damaged_clips_or_lines_are_refused_with_their_count(tmp_path):
    lengths = {f"n{i}": 40 for i in range(12)}
    folder = made(tmp_path, lengths)
    for i in range(4):
        (folder / f"new_joint_vecs/n{i}.npy").write_bytes(b"")
    assert read(folder).clips == 8  # a third
    (folder / "texts/n4.txt").write_text("no caption")
    with pytest.raises(UserError, match="5 of 12 clips of .*train.txt cannot be used, more than 33%; .*n0.npy"):
        read(folder)
    folder = made(tmp_path / "lines", lengths)
    for name in lengths:
        (folder / f"texts/{name}.txt").write_text(WHOLE + "no caption\n")
    with pytest.raises(UserError, match="12 of 24 lines of captions in .* cannot be used, .*: .*n0.txt line 2 is no"):
        read(folder)


def test_lists_with_marks_and_lines_of_other_encodings(tmp_path, caplog):
    folder = made(tmp_path, {"a": 40, "b": 40})
    (folder / "train.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
    assert read(folder).names == ["a", "b"]
    (folder / "train.txt").write_bytes(b"a\nb\n\xfcber\n")
    assert read(folder).names == ["a", "b"]
    assert "left out 1 of 4 lines of train.txt: line 3 has the byte 0xFC" in caplog.messages[-1]
    (folder / "a.mp4").touch()
    lines = [b'{"file": "a.mp4", "caption": "x"}'] * 3
    (folder / CLIP_LIST).write_bytes(b"\n".join([*lines, '{"file": "a.mp4", "caption": "\u00fc"}'.encode("latin-1")]))
    assert [clip.where[-1] for clip in read_clip_list(folder, 0, 0)] == ["1", "2", "3"]
    assert "line 4 has the byte 0xFC" in caplog.messages[-1]


def test_entries_of_snapmogen(folder_of_snapmogen, caplog):
    folder = folder_of_snapmogen
    captions = {clip: {"manual": ["walks"], "gpt": []} for ids in test_snapmogen.IDS.values() for clip in ids}
    test_snapmogen.write_captions(folder, captions | {"gp_00001#9#50": ["walks"]})
    with (folder / "data_split_info/train_ids.txt").open("a") as file:
        file.write("\ngp_00001\n")
    source = SnapMoGen(test_snapmogen.config(folder), "train")
    assert source.names == test_snapmogen.IDS["train"]
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "left out 1 of 5 entries of all_caption_clean.json", "left out 1 of 4 clips of train_ids.txt"]  # fmt: skip


def test_one_clip_of_an_archive_that_is_not_finite_is_left_out(tmp_path, caplog):
    path, (names, frames) = tmp_path / "a_train_0.npz", (list("abc"), 8)
    positions = np.zeros((3 * frames, 2, 3), np.float32)
    positions[frames + 5] = np.nan
    data = dict(positions=positions, root_xz=positions[:, 0, :2] * 0, clip_start=[0, 8, 16, 24], text=names, name=names)
    np.savez(path, **data, fps=20.0)
    clips, _ = read_file(path)
    assert [clip.name for clip in clips] == ["a", "c"]
    assert "left out 1 of 3 clips of" in caplog.messages[0] and "frame 5 of clip b has a value" in caplog.messages[0]
    for fps in (0.0, np.nan, -1.0):
        np.savez(path, **data, fps=fps)
        with pytest.raises(UserError, match="a_train_0.npz: fps is"):
            read_file(path)
