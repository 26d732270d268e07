"""Frozen text encoders from captions on: padding, cutting, batches, the cache of features, and what is refused."""

import dataclasses
import json
import logging
import subprocess
import sys

import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.nn.text import encoder as encoders
from causal_diffusion.nn.text.config import TextConfig
from causal_diffusion.nn.text.encoder import FROZEN, FrozenEncoder, open_text_encoder
from causal_diffusion.nn.text.text_cache import TextCache
from causal_diffusion.nn.text.words import Words

CAPTIONS = ["a person walks", "waves", "a person walks forward and then waves left hand slowly then turns right"]
LENGTHS = {"distilbert": [5, 3, 15], "clip": [5, 3, 15], "t5": [4, 2, 14], "umt5": [4, 2, 14]}  # special ones included


@pytest.fixture(scope="module", params=FROZEN)
def encoder(request, folders):
    return FrozenEncoder(request.param, folders[request.param], 16)


def test_tokens_are_padded_with_zeros(encoder):
    text, mask = encoder.encode(CAPTIONS)
    assert (text.shape, text.dtype) == ((3, 16, 8), np.float32) and mask.dtype == bool
    assert np.array_equal(mask, np.arange(16) < np.array(LENGTHS[encoder.name])[:, None])
    assert not text[~mask].any() and np.abs(text[mask]).min(-1).all()
    assert (encoder.width, encoder.tokens, encoder.vocabulary) == (8, 16, 0)


def test_a_caption_does_not_depend_on_its_company(encoder, folders):
    """Nor on the batch, nor on the padding."""
    text, mask = encoder.encode(CAPTIONS)
    alone = [encoder.encode([caption]) for caption in CAPTIONS]
    assert np.array_equal(mask, np.concatenate([m for _, m in alone]))
    np.testing.assert_allclose(text, np.concatenate([t for t, _ in alone]), atol=1e-5)
    again, _ = encoder.encode([CAPTIONS[1], CAPTIONS[0], CAPTIONS[1]])
    assert np.array_equal(again[0], again[2]) and np.allclose(again[:2], text[[1, 0]], atol=1e-5)
    longer, wide = FrozenEncoder(encoder.name, folders[encoder.name], 20).encode(CAPTIONS)
    np.testing.assert_allclose(longer[:, :16], text, atol=1e-5)
    assert np.array_equal(wide[:, :16], mask) and not wide[:, 16:].any()


def test_order_and_words_matter(encoder):
    left, right = encoder.encode(["waves left then right", "waves right then left"])[0]
    assert np.abs(left - right).max() > 1e-2


def test_no_captions_are_no_rows(folders):
    text, mask = FrozenEncoder("t5", folders["t5"], 5).encode([])
    assert text.shape == (0, 5, 8) and mask.shape == (0, 5)


def test_an_empty_caption_is_its_special_tokens(folders):
    text, mask = FrozenEncoder("distilbert", folders["distilbert"], 6).encode([""])
    assert mask.sum() == 2 and text[0, :2].any()


def test_few_programs_are_compiled(folders, monkeypatch):
    encoder = FrozenEncoder("t5", folders["t5"], 16)
    words = "a person walks forward and then waves left hand slowly then turns".split()
    captions = [" ".join(words[:n]) for n in range(1, 13)]
    calls, compiled, run = [], encoders.last_hidden._cache_size(), encoders.last_hidden
    monkeypatch.setattr(encoders, "last_hidden", lambda *given: calls.append(given[2].shape) or run(*given))
    encoder.encode([*captions, *(c + " left" for c in captions), *(f"left {c}" for c in captions)])
    for caption in captions:
        encoder.encode([caption])
    assert set(calls) == {(16, 8), (16, 16), (1, 8), (1, 16)} and len(calls) < 3 * 12 + 12
    assert run._cache_size() - compiled <= 4


# Cutting.


def test_a_long_caption_is_cut_with_one_warning(folders, caplog):
    encoder = FrozenEncoder("distilbert", folders["distilbert"], 6)
    with caplog.at_level(logging.WARNING):
        text, mask = encoder.encode([CAPTIONS[2], "waves", CAPTIONS[2]])
        encoder.encode([CAPTIONS[2]])
    assert len(caplog.records) == 1
    said = caplog.records[0].getMessage()
    assert CAPTIONS[2][:60] in said and "6 tokens" in said and CAPTIONS[2] not in said
    shorter, _ = encoder.encode(["a person walks forward"])  # the end token is kept
    assert mask[0].all() and np.allclose(text[0], shorter[0], atol=1e-5)
    caplog.clear()
    encoder.encode([CAPTIONS[2] + " left", CAPTIONS[2] + " right"])
    assert len(caplog.records) == 1 and "1 more" in caplog.records[0].getMessage()


