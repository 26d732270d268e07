"""Warm-up and decay, AdamW and clipping against their closed forms, and every optimizer against plain optax."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.parallel.mesh import MeshConfig, make_mesh
from causal_diffusion.parallel.rules import param_shardings
from causal_diffusion.run_config import TrainConfig
from causal_diffusion.training import state as states
from causal_diffusion.training.optimizer import DECAYS, OPTIMIZERS, applied_rate, learning_rate, make_optimizer

FACTOR = {
    "constant": lambda u: 1.0,
    "linear": lambda u: 1.0 - u,
    "cosine": lambda u: 0.5 * (1.0 + math.cos(math.pi * u)),
}


@pytest.mark.parametrize("warmup", [0, 1, 10])
@pytest.mark.parametrize("decay", DECAYS)
def test_warm_up_then_decay(decay, warmup):
    steps, peak = 50, 2e-3
    rate = learning_rate(TrainConfig(steps=steps, lr=peak, warmup=warmup, decay=decay))
    for step in range(steps + 5):
        done = min(1.0, (step - warmup) / (steps - warmup))
        wanted = peak * (step / warmup if step < warmup else FACTOR[decay](done))
        assert float(rate(step)) == pytest.approx(wanted, rel=1e-5, abs=1e-9), step


@pytest.mark.parametrize(("config", "words"), [
    (dict(decay="cosinus"), ("train.decay is 'cosinus'", "cosine, linear, constant")),
    (dict(steps=100, warmup=100), ("train.warmup is 100", "train.steps is 100", "train.warmup = 10 would do")),
])
def test_impossible_rates_are_refused(config, words):
    with pytest.raises(UserError) as error:
        learning_rate(TrainConfig(**config))
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)


def test_betas_are_two():
    with pytest.raises(ValueError, match=r"train.betas is \(0.9,\); it holds two"):
        TrainConfig(betas=(0.9,))


def run(config, params, grads):
    """Parameters after each of the gradients, one after the other."""
    optimizer = make_optimizer(config)
    state, out = optimizer.init(params), []
    for grad in grads:
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        out.append(params)
    return out, state


def test_adamw_step_by_step():
    rng = np.random.default_rng(0)
    config = TrainConfig(steps=20, warmup=3, lr=0.1, decay="linear", betas=(0.8, 0.95), weight_decay=0.3, clip=0.0)
    start = rng.standard_normal((3, 2))
    grads = rng.standard_normal((8, 3, 2))
    found, _ = run(config, {"w": jnp.asarray(start, jnp.float32)}, [{"w": jnp.asarray(g, jnp.float32)} for g in grads])
    p, m, v = start, 0.0, 0.0
    for n, (g, params) in enumerate(zip(grads, found, strict=True)):
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        unbiased = (m / (1 - 0.8 ** (n + 1))) / (np.sqrt(v / (1 - 0.95 ** (n + 1))) + 1e-8)
        p = p - float(learning_rate(config)(n)) * (unbiased + 0.3 * p)
        np.testing.assert_allclose(params["w"], p, rtol=2e-4, atol=1e-5)


def test_only_matrices_decay():
    config = TrainConfig(steps=10, warmup=0, lr=0.1, decay="constant", weight_decay=0.5)
    params = {"kernel": jnp.ones((2, 3)), "stacked": jnp.ones((4, 2, 3)), "bias": jnp.ones(3), "scalar": jnp.ones(())}
    (after, *_), _ = run(config, params, [jax.tree.map(jnp.zeros_like, params)])
    np.testing.assert_allclose(after["kernel"], 1 - 0.1 * 0.5, rtol=1e-6)
    np.testing.assert_allclose(after["stacked"], 1 - 0.1 * 0.5, rtol=1e-6)
    assert np.all(after["bias"] == 1.0) and after["scalar"] == 1.0


@pytest.mark.parametrize(("clip", "size"), [(1.0, 5.0), (1.0, 0.5), (0.0, 5.0)])
def test_clipping_keeps_the_direction(clip, size):
    """The first moment after one step is (1 - beta1) times the clipped gradient."""
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}  # of norm 5 over both
    grads = jax.tree.map(lambda g: g * size / 5.0, grads)
    config = TrainConfig(steps=10, warmup=0, betas=(0.9, 0.99), clip=clip)
    _, state = run(config, jax.tree.map(jnp.ones_like, grads), [grads])
    factor = min(1.0, clip / size) if clip else 1.0
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, 0.1 * factor * g, rtol=1e-5),
                 optax.tree.get(state, "mu"), grads)


SETTINGS = dict(steps=20, warmup=2, lr=0.01, decay="linear", betas=(0.8, 0.95), weight_decay=0.1, clip=0.0)


def plain(name):
    """The optimizer as its users outside of this library write it."""
    rate = learning_rate(TrainConfig(**SETTINGS))

    def matrices(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    def axes(params):
        one = optax.contrib.MuonDimensionNumbers(0, 1)
        inner = {"attention": {"kernel": one, "bias": None}}
        stacked = {"attention": {"kernel": optax.contrib.MuonDimensionNumbers(1, 2), "bias": None}}
        return {"block_0": inner, "blocks": stacked, "embed": {"kernel": None}, "scale": None}

    decay = dict(weight_decay=0.1, mask=matrices)
    return {
        "adamw": lambda: optax.adamw(rate, 0.8, 0.95, **decay),
        "adamw_bf16": lambda: optax.adamw(rate, 0.8, 0.95, mu_dtype=jnp.bfloat16, **decay),
        "lion": lambda: optax.lion(rate, 0.8, 0.95, **decay),
        "adafactor": lambda: optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.add_decayed_weights(0.1, matrices),
            optax.scale_by_learning_rate(rate),
        ),
        "muon": lambda: optax.contrib.muon(
            rate, beta=0.8, weight_decay=0.1, adam_b1=0.8, adam_b2=0.95, muon_weight_dimension_numbers=axes,
            consistent_rms=0.2,
        ),
    }[name]()  # fmt: skip


def problem():
    """Parameters of every kind, large enough for adafactor's row and column sums, and gradients of three steps."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def make():
        return {
            "block_0": {"attention": {"kernel": normal(256, 128), "bias": normal(128)}},
            "blocks": {"attention": {"kernel": normal(3, 128, 144), "bias": normal(3, 144)}},
            "embed": {"kernel": normal(128, 128)},
            "scale": normal(64),
        }

    return make(), [make() for _ in range(3)]


