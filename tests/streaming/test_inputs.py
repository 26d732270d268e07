"""What users hand over: every accepted form, and one clear line for everything else, with nothing lost."""

import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.streaming.inputs import parse_action, parse_condition, parse_context

BATCH = 2


@pytest.fixture(scope="module")
def pipe(pipeline):
    """Blocks of two frames [4, 4, 1], three classes, text of width 5, two numbers per action."""
    return pipeline("teacher")


def test_labels_come_as_one_or_as_many(pipe):
    model = pipe.recipe.model.config
    for given, expected in {1: [1, 1], -1: [-1, -1], (2, 0): [2, 0], None: [-1, -1]}.items():
        for cast in (lambda a: a, np.asarray):
            label = parse_condition(model, {"label": None if given is None else cast(given)}, BATCH).label
            assert label.shape == (BATCH, 1) and label[:, 0].tolist() == expected


def test_text_comes_for_all_or_for_each(pipe):
    model, text = pipe.recipe.model.config, np.arange(30.0).reshape(2, 3, 5)
    for given, mask in [(text[0], None), (text, None), (text, [True, False, True]), (text, np.ones((2, 3)))]:
        parsed = parse_condition(model, {"text": given, "text_mask": mask}, BATCH)
        np.testing.assert_array_equal(parsed.text[:, 0], np.broadcast_to(given, text.shape))
        expected = np.broadcast_to(True if mask is None else np.asarray(mask, bool), (2, 3))
        np.testing.assert_array_equal(parsed.text_mask[:, 0], expected)


def test_actions_come_for_a_frame_for_all_or_for_each(pipe):
    model = pipe.recipe.model.config
    assert parse_action(model, None, BATCH) is None
    for given in ([1, 2], [[1, 2], [3, 4], [5, 6]], np.arange(12).reshape(2, 3, 2)):
        parsed = parse_action(model, given, BATCH)
        assert parsed.dtype == np.float32 and parsed.shape[0] == BATCH and parsed.shape[2] == 2
        np.testing.assert_array_equal(parsed, np.broadcast_to(given, parsed.shape))


def test_context_comes_as_floats_or_pixels_for_all_or_for_each(pipe):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 4, 1), np.uint8)
    floats = (pixels / 127.5 - 1).astype(np.float32)
    for given in (pixels, floats, floats.astype(np.float64)):
        np.testing.assert_allclose(parse_context(pipe.recipe, given, BATCH), floats, atol=1e-6)
        np.testing.assert_allclose(parse_context(pipe.recipe, given[0], BATCH), floats[[0, 0]], atol=1e-6)
    half = jnp.asarray(floats, jnp.bfloat16)
    np.testing.assert_allclose(parse_context(pipe.recipe, half, BATCH), floats, atol=0.01)
    assert parse_context(pipe.recipe, None, BATCH).shape == (2, 0, 4, 4, 1)


