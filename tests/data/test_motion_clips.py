import gc
import os
from pathlib import Path

import numpy as np
import pytest

from causal_diffusion.data import motion_clips
from causal_diffusion.data.config import DataConfig
from causal_diffusion.data.motion_clips import MotionClips
from causal_diffusion.errors import UserError
from causal_diffusion.motion import joints
from tests.motion_data import KINDS, NAMED, write_bodies

JOINTS, LENGTHS = 3, {"train_00-of-02": (9, 5), "train_01-of-02": (12,), "test": (8, 7)}


def arrays(lengths, seed):
    rng, frames = np.random.default_rng(seed), sum(lengths)
    positions = rng.standard_normal((frames, JOINTS, 3)).astype(np.float16)
    positions[:, 0, ::2] = 0.0  # the hips are over their ground point
    return dict(
        positions=positions,
        root_xz=rng.standard_normal((frames, 2)).astype(np.float32).cumsum(axis=0),
        clip_start=np.cumsum([0, *lengths]),
        text=np.array([f"walk {seed}.{i}" for i in range(len(lengths))]),
        name=np.array([f"clip {seed}.{i}" for i in range(len(lengths))]),
        fps=np.float32(30),
        joint_names=np.array(["Hips", "Knee", "Foot"]),
        parents=np.array([-1, 0, 1]),
    )


@pytest.fixture
def folder(tmp_path):
    for seed, (name, lengths) in enumerate(LENGTHS.items()):
        np.savez(tmp_path / f"some_{name}.npz", **arrays(lengths, seed))
    return tmp_path


def config(folder, **values):
    values = dict(frames=4, stride=2, channels=11, height=0, width=0) | values
    return DataConfig(source="motion_clips", path=str(folder), **values)


def rewrite(path, **changes):
    data = dict(np.load(path)) | changes
    np.savez(path, **{key: value for key, value in data.items() if value is not None})


def test_elements_are_windows_of_clips(folder):
    """Window by window: that is all of them, in order, and none crosses from clip to clip."""
    source, at = MotionClips(config(folder), "train"), 0
    assert source.clips == 3 and source.names == ["clip 0.0", "clip 0.1", "clip 1.0"]
    for clip, length in enumerate((9, 5, 12)):
        whole = source.clip(clip)
        assert whole.shape == (length, 11) and whole.dtype == np.float32
        for start in range(0, length - 3, 2):
            element = source[at]
            assert set(element) == {"video"} and element["video"].dtype == np.float32
            np.testing.assert_array_equal(element["video"], whole[start : start + 4])
            assert source.captions[at] == source.clip_captions[clip] == f"walk {clip // 2}.{clip % 2}"
            at += 1
    assert at == len(source) == len(source.captions) == len(list(source))
    with pytest.raises(IndexError):
        source[at]


def test_what_a_frame_holds_can_be_undone(folder):
    source, data = MotionClips(config(folder), "test"), arrays(LENGTHS["test"], 2)
    positions, root = joints.decode(source.denormalise(source.clip(1)), before=data["root_xz"][8])
    np.testing.assert_allclose(positions, data["positions"][8:], atol=1e-5)
    np.testing.assert_allclose(root, data["root_xz"][8:], atol=1e-5)
    assert (source.fps, source.body.parents, source.body.names) == (30.0, (-1, 0, 1), ("Hips", "Knee", "Foot"))


def test_a_window_knows_how_the_body_got_to_its_first_frame(folder):
    source, data = MotionClips(config(folder), "test"), arrays(LENGTHS["test"], 2)
    step = source.denormalise(source[1]["video"])[0, :2]
    np.testing.assert_allclose(step, data["root_xz"][2] - data["root_xz"][1], atol=1e-5)
    np.testing.assert_allclose(source.denormalise(source[0]["video"])[0, :2], 0.0, atol=1e-6)  # at rest


