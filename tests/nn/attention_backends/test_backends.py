"""Every backend against the reference under static masks: values, gradients, dtypes, and what leaves no trace.

Those of GPUs and TPUs run on the CPU here: cuDNN's plan with XLA's attention in the place of cuDNN's, the TPU kernel
step by step. What they do on their own devices is for a machine that has one.
"""

import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.cache import lay
from causal_diffusion.layout import Layout, StaticMask
from causal_diffusion.nn.attention_backends import BACKENDS, attend, check_backend, choose, splash
from causal_diffusion.nn.attention_backends.rectangles import LEAST_ROWS

blockwise = sys.modules["causal_diffusion.nn.attention_backends.blockwise"]

B, N, H, K = 2, 3, 2, 8
RUN = {
    **BACKENDS,
    "cudnn": functools.partial(BACKENDS["cudnn"], implementation="xla"),
    "splash": functools.partial(BACKENDS["splash"], interpret=True),
}
PLANNED = [name for name in BACKENDS if name != "reference"]
MASKS = {
    "teacher_forcing": (Layout("teacher_forcing", block=2, window=4, sinks=2).training_mask(8), 0),
    "block_causal": (Layout("block_causal", block=2).training_mask(6), 0),
    "copies": (np.tile([[True, False], [True, True]], (2, 1)), 0),  # runs that share what they see in part
    "slots": (np.concatenate([np.ones((2, 4), bool), np.tri(2, dtype=bool)], axis=1), 4),  # a past of 4 frames
    "full": (np.ones((3, 3), bool), 0),
}


def problem(mask, past, tokens=N, dtype=jnp.float32):
    """Queries, keys and values by array; the past has frames of one token more."""
    rng, (T, S) = np.random.default_rng(0), mask.shape  # the same whichever tests ran before
    sizes = [(S, tokens)] if not past else [(past, tokens + 1), (S - past, tokens)]
    normal = [rng.normal(size=(B, T, tokens, H, K))] + [rng.normal(size=(B, s, n, H, K)) for s, n in 2 * sizes]
    q, *rest = (jnp.asarray(x, dtype) for x in normal)
    return q, rest[: len(sizes)], rest[len(sizes) :]


def run(name, q, keys, values, mask):
    """Output, and the gradients of a fixed product with it."""
    weight = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)

    def loss(q, keys, values):
        out = RUN[name](q, keys, values, mask)
        return jnp.sum(out * weight), out

    (_, out), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, keys, values)
    return out, grads


both = jax.jit(run, static_argnums=0)


def every_other(*axes):
    """Their product, in which every pair of values of two axes stays in the first tier if the last has two values."""
    places = itertools.product(*(range(len(axis)) for axis in axes))
    return [pytest.param(*values, marks=pytest.mark.full if sum(at) % 2 else ())
            for at, values in zip(places, itertools.product(*axes), strict=True)]  # fmt: skip


@pytest.mark.parametrize(("name", "case", "tokens"), every_other(PLANNED, MASKS, (N, LEAST_ROWS // 2)))
def test_backends_agree_in_value_and_gradient(name, case, tokens):
    mask, past = MASKS[case]
    given = problem(mask, past, tokens)
    out, grads = both(name, *given, StaticMask(mask))
    expected, slopes = both("reference", *given, StaticMask(mask))
    np.testing.assert_allclose(out, expected, atol=1e-5 * np.abs(expected).max())
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(slopes)))
    for new, old in zip(jax.tree.leaves(grads), jax.tree.leaves(slopes), strict=True):
        assert np.linalg.norm(new - old) <= 1e-5 * (np.linalg.norm(old) + 1e-3 * norm)


@pytest.mark.parametrize("name", PLANNED)
def test_backends_compute_scores_in_float32(name):
    mask, past = MASKS["teacher_forcing"]
    narrow = problem(mask, past, dtype=jnp.bfloat16)
    out, grads = both(name, *narrow, StaticMask(mask))
    wide, slopes = both("reference", *jax.tree.map(lambda a: a.astype(jnp.float32), narrow), StaticMask(mask))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), wide, atol=0.03)
    for new, old in zip(jax.tree.leaves(grads), jax.tree.leaves(slopes), strict=True):
        assert new.dtype == jnp.bfloat16
        assert np.linalg.norm(np.asarray(new, np.float32) - old) <= 0.02 * np.linalg.norm(old)


