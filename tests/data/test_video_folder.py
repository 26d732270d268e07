import dataclasses
import json
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from causal_diffusion.data import video_folder
from causal_diffusion.data.config import DataConfig
from causal_diffusion.data.pipeline import Loader
from causal_diffusion.data.sources import element_spec, make_source
from causal_diffusion.data.video_folder import VideoFolder
from causal_diffusion.errors import UserError

LENGTHS = {"a.mkv": 9, "b.avi": 6, "sub/c.mkv": 7, "sub/deep/d.mkv": 4}  # frames


def pixel(file, frame):
    """The value of every pixel of a frame: file k shows 40 k + frame."""
    return 40 * list(LENGTHS).index(file) + frame


@pytest.fixture
def folder(tmp_path, write_video):
    for file, length in LENGTHS.items():
        value = np.array([pixel(file, i) for i in range(length)], np.uint8)[:, None, None, None]
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / file, np.broadcast_to(value, (length, 16, 16, 3)), fps=10)
    (tmp_path / "notes.txt").write_text("not a video")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.mkv").write_bytes((tmp_path / "a.mkv").read_bytes())
    return tmp_path


def config_of(folder, **changes):
    return DataConfig(source="video_folder", path=str(folder), frames=4, height=8, width=8, holdout=0.25,
                      **changes)


def values(source):
    """Per element, the pixel value of each frame."""
    video = np.stack([source[i]["video"] for i in range(len(source))])
    assert (video == video[:, :, :1, :1, :1]).all()
    return np.rint((video[:, :, 0, 0, 0] + 1) * 127.5).astype(int).tolist()


def clips_of(files, frames=4, stride=1):
    return [[pixel(file, start + i) for i in range(frames)]
            for file in files for start in range(0, LENGTHS[file] - frames + 1, stride)]


