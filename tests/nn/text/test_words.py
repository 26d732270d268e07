"""Words as tokens: the vocabulary, ids, and the layer that embeds them."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.file_access import sealed
from causal_diffusion.nn.text.word_embedding import PADDING, WordEmbedding
from causal_diffusion.nn.text.words import UNKNOWN, Vocabulary, Words, split

CAPTIONS = ["A person waves the left hand.", "a person waves bye-bye!", "a dancer, slowly: the LEFT hand"]


@pytest.mark.parametrize(
    "caption, words",
    [
        ("A person waves, then says bye-bye.", "a person waves then says bye-bye"),
        ("-left- (left/right) 'left'", "left left right left"),
        ("doesn\u2019t   don't\ttwo_words", "doesn't don't two words"),
        ("caf\u00e9 cafe\u0301 \uff21 90\u00b0 3.5", "caf\u00e9 caf\u00e9 a 90 3 5"),
        ("a--b x-y-z", "a b x-y-z"),
        (" ?!... ", ""),
    ],
)
def test_words_of_a_caption(caption, words):
    assert split(caption) == words.split()


def test_the_vocabulary_is_by_frequency_then_alphabet():
    words = Vocabulary.build(CAPTIONS)
    assert words.words == ("a", "hand", "left", "person", "the", "waves", "bye-bye", "dancer", "slowly")
    assert Vocabulary.build(CAPTIONS[::-1]) == words and words.size == 2 + 9
    assert Vocabulary.build(CAPTIONS, min_count=2).words == words.words[:6]
    assert Vocabulary.build(CAPTIONS, most=5).words == words.words[:3]
    assert words.ids(["a", "left", "zebra"]) == [2, 4, UNKNOWN]


@pytest.mark.parametrize("given", [dict(captions=[]), dict(captions=["?"]), dict(min_count=9), dict(most=2)])
def test_an_empty_vocabulary_is_refused(given):
    with pytest.raises(UserError, match="words in the captions, and none is left.* would do"):
        Vocabulary.build(**{"captions": CAPTIONS} | given)


def test_ids_are_padded(caplog):
    encoder = Words.of(CAPTIONS, tokens=6)
    text, mask = encoder.encode(["waves bye-bye", "", "A  person..."])
    assert text.dtype == np.int32 and text.tolist() == [[7, 8, 0, 0, 0, 0], [0] * 6, [2, 5, 0, 0, 0, 0]]
    assert np.array_equal(mask, text != PADDING) and not caplog.records
    assert (encoder.name, encoder.tokens, encoder.width, encoder.vocabulary) == ("words", 6, 0, 11)
    assert encoder.encode([])[0].shape == (0, 6)


def test_a_long_caption_is_cut_with_one_warning(caplog):
    encoder = Words.of(CAPTIONS, tokens=3)
    with caplog.at_level(logging.WARNING):
        text, mask = encoder.encode(CAPTIONS)
        encoder.encode(CAPTIONS)
    assert mask.all() and text[0].tolist() == [2, 5, 7]
    assert len(caplog.records) == 1
    said = caplog.records[0].getMessage()
    assert CAPTIONS[0] in said and "3 tokens" in said and "2 more" in said


def test_an_unknown_word_is_named_once(caplog):
    encoder = Words.of(CAPTIONS, tokens=4)
    with caplog.at_level(logging.WARNING):
        text, mask = encoder.encode(["a zebra waves zebra", "a zebra", "a lion"])
    assert text[0].tolist() == [2, UNKNOWN, 7, UNKNOWN] and mask[0].all()
    zebra, lion = (record.getMessage() for record in caplog.records)
    assert "'zebra'" in zebra and "'lion'" in lion


def test_captions_are_strings():
    with pytest.raises(UserError, match="captions is the string 'a'"):
        Words.of(CAPTIONS, tokens=4).encode("a")
    with pytest.raises(UserError, match="tokens is 0"):
        Words.of(CAPTIONS, tokens=0)


def test_words_are_saved(tmp_path):
    encoder = Words.of([*CAPTIONS, "caf\u00e9"], tokens=4)
    encoder.save(tmp_path / "text")
    loaded = Words.load(tmp_path / "text", 4)
    assert loaded.words == encoder.words and loaded.fingerprint == encoder.fingerprint
    assert [p.name for p in (tmp_path / "text").iterdir()] == ["words.json"]
    others = [Words.load(tmp_path / "text", 5), Words.of(CAPTIONS, tokens=4)]
    assert encoder.fingerprint not in [other.fingerprint for other in others]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        encoder.save(tmp_path / "file" / "text")


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "cannot read .*words.json: No such file"),
        ("{", "cannot read"),
        ("[]", "is no vocabulary"),
        ({"format": 3, "words": ["a"]}, "format 2"),
        ({"format": 2, "words": ["a"]}, "its checksum is missing"),
        (sealed({"format": 2, "words": ["a", "b"]}) | {"words": ["b", "a"]}, "does not match its checksum"),
        ({"format": 1, "words": "a"}, "a list of words"),
        ({"format": 1, "words": ["a", "b", "a"]}, "'a' is there twice"),
        ({"format": 1, "words": ["a", "A b"]}, "'A b' is no word"),
        ({"format": 1, "words": [3]}, "3 is no word"),
    ],
)
def test_a_damaged_vocabulary_is_refused(tmp_path, content, said):
    if content is not None:
        (tmp_path / "words.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=said):
        Vocabulary.load(tmp_path)


# The layer.


@pytest.fixture(scope="module")
def embedding():
    """A function of ids (and a mask) with every parameter away from 0 and 1."""
    module, rng = WordEmbedding(vocabulary=9, width=8, tokens=6), np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 6), jnp.int32))
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes)
    apply = jax.jit(module.apply)
    return lambda ids, mask=None: np.asarray(apply(params, jnp.asarray(ids), mask))


def test_padding_is_exactly_zero_and_counts_for_nothing(embedding):
    out = embedding([[3, 4, 5, 0, 0, 0], [0] * 6, [3, 4, 5, 6, 7, 8]])
    assert out.shape == (3, 6, 8) and out.dtype == np.float32
    assert not out[0, 3:].any() and not out[1].any() and np.abs(out[0, :3]).max(-1).all()
    np.testing.assert_allclose(embedding([[3, 4, 5]])[0], out[0, :3], atol=1e-5)
    mask = np.arange(6) < 3
    np.testing.assert_allclose(embedding([[3, 4, 5, 6, 7, 8]], mask[None]), out[:1], atol=1e-5)


def test_a_word_sees_words_on_both_sides(embedding):
    first, last, swapped = embedding([[3, 4, 5]]), embedding([[3, 4, 6]]), embedding([[4, 3, 5]])
    assert np.abs(first[0, 0] - last[0, 0]).max() > 1e-3 and np.abs(first[0, 2] - swapped[0, 2]).max() > 1e-3


def test_blocks_with_captions_of_their_own(embedding):
    ids = np.array([[[3, 4, 0], [5, 6, 7]], [[8, 0, 0], [0, 0, 0]]])
    out = embedding(ids)
    assert out.shape == (2, 2, 3, 8)
    np.testing.assert_allclose(out.reshape(4, 3, 8), embedding(ids.reshape(4, 3)), atol=1e-5)


def test_gradients_of_padding_are_finite_and_zero():
    module = WordEmbedding(vocabulary=9, width=6, tokens=4)  # two heads
    ids = jnp.array([[3, 4, 0, 0], [0, 0, 0, 0]])
    params = jax.jit(module.init)(jax.random.key(0), ids)["params"]
    gradient = jax.jit(jax.grad(lambda p, ids: jnp.sum(module.apply({"params": p}, ids) ** 3)))
    grads = gradient(params, ids)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    moved = np.abs(grads["words"]).max(-1) > 0
    assert moved.tolist() == [False] * 3 + [True] * 2 + [False] * 4
    assert (np.abs(grads["positions"]).max(-1) > 0).tolist() == [True, True, False, False]
    grads = gradient(params, jnp.zeros_like(ids))
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads))


def test_too_many_words_are_refused():
    with pytest.raises(ValueError, match="7 tokens; 6 or fewer"):
        jax.eval_shape(WordEmbedding(9, 8, tokens=6).init, jax.random.key(0), jnp.zeros((1, 7), jnp.int32))