def test_normalisation_is_by_kind_and_by_the_training_split(folder):
    train, test = (MotionClips(config(folder), split) for split in ("train", "test"))
    frames = np.concatenate([train.denormalise(train.clip(i)) for i in range(3)]).astype(np.float64)
    for source in (train, test):
        np.testing.assert_allclose(source.mean, frames.mean(axis=0), atol=1e-5)
        std = frames.std(axis=0)
        np.testing.assert_allclose(source.std, [*[std[:2].mean()] * 2, *[std[2:].mean()] * 9], rtol=1e-4)
    normal = np.concatenate([train.clip(i) for i in range(3)])
    np.testing.assert_allclose(normal.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose([normal[:, :2].std(axis=0).mean(), normal[:, 2:].std(axis=0).mean()], 1.0, rtol=1e-4)


def test_what_never_moves_stays_finite(folder):
    for path in folder.glob("*.npz"):
        rewrite(path, root_xz=np.zeros_like(np.load(path)["root_xz"]))
    assert np.isfinite(MotionClips(config(folder), "train")[0]["video"]).all()


def test_repr_is_stable_and_tells_content_and_statistics(folder):
    shown = {split: repr(MotionClips(config(folder), split)) for split in ("train", "test")}
    gc.collect()
    assert {split: repr(MotionClips(config(folder), split)) for split in shown} == shown
    assert "split='test', clips=5, stretches=2" in shown["test"] and "size=(4, 11), stride=2" in shown["test"]
    for changed in ("test", "train_01-of-02"):
        before = repr(MotionClips(config(folder), "train")), repr(MotionClips(config(folder), "test"))
        gc.collect()
        path = folder / f"some_{changed}.npz"
        rewrite(path, root_xz=np.load(path)["root_xz"] + np.linspace(0, 1, sum(LENGTHS[changed]))[:, None])
        after = repr(MotionClips(config(folder), "train")), repr(MotionClips(config(folder), "test"))
        assert (before[0] == after[0]) == (changed == "test") and before[1] != after[1]


def test_sources_that_are_alive_share_what_they_read(folder, monkeypatch):
    reads = []
    monkeypatch.setattr(motion_clips, "read_file", lambda path, read=motion_clips.read_file: (
        reads.append(path.name), read(path))[1])  # fmt: skip
    train = MotionClips(config(folder), "train")
    assert len(reads) == 3
    test = MotionClips(config(folder, frames=5), "test")
    assert len(reads) == 3 and test._library is train._library
    del train, test
    gc.collect()
    MotionClips(config(folder), "train")
    assert len(reads) == 6


def test_short_clips_are_skipped_with_one_warning(folder, caplog):
    source = MotionClips(config(folder, frames=9), "train")
    assert len(source) == 1 + 2 and source.clips == 3 and source.captions == ["walk 0.0", "walk 1.0", "walk 1.0"]
    assert caplog.messages == ["skipped 1 of 3 training clips: they have fewer than data.frames=9 frames"]
    np.testing.assert_array_equal(source[1]["video"], source.clip(2)[:9])


@pytest.mark.parametrize("values, message", [
    (dict(path=""), "data.path is empty"),
    (dict(path="/nowhere"), "data.path '/nowhere' is no folder"),
    (dict(channels=10), "data.channels is 10: a frame of 3 joints has 11 numbers .*, set data.channels=11"),
    (dict(height=4, width=4), "motion has no pixels, set data.height=0 and data.width=0"),
    (dict(shortest=3), "data.shortest is 3: a motion is at least four frames, set data.shortest=4"),
    (dict(representation="essential"), "hip"),
    (dict(unseen=0.5), "the clips have no content and style: data.unseen = 0 would do"),
    (dict(classes=3), "data.classes is 3: motion clips have captions only, set data.classes=0"),
    (dict(action_dim=3), "set data.action_dim=0"),
    (dict(frames=9), "no held-out clip has data.frames=9 frames: the longest, clip 2.0, has 8; set data.frames to at "
     "most 8"),
])  # fmt: skip
def test_a_config_that_does_not_fit_is_refused(folder, values, message):
    with pytest.raises(UserError, match=message) as error:
        MotionClips(config(**(dict(folder=folder) | values)) if "path" not in values
                    else config(values["path"]), "test")  # fmt: skip
    assert "\n" not in str(error.value)


def test_a_folder_without_a_split_is_refused(folder):
    (folder / "some_test.npz").unlink()
    assert len(MotionClips(config(folder), "train"))
    with pytest.raises(UserError, match=r"there is no \*_test.npz in .*: put the test split there"):
        MotionClips(config(folder), "test")
    for path in folder.glob("*_train_*.npz"):
        path.unlink()
    with pytest.raises(UserError, match=r"there is no \*_train_\*.npz in .*: its statistics scale every clip"):
        MotionClips(config(folder), "test")


def spoil(key, at, value):
    def change(data):
        array = data[key].copy()
        array[at] = value
        return {key: array}

    return change


@pytest.mark.parametrize("change, message", [
    (spoil("positions", (10, 1, 2), np.nan), "frame 1 of clip clip 0.1 has a value in positions that is not finite"),
    (spoil("root_xz", (3, 0), np.inf), "frame 3 of clip clip 0.0 has a value in root_xz that is not finite"),
    (spoil("clip_start", 1, 14), "clip_start must rise from 0 to the 14 frames"),
    (lambda data: dict(text=None), "has no array 'text'"),
    (lambda data: dict(text=data["text"][:1]), r"text has the shape \(1,\); with 2 clips of 14 frames .* \(2,\)"),
    (lambda data: dict(root_xz=data["root_xz"][:3]), r"root_xz has the shape \(3, 2\).* it is \(14, 2\)"),
    (lambda data: dict(positions=data["positions"][:, 0]), r"positions has the shape \(14, 3\).* it is \(14, 3, 3\)"),
    (lambda data: dict(fps=np.float32(20)), "has fps 30.0 and some_train_00-of-02.npz has 20.0: move one of them away"),
    (lambda data: dict(text=np.array(["a", None], object)), "cannot be read .*: replace or remove it"),
])  # fmt: skip
def test_a_file_that_is_wrong_is_named(folder, change, message):
    path = folder / "some_train_00-of-02.npz"
    rewrite(path, **change(dict(np.load(path))))
    with pytest.raises(UserError, match=message) as error:
        MotionClips(config(folder), "train")
    assert "\n" not in str(error.value) and ".npz" in str(error.value)


def test_a_file_that_is_no_archive_is_named(folder):
    for content in (b"", b"not an archive", (folder / "some_test.npz").read_bytes()[:100]):
        (folder / "some_test.npz").write_bytes(content)
        with pytest.raises(UserError, match="some_test.npz cannot be read"):
            MotionClips(config(folder), "train")


def test_short_clips_are_padded_and_say_how_long_they_are(folder):
    source = MotionClips(config(folder, frames=8, stride=8, shortest=5), "train")
    lengths = [int(source[i]["length"]) for i in range(len(source))]
    assert lengths == [8, 4, 8]  # clips of 9, 5 and 12 frames; a whole number of fours counts
    assert source[1]["video"].shape == (8, 11) and source[1]["length"].dtype == np.int32
    np.testing.assert_array_equal(source[1]["video"][:4], source.clip(1)[:4])
    np.testing.assert_array_equal(source[1]["video"][4:], 0.0)
    assert repr(source).endswith("shortest=5)")


def test_frames_per_second_are_those_of_the_config(folder):
    source, plain = (MotionClips(config(folder, fps=fps), "test") for fps in (15.0, 0.0))
    assert source.fps == 15.0 and len(source.clip(0)) == 4
    got, _ = source.body.positions(source.clip(0))
    wanted, _ = plain.body.positions(plain.clip(0))
    np.testing.assert_allclose(got, wanted[::2], atol=1e-5)


@pytest.fixture
def bodies(tmp_path):
    """Clips of a whole body with content and style, two of each pair in training, one held out."""
    return write_bodies(tmp_path)


@pytest.mark.parametrize("representation, channels, frames", [("essential", 64, 11), ("humanml", 251, 11)])
def test_representations_of_a_whole_body(bodies, representation, channels, frames):
    source = MotionClips(config(bodies, representation=representation, channels=channels), "test")
    plain = MotionClips(config(bodies, channels=65), "test")
    assert source.clip(0).shape == (frames, channels) and len(source.body.mean) == channels
    local = source.body.local(source.clip(0))
    np.testing.assert_allclose(local[..., 1], plain.body.local(plain.clip(0))[:-1, :, 1], atol=1e-4)
    got, wanted = (np.linalg.norm(np.diff(s.body.positions(s.clip(0))[0][:, 0, ::2], axis=0), axis=-1)
                   for s in (source, plain))  # fmt: skip
    np.testing.assert_allclose(got, wanted[: len(got)], atol=1e-4)  # steps of the root, wherever it faces


def test_mirrored_clips_have_mirrored_captions_and_only_training_has_them(bodies):
    plain, both = (MotionClips(config(bodies, channels=65, mirror=mirror), "train") for mirror in (False, True))
    assert both.clips == 2 * plain.clips and MotionClips(config(bodies, channels=65, mirror=True), "test").clips == 7
    left = both.clip_captions.index("a person does wave-left-hand, calm style")
    assert both.clip_captions[left + plain.clips] == "a person does wave-right-hand, calm style"
    a, b = (both.body.positions(both.clip(i))[0] for i in (left, left + plain.clips))
    np.testing.assert_allclose(a[:, NAMED.index("Hand_L")] * [-1, 1, 1], b[:, NAMED.index("Hand_R")], atol=1e-4)


def test_unseen_pairs_are_kept_from_training_mirrored_or_not(bodies):
    source = MotionClips(config(bodies, channels=65, mirror=True, unseen=0.3), "train")
    test = MotionClips(config(bodies, channels=65, mirror=True, unseen=0.3), "test")
    assert len(source.unseen) == 2 and test.unseen == source.unseen
    assert not set(source.unseen) & set(source.clip_kinds) and set(source.unseen) <= set(test.clip_kinds)
    assert {part for kind in source.clip_kinds for part in kind.split(", ")} == {*KINDS, "calm", "angry", "proud"}
    assert len(source.kinds) == len(source) and source.kinds[0] == source.clip_kinds[0]


def test_real_motion():
    beside = Path(__file__).parents[3] / "shared" / "data"
    shared = Path(os.environ.get("CD_SHARED_DATA", beside)) / "motion"
    if not shared.is_dir():
        pytest.skip("the shared motion is not here (CD_SHARED_DATA)")
    real = dict(frames=64, stride=16, channels=65)
    train, test = (MotionClips(config(shared, **real), split) for split in ("train", "test"))
    assert test.clips == 334 and train.clips > 2000 and len(train) > 10_000
    for source in (train, test):
        some = np.stack([source[i]["video"] for i in range(0, len(source), 97)])
        assert some.shape[1:] == (64, 65) and np.abs(some.mean()) < 0.1 and 0.8 < some.std() < 1.6
    positions, _ = joints.decode(test.denormalise(test.clip(0)))
    np.testing.assert_allclose(positions[:, 0, ::2], 0.0, atol=1e-5)  # the hips are above their ground point
    assert (positions[..., 1] > -0.2).all() and (positions[..., 1] < 2.5).all()
    bones = np.linalg.norm(positions[:, 1:] - positions[:, list(test.body.parents[1:])], axis=-1)
    assert bones.std(axis=0).max() < 0.01  # metres: they keep their lengths
    assert test.captions[0] == "a person walks forward, active style"
