import numpy as np
import pytest

from causal_diffusion.data.config import DataConfig
from causal_diffusion.data.humanml3d import HumanML3D
from causal_diffusion.errors import UserError
from causal_diffusion.motion import humanml
from causal_diffusion.motion.skeleton import HUMANML3D as SKELETON

TRAIN = {"000001": 64, "M000001": 64, "000002": 47, "000003": 30, "000004": 210}
TEST = {"000005": 50}
WHOLE = "a person walks.#a/DET person/NOUN walk/VERB#0.0#0.0\n"


def vectors(frames, seed, channels=263):
    return np.random.default_rng(seed).standard_normal((frames, channels)).astype(np.float32)


def write(folder, channels=263):
    for name in ("new_joint_vecs", "texts"):
        (folder / name).mkdir(parents=True)
    for seed, (name, frames) in enumerate({**TRAIN, **TEST}.items()):
        np.save(folder / "new_joint_vecs" / f"{name}.npy", vectors(frames, seed, channels))
        (folder / "texts" / f"{name}.txt").write_text(WHOLE)
    (folder / "texts" / "000001.txt").write_text(
        WHOLE + "he turns.#he/PRON turn/VERB#nan#nan\nhe stops.#he/PRON stop/VERB#1.0#3.1\nshort#short/ADJ#0.0#1.0\n"
    )
    (folder / "train.txt").write_text("".join(f"{name}\n" for name in TRAIN))
    (folder / "test.txt").write_text("\n".join(TEST))
    np.save(folder / "Mean.npy", np.linspace(-1, 1, channels))
    np.save(folder / "Std.npy", np.linspace(0.5, 2, channels).astype(np.float32))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "data")


def config(folder, **values):
    values = dict(frames=40, stride=40, channels=263, height=0, width=0) | values
    return DataConfig(source="humanml3d", path=str(folder), **values)


def test_elements_are_the_windows_of_each_clip_and_caption(folder, caplog):
    source = HumanML3D(config(folder, frames=44, stride=10), "train")
    assert source.names == ["000001", "000001[20:62]", "M000001", "000002"]
    assert [len(source.clip(i)) for i in range(4)] == [64, 42, 64, 47]
    assert source.clip_captions == ["a person walks.", "he stops.", "a person walks.", "a person walks."]
    assert [len(records) for records in source.clip_records] == [2, 1, 1, 1]
    starts = [0, 10, 20]
    expected = [(0, "a person walks.", s) for s in starts] + [(0, "he turns.", s) for s in starts]
    expected += [(2, "a person walks.", s) for s in starts] + [(3, "a person walks.", 0)]
    assert len(source) == len(expected) == len(list(source)) == len(source.captions)
    for i, (clip, caption, start) in enumerate(expected):
        element = source[i]
        assert set(element) == {"video"} and element["video"].dtype == np.float32
        np.testing.assert_array_equal(element["video"], source.clip(clip)[start : start + 44])
        assert source.captions[i] == source.record(i).text == caption
    assert source.record(3).tokens == ("he/PRON", "turn/VERB")
    assert source.fps == 20.0 and source.clips == 4
    assert caplog.messages == [
        "skipped 2 of 5 clips of train.txt: no caption describes 40 to 199 frames of them",
        "skipped 1 of 4 train clips: they have fewer than data.frames=44 frames",
    ]


def test_elements_are_normalised_by_the_folders_mean_and_std(folder):
    source = HumanML3D(config(folder), "test")
    assert len(source) == 1 and source.names == ["000005"]
    mean, std = np.linspace(-1, 1, 263), np.linspace(0.5, 2, 263)
    np.testing.assert_allclose(source.clip(0), (vectors(50, 5) - mean) / std, atol=1e-5)
    np.testing.assert_allclose(source.denormalise(source[0]["video"]), vectors(50, 5)[:40], atol=1e-5)
    some = HumanML3D(config(folder, channels=67), "test")
    np.testing.assert_array_equal(some[0]["video"], source[0]["video"][:, :67])
    assert len(some.mean) == 67 and (some.body.representation, source.body.representation) == ("essential", "humanml")
    np.testing.assert_array_equal(source.body.denormalise(source[0]["video"]), source.denormalise(source[0]["video"]))
    assert source.body.names == SKELETON.names and source.body.fps == 20
    positions, _ = some.body.positions(some[0]["video"])
    np.testing.assert_allclose(positions, humanml.decode(vectors(50, 5)[:40], 22)[0], atol=1e-4)