def updated(optimizer, params, grads, shardings=None):
    """Parameters and state after all gradients, in one program."""

    def all_steps(params, grads):
        state = optimizer.init(params)
        for grad in grads:
            updates, state = optimizer.update(grad, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    return jax.jit(all_steps, out_shardings=shardings)(params, grads)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_eight_devices_update_as_plain_optax_on_one(name):
    """The state lies where the parameters lie; sums of rows and columns are split by size."""
    config, mesh = TrainConfig(optimizer=name, **SETTINGS), make_mesh(MeshConfig(2, 4))
    params, grads = problem()
    optimizer = make_optimizer(config)
    wanted, _ = updated(plain(name), params, grads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "param_shardings", functools.partial(param_shardings, min_size=256))
        shardings = param_shardings(params, mesh, min_size=256)
        shapes = jax.eval_shape(optimizer.init, params)
        places = states.moment_shardings(shapes, params, shardings, mesh)
    given = jax.device_put((params, grads), (shardings, [shardings] * len(grads)))
    found, state = updated(optimizer, *given, (shardings, places))
    for a, b, before in zip(*map(jax.tree.leaves, (found, wanted, params)), strict=True):
        step = np.linalg.norm(b - before)
        assert step > 0 and np.linalg.norm(a - b) <= (1e-3 if name == "muon" else 1e-5) * step
    places = {(path, leaf.shape): leaf.sharding for path, leaf in jax.tree_util.tree_leaves_with_path(found)}
    moments = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        own = [sharding for (end, shape), sharding in places.items()
               if path[-len(end):] == end and shape == leaf.shape]  # fmt: skip
        moments += len(own)
        assert all(leaf.sharding.is_equivalent_to(sharding, leaf.ndim) for sharding in own), path
    assert moments == {"adamw": 12, "adamw_bf16": 12, "lion": 6, "muon": 10, "adafactor": 3}[name]
    split = [leaf for leaf in jax.tree.leaves(state) if not leaf.is_fully_replicated]
    assert len(split) >= 4
    assert float(applied_rate(config, state)) == pytest.approx(float(learning_rate(config)(len(grads))))


def bytes_of_state(name, params):
    state = jax.eval_shape(make_optimizer(TrainConfig(optimizer=name, **SETTINGS)).init, params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(("name", "per_number"), [("adamw", 8), ("adamw_bf16", 6), ("lion", 4), ("muon", 4)])
def test_bytes_of_state(name, per_number):
    params = {"block_0": {"kernel": np.zeros((512, 256), np.float32)}}
    assert 0 <= bytes_of_state(name, params) - per_number * 512 * 256 < 64


def test_adafactor_keeps_rows_and_columns_of_large_matrices():
    kernel = np.zeros((512, 256), np.float32)
    assert 4 * (512 + 256) <= bytes_of_state("adafactor", {"kernel": kernel}) < 4 * (512 + 256) + 64
    assert bytes_of_state("adafactor", {"kernel": kernel[:, :100]}) >= 4 * 512 * 100


@pytest.mark.parametrize(("optimizer", "labels", "words"), [
    ("sgd", None, "train.optimizer is 'sgd'; it is one of adamw, adamw_bf16, lion, muon, adafactor"),
    ("muon", {}, "train.optimizer is 'muon' and an autoencoder trains: it is for matrices of transformer blocks, "
                 "train.optimizer = 'adamw' would do"),
])  # fmt: skip
def test_other_optimizers_are_refused(optimizer, labels, words):
    with pytest.raises(UserError) as error:
        make_optimizer(TrainConfig(optimizer=optimizer), labels)
    assert str(error.value) == words
