import json

import numpy as np
import pytest

from causal_diffusion.data.config import DataConfig
from causal_diffusion.data.snapmogen import SnapMoGen
from causal_diffusion.errors import UserError

IDS = {"train": ["gp_00001#0#60", "gp_00001#60#100", "m_gp_00001#0#60"], "test": ["st2_00007#10#50"]}
RECORDINGS = {"gp_00001": 100, "m_gp_00001": 100, "st2_00007": 80}


def vectors(frames, seed):
    return np.random.default_rng(seed).standard_normal((frames, 296))


@pytest.fixture
def folder(tmp_path):
    for name in ("renamed_feats", "data_split_info", "meta_data"):
        (tmp_path / name).mkdir()
    for seed, (name, frames) in enumerate(RECORDINGS.items()):
        np.save(tmp_path / "renamed_feats" / f"{name}.npy", vectors(frames, seed))
    for split, ids in IDS.items():
        (tmp_path / "data_split_info" / f"{split}_ids.txt").write_text("\n".join(ids))
    write_captions(tmp_path, {clip: {"manual": [f"{clip} walks", " "], "gpt": [f"{clip} strolls"]}
                              for ids in IDS.values() for clip in ids})  # fmt: skip
    np.save(tmp_path / "meta_data/mean.npy", np.linspace(-1, 1, 296))
    np.save(tmp_path / "meta_data/std.npy", np.linspace(0.5, 2, 296))
    return tmp_path


def write_captions(folder, captions):
    (folder / "all_caption_clean.json").write_text(json.dumps(captions))


def config(folder, **values):
    values = dict(frames=40, stride=40, channels=296, height=0, width=0) | values
    return DataConfig(source="snapmogen", path=str(folder), **values)


def test_clips_are_parts_of_recordings(folder):
    source = SnapMoGen(config(folder), "train")
    assert source.names == IDS["train"] and source.fps == 30.0 and source.body is None
    whole = (vectors(100, 0) - np.linspace(-1, 1, 296)) / np.linspace(0.5, 2, 296)
    np.testing.assert_allclose(source.clip(0), whole[:60], atol=1e-5)
    np.testing.assert_allclose(source.clip(1), whole[60:], atol=1e-5)
    assert source.captions == [f"{clip} {verb}" for clip in IDS["train"] for verb in ("walks", "strolls")]
    np.testing.assert_array_equal(source[1]["video"], source.clip(0)[:40])
    some = SnapMoGen(config(folder, channels=148), "test")
    np.testing.assert_allclose(some.denormalise(some.clip(0)), vectors(80, 2)[10:50, :148], atol=1e-5)


def test_short_clips_are_padded(folder):
    source = SnapMoGen(config(folder, frames=64, shortest=40, stride=64), "train")
    assert [int(element["length"]) for element in source] == [60, 60, 40, 40, 60, 60]
    assert "digest=" in repr(source) and "shortest=40" in repr(source)


def test_the_folder_may_be_nested_and_its_lists_elsewhere(folder):
    (folder / "SnapMoGen").mkdir()
    for name in ("renamed_feats", "data_split_info", "meta_data", "all_caption_clean.json"):
        (folder / name).rename(folder / "SnapMoGen" / name.replace("_info", "_info1"))
    assert SnapMoGen(config(folder), "test").names == IDS["test"]


def test_clips_that_cannot_be_used_are_left_out_with_a_warning(folder, caplog):
    (folder / "renamed_feats/m_gp_00001.npy").unlink()
    ids = [*IDS["train"], "gp_00001#98#120", "gp_00001#0#40"]
    (folder / "data_split_info/train_ids.txt").write_text("\n".join(ids))
    captions = {clip: {"manual": ["walks"], "gpt": []} for clip in [*ids[:4], "ep9_00000#0#50"]}
    write_captions(folder, captions)
    assert SnapMoGen(config(folder), "train").names == ids[:2]
    assert caplog.messages == [
        "left out 1 of 5 clips of train_ids.txt: m_gp_00001.npy is not in renamed_feats/",
        "left out 1 of 5 clips of train_ids.txt: gp_00001#98#120 is 2 of 100 frames, a motion has at least 4",
        "left out 1 of 5 clips of train_ids.txt: all_caption_clean.json says nothing about gp_00001#0#40",
        "all_caption_clean.json has captions of 1 clips that renamed_feats/ does not have, ep9_00000#0#50 first",
    ]


def test_missing_parts_are_named_in_one_line(folder):
    (folder / "all_caption_clean.json").unlink()
    (folder / "meta_data/std.npy").unlink()
    message = "has no all_caption_clean.json, meta_data/std.npy, data_split_info/val_ids.txt: put there"
    with pytest.raises(UserError, match=message):
        SnapMoGen(config(folder), "val")


@pytest.mark.parametrize("spoil, message", [
    (lambda f: (f / "data_split_info/test_ids.txt").write_text("st2_00007"), "clip 1 is 'st2_00007': name#start#end"),
    (lambda f: (f / "data_split_info/test_ids.txt").write_text("a#5#5"), "clip 1 is 'a#5#5'"),
    (lambda f: (f / "all_caption_clean.json").write_text("{"), "all_caption_clean.json cannot be read"),
    (lambda f: write_captions(f, [1]), "is no table of clips"),
    (lambda f: write_captions(f, {"a#0#9": ["walks"]}), "a#0#9 has no captions of the form"),
    (lambda f: write_captions(f, {"a#0#9": {"manual": "walks"}}), "a#0#9 has no captions of the form"),
    (lambda f: np.save(f / "meta_data/mean.npy", np.zeros(263)), r"mean.npy has the shape \(263,\)"),
    (lambda f: np.save(f / "renamed_feats/st2_00007.npy", np.zeros((80, 295))), r"shape \(80, 295\): a clip is"),
])  # fmt: skip
def test_a_file_that_is_wrong_is_named(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        SnapMoGen(config(folder), "test")
    assert "\n" not in str(error.value)


def test_a_config_that_does_not_fit_is_refused(folder):
    with pytest.raises(UserError, match="a frame has 296 numbers, set data.channels=296 or 148"):
        SnapMoGen(config(folder, channels=263), "test")
    with pytest.raises(UserError, match="data.fps is 20: these clips have 30 frames per second"):
        SnapMoGen(config(folder, fps=20.0), "test")