@pytest.mark.parametrize("tokens,huge", [(N, 1e20), (LEAST_ROWS, np.nan)])
@pytest.mark.parametrize("name", PLANNED)
def test_what_is_hidden_leaves_no_trace(name, tokens, huge):
    """Whatever a hidden key is, outputs and gradients keep their bits, and it gets none itself.

    What is not computed may be NaN; what is hidden inside a rectangle that is computed may be huge.
    """
    huge = 1e20 if name == "splash" else huge  # its tiles are larger than a frame
    mask = Layout("teacher_forcing", block=1, window=1).training_mask(5)
    q, (k,), (v,) = problem(mask, 0, tokens)
    hidden = [i for i in range(len(mask)) if not mask[-1, i]]
    out, grads = both(name, q, [k], [v], StaticMask(mask))
    there, slopes = both(name, q, [k.at[:, hidden].set(huge)], [v.at[:, hidden].set(huge)], StaticMask(mask))
    np.testing.assert_array_equal(there[:, -1], out[:, -1])
    np.testing.assert_array_equal(slopes[0][:, -1], grads[0][:, -1])
    alone = jax.jit(jax.grad(lambda k: jnp.sum(RUN[name](q, [k], [v], StaticMask(mask))[:, -1])))(k)
    assert not np.any(alone[:, hidden]) and np.all(np.any(alone[:, np.flatnonzero(mask[-1])], axis=(2, 3, 4)))


@pytest.mark.parametrize("name", BACKENDS)
def test_one_row_of_a_running_mask_stands_for_all(name):
    """A ring of which each sample has seen another part, and the own frames."""
    mask = np.ones((B, 1, 7), bool)
    mask[0, :, 2:4], mask[1, :, 0] = False, False
    q, keys, values = problem(np.ones((3, 7), bool), 4)
    chosen = choose(name, q.shape[1:3], [k.shape[1:3] for k in keys], jnp.asarray(mask))
    assert chosen == {"reference": "reference", "cudnn": "cudnn"}.get(name, "blockwise")
    out, grads = both(chosen, q, keys, values, jnp.asarray(mask))
    expected, slopes = both("reference", q, keys, values, jnp.asarray(mask.repeat(3, axis=1)))
    np.testing.assert_allclose(out, expected, atol=2e-6)
    for new, old in zip(jax.tree.leaves(grads), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-5 * np.abs(old).max())


@pytest.mark.parametrize("name", ["reference", "blockwise", "splash"])
def test_keys_that_lie_heads_first_are_the_same_keys(name):
    """As a cache keeps them: no bit changes, whichever arrays lie so."""
    mask, past = MASKS["slots"]
    q, keys, values = problem(mask, past)
    out = jax.jit(RUN[name])(q, keys, values, StaticMask(mask))
    for laid in ((0,), (0, 1)):
        kv = ([lay(x) if i in laid else x for i, x in enumerate(xs)] for xs in (keys, values))
        np.testing.assert_array_equal(jax.jit(RUN[name])(q, *kv, StaticMask(mask)), out)


def test_auto_follows_its_rule():
    causal = StaticMask(Layout("block_causal", block=1).training_mask(16))
    full = StaticMask(np.ones((16, 16)))
    assert choose("auto", (16, 64), [(16, 64)], causal) == "blockwise"
    assert choose("auto", (16, 64), [(16, 64)], full) == "reference"  # there is nothing to save
    assert choose("auto", (16, 4), [(16, 4)], causal) == "reference"  # too few queries
    ring = StaticMask(np.ones((1, 17)))
    assert choose("auto", (1, 64), [(16, 64), (1, 64)], ring) == "blockwise"  # a block under a full ring
    assert choose("auto", (1, 4), [(16, 4), (1, 4)], ring) == "reference"
    assert choose("auto", (16, 64), [(16, 64)], np.asarray(causal)) == "reference"  # not static
    fine = StaticMask(np.random.default_rng(0).random((600, 600)) < 0.5)
    assert choose("auto", (600, 1), [(600, 1)], fine) == "reference"  # nothing is hidden from all neighbours
    assert choose("blockwise", (16, 4), [(16, 4)], causal) == "blockwise"


def test_a_mask_of_the_running_program_is_computed_densely_and_the_log_says_so(caplog):
    mask = Layout("block_causal", block=1).training_mask(7)
    q, keys, values = problem(mask, 0)
    with caplog.at_level("INFO", logger="causal_diffusion.nn.attention_backends"):
        out = attend("blockwise", q, keys, values, jnp.asarray(mask))
    np.testing.assert_array_equal(out, BACKENDS["reference"](q, keys, values, mask))
    assert "densely, since the mask is computed while the program runs; model.backend is 'blockwise'" in caplog.text