def test_short_clips_are_padded(folder):
    source = HumanML3D(config(folder, frames=60, shortest=40, stride=60), "train")
    lengths = [60, 60, 40, 60, 44]  # 000001 twice, its part of 42, its mirror image, and 47 frames
    assert [int(element["length"]) for element in source] == lengths
    for i, (clip, length) in enumerate(zip((0, 0, 1, 2, 3), lengths, strict=True)):
        assert source[i]["video"].shape == (60, 263) and source[i]["length"].dtype == np.int32
        np.testing.assert_array_equal(source[i]["video"][:length], source.clip(clip)[:length])
        assert not source[i]["video"][length:].any()


def test_repr_is_stable_and_tells_content(folder):
    shown = repr(HumanML3D(config(folder), "test"))
    assert shown == repr(HumanML3D(config(folder), "test"))
    assert shown.startswith("HumanML3D(split='test', clips=1, stretches=1, digest=")
    assert shown.endswith(", size=(40, 263), stride=40)")
    (folder / "texts" / "000005.txt").write_text(WHOLE.replace("walks", "runs"))
    changed = repr(HumanML3D(config(folder), "test"))
    np.save(folder / "new_joint_vecs" / "000005.npy", vectors(50, 9))
    assert len({shown, changed, repr(HumanML3D(config(folder), "test"))}) == 3


@pytest.mark.parametrize("nested", ["HumanML3D", "t2m", "HumanML3D/HumanML3D"])
def test_the_folder_may_be_nested(tmp_path, nested):
    write(tmp_path / nested)
    assert len(HumanML3D(config(tmp_path), "test")) == 1


def test_other_joint_counts_and_lists(tmp_path):
    folder = write(tmp_path, channels=251)
    (folder / "val.txt").write_text("000002\n")
    for channels, representation in ((251, "humanml"), (64, "essential")):
        source = HumanML3D(config(folder, channels=channels), "val")
        assert source.names == ["000002"] and source.body.joints == 21
        assert source.body.representation == representation


def test_a_number_that_never_changes_is_kept_finite(folder):
    np.save(folder / "Std.npy", np.zeros(263))
    source = HumanML3D(config(folder), "test")
    np.testing.assert_allclose(source.clip(0), vectors(50, 5) - np.linspace(-1, 1, 263), atol=1e-6)


def test_clips_that_cannot_be_used_are_left_out_with_a_warning(folder, caplog):
    vecs = folder / "new_joint_vecs"
    (vecs / "000001.npy").unlink()
    (vecs / "000003.npy").unlink()
    broken = vectors(64, 1)
    broken[17, 100] = np.nan
    np.save(vecs / "M000001.npy", broken)
    np.save(vecs / "000004.npy", vectors(3, 1))
    (folder / "texts" / "999999.txt").write_text(WHOLE)
    source = HumanML3D(config(folder), "train")
    assert source.names == ["000002"]
    assert caplog.messages == [
        "left out 2 of 5 clips of train.txt: 000001.npy is not in new_joint_vecs/ (the first of them)",
        "left out 1 of 5 clips of train.txt: frame 17 of M000001 is not finite",
        "left out 1 of 5 clips of train.txt: 000004 has 3 frames, a motion has at least 4",
        "texts/ has captions of 1 clips that new_joint_vecs/ does not have, 999999 first",
    ]
    (folder / "texts" / "000002.txt").unlink()
    with pytest.raises(UserError, match="no clip of .*train.txt can be used, 000001.npy is not in new_joint_vecs/"):
        HumanML3D(config(folder), "train")


