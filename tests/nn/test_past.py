"""What layers leave behind and read again: raw or turned, summed queries, compacted, coarse, in 8 bits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.cache import EMPTY, Slots, compact, load, plan_compaction, store
from causal_diffusion.nn.layers import stack_layers
from causal_diffusion.nn.rope import rotate, turn
from causal_diffusion.nn.transformer import Transformer

CAUSAL = np.tril(np.ones((4, 4), bool))
SIZES = dict(text=0, action=0, classes=0, space=(4, 4), patch=(1, 2, 2))
SPLIT = (2, 1, 1)
FRAMES = np.broadcast_to(np.arange(4, dtype=np.int32), (2, 4))


def close(a, b, limit=1e-5):
    np.testing.assert_allclose(a, b, atol=limit * np.abs(b).max())


def by_time(x, position):
    return turn(x, position, 10000.0, 3, SPLIT)


@pytest.fixture(scope="module")
def made(assembled):
    return assembled({"noisy": np.arange(4)}, CAUSAL, **SIZES | dict(rope_split=SPLIT))


@pytest.fixture(scope="module")
def whole(made):
    return made.forward(queries=True)


@pytest.fixture(scope="module")
def raw(made):
    return made.forward(raw=True, queries=True)[1]


def part(stream, cut):
    return jax.tree.map(lambda a: a[:, cut], stream)


def test_raw_keys_and_queries_lack_their_turn_along_time_alone(whole, raw):
    for turned_layer, raw_layer in zip(whole[1], raw, strict=True):
        np.testing.assert_array_equal(raw_layer[1], turned_layer[1])
        for i in (0, 2):
            close(by_time(raw_layer[i], FRAMES), turned_layer[i], 1e-6)
            np.testing.assert_array_equal(raw_layer[i][:, 0], turned_layer[i][:, 0])  # frame 0 has its place already
            assert np.abs(raw_layer[i][:, 1:] - turned_layer[i][:, 1:]).max() > 1e-2


def test_summed_queries_are_the_queries_summed(made, whole):
    """Of the first layer, computed token by token outside of it."""

    @jax.jit
    def by_token(params):
        bound = made.model.bind({"params": params})
        (x,), (segment,), _, _ = bound._segments(made.streams, bound.embed_condition(made.condition))
        block = bound.block[0]
        shift, scale, _ = block.modulate(block.modulation, segment)[0]
        return rotate(block.attention.queries(block.normed(x, shift, scale)), segment.rotary)

    q = by_token(made.params)
    kept = whole[1][0][2]
    assert kept.shape == (2, 4, 1, 2, 8) and kept.dtype == jnp.float32
    close(kept[:, :, 0], np.sum(q, axis=2))


def test_raw_keys_are_read_wherever_they_are_told_to_stand(made, whole, raw):
    """At their frames they are the rotated ones, also when all is a billion frames later, and token by token."""
    later, slots = part(made.streams["noisy"], slice(2, 4)), FRAMES[:, :2]
    past = tuple((k[:, :2], v[:, :2]) for k, v, _ in raw)

    def run(shift, past, past_frame):
        moved = dataclasses.replace(later, frame=later.frame + shift)
        inputs = {"mask": CAUSAL[2:], "past": past, "past_frame": past_frame + shift}
        return made.forward(streams={"noisy": moved}, **inputs)[0]["noisy"]

    expected = whole[0]["noisy"][:, 2:]
    close(run(0, past, slots), expected)
    close(run(10**9, past, slots), expected)
    assert np.abs(run(0, past, slots - 2) - expected).max() > 1e-3  # elsewhere they are others
    # Tokens 1 and 2 of both frames change places with each other: the order of keys means nothing.
    mixed = jax.tree.map(lambda a: a.at[:, :, 1:3].set(a[:, ::-1, 1:3]), past)
    where = np.repeat(slots[..., None], 4, axis=2)
    where[:, :, 1:3] = where[:, ::-1, 1:3]
    close(run(0, mixed, where), expected)


def test_a_past_of_8_bits_is_read_as_the_numbers_that_it_holds(made, whole):
    """``slots`` and the storage bound the error of each number; here what becomes of it stays small."""
    later = {"noisy": part(made.streams["noisy"], slice(2, 4))}
    past = tuple((k[:, :2], v[:, :2]) for k, v, _ in whole[1])
    small = tuple(tuple(store(a, "int8") for a in layer) for layer in past)
    numbers = tuple(tuple(load(a, jnp.float32) for a in layer) for layer in small)
    out = made.forward(streams=later, mask=CAUSAL[2:], past=small)[0]["noisy"]
    close(out, made.forward(streams=later, mask=CAUSAL[2:], past=numbers)[0]["noisy"], 1e-6)
    expected = whole[0]["noisy"][:, 2:]
    assert 0 < np.abs(out - expected).max() < 0.01 * np.abs(expected).max()


# Slots [kept 0 1 | ring 2 3 4]; the cursor is on ring slot 3, so that the ring is 5, 3, 4. The newest counts as recent.
BEFORE = np.array([[1, 2, 5, 3, 4]] * 2, np.int32)
AFTER = np.array([[3, 4, 5, 3, 4]] * 2, np.int32)


@pytest.fixture(scope="module")
def compacting(assembled):
    """Two own frames, the first one clean, a past of five slots, and a run with compaction as with a plain past."""
    seen = np.ones((2, 2), bool)
    clean = {"own": np.array([True, False])}
    made = assembled({"own": np.array([6, 7])}, seen, clean=clean, **SIZES | dict(rope_split=SPLIT))
    rng = np.random.default_rng(0)
    past = tuple(tuple(jnp.asarray(rng.normal(size=(2, 5, n, 2, 8)), jnp.float32) for n in (4, 4, 1)) for _ in range(2))

    def plain(past, shown, past_frame):
        mask = np.concatenate([np.broadcast_to(shown, (2, 5)), seen], axis=1)
        return made.forward(mask=mask, past=past, past_frame=past_frame)[0]["own"]

    def compacted(frame):
        slots = Slots(jnp.asarray(frame), jnp.int32(1), sinks=0, block=1, kept=2)
        plan = plan_compaction(slots, jnp.asarray(BEFORE), 1)
        mask = np.broadcast_to(np.array([1, 1, 1, 0, 0, 1, 1], bool), (2, 7))
        inputs = dict(mask=mask, past=past, past_frame=AFTER, queries=True, compaction=plan)
        out, kv = made.forward(**inputs)
        return plan, out["own"], kv, inputs

    return made, past, plain, compacted


def test_keeping_all_is_keeping_the_past(compacting):
    """Two frames compete for two slots."""
    _, past, plain, compacted = compacting
    frame = BEFORE.copy()
    frame[:, :2] = EMPTY
    _, out, kv, _ = compacted(frame)
    for old, (_, new) in zip(past, kv, strict=True):
        for a, b in zip(new[:2], old[:2], strict=True):
            np.testing.assert_array_equal(a[:, :2], b[:, 3:])
        np.testing.assert_array_equal(new[2], old[2])
    close(out, plain(past, [0, 0, 1, 1, 1], BEFORE))


def test_every_layer_compacts_with_its_own_queries_and_reads_what_is_left(compacting):
    """Four frames compete for two slots in the first sample; the ring of the second is not yet full."""
    _, past, plain, compacted = compacting
    frame = BEFORE.copy()
    frame[1, 4] = EMPTY
    plan, out, kv, _ = compacted(frame)
    for old, (own, new) in zip(past, kv, strict=True):
        expected = compact(old, own[2][:, 1, 0], plan, by_time)  # those of the noisy frame alone
        for a, b in zip(new, expected, strict=True):
            np.testing.assert_array_equal(a, b)
        kept, before = (np.asarray(a[0][0, :2]) for a in (new, old))
        assert (kept != before).any()
        np.testing.assert_array_equal(new[0][1], old[0][1])
    assert (np.asarray(kv[0][1][0]) != kv[1][1][0]).any()
    left = tuple(layer for _, layer in kv)
    close(out, plain(left, [1, 1, 1, 0, 0], AFTER))


@pytest.mark.full
def test_scanned_and_recomputed_layers_compact_as_plain_ones(compacting):
    made, past, _, compacted = compacting
    _, out, kv, inputs = compacted(BEFORE)
    config = dataclasses.replace(made.model.config, layers="scan", remat="full")
    stacked = {**inputs, "past": tuple(jnp.stack(parts) for parts in zip(*past, strict=True))}
    scanned, scanned_kv = made._replace(model=Transformer(config)).forward(stack_layers(made.params), **stacked)
    close(scanned["own"], out)
    for i, layer in enumerate(kv):
        jax.tree.map(lambda a, b, i=i: close(a[i], b), scanned_kv, layer)


def test_coarse_history_kept_from_pass_to_pass_is_that_of_one_pass(assembled):
    """Coarse frames 0 1, then 2, then fine frame 2, then 3 and 4: each reads what those before it have left."""
    times = {"coarse": np.arange(3), "noisy": np.arange(2, 5)}
    order = np.concatenate(list(times.values()))
    mask = order[:, None] >= order
    mask[:3, 3:] = False
    made = assembled(times, mask, **SIZES | dict(coarse=2, patch=(1, 1, 1)))
    whole, whole_kv = made.forward()

    def run(name, cut, past, seen, **inputs):
        streams = {name: part(made.streams[name], cut)}
        return made.forward(streams=streams, mask=np.asarray(seen, bool), past=past, **inputs)

    out, far = run("coarse", slice(0, 2), None, np.tril(np.ones((2, 2))))
    assert out == {} and far[0][0].shape == (2, 2, 4, 2, 8)
    _, last = run("coarse", slice(2, 3), far, [[1, 1, 1]], raw=True)  # which coarse keys never are
    far = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), far, last)
    none = tuple(tuple(jnp.zeros_like(a[:, :0]) for a in layer) for layer in whole_kv)
    past = tuple(a + b for a, b in zip(none, far, strict=True))
    out, fine = run("noisy", slice(0, 1), past, [[1, 1, 1, 1]], raw=True)
    close(out["noisy"], whole["noisy"][:, :1])
    past = tuple(a + b for a, b in zip(fine, far, strict=True))
    at = np.full((2, 1), 2, np.int32)
    out, _ = run("noisy", slice(1, 3), past, [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]], past_frame=at)
    close(out["noisy"], whole["noisy"][:, 1:])


def test_factorised_layers_neither_sum_queries_nor_compact(assembled):
    made = assembled({"noisy": np.arange(2)}, CAUSAL[:2, :2], **SIZES | dict(attention="factorised", depth=1))
    with pytest.raises(ValueError, match=r"model.attention is 'factorised': .*; model.attention = 'joint' would do"):
        made.forward(compiled=False, queries=True)
