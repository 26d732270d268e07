"""Where folders are found, whose weights become ours, and what is refused."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from causal_diffusion.errors import UserError
from causal_diffusion.nn.text import weights
from causal_diffusion.nn.text.encoder import FROZEN, FrozenEncoder
from causal_diffusion.nn.text.tokenizer import load_tokenizer

PREFIXES = [(kind, prefix) for kind, (_, _, names, _) in FROZEN.items() for prefix in names.prefixes]


def read(folder, kind):
    """(module, params) of a folder."""
    Module, Config, names, _ = FROZEN[kind]
    module = Module(Config.read(weights.read_config(folder)))
    return module, weights.load(folder, module, names)


def rewrite(folder, change):
    """The folder's weights after ``change`` of {key: array}."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


@pytest.mark.parametrize("kind, prefix", PREFIXES)
def test_weights_come_as_they_were_written(tiny_folder, tmp_path, kind, prefix):
    params = tiny_folder(tmp_path, kind, prefix=prefix)
    rewrite(tmp_path, lambda w: w | {"decoder.block.0.x": np.ones(3), "visual_projection.weight": np.ones(2)})
    jax.tree.map(np.testing.assert_array_equal, params, read(tmp_path, kind)[1])


def test_norms_named_as_in_tensorflow_are_read(tiny_folder, tmp_path):
    params = tiny_folder(tmp_path, "distilbert", prefix="distilbert.")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def renamed(w):
        return {re.sub(r"LayerNorm\.\w+$", lambda m: old[m[0]], key): value for key, value in w.items()}

    rewrite(tmp_path, renamed)
    _, loaded = read(tmp_path, "distilbert")
    assert np.array_equal(loaded["norm"]["scale"], params["norm"]["scale"])
    assert np.array_equal(loaded["norm"]["bias"], params["norm"]["bias"])


def test_words_of_an_encoder_alone_are_read(tiny_folder, tmp_path):
    params = tiny_folder(tmp_path, "t5")
    rewrite(tmp_path, lambda w: {key.replace("shared.", "encoder.embed_tokens."): value for key, value in w.items()})
    assert np.array_equal(read(tmp_path, "t5")[1]["words"]["embedding"], params["words"]["embedding"])