def test_missing_parts_are_named_in_one_line(tmp_path):
    with pytest.raises(UserError, match="has no new_joint_vecs/, texts/, Mean.npy, Std.npy, train.txt: put there"):
        HumanML3D(config(tmp_path), "train")
    folder = write(tmp_path / "HumanML3D")
    (folder / "Std.npy").unlink()
    (folder / "texts").rename(folder / "elsewhere")
    (folder / "texts.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"HumanML3D has no texts/, Std.npy, val.txt: unpack texts.zip there") as error:
        HumanML3D(config(tmp_path), "val")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spoil, message", [
    (lambda f: (f / "new_joint_vecs/000005.npy").write_bytes(b"\x93NUMPY"), "000005.npy cannot be read .*: replace or"),
    (lambda f: np.save(f / "new_joint_vecs/000005.npy", vectors(50, 0, 251)), r"shape \(50, 251\): a clip is \[frames, "
     "263\\]"),
    (lambda f: np.save(f / "new_joint_vecs/000005.npy", np.array(["a"])), "000005.npy cannot be read .its dtype is"),
    (lambda f: (f / "texts/000005.txt").write_text("walk"), "000005.txt line 1 is no caption"),
    (lambda f: np.save(f / "Mean.npy", np.zeros(262)), r"Mean.npy has the shape \(262,\)"),
    (lambda f: np.save(f / "Std.npy", np.zeros(251)), "Mean.npy has 263 numbers and .*Std.npy has 251"),
    (lambda f: np.save(f / "Std.npy", np.full(263, np.nan)), "Std.npy has the shape .* or is not finite"),
    (lambda f: (f / "test.txt").write_text("\n"), "no clip of .*test.txt can be used, it lists none"),
    (lambda f: (f / "test.txt").write_text("000003\n000004"), "no clip of .*test.txt has 40 to 199 frames"),
])  # fmt: skip
def test_a_file_that_is_wrong_is_named(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        HumanML3D(config(folder), "test")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("values, message", [
    (dict(path=""), "data.path is empty: set it to the folder of HumanML3D"),
    (dict(path="/nowhere"), "data.path '/nowhere' is no folder"),
    (dict(channels=66), "data.channels is 66: a frame has 263 numbers, set data.channels=263 or 67"),
    (dict(height=4, width=4), "motion has no pixels, set data.height=0 and data.width=0"),
    (dict(fps=30.0), "data.fps is 30: these clips have 20 frames per second"),
    (dict(classes=3), "data.classes is 3: these clips have captions only, set data.classes=0"),
    (dict(mirror=True), "data.mirror is True: mirrored clips are in the folder, set data.mirror=False"),
    (dict(frames=51), "no clip of the test split has data.frames=51 frames: the longest, 000005, has 50"),
    (dict(frames=60, shortest=51), "data.shortest=51 frames: .*set data.shortest to at most 50"),
])  # fmt: skip
def test_a_config_that_does_not_fit_is_refused(folder, values, message):
    values = dict(path=str(folder)) | values
    with pytest.raises(UserError, match=message) as error:
        HumanML3D(config(values.pop("path"), **values), "test")
    assert "\n" not in str(error.value)


def test_an_autoencoder_of_the_folder_is_judged_by_its_joints(folder):
    """Numbers that come back as they are have no error; a fifth added to the height of the root lifts every joint."""
    import types

    from causal_diffusion.training import evaluate_vae

    section = config(folder, frames=40)
    source = HumanML3D(section, "test")
    geometry = types.SimpleNamespace(time=4, latent=8, channels=263)

    def reconstructed(shift):
        vae = types.SimpleNamespace(geometry=geometry, encode=lambda params, x: x, decode=lambda params, z: z + shift)
        config_ = types.SimpleNamespace(data=section, evaluate=types.SimpleNamespace(clips=4))
        recipe = types.SimpleNamespace(vae=vae, config=config_)
        return evaluate_vae.reconstruct(recipe, None, evaluate_vae.Clips(source, None)).numbers

    assert reconstructed(0.0)["vae_world_mm"] == 0.0
    height = np.eye(263, dtype=np.float32)[3] * 0.2
    assert reconstructed(height)["vae_world_mm"] == pytest.approx(200 * source.body.std[3] / 22, rel=1e-3)