def test_a_caption_that_just_fits_is_not_cut(folders, caplog):
    FrozenEncoder("distilbert", folders["distilbert"], 6).encode(["a person walks forward"])
    assert not caplog.records


# The cache.


def test_hits_are_bit_equal_and_are_not_computed(folders, tmp_path, monkeypatch):
    encoder = FrozenEncoder("t5", folders["t5"], 16, tmp_path)
    text, mask = encoder.encode(CAPTIONS)
    assert len(list(tmp_path.glob("*/*.npz"))) == 3 and not list(tmp_path.rglob("*.partial"))
    fresh = FrozenEncoder("t5", folders["t5"], 16)
    monkeypatch.setattr(encoders, "last_hidden", None)
    again, mask_again = fresh.encode(CAPTIONS, cache=tmp_path)
    assert text.tobytes() == again.tobytes() and np.array_equal(mask, mask_again)
    with pytest.raises(TypeError):
        fresh.encode(["then waves"], cache=tmp_path)


def test_encoders_do_not_read_each_others_features(folders, tmp_path, tiny_folder):
    FrozenEncoder("t5", folders["t5"], 16).encode(CAPTIONS, cache=tmp_path)
    tiny_folder(tmp_path / "other", "t5", layer_norm_epsilon=1e-3)
    for other in (FrozenEncoder("umt5", folders["umt5"], 16), FrozenEncoder("t5", tmp_path / "other", 16)):
        assert np.array_equal(other.encode(CAPTIONS, cache=tmp_path)[0], other.encode(CAPTIONS)[0])
    assert len(list(tmp_path.glob("*/*.npz"))) == 9


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "pickle", "shape"])
def test_a_damaged_entry_is_computed_again(folders, tmp_path, damage):
    encoder = FrozenEncoder("t5", folders["t5"], 16)
    text, _ = encoder.encode(CAPTIONS[:1], cache=tmp_path)
    (path,) = tmp_path.glob("*/*.npz")
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "pickle":
        np.savez(path, features=np.array([{}], object))
    elif damage == "shape":
        np.savez(path, features=np.zeros((3, 8), np.float32))
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"flipped": flipped, "cut": content[:middle], "empty": b""}[damage])
    assert TextCache(tmp_path, encoder.fingerprint).get(CAPTIONS[0], 4, 8) is None
    assert np.array_equal(encoder.encode(CAPTIONS[:1], cache=tmp_path)[0], text)
    assert TextCache(tmp_path, encoder.fingerprint).get(CAPTIONS[0], 4, 8).any()