@pytest.mark.parametrize("static", [True, False])
def test_large_scores_are_computed_in_parts(monkeypatch, static):
    """Values and gradients stay, and what exists at once shrinks."""
    mask = MASKS["teacher_forcing"][0]
    given = (*problem(mask, 0, 2 * LEAST_ROWS), StaticMask(mask) if static else jnp.asarray(mask))

    def compiled():
        return jax.jit(lambda *given: run("blockwise", *given)).lower(*given).compile()  # traced anew

    whole = compiled()
    monkeypatch.setattr(blockwise, "MOST_SCORES", 2**13)
    parts = compiled()
    (out, grads), (expected, slopes) = (program(*given) for program in (parts, whole))
    np.testing.assert_allclose(out, expected, atol=1e-6)
    for new, old in zip(jax.tree.leaves(grads), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-5 * np.abs(old).max())
    small, large = (p.memory_analysis().temp_size_in_bytes for p in (parts, whole))
    assert small < (0.9 if static else 0.6) * large
    assert choose("auto", (4, 4096), [(4, 4096)], StaticMask(np.ones((4, 4))), heads=2) == "blockwise"
    assert choose("auto", (4, 4096), [(4, 4096)], jnp.ones((4, 4), bool), heads=2) == "blockwise"


def test_static_masks_are_equal_where_their_entries_are():
    """One program serves all equal masks, and another one is made for another mask."""
    traces = []

    @jax.jit
    def seen(x, mask):
        traces.append(mask)
        return x + mask.array.sum()

    for rows in (np.eye(2), np.eye(2), np.ones((2, 2))):
        seen(jnp.zeros(()), StaticMask(rows))
    assert len(traces) == 2 and StaticMask(np.eye(2)) != StaticMask(np.eye(3))
    with pytest.raises(ValueError, match="has rows and columns"):
        StaticMask(np.ones((1, 2, 2)))


@pytest.mark.parametrize(
    "name,platform,dtype,width,why",
    [
        ("cudnn", "cpu", "bfloat16", 64, "it runs on NVIDIA GPUs, and this is cpu; there are auto, reference"),
        ("cudnn", "gpu", "float32", 64, "it multiplies bfloat16 or float16, and model.dtype is 'float32'"),
        ("cudnn", "gpu", "bfloat16", 60, "heads have a multiple of 8 numbers, at most 256, and these have 60"),
        ("cudnn", "gpu", "bfloat16", 264, "and these have 264; there are auto, reference, blockwise"),
        ("splash", "gpu", "bfloat16", 64, "it runs on TPUs, and this is gpu; there are auto, .*, cudnn"),
    ],
)
def test_what_a_backend_cannot_do_is_refused_by_name(name, platform, dtype, width, why):
    with pytest.raises(ValueError, match=f"model.backend is '{name}'.*{why}"):
        check_backend(name, platform, dtype, width)


def test_backends_are_there_where_they_can_run():
    for name, platform in (("cudnn", "gpu"), ("splash", "tpu"), ("blockwise", "cpu"), ("auto", "tpu")):
        check_backend(name, platform, "bfloat16", 128)


def test_the_kernel_computes_masks_of_two_ranges_and_cuts_others():
    """Both forms are the mask by token, with nothing seen of what fills up and a first query's keys in its place."""
    frames = Layout("teacher_forcing", block=2).training_mask(8)
    torn = np.tile([True, False], 5)[None].repeat(3, axis=0)
    for mask, kind in ((frames, splash.Computed), (torn, splash.Cut)):
        T, S = mask.shape
        made = splash.tokens_mask(StaticMask(mask), 3, [(4, 2), (S - 4, 5)], (128, 256))
        wide = np.repeat(mask, np.repeat([2, 5], [4, S - 4]), axis=1).repeat(3, axis=0)
        expected = np.zeros((128, 256), bool)
        expected[: 3 * T, : wide.shape[1]] = wide
        expected[3 * T :, : wide.shape[1]] = wide[0]
        assert type(made) is kind
        np.testing.assert_array_equal(made[0:128, 0:256], expected)
        np.testing.assert_array_equal(made[5:9, 100:130], expected[5:9, 100:130])


def test_the_kernel_is_lowered_for_tpus_without_one():
    """The mask's arithmetic is made of what the kernel's language has, forward and backward."""
    mask = StaticMask(Layout("teacher_forcing", block=1).training_mask(4))
    x = jax.ShapeDtypeStruct((1, len(mask.array), 64, 2, 64), jnp.bfloat16)

    def loss(q, k, v):
        return jnp.sum(BACKENDS["splash"](q, [k], [v], mask).astype(jnp.float32))

    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).trace(x, x, x).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("tpu_custom_call") == 3  # the forward pass, dq, and dk with dv
