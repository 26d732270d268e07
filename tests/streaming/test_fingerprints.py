"""A stream goes on with what made it: other weights, words, VAEs and steering losses are refused by name."""

import json
import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.checkpoint import fingerprints, load_tree, save_tree
from causal_diffusion.errors import CheckpointError
from causal_diffusion.nn.text.encoder import check_encoder
from causal_diffusion.nn.text.words import Vocabulary, Words
from causal_diffusion.streaming.maker import Maker, WeightsOrigin

WORDS, REVERSED = (Words(Vocabulary(words), 4) for words in (("walk", "run"), ("run", "walk")))
TREE = {"a": {"kernel": jnp.arange(6.0).reshape(2, 3)}}
GOAL = np.ones(3, np.float32)


def towards(goal, power=2):
    return lambda x, frame: jnp.sum(jnp.abs(x - goal) ** power, axis=(1, 2))


def maker(weights=TREE, text=WORDS, loss=None, scale=1.0):
    return Maker(WeightsOrigin(weights), text, None, loss, scale, (4, 3))


OTHERS = {
    "weights": maker({"a": {"kernel": TREE["a"]["kernel"].at[1, 2].add(1e-6)}}), "word list": maker(text=REVERSED),
    "steering loss": maker(loss=towards(GOAL)),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_another_part_is_named(name):
    own = maker().fingerprints(2)
    fingerprints.check_same("saved", own, maker().fingerprints(2), "")
    for one, other in ((own, OTHERS[name].fingerprints(2)), (OTHERS[name].fingerprints(2), own)):
        with pytest.raises(CheckpointError, match=f"^saved was made with (an)?other {name} than .*: try this"):
            fingerprints.check_same("saved", one, other, "try this")


LOSSES = {"scale": dict(loss=towards(GOAL), scale=2.0), "goal": dict(loss=towards(2 * GOAL)),
          "power": dict(loss=towards(GOAL, 4)), "none": dict(loss=None)}  # fmt: skip


@pytest.mark.parametrize("other", LOSSES.values(), ids=LOSSES)
def test_a_loss_is_known_by_what_it_computes(other):
    """Made anew in another process it is the same function; with another number in it it is not."""
    def of(**given):
        return maker(**given).fingerprints(2)

    assert of(loss=towards(GOAL)) == of(loss=towards(GOAL.copy()))
    assert of(loss=towards(GOAL), scale=0.0) == of()
    with pytest.raises(CheckpointError, match="another steering loss"):
        fingerprints.check_same("saved", of(loss=towards(GOAL)), of(**other), "")


def test_without_an_encoder_no_words_are_compared():
    fingerprints.check_same("saved", maker(text=None).fingerprints(1), maker().fingerprints(1), "")


def test_parts_are_the_same_without_a_digest_where_they_are_the_same_objects():
    origin, loss = WeightsOrigin(TREE), towards(GOAL)
    one, two = (Maker(origin, WORDS, None, loss, 1.0, (4, 3)) for _ in range(2))
    assert one.is_same(two) and origin._fingerprint is None
    assert not one.is_same(maker(loss=loss))


def test_weights_are_let_go_once_their_fingerprint_is_known():
    origin = WeightsOrigin(TREE)
    assert origin.fingerprint == fingerprints.of_tree(TREE) and origin._weights is None


def test_the_words_of_a_run_are_those_it_was_trained_with(caplog):
    meta = {"fingerprints": fingerprints.of_text(WORDS) | {"vae": "ab"}}
    check_encoder("runs/a", json.loads(json.dumps(meta)), WORDS)
    check_encoder("runs/a", meta, None)
    assert not caplog.text
    with pytest.raises(CheckpointError, match="runs/a was made with another word list .*: put back the words.json"):
        check_encoder("runs/a", meta, REVERSED)
    frozen = SimpleNamespace(name="clip", fingerprint="cd")
    with pytest.raises(CheckpointError, match="runs/a was made with another text encoder .*text.path"):
        check_encoder("runs/a", {"fingerprints": {"text_encoder": "ef"}}, frozen)
    with caplog.at_level(logging.WARNING):
        check_encoder("runs/a", {}, REVERSED)  # of before there were fingerprints
    assert "runs/a is of schema version 1, without fingerprints: whether its word list" in caplog.text


def test_streams_and_marks_of_other_weights_are_refused(pipeline, tmp_path, caplog):
    pipe = pipeline("causal")
    params = pipe.params
    stream = pipe.stream(seed=0, batch=2)
    stream.next()
    mark = stream.mark()
    stream.save(tmp_path / "stream")
    wanted = stream.next()
    try:
        pipe.params = jax.tree.map(lambda a: a * 1.001, params)
        for use in (lambda: stream.rewind(mark), lambda: pipe.resume(tmp_path / "stream")):
            with pytest.raises(CheckpointError, match="was made with other weights than here"):
                use()
    finally:
        pipe.params = jax.tree.map(lambda a: a + 0, params)  # equal, and other arrays
    stream.rewind(mark)
    np.testing.assert_array_equal(stream.next(), wanted)
    np.testing.assert_array_equal(pipe.resume(tmp_path / "stream").next(), wanted)
    tree, meta = load_tree(tmp_path / "stream")
    del meta["fingerprints"], meta["schema"]
    save_tree(tmp_path / "old", tree, meta)
    caplog.clear()
    np.testing.assert_array_equal(pipe.resume(tmp_path / "old").next(), wanted)
    assert "old is of schema version 1, without fingerprints: whether its weights are these" in caplog.text