def shard(folder, files=2):
    """Splits model.safetensors into shards with an index."""
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{i + 1:05}-of-{files:05}.safetensors" for i in range(files)]
    where = {key: names[i % files] for i, key in enumerate(sorted(whole))}
    for name in names:
        save_file({key: whole[key] for key in whole if where[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return names


def test_shards_are_one(tiny_folder, tmp_path):
    params = tiny_folder(tmp_path, "umt5")
    names = shard(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, read(tmp_path, "umt5")[1])
    assert sorted(weights.digests(tmp_path)) == names
    (tmp_path / names[1]).unlink()
    with pytest.raises(UserError, match=f"lists {names[1]}, which is not in"):
        read(tmp_path, "umt5")
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match="cannot read .*index.json"):
        read(tmp_path, "umt5")


def test_half_precision_becomes_float32(tiny_folder, tmp_path):
    params = tiny_folder(tmp_path, "t5")
    rewrite(tmp_path, lambda w: {key: value.astype(np.float16) for key, value in w.items()})
    _, loaded = read(tmp_path, "t5")
    assert loaded["norm"]["scale"].dtype == np.float32
    assert np.array_equal(loaded["norm"]["scale"], params["norm"]["scale"].astype(np.float16).astype(np.float32))


# Where they are found.


@pytest.fixture
def cache(tmp_path, monkeypatch, tiny_folder):
    """A hub cache that holds org/model in two snapshots, main being 'one'."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    model = tmp_path / "home" / "hub" / "models--org--model"
    tiny_folder(model / "snapshots" / "one", "t5")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("one")
    return model


def test_a_model_of_the_hub_cache_is_found_by_name(cache, tmp_path, monkeypatch):
    one = cache / "snapshots" / "one"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert weights.find("org/model") == one
    assert FrozenEncoder("t5", "org/model", 8).encode(["a person walks"])[1].sum() == 4
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))  # comes first
    with pytest.raises(UserError, match=r"org/model is not in the hub cache .*elsewhere"):
        weights.find("org/model")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setenv("HF_HOME", "/nowhere")
    assert weights.find("org/model") == one
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert weights.hub_cache() == tmp_path / "caches" / "huggingface" / "hub"


def test_revisions_of_the_hub_cache(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    one, two = cache / "snapshots" / "one", cache / "snapshots" / "two"
    (two / "text_encoder").mkdir(parents=True)
    assert weights.find("org/model@two") == two and weights.find("org/model@one") == one
    assert weights.find("org/model/text_encoder@two") == two / "text_encoder"
    (cache / "refs" / "v2").write_text("two\n")
    assert weights.find("org/model@v2") == two
    with pytest.raises(UserError, match="no revision three: one of one, two behind an '@' would do"):
        weights.find("org/model@three")
    with pytest.raises(UserError, match="there is no folder .*text_encoder"):
        weights.find("org/model/text_encoder")
    (cache / "refs" / "main").unlink()
    with pytest.raises(UserError, match="no refs/main: one of one, two"):
        weights.find("org/model")
    (two / "text_encoder").rmdir()
    two.rmdir()
    assert weights.find("org/model") == one
    (cache / "refs" / "main").write_text("gone")
    with pytest.raises(UserError, match="names the snapshot gone"):
        weights.find("org/model")


@pytest.mark.parametrize("path", ["/no/such/folder", "../folder", "./folder", "a name with spaces", "org/../model"])
def test_a_path_that_is_no_name_is_refused(path):
    with pytest.raises(UserError, match=f"there is no folder {re.escape(path)}"):
        weights.find(path)


def test_a_blob_is_known_by_its_name(tiny_folder, tmp_path):
    """The hub cache names a large file by its SHA-256, which spares reading it."""
    tiny_folder(tmp_path / "snapshots" / "one", "t5")
    file = tmp_path / "snapshots" / "one" / "model.safetensors"
    own = weights.digests(file.parent)["model.safetensors"]
    (tmp_path / "blobs").mkdir()
    for name, known in ((own, own), ("f" * 64, "f" * 64), ("e" * 40, own)):  # 40 digits: a small file's Git hash
        file.rename(tmp_path / "blobs" / name)
        file.symlink_to(tmp_path / "blobs" / name)
        assert weights.digests(file.parent)["model.safetensors"] == known
        file.unlink()
        (tmp_path / "blobs" / name).rename(file)


def test_a_tokenizer_beside_the_encoder_is_found(folders, tmp_path, tiny_folder, tiny_tokenizer):
    tiny_folder(tmp_path / "text_encoder_2", "clip", tokenizer=False)
    (tmp_path / "tokenizer_2").mkdir()
    tiny_tokenizer("clip").save(str(tmp_path / "tokenizer_2" / "tokenizer.json"))
    text, _ = FrozenEncoder("clip", tmp_path / "text_encoder_2", 8).encode(["waves"])
    assert np.array_equal(text, FrozenEncoder("clip", folders["clip"], 8).encode(["waves"])[0])


# What is refused.


def test_a_pickle_is_refused_with_the_way_to_convert_it(tiny_folder, tmp_path):
    tiny_folder(tmp_path, "t5")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin, a pickle, .*save_pretrained") as error:
        read(tmp_path, "t5")
    assert "\n" not in str(error.value) and f"from_pretrained({str(tmp_path)!r})" in str(error.value)


def drop(key):
    return lambda w: {name: value for name, value in w.items() if name != key}


@pytest.mark.parametrize(
    "change, said",
    [
        (drop("shared.weight"), "have no shared.weight or encoder.embed_tokens.weight"),
        (drop("encoder.block.1.layer.1.DenseReluDense.wi.weight"), "have no encoder.block.1.layer.1.DenseReluDense.wi"),
        (lambda w: w | {"encoder.block.2.layer.0.SelfAttention.q.weight": np.ones((6, 8))}, "block.2.* no place"),
        (lambda w: w | {"encoder.block.0.layer.0.SelfAttention.q.weight": np.ones((5, 8))}, r"\(5, 8\); \(6, 8\)"),
        (lambda w: w | {"encoder.final_layer_norm.weight": np.ones(9)}, r"\(9,\); \(8,\)"),
    ],
)  # fmt: skip
def test_weights_of_another_network_are_refused(tiny_folder, tmp_path, change, said):
    tiny_folder(tmp_path, "t5")
    rewrite(tmp_path, change)
    with pytest.raises(UserError, match=said):
        read(tmp_path, "t5")


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("config.json", None, "cannot read .*config.json: No such file"),
        ("config.json", "{", "cannot read .*config.json"),
        ("config.json", "[1]", "holds a list"),
        ("model.safetensors", None, "has no model.safetensors"),
        ("model.safetensors", "not tensors", "cannot read .*model.safetensors"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{}", "cannot read .*tokenizer.json"),
    ],
)
def test_a_folder_without_a_part_is_refused(tiny_folder, tmp_path, name, content, said):
    tiny_folder(tmp_path, "t5")
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said) as error:
        FrozenEncoder("t5", tmp_path, 8)
    assert "\n" not in str(error.value)


def test_a_sentencepiece_model_alone_is_refused(tiny_folder, tmp_path):
    tiny_folder(tmp_path, "t5", tokenizer=False)
    (tmp_path / "spiece.model").write_bytes(b"x")
    with pytest.raises(UserError, match="spiece.model and no tokenizer.json: .*save_pretrained"):
        FrozenEncoder("t5", tmp_path, 8)


def test_no_room_for_a_word_is_refused(folders):
    with pytest.raises(UserError, match="tokens is 2, of which 2 are special"):
        load_tokenizer(folders["clip"], 2)
    assert load_tokenizer(folders["clip"], 3)[0].encode("a person").tokens == ["<start>", "a", "<end>"]


def test_padding_and_cutting_of_the_file_do_not_count(folders, tmp_path, tiny_tokenizer):
    tokenizer = tiny_tokenizer("t5")
    tokenizer.enable_padding(length=30)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(load_tokenizer(tmp_path, 10)[0].encode("a person walks forward").ids) == 5