FRAMES = np.zeros((2, 4, 4, 4, 1), np.float32)
NAN = np.full((2, 2, 2), np.nan)
REFUSED = {
    "conditions that are no dict": (dict(cond=[3]), "cond is '[3]'; it is a dict of conditions, try cond = {'label': "),
    "unknown condition": (dict(cond={"prompt": "a cat"}), "unknown condition 'prompt'; conditions are label, text, "),
    "label of another batch": (dict(cond={"label": [0, 1, 2]}), "cond['label'] is int64[3]; it is one integer, or"),
    "label of no class": (dict(cond={"label": [0, 3]}), "cond['label'] has 0 .. 3; classes are 0 .. 2"),
    "label below none": (dict(cond={"label": -2}), "cond['label'] has -2 .. -2; classes are 0 .. 2"),
    "label that is no integer": (dict(cond={"label": 1.5}), "cond['label'] is float64[]; it is one integer"),
    "label by name": (dict(cond={"label": "seven"}), "cond['label'] is <U5[]; it is one integer"),
    "text in words": (dict(cond={"text": "a cat"}), "cond['text'] is 'a cat' and text.encoder is 'none'"),
    "text too wide": (dict(cond={"text": np.zeros((3, 6))}), "cond['text'] is float32[3, 6]; it holds tokens of"),
    "text of another batch": (dict(cond={"text": np.zeros((3, 3, 5))}), "cond['text'] is float32[3, 3, 5]; it holds"),
    "text without tokens": (dict(cond={"text": np.zeros((0, 5))}), "cond['text'] is float32[0, 5]; it holds tokens"),
    "text not finite": (dict(cond={"text": np.full((1, 5), np.inf)}), "cond['text'] has a value that is not finite"),
    "mask of other tokens": (
        dict(cond={"text": np.zeros((3, 5)), "text_mask": [True, False]}), "cond['text_mask'] is bool[2]; it has one"
    ),
    "mask without text": (dict(cond={"text_mask": [True]}), "cond['text_mask'] comes without cond['text']"),
    "action too wide": (dict(cond={"action": np.zeros((4, 3))}), "cond['action'] is float64[4, 3]; it is [2], "),
    "action of another batch": (dict(cond={"action": np.zeros((3, 4, 2))}), "cond['action'] is float64[3, 4, 2]; it"),
    "action of no frames": (dict(cond={"action": np.zeros((0, 2))}), "cond['action'] is float64[0, 2]; it is [2]"),
    "action not finite": (dict(cond={"action": NAN}), "cond['action'] has a value that is not finite"),
    "action in words": (dict(cond={"action": ["left"]}), "cond['action'] is \"['left']\"; it is an array of numbers"),
    "actions of another context": (
        dict(cond={"context_action": np.zeros((3, 2))}, context=FRAMES),
        "cond['context_action'] has 3 frames and the context 4: they must be equal",
    ),
    "actions of no context": (
        dict(cond={"context_action": np.zeros((3, 2))}), "cond['context_action'] has 3 frames and the context 0"
    ),
    "context of another size": (
        dict(context=np.zeros((2, 4, 8, 4, 1))), "context is float64[2, 4, 8, 4, 1]; it is [2, frames, 4, 4, 1]"
    ),
    "context of another batch": (dict(context=np.zeros((3, 4, 4, 4, 1))), "context is float64[3, 4, 4, 4, 1]; it is"),
    "one frame as context": (dict(context=FRAMES[0, 0]), "context is float32[4, 4, 1]; it is [2, frames, 4, 4, 1]"),
    "a number as context": (dict(context=0.5), "context is float64[]; it is [2, frames, 4, 4, 1]"),
    "half a block of context": (
        dict(context=FRAMES[:, :3]), "context has 3 frames and a block has 2: whole blocks are given, 2 or 4"
    ),
    "context in integers": (dict(context=np.full((4, 4, 4, 1), 255)), "context is int64[4, 4, 4, 1]; it is float in"),
    "context not finite": (dict(context=np.full_like(FRAMES, np.nan)), "context has a value that is not finite"),
    "ragged context": (dict(context=[[1.0], [1.0, 2.0]]), "context is '[[1.0], [1.0, 2.0]]'; it is an array"),
    "context out of range": (dict(context=FRAMES + 127), "context has values from 127 to 127: floats of pictures lie"),
    "no samples": (dict(batch=0), "batch is 0; it is at least 1, try batch = 1"),
    "half a sample": (dict(batch=1.5), "batch is 1.5; it is an integer, try batch = 1"),
    "more samples than memory": (dict(batch=10**9), "batch is 1000000000; it is at most 1,048,576, try batch = 1"),
    "a seed below 0": (dict(seed=-1), "seed is -1; it is at least 0, try seed = 0"),
    "a seed of 65 bits": (dict(seed=2**64), "seed is 18446744073709551616; it is at most"),
    "a seed that is none": (dict(seed=float("nan")), "seed is nan; it is an integer, try seed = 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_stream_refuses_in_one_clear_line(pipe, case):
    given, said = REFUSED[case]
    for begin in (pipe.stream, pipe.generate):
        with pytest.raises(UserError) as refusal:
            begin(**{"batch": BATCH} | given)
        assert str(refusal.value).startswith(said) and "\n" not in str(refusal.value)


def test_a_model_refuses_conditions_that_it_does_not_take(pipeline):
    pipe = pipeline("causal")
    for key, value in {"label": 1, "text": np.zeros((1, 5)), "action": [0.0]}.items():
        with pytest.raises(UserError, match=f"this model takes no '{key}'; it takes no condition"):
            pipe.stream(cond={key: value})
    with pytest.raises(UserError, match="this model takes no actions"):
        pipe.stream(batch=BATCH).next(action=[1.0])


@pytest.mark.parametrize(("frames", "said"), [
    (0, "it is at least 1, try frames = 1"), (-1, "it is at least 1"), (2.5, "it is an integer"),
    (float("nan"), "it is an integer"), (10**9, "it is at most 1,048,576"),
])  # fmt: skip
def test_frames_that_are_no_clip(pipe, frames, said):
    with pytest.raises(UserError, match=f"^frames is {frames}; {said}"):
        pipe.generate(frames=frames)


def test_a_refused_step_loses_nothing(pipe, inputs):
    """After every refusal the session stands where it stood."""
    stream = pipe.stream(seed=1, **inputs(pipe, BATCH, context=4, frames=8))
    ahead = stream.fork().take(3)
    refused = {
        "when is 'later'; it is 'entering' or 'in_flight'": lambda: stream.update({"label": 1}, when="later"),
        "context_action belongs to a context": lambda: stream.update({"context_action": [1.0, 2.0]}),
        "unknown condition 'lable'": lambda: stream.update({"lable": 1}),
        "cond['text'] has 4 tokens and this stream began with 3": lambda: stream.update({"text": np.zeros((4, 5))}),
        "action is float64[3]; it is [2], [frames, 2]": lambda: stream.update({"action": np.zeros(3)}),
        "action is float64[5]; it is [2], [frames, 2]": lambda: stream.next(action=np.zeros(5)),
        "action has 3 frames; the frames that enter now are 2": lambda: stream.next(action=np.zeros((3, 2))),
        "blocks is 0; it is at least 1, try blocks = 1": lambda: stream.take(0),
        "blocks is 1.5; it is an integer, try blocks = 1": lambda: stream.take(1.5),
        "there is no sample 2; samples are 0 .. 1": lambda: stream.reset(2),
        "there is no sample 0.5; samples are 0 .. 1": lambda: stream.reset(0.5),
        "there is no sample -1; samples are 0 .. 1": lambda: stream.reset(-1),
        "context has 3 frames and a block has 2": lambda: stream.reset(0, context=FRAMES[0, :3]),
        "context is float32[1, 2, 4, 4, 4, 1]; it is": lambda: stream.reset(0, context=FRAMES),
        "context_action has 1 frames and the context 4": lambda: stream.reset(0, FRAMES[0], context_action=[1.0, 2.0]),
        "context_action has 2 frames and the context 0": lambda: stream.reset(0, context_action=np.zeros((2, 2))),
    }
    for said, ask in refused.items():
        with pytest.raises(UserError) as refusal:
            ask()
        assert str(refusal.value).startswith(said) and "\n" not in str(refusal.value)
    np.testing.assert_array_equal(stream.take(3), ahead)
