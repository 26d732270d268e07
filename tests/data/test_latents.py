"""Latents as a source: windows of what was encoded, normalised by the training split; misfits are refused."""

import dataclasses
import json
import pickle
import re
import shutil

import numpy as np
import pytest

from causal_diffusion.data.config import DataConfig
from causal_diffusion.data.latents import Latents, check_made_by
from causal_diffusion.data.pipeline import Loader
from causal_diffusion.encode import encode_source
from causal_diffusion.errors import UserError
from causal_diffusion.file_access import sealed
from tests.data.toy_vae import SERIES, Pictures, Toy, ToyConfig, Whole

FINGERPRINT = "ab" * 32
PICTURES = dict(source="latents", frames=3, height=2, width=2, channels=6)
LENGTHS = (12, 20, 8, 41, 4, 20)  # 3, 5, 2, 10, 1, 5 latents
WALKS = dict(source="latents", frames=3, height=0, width=0, channels=6)


def encode(root, split, vae, source, fingerprint=FINGERPRINT, **options):
    options = dict(shard_clips=4, batch=2, progress=False) | options
    return encode_source(vae, "params", source, root / split, fingerprint=fingerprint, split=split, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Sets of pictures with all conditions ('pictures', 9 frames -> 3 latents) and of whole series ('walks')."""
    root = tmp_path_factory.mktemp("latents")
    for split, seed in (("train", 0), ("test", 1)):
        encode(root / "pictures", split, Toy(), Pictures(seed=seed))
        encode(root / "walks", split, Toy(SERIES), Whole(LENGTHS, seed=seed), whole=True)
    return root


@pytest.fixture
def copy(made, tmp_path):
    """The same, to be damaged."""
    return shutil.copytree(made, tmp_path / "made")


def opened(root, split="train", **data):
    return Latents(DataConfig(path=str(root), **data), split)


def refusal(root, split="train", **data):
    with pytest.raises(UserError) as error:
        opened(root, split, **data)
    assert "\n" not in str(error.value)
    return str(error.value)


def statistics(latents):
    """Over all positions of all clips, of each channel, in float64."""
    flat = np.concatenate([x.reshape(-1, x.shape[-1]) for x in latents]).astype(np.float64)
    return flat.mean(axis=0), flat.std(axis=0)


@pytest.mark.parametrize("split", ["train", "test"])
def test_elements_are_normalised_latents_with_their_conditions(made, split):
    source = opened(made / "pictures", split, **PICTURES, classes=5, action_dim=2)
    pictures = Pictures(seed=int(split == "test"))
    latents = [Toy().encode("params", pictures[i]["video"][None])[0] for i in range(10)]
    train = [Toy().encode("params", Pictures()[i]["video"][None])[0] for i in range(10)]
    mean, std = statistics(train)
    np.testing.assert_allclose(source.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(source.std, std, rtol=1e-12)
    assert len(source) == 10 and source.captions == [f"clip {i}" for i in range(10)]
    for i in (0, 3, 4, 9, -1):
        element, original = source[i], pictures[i]
        assert set(element) == set(original)
        assert {x.dtype for x in (element["video"], element["action"], element["text"])} == {np.dtype(np.float32)}
        expected = (latents[i] - np.float32(mean)) / np.float32(std)
        np.testing.assert_array_equal(element["video"], expected)
        assert element["label"] == i % 10 % 5 and element["label"].dtype == np.int32 and element["label"].shape == ()
        action = original["action"]
        groups = [action[:1].mean(axis=0), action[1:5].mean(axis=0), action[5:9].mean(axis=0)]
        np.testing.assert_allclose(element["action"], groups, rtol=1e-6)
        np.testing.assert_array_equal(element["text"], original["text"])
        np.testing.assert_array_equal(element["text_mask"], original["text_mask"])
    with pytest.raises(IndexError):
        source[10]


def test_the_training_split_as_a_whole_has_mean_0_and_deviation_1(made):
    source = opened(made / "pictures", **PICTURES)
    mean, std = statistics([source[i]["video"] for i in range(len(source))])
    np.testing.assert_allclose(mean, 0, atol=1e-6)
    np.testing.assert_allclose(std, 1, rtol=1e-6)
    mean, _ = statistics([x["video"] for x in opened(made / "pictures", "test", **PICTURES)])
    assert np.abs(mean).max() > 1e-3  # held-out latents are not normalised by themselves


def test_conditions_that_are_not_asked_for_are_left_out(made):
    assert set(opened(made / "pictures", **PICTURES)[0]) == {"video", "text", "text_mask"}
    assert Latents.condition_sizes(DataConfig(**PICTURES, classes=7, action_dim=2)) == (7, 2)


@pytest.mark.parametrize("frames, stride", [(1, 1), (3, 1), (3, 2), (2, 5), (10, 1)])
def test_windows_of_whole_clips(made, caplog, frames, stride):
    source = opened(made / "walks", **WALKS | dict(frames=frames, stride=stride))
    clips, whole = [n // 4 for n in LENGTHS], Whole(LENGTHS)
    windows = [(c, s) for c, n in enumerate(clips) for s in range(0, n - frames + 1, stride)]
    assert len(source) == len(windows)
    assert source.captions == [whole.clip_captions[c] for c, _ in windows]
    for i, (c, s) in enumerate(windows):
        latents = Toy(SERIES).encode("params", whole.clip(c)[None, : 4 * clips[c]])[0]
        expected = (latents[s : s + frames] - np.float32(source.mean)) / np.float32(source.std)
        np.testing.assert_array_equal(source[i]["video"], expected)
    short = sum(n < frames for n in clips)
    assert [record.message for record in caplog.records] == [
        f"skipped {short} of the 6 clips in {made / 'walks/train'}: they have fewer latents than data.frames={frames} "
        "(the shortest 1)"
    ] * bool(short)


def test_short_clips_are_padded_and_say_how_long_they_are(made, caplog):
    source = opened(made / "walks", **WALKS | dict(frames=4, shortest=2))
    windows = [(0, 0), *((1, s) for s in range(2)), (2, 0), *((3, s) for s in range(7)), *((5, s) for s in range(2))]
    assert len(source) == len(windows) and "shortest=2" in repr(source)
    plain = opened(made / "walks", **WALKS | dict(frames=1))
    every = {(c, s): plain[i]["video"][0] for i, (c, s) in enumerate(
        (c, s) for c, n in enumerate(LENGTHS) for s in range(n // 4))}  # fmt: skip
    for i, (c, s) in enumerate(windows):
        element, count = source[i], min(4, LENGTHS[c] // 4 - s)
        assert set(element) == {"video", "length"} and element["length"].dtype == np.int32
        assert element["length"] == count and element["video"].shape == (4, 6)
        np.testing.assert_array_equal(element["video"][:count], [every[c, s + n] for n in range(count)])
        np.testing.assert_array_equal(element["video"][count:], 0.0)
    assert "skipped 1 of the 6 clips" in caplog.text and "data.shortest=2" in caplog.text
    assert "shortest=11 latents: the longest has 10" in refusal(
        made / "walks", **WALKS | dict(frames=12, shortest=11))  # fmt: skip


def test_conditions_of_padded_clips_are_padded_too(made):
    padded = opened(made / "pictures", **PICTURES | dict(frames=5, shortest=3), classes=5, action_dim=2)
    plain = opened(made / "pictures", **PICTURES, classes=5, action_dim=2)
    assert padded[4]["length"] == 3 and padded[4]["video"].shape == (5, 2, 2, 6)
    np.testing.assert_array_equal(padded[4]["action"][:3], plain[4]["action"])
    np.testing.assert_array_equal(padded[4]["action"][3:], np.zeros((2, 2)))
    np.testing.assert_array_equal(padded[4]["text"], plain[4]["text"])


def test_where_the_first_latent_is_apart_windows_start_with_the_clip(tmp_path):
    encode(tmp_path, "train", Toy(ToyConfig(axes=0, space=1)), Whole((21, 9, 5)), whole=True)  # 6, 3, 2 latents
    source = opened(tmp_path, **WALKS)
    latents = Toy(ToyConfig(axes=0, space=1)).encode("params", Whole((21, 9, 5)).clip(0)[None])[0]
    assert len(source) == 2
    np.testing.assert_allclose(source[0]["video"] * source.std + source.mean, latents[:3], atol=1e-6)


def test_half_precision_in_the_file(tmp_path):
    encode(tmp_path, "train", Toy(), Pictures(), dtype="float16")
    source = opened(tmp_path, **PICTURES)
    latents = [Toy().encode("params", Pictures()[i]["video"][None])[0].astype(np.float16) for i in range(10)]
    mean, std = statistics(latents)  # of what is in the file
    np.testing.assert_allclose(source.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(source.std, std, rtol=1e-12)
    assert source[2]["video"].dtype == np.float32
    np.testing.assert_array_equal(source[2]["video"], (np.float32(latents[2]) - np.float32(mean)) / np.float32(std))


def test_a_channel_that_never_changes_stays_finite(tmp_path):
    source = Whole((8, 8))
    for clip in source._clips:
        clip[:, 1] = 0.5
    encode(tmp_path, "train", Toy(dataclasses.replace(SERIES, scale=0.0)), source, whole=True)
    latents = opened(tmp_path, **WALKS | dict(frames=2))
    assert latents.std[4] == 1.0 and (latents[0]["video"][:, 4] == 0).all()


def test_its_name_tells_the_content_and_nothing_else(made, copy):
    source = opened(made / "pictures", **PICTURES)
    assert repr(source) == repr(opened(copy / "pictures", **PICTURES))  # wherever it lies
    assert re.fullmatch(r"Latents\(split='train', windows=10, digest=[0-9a-f]{12}, vae=abababababab, frames=3, "
                        r"stride=1, classes=0, action_dim=0\)", repr(source))
    others = [opened(made / "pictures", "test", **PICTURES), opened(made / "pictures", **PICTURES | dict(frames=2)),
              opened(made / "pictures", **PICTURES, classes=5), opened(made / "walks", **WALKS)]
    assert len({repr(x) for x in [source, *others]}) == 5


def test_threads_load_the_same_batches(made):
    source = opened(made / "walks", **WALKS)
    batches = []
    for threads in (0, 3):
        with Loader(source, batch=4, threads=threads) as loader:
            batches.append([next(loader) for _ in range(20)])
    for a, b in zip(*batches, strict=True):
        np.testing.assert_array_equal(a["video"], b["video"])
    again = pickle.loads(pickle.dumps(source))
    assert repr(again) == repr(source)
    np.testing.assert_array_equal(again[5]["video"], source[5]["video"])


def test_it_knows_its_autoencoder(made):
    source = opened(made / "pictures", **PICTURES)
    assert source.fingerprint == FINGERPRINT and source.vae_config == {
        "time": 4, "apart": True, "space": 2, "axes": 2, "channels": 3, "scale": 2.0}  # fmt: skip
    check_made_by(source, FINGERPRINT, "runs/vae")
    check_made_by(Pictures(), FINGERPRINT, "runs/vae")  # no latents
    with pytest.raises(UserError, match="another VAE: theirs is abababababab, that of runs/vae is cdcdcdcdcdcd"):
        check_made_by(source, "cd" * 32, "runs/vae")


# What is refused.


@pytest.mark.parametrize("data, message", [
    (dict(channels=16), r"data.channels is 16 and the latents in .*train have 6: set data.channels=6"),
    (dict(height=4), r"data.height is 4 and the latents in .*train have 2: set data.height=2"),
    (dict(width=3), r"data.width is 3 and the latents in .*train have 2: set data.width=2"),
    (dict(height=0, width=0), r"data.height is 0 and the latents in .*train have 2"),
    (dict(frames=4), "no clip in .*train has data.frames=4 latents: the longest has 3; set data.frames to at most 3"),
    (dict(classes=3), "data.classes is 3 and a label in .*train is 4: set data.classes=5"),
    (dict(action_dim=7), "data.action_dim is 7 and the actions in .*train have 2: set data.action_dim=2"),
])  # fmt: skip
def test_a_data_section_that_does_not_fit(made, data, message):
    assert re.search(message, refusal(made / "pictures", **PICTURES | data))


def test_conditions_that_a_set_has_not(made):
    assert "walks/train have no labels: set data.classes=0" in refusal(made / "walks", **WALKS, classes=2)
    assert "walks/train have none: set data.action_dim=0" in refusal(made / "walks", **WALKS, action_dim=2)
    assert "data.height is 2 and the latents" in refusal(made / "walks", **WALKS | dict(height=2, width=2))


def test_a_folder_that_is_none(made, tmp_path):
    assert "data.path is empty: set it to a folder that `python -m causal_diffusion.encode`" in refusal("", **PICTURES)
    message = refusal(tmp_path / "nowhere", **PICTURES)
    assert message.startswith(f"data.path '{tmp_path / 'nowhere'}' is no folder: set it to one that `python -m")
    assert refusal(tmp_path, **PICTURES) == (
        f"there is no set of latents in {tmp_path / 'train'}: make it with `python -m causal_diffusion.encode "
        f"--out={tmp_path} --split=train`"
    )
    file = tmp_path / "file"
    file.touch()
    assert "is no folder" in refusal(file, **PICTURES)


def test_an_unfinished_encode(copy):
    folder = copy / "pictures/train"
    (folder / "meta.json").unlink()
    (folder / "unfinished").mkdir()
    for split in ("train", "test"):  # the statistics of the training split count
        message = refusal(copy / "pictures", split, **PICTURES)
        assert message.startswith(f"the encoding of {folder} is not finished: run the same `python -m")


def test_a_damaged_meta(copy):
    path = copy / "pictures/train/meta.json"
    text = path.read_text()
    path.write_text(text[:-100])
    assert f"{path} cannot be read: remove it" in refusal(copy / "pictures", **PICTURES)
    path.write_text(json.dumps(sealed(json.loads(text) | {"format": 2})))
    assert f"{path} is of format 2, and this version reads 1: encode again" in refusal(copy / "pictures", **PICTURES)


def test_a_missing_or_damaged_shard(copy):
    path = copy / "pictures/train/latents-00001-of-00003.array_record"
    data = path.read_bytes()
    again = (f": run `python -m causal_diffusion.encode --out={copy / 'pictures'} --split=train` again as it was made, "
             "and it makes that shard again")
    path.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    assert refusal(copy / "pictures", **PICTURES) == f"{path} does not match its checksum{again}"
    path.write_bytes(data[:1000])
    assert refusal(copy / "pictures", **PICTURES) == f"{path} has 1,000 bytes instead of {len(data):,}{again}"
    path.unlink()
    assert refusal(copy / "pictures", **PICTURES) == f"{path} is missing{again}"
    opened(copy / "pictures", "test", **PICTURES)  # it is another split's


def test_a_record_that_breaks_after_opening(copy):
    source = opened(copy / "pictures", **PICTURES)
    path = copy / "pictures/train/latents-00001-of-00003.array_record"
    data = bytearray(path.read_bytes())
    at = data.index(b'"latents"')
    data[at] ^= 1
    path.write_bytes(data)
    source[0]
    with pytest.raises(UserError, match=f"^{path} is damaged: Corrupted Riegeli/records file: chunk data hash"):
        source[4]


def test_splits_of_two_autoencoders(copy):
    shutil.rmtree(copy / "pictures/test")
    encode(copy / "pictures", "test", Toy(), Pictures(seed=1), fingerprint="cd" * 32)
    assert re.search(r"test was made by another VAE \(cdcdcdcdcdcd\) than the training split in .*train "
                     r"\(abababababab\): encode both with one", refusal(copy / "pictures", "test", **PICTURES))
    meta = json.loads((copy / "pictures/test/meta.json").read_text())
    assert meta["vae"]["fingerprint"] == "cd" * 32