def write_list(folder, *entries):
    (folder / "clips.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_elements_are_all_windows_of_all_files_and_splits_are_disjoint(folder):
    config = config_of(folder)
    train, test = values(make_source(config, "train")), values(make_source(config, "test"))
    assert sorted(train + test) == sorted(clips_of(LENGTHS))
    by_file = [{value // 40 for clip in part for value in clip} for part in (train, test)]
    assert len(by_file[0]) == 3 and len(by_file[1]) == 1 and not by_file[0] & by_file[1]


def test_whole_folder_in_order(folder):
    source = make_source(dataclasses.replace(config_of(folder), holdout=0.0), "train")
    assert values(source) == clips_of(sorted(LENGTHS))
    assert source.captions == [""] * len(source)
    with pytest.raises(IndexError):
        source[len(source)]


def test_stride(folder):
    source = make_source(dataclasses.replace(config_of(folder, stride=2), holdout=0.0), "train")
    assert values(source) == clips_of(sorted(LENGTHS), stride=2)


def test_frame_rate(folder):
    source = make_source(dataclasses.replace(config_of(folder, fps=5.0), holdout=0.0, frames=2), "train")
    assert values(source)[:4] == [[0, 2], [2, 4], [4, 6], [6, 8]]  # a.mkv, every second of 9 frames


def test_split_does_not_depend_on_the_clip_length(folder):
    four = config_of(folder)
    two = dataclasses.replace(four, frames=2)
    for split in ("train", "test"):
        files = [{clip[0] // 40 for clip in values(make_source(config, split))} for config in (four, two)]
        assert files[0] == files[1]


def test_one_file_is_split_in_time(tmp_path, write_video):
    frames = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None, None], (40, 16, 16, 3))
    write_video(tmp_path / "only.mkv", frames, fps=10)
    config = config_of(tmp_path)
    train, test = values(make_source(config, "train")), values(make_source(config, "test"))
    assert train == [[s, s + 1, s + 2, s + 3] for s in range(27)]      # frames 0 .. 29
    assert test == [[s, s + 1, s + 2, s + 3] for s in range(30, 37)]   # frames 30 .. 39


def test_clip_list_with_times_labels_captions_and_actions(folder):
    actions = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    np.save(folder / "a.npy", actions)
    (folder / "b.csv").write_text("\n".join(f"{i},{-i}" for i in range(6)))
    write_list(folder, {"file": "a.mkv", "start": 0.2, "end": 0.7, "label": 1, "caption": "first",
                        "actions": "a.npy"},
               {"file": "b.avi", "label": 0, "caption": "second", "actions": "b.csv"},
               {"file": "a.mkv", "start": 0.5, "label": 2, "actions": "a.npy"})
    config = dataclasses.replace(config_of(folder, classes=3, action_dim=2), holdout=0.0)
    source = make_source(config, "train")
    # a.mkv 0.2 .. 0.7 s holds frames 2 .. 6, b.avi frames 0 .. 5, a.mkv from 0.5 s frames 5 .. 8.
    assert values(source) == [[2, 3, 4, 5], [3, 4, 5, 6], [40, 41, 42, 43], [41, 42, 43, 44],
                              [42, 43, 44, 45], [5, 6, 7, 8]]
    assert source.captions == ["first"] * 2 + ["second"] * 3 + [""]
    assert [int(source[i]["label"]) for i in range(6)] == [1, 1, 0, 0, 0, 2]
    np.testing.assert_array_equal(source[1]["action"], actions[3:7])
    np.testing.assert_array_equal(source[3]["action"], [[i, -i] for i in range(1, 5)])
    assert {k: (v.shape, v.dtype) for k, v in source[0].items()} == {
        k: (s.shape, s.dtype) for k, s in element_spec(config).items()}


def test_actions_are_averaged_over_the_frames_between(folder):
    table = np.array([[1.0], [2.0], [5.0], [3.0], [9.0], [0.0], [4.0], [6.0], [8.0]])
    np.save(folder / "a.npy", table)
    write_list(folder, {"file": "a.mkv", "actions": "a.npy"})
    slower = dataclasses.replace(config_of(folder, action_dim=1, fps=5.0), holdout=0.0)
    np.testing.assert_array_equal(make_source(slower, "train")[0]["action"], [[1.0], [3.5], [6.0], [2.0]])
    faster = dataclasses.replace(slower, fps=20.0)
    element = make_source(faster, "train")[0]
    np.testing.assert_array_equal(element["action"], [[1.0], [1.0], [2.0], [2.0]])  # frames 0, 0, 1, 1


@pytest.mark.parametrize("fps, once, held", [
    (5.0, [1, 7, 12, 4], [1, 3.5, 6, 2]), (20.0, [1, 0, 2, 0], [1, 1, 2, 2]), (10.0, [1, 2, 5, 3], [1, 2, 5, 3])])
def test_actions_are_given_once_or_held_as_the_list_says(folder, caplog, fps, once, held):
    np.save(folder / "a.npy", np.array([1.0, 2, 5, 3, 9, 0, 4, 6, 8])[:, None])
    config = dataclasses.replace(config_of(folder, action_dim=1, fps=fps), holdout=0.0)
    for actions_are, wanted in (("once", once), ("held", held)):
        write_list(folder, {"file": "a.mkv", "actions": "a.npy", "actions_are": actions_are})
        assert make_source(config, "train")[0]["action"][:, 0].tolist() == wanted
    assert not caplog.records
    write_list(folder, {"file": "a.mkv", "actions": "a.npy"})
    make_source(config, "train")
    assert len(caplog.records) == (fps == 20.0)
    assert all('try "actions_are": "once" or "held"' in record.getMessage() for record in caplog.records)


def test_two_files_may_share_an_action_file(tmp_path, write_video):
    for name in ("a.mkv", "b.mkv"):
        write_video(tmp_path / name, np.zeros((5, 16, 16, 3), np.uint8), fps=10)
    (tmp_path / "still.csv").write_text("7\n" * 5)
    write_list(tmp_path, *({"file": name, "actions": "still.csv"} for name in ("a.mkv", "b.mkv")))
    source = make_source(dataclasses.replace(config_of(tmp_path, action_dim=1), holdout=0.0), "train")
    assert [source[i]["action"].tolist() for i in range(len(source))] == [[[7.0]] * 4] * 4


def test_two_clips_of_one_file_never_part(folder):
    write_list(folder, *({"file": file, "start": start, "end": start + 0.4}
                         for start in (0.0, 0.2) for file in ("a.mkv", "./b.avi")))
    train, test = (values(make_source(config_of(folder), split)) for split in ("train", "test"))
    assert {c[0] // 40 for c in train} & {c[0] // 40 for c in test} == set()
    assert len(train) == len(test) == 2


def test_decoding_is_shared_between_sources_alive(folder, monkeypatch):
    decoded = []
    real = video_folder.decode_video
    monkeypatch.setattr(video_folder, "decode_video", lambda *a: decoded.append(a) or real(*a))
    config = config_of(folder)
    train = make_source(config, "train")
    test = make_source(dataclasses.replace(config, frames=2), "test")
    assert len(decoded) == 4
    make_source(dataclasses.replace(config, height=16, width=16), "test")
    assert len(decoded) == 8
    del train, test
    make_source(config, "train")
    assert len(decoded) == 12  # nothing is kept for nobody


def test_beyond_the_memory_budget_a_temporary_file_holds_the_same(folder, monkeypatch):
    config = dataclasses.replace(config_of(folder), holdout=0.0)
    in_memory = make_source(config, "train")
    wanted = values(in_memory)
    del in_memory
    monkeypatch.setattr(video_folder, "MEMORY_BUDGET", 700)  # bytes: one or two of the files
    spooled = make_source(config, "train")
    kinds = [isinstance(v.frames, np.memmap) for v in spooled._library.videos.values()]
    assert 2 <= sum(kinds) <= 3
    assert values(spooled) == wanted


def test_a_full_disk_is_a_user_error(folder, monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(video_folder, "MEMORY_BUDGET", 0)
    monkeypatch.setattr(video_folder.tempfile, "TemporaryFile", full)
    with pytest.raises(UserError, match=r"no room in .* \(No space left on device\): free some, set TMPDIR"):
        make_source(config_of(folder), "train")


def test_threads_may_read_at_once(folder):
    source = make_source(config_of(folder), "train")
    wanted = [source[i]["video"].tobytes() for i in range(len(source))] * 20
    with ThreadPoolExecutor(4) as pool:
        read = pool.map(lambda i: source[i % len(source)]["video"].tobytes(), range(len(wanted)))
        assert list(read) == wanted


def test_repr_tells_what_is_in_it_and_not_where(folder, tmp_path_factory):
    config = config_of(folder)
    before = repr(VideoFolder(config, "train"))
    moved = tmp_path_factory.mktemp("elsewhere") / "videos"
    folder.rename(moved)
    moved_config = dataclasses.replace(config, path=str(moved))
    assert repr(VideoFolder(moved_config, "train")) == before
    assert str(moved) not in before
    (moved / "b.avi").rename(moved / "e.avi")
    assert repr(VideoFolder(dataclasses.replace(moved_config, holdout=0.0), "train")) != before


def test_through_the_loader(folder):
    source = make_source(dataclasses.replace(config_of(folder), holdout=0.0), "train")
    with Loader(source, batch=len(source)) as loader:
        batch = next(loader)
    shown = np.rint((batch["video"][:, :, 0, 0, 0] + 1) * 127.5).astype(int).tolist()
    assert sorted(shown) == sorted(clips_of(LENGTHS)) and shown != clips_of(sorted(LENGTHS))


def refused(config, split="train"):
    with pytest.raises(UserError) as error:
        make_source(config, split)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folder_errors(folder, tmp_path_factory):
    assert refused(config_of("")) == "data.path is empty: set it to a folder of video files"
    assert "does not exist: set it to a folder" in refused(config_of(folder / "nowhere"))
    assert "is not a folder: set it to the one that holds" in refused(config_of(folder / "a.mkv"))
    assert "there is no video file in" in refused(config_of(tmp_path_factory.mktemp("empty")))
    assert "data.classes=3 needs a clips.jsonl in" in refused(config_of(folder, classes=3))
    assert "data.action_dim=2 needs a clips.jsonl in" in refused(config_of(folder, action_dim=2))


def test_undecodable_files_are_skipped_by_name_until_none_is_left(folder, caplog):
    config = dataclasses.replace(config_of(folder), holdout=0.0)
    for file in ("a.mkv", "sub/c.mkv"):
        (folder / file).write_bytes(b"rubbish")
    with caplog.at_level(logging.WARNING):
        assert values(make_source(config, "train")) == clips_of(["b.avi", "sub/deep/d.mkv"])
    skipped = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert skipped == ["skipped a.mkv", "skipped sub/c.mkv"]
    for file in ("b.avi", "sub/deep/d.mkv"):
        (folder / file).write_bytes(b"rubbish")
    message = refused(config)
    assert "none of the 4 video files in" in message and "(the first is a.mkv)" in message


def test_short_clips_are_skipped_by_name_until_none_is_left(folder, caplog):
    config = dataclasses.replace(config_of(folder), holdout=0.0, frames=7)
    with caplog.at_level(logging.WARNING):
        assert values(make_source(config, "train")) == clips_of(["a.mkv", "sub/c.mkv"], frames=7)
    assert [r.getMessage() for r in caplog.records] == [
        "skipped a training clip: b.avi has 6 frames, fewer than data.frames=7",
        "skipped a training clip: sub/deep/d.mkv has 4 frames, fewer than data.frames=7"]
    assert refused(dataclasses.replace(config, frames=10)) == (
        "no training clip has data.frames=10 frames: the longest, a.mkv, has 9; "
        "set data.frames to at most 9, or add longer videos")


def test_a_short_clip_of_the_list_is_named_with_its_line(folder, caplog):
    write_list(folder, {"file": "a.mkv", "end": 0.3}, {"file": "b.avi"})
    with caplog.at_level(logging.WARNING):
        make_source(dataclasses.replace(config_of(folder), holdout=0.0), "train")
    assert [r.getMessage() for r in caplog.records] == [
        "skipped a training clip: clips.jsonl line 1 (a.mkv) has 3 frames, fewer than data.frames=4"]


def test_held_out_part_of_one_file_may_be_too_short(tmp_path, write_video):
    write_video(tmp_path / "only.mkv", np.zeros((12, 16, 16, 3), np.uint8), fps=10)
    message = refused(config_of(tmp_path), "test")
    assert message.startswith("no held-out clip has data.frames=4 frames: the longest, only.mkv, has 3;")


def test_errors_in_the_clip_list_reach_the_user(folder):
    write_list(folder, {"file": "a.mkv"}, {"file": "b.avi", "start": 9.0})
    assert refused(config_of(folder)) == (
        "clips.jsonl line 2 (b.avi): there is no frame from 9.0 s to inf s: its last one is at 0.500 s")
    write_list(folder, {"file": "a.mkv", "label": 5})
    assert "line 1: label 5 must be below data.classes=3" in refused(config_of(folder, classes=3))
    np.save(folder / "a.npy", np.zeros((8, 2)))
    write_list(folder, {"file": "a.mkv", "actions": "a.npy"})
    assert "'a.npy' has shape (8, 2), but a.mkv has 9 frames" in refused(config_of(folder, action_dim=2))


def test_real_footage(shared_videos):
    config = DataConfig(source="video_folder", path=str(shared_videos / "asl_gestures"), frames=12, height=32,
                        width=32, channels=3, fps=15.0)
    train, test = make_source(config, "train"), make_source(config, "test")
    files = [{s.clip.file for s in part._stretches} for part in (train, test)]
    assert len(files[0]) == 18 and len(files[1]) == 2 and not files[0] & files[1]
    assert 650 <= sum(len(v.frames) for v in train._library.videos.values()) <= 680  # 44.1 s at 15 fps
    clip = train[len(train) // 2]["video"]
    assert clip.shape == (12, 32, 32, 3) and clip.min() >= -1 and clip.max() <= 1 and clip.std() > 0.1
    motion = np.abs(np.diff(clip, axis=0)).mean()
    assert 0 < motion < np.abs(clip - train[0]["video"]).mean()  # neighbouring frames are more alike