def test_a_cache_that_cannot_be_written_is_refused(folders, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the text cache .*file"):
        FrozenEncoder("t5", folders["t5"], 16).encode(["waves"], cache=tmp_path / "file")


def test_the_fingerprint_is_of_all_that_counts(tiny_folder, tmp_path, folders):
    def fingerprint(folder, tokens=16):
        return FrozenEncoder("t5", folder, tokens).fingerprint

    tiny_folder(tmp_path / "same", "t5")
    tiny_folder(tmp_path / "vocabulary", "t5")
    text = (tmp_path / "vocabulary" / "tokenizer.json").read_text().replace('"left"', '"lift"')
    (tmp_path / "vocabulary" / "tokenizer.json").write_text(text)
    tiny_folder(tmp_path / "weights", "t5")
    file = tmp_path / "weights" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x3e")
    assert fingerprint(tmp_path / "same") == fingerprint(folders["t5"])
    others = [(folders["t5"], 8), (tmp_path / "vocabulary",), (tmp_path / "weights",)]
    assert len({fingerprint(folders["t5"]), *(fingerprint(*other) for other in others)}) == 4


# Opening, and what is refused.


def test_a_config_says_which(folders, tmp_path):
    config = TextConfig("clip", str(folders["clip"]), tokens=7, cache=str(tmp_path))
    encoder = open_text_encoder(config)
    assert isinstance(encoder, FrozenEncoder) and (encoder.name, encoder.tokens) == ("clip", 7)
    encoder.encode(["waves"])
    assert list(tmp_path.glob("*/*.npz"))
    Words.of(CAPTIONS, tokens=4).save(tmp_path)
    words = open_text_encoder(TextConfig("words", tokens=5), tmp_path)
    assert isinstance(words, Words) and words.tokens == 5 and words.words == Words.of(CAPTIONS, tokens=4).words
    for config in (TextConfig(), TextConfig("words")):
        with pytest.raises(UserError, match=f"text.encoder is '{config.encoder}'"):
            open_text_encoder(config)
    with pytest.raises(UserError, match="text.path is ''.* 'openai/clip"):
        open_text_encoder(TextConfig("clip"))


@pytest.mark.parametrize("kind, other", [("distilbert", "clip"), ("t5", "umt5"), ("umt5", "t5"), ("clip", "t5")])
def test_a_folder_of_another_kind_is_refused(folders, kind, other):
    with pytest.raises(UserError, match=f"no '{kind}' encoder: kind '{other}' would do"):
        FrozenEncoder(kind, folders[other], 16)


@pytest.mark.parametrize("tokens", [0, True, 2.0])
def test_tokens_are_checked(folders, tokens):
    with pytest.raises(UserError, match="tokens is .* would do"):
        FrozenEncoder("t5", folders["t5"], tokens)


def test_more_tokens_than_positions_are_refused(folders):
    with pytest.raises(UserError, match="tokens is 21; 20"):
        FrozenEncoder("clip", folders["clip"], 21)
    assert FrozenEncoder("t5", folders["t5"], 50).tokens == 50  # it has no table of positions


def test_captions_are_strings(folders):
    encoder = FrozenEncoder("t5", folders["t5"], 8)
    with pytest.raises(UserError, match="captions is the string 'waves'"):
        encoder.encode("waves")
    with pytest.raises(UserError, match="a caption is a int"):
        encoder.encode(["waves", 3])


def test_a_tokenizer_of_another_model_is_refused(tiny_folder, tmp_path):
    tiny_folder(tmp_path, "t5", vocab_size=12)
    with pytest.raises(UserError, match=r"tokenizer.json has 15 tokens; 12 or fewer"):
        FrozenEncoder("t5", tmp_path, 8)


@pytest.mark.parametrize(
    "kind, sizes, said",
    [
        ("distilbert", dict(n_heads=3), "n_heads is 3"),
        ("distilbert", dict(activation="swish9"), "activation is 'swish9'"),
        ("clip", dict(num_attention_heads=5), "num_attention_heads is 5"),
        ("clip", dict(hidden_act=3), "hidden_act is 3"),
        ("t5", dict(relative_attention_num_buckets=6), "relative_attention_num_buckets is 6"),
        ("t5", dict(relative_attention_max_distance=8), "relative_attention_max_distance is 8"),
        ("umt5", dict(num_layers=0), "num_layers is 0"),
        ("umt5", dict(d_model="8"), "d_model is '8'"),
    ],
)
def test_an_unknown_config_is_refused(folders, tmp_path, kind, sizes, said):
    written = json.loads((folders[kind] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | sizes))
    with pytest.raises(UserError, match=f"config.json: {said}"):
        FrozenEncoder(kind, tmp_path, 8)


def test_clips_config_of_both_encoders_is_read():
    _, Config, *_ = FROZEN["clip"]
    said = {"model_type": "clip", "projection_dim": 9, "text_config": {"hidden_size": 48, "num_attention_heads": 6}}
    assert Config.read(said) == dataclasses.replace(Config(), width=48, heads=6)
    assert Config.read({"model_type": "clip"}) == Config()


def test_torch_is_never_imported(folders):
    source = (
        "import sys\n"
        "import causal_diffusion.streaming.pipeline\n"
        "from causal_diffusion.nn.text.encoder import FrozenEncoder\n"
        f"text, mask = FrozenEncoder('clip', {str(folders['clip'])!r}, 8).encode(['a person walks'])\n"
        "print(text.shape, [m for m in ('torch', 'transformers', 'huggingface_hub') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "(1, 8, 8) []", done.stderr


def test_published_names_are_of_every_kind():
    assert encoders.PUBLISHED.keys() == FROZEN.keys()
