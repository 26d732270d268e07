"""Rule 5: one device computes what eight do, leaf by leaf; accumulation and the layer scan change nothing."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from causal_diffusion.config import freeze
from causal_diffusion.errors import UserError
from causal_diffusion.nn.layers import stack_layers, unstack_layers
from causal_diffusion.nn.transformer import TransformerConfig
from causal_diffusion.parallel.mesh import MeshConfig, batch_sharding, global_batch, make_mesh
from causal_diffusion.parallel.rules import param_shardings
from causal_diffusion.recipe import build
from causal_diffusion.training import state as states
from causal_diffusion.training.state import abstract_state, sharded_state
from causal_diffusion.training.step import compile_step, held_out_loss

BATCH, T = 16, 4
BETA = 0.9
UNUSED = ["action/null"]  # stands for a missing action, and in training none is missing


def recipe_of(accumulate=1, **model):
    """Every kind of condition, and no clipping: after one step the first moment is (1 - beta) times the gradient."""
    return build(freeze({
        "data": dict(source="own", frames=T, height=8, width=8, channels=1, classes=5, action_dim=2),
        "model": dict(width=32, depth=1, heads=2, mlp=64, patch=(1, 4, 4), channels=1, classes=5, action=2, text=6)
        | model,
        "layout": dict(kind="teacher_forcing", block=2, sinks=0),
        "process": dict(predict="x0"),
        "levels": dict(context=0.3),
        "train": dict(batch=BATCH, accumulate=accumulate, steps=100, warmup=0, lr=3e-3, decay="constant",
                      betas=(BETA, 0.99), clip=0.0, drop=0.2, weight_decay=0.0),
    }))


def element(rng):
    return {
        "video": rng.uniform(-1, 1, (T, 8, 8, 1)).astype(np.float32),
        "label": np.int32(rng.integers(5)),
        "action": rng.standard_normal((T, 2)).astype(np.float32),
        "text": rng.standard_normal((3, 6)).astype(np.float32),
        "text_mask": np.array([True, True, rng.random() < 0.5]),
    }


def batch_of(size=BATCH):
    rng = np.random.default_rng(0)
    rows = [element(rng) for _ in range(size)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return batch | {"index": np.arange(size, dtype=np.int32) + 1000}


SPEC = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in batch_of(1).items() if name != "index"}


@pytest.fixture(autouse=True, scope="module")
def fsdp_splits_small_leaves():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "param_shardings", functools.partial(param_shardings, min_size=64))
        yield


@pytest.fixture(scope="module")
def params():
    """Canonical parameters with none at zero: at their initial zeros most gradients would vanish."""
    return random_params(recipe_of())


def random_params(recipe, scale=0.25):
    tree = jax.eval_shape(recipe.streaming().init_params, jax.random.key(0))
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(1)
    leaves = [scale * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, leaves)


def norm(tree):
    return float(optax.tree.norm(jax.device_get(tree)))


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def one_step(recipe, mesh, params):
    """One call of the compiled step: (new state, metrics, gradients in canonical form), gathered to the host."""
    shapes, shardings = abstract_state(recipe, mesh)
    if recipe.model.config.layers == "scan":
        params = jax.tree.map(np.array, stack_layers(params))
    moments = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes.opt_state)
    state = states.TrainState(np.int32(0), params, params, moments, jax.random.key(5))
    state = jax.tree.map(lambda leaf, sharding: jax.device_put(leaf, sharding, may_alias=False), state, shardings)
    step = compile_step(recipe, mesh, SPEC)
    new, metrics = step(state, global_batch(mesh, batch_of()))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))  # donated
    for leaf, wanted in zip(jax.tree.leaves(new), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
    grads = jax.tree.map(lambda m: np.asarray(m) / (1 - BETA), optax.tree.get(new.opt_state, "mu"))
    assert metrics["param_norm"] == pytest.approx(norm(new.params), rel=1e-5)
    after = jax.tree.leaves(jax.device_get(new.params))
    still = [path for (path, before), leaf in zip(named(params), after, strict=True) if np.array_equal(before, leaf)]
    assert still == UNUSED
    return new, jax.device_get(metrics), jax.device_get(unstack_layers(grads)), step


@pytest.fixture(scope="module")
def alone(params):
    """On a mesh of one device."""
    return one_step(recipe_of(), make_mesh(devices=jax.devices()[:1]), params)


def assert_same_gradients(found, wanted):
    """Per leaf: |d| <= 1e-5 (|g_leaf| + 1e-3 |g_all|)."""
    total = norm(wanted)
    off = []
    for (path, b), a in zip(named(wanted), jax.tree.leaves(found), strict=True):
        allowed = 1e-5 * (np.linalg.norm(b) + 1e-3 * total)
        if not np.linalg.norm(a - b) <= allowed:
            off.append(f"{path}: |d| = {np.linalg.norm(a - b):.3g} > {allowed:.3g}, |g| = {np.linalg.norm(b):.3g}")
    assert not off, "\n".join(off)


def test_metrics_and_gradients_are_finite_and_nothing_is_at_zero(alone, params):
    _, metrics, grads, _ = alone
    assert all(np.all(np.isfinite(x)) for x in (*metrics.values(), *jax.tree.leaves(grads)))
    assert set(metrics) == {"loss", "loss_by_frame", "grad_norm", "param_norm", "lr", "skipped"}
    assert metrics["skipped"] == 0.0
    assert metrics["loss_by_frame"].shape == (T,)
    assert metrics["loss"] == pytest.approx(metrics["loss_by_frame"].mean(), rel=1e-6)
    assert metrics["grad_norm"] == pytest.approx(norm(grads), rel=1e-5)
    assert metrics["lr"] == pytest.approx(3e-3)
    assert all(np.all(p != 0) for p in jax.tree.leaves(params))
    assert [path for path, g in named(grads) if not np.any(g)] == UNUSED


@pytest.mark.parametrize("sizes", [
    *(pytest.param(MeshConfig(*n), marks=pytest.mark.full) for n in ((8, 1), (1, 8))), MeshConfig(2, 4),
], ids=str)  # fmt: skip
def test_eight_devices_compute_the_same_gradients(alone, params, sizes):
    mesh = make_mesh(sizes)
    state, metrics, grads, _ = one_step(recipe_of(), mesh, params)
    assert_same_gradients(grads, alone[2])
    assert metrics["loss"] == pytest.approx(alone[1]["loss"], rel=1e-5)
    np.testing.assert_allclose(metrics["loss_by_frame"], alone[1]["loss_by_frame"], rtol=1e-5)
    mu, nu = optax.tree.get(state.opt_state, "mu"), optax.tree.get(state.opt_state, "nu")
    placed = [jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in (state.params, state.ema, mu, nu)]
    assert placed[0] == placed[1] == placed[2] == placed[3]
    split = sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params))
    assert split > 20 if sizes.fsdp > 1 else split == 0


@pytest.mark.parametrize(("accumulate", "sizes", "model"), [
    pytest.param(2, None, {}, id="2 on one device", marks=pytest.mark.full),
    # Four rows at a time on eight devices: the compiler has to move them.
    pytest.param(4, MeshConfig(2, 4), dict(layers="scan", remat="full"), id="4 on eight, scanned layers",
                 marks=pytest.mark.full),
    pytest.param(4, None, {}, id="4 on one device", marks=pytest.mark.full),
    pytest.param(2, MeshConfig(8, 1), {}, id="2 on eight"),
    pytest.param(2, MeshConfig(1, 8), {}, id="2 on eight, split", marks=pytest.mark.full),
])
def test_micro_batches_and_the_layer_scan_change_nothing(alone, params, accumulate, sizes, model):
    mesh = make_mesh(sizes) if sizes else make_mesh(devices=jax.devices()[:1])
    _, metrics, grads, _ = one_step(recipe_of(accumulate, **model), mesh, params)
    assert_same_gradients(grads, alone[2])
    assert metrics["loss"] == pytest.approx(alone[1]["loss"], rel=1e-5)
    np.testing.assert_allclose(metrics["loss_by_frame"], alone[1]["loss_by_frame"], rtol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("sizes", [MeshConfig(8, 1), MeshConfig(1, 8), MeshConfig(2, 4)], ids=str)
@pytest.mark.parametrize("model", [
    dict(depth=3, modulation="table", head="table", qk_norm="head"),
    dict(depth=2, positions="additive", period=24, qk_norm="none", head="none", text_layers=2, layers="scan"),
], ids=["tables", "additive positions"])
def test_other_forms_of_the_network(model, sizes):
    recipe = recipe_of(**model)
    scale = 0.25 if recipe.model.config.qk_norm != "none" else 0.1  # or softmax is nearly a step
    params = random_params(recipe, scale)
    wanted = one_step(recipe, make_mesh(devices=jax.devices()[:1]), params)[2]
    assert_same_gradients(one_step(recipe, make_mesh(sizes), params)[2], wanted)


def host_copy(state):
    return jax.tree.map(np.array, dataclasses.replace(state, key=jax.random.key_data(state.key)))


def test_a_batch_that_is_not_finite_changes_nothing_but_the_step(alone):
    *_, step = alone
    mesh = make_mesh(devices=jax.devices()[:1])
    state = sharded_state(recipe_of(), mesh, seed=0)
    before, batch = host_copy(state), batch_of()
    batch["video"][3, 1, 2, 2] = np.nan
    state, metrics = step(state, global_batch(mesh, batch))
    after = host_copy(state)
    jax.tree.map(np.testing.assert_array_equal, dataclasses.replace(after, step=before.step), before)
    assert after.step == 1 and metrics["skipped"] == 1.0 and np.isnan(metrics["loss"])
    state, metrics = step(state, global_batch(mesh, batch_of()))
    assert metrics["skipped"] == 0.0 and state.step == 2
    assert metrics["param_norm"] != norm(before.params)


def test_bfloat16_multiplies_and_float32_keeps(params, alone):
    """Parameters, moments, averages and gradients stay float32; gradients are those of float32 to its precision."""
    state, metrics, grads, step = one_step(recipe_of(2, dtype="bfloat16"), make_mesh(MeshConfig(2, 4)), params)
    for leaf in jax.tree.leaves((state.params, state.ema, optax.tree.get(state.opt_state, "mu"), grads)):
        assert leaf.dtype == np.float32
    assert {value.dtype for value in metrics.values()} == {np.dtype("float32")}
    assert "bf16[" in step.as_text()
    assert metrics["loss"] == pytest.approx(alone[1]["loss"], rel=0.02)
    whole = norm(alone[2])
    for (path, b), a in zip(named(alone[2]), jax.tree.leaves(grads), strict=True):
        assert np.linalg.norm(a - b) <= 0.1 * np.linalg.norm(b) + 1e-3 * whole, path
    assert any(np.linalg.norm(a - b) > 1e-4 * np.linalg.norm(b) for a, b in
               zip(*map(jax.tree.leaves, (grads, alone[2])), strict=True))  # fmt: skip


def test_a_fixed_batch_is_learned(alone):
    *_, step = alone
    mesh = make_mesh(devices=jax.devices()[:1])
    state, batch, losses = sharded_state(recipe_of(), mesh, seed=0), global_batch(mesh, batch_of()), []
    for _ in range(30):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0], losses
    assert state.step == 30


def test_the_batch_is_split_over_all_devices():
    mesh = make_mesh(MeshConfig(2, 4))
    video = global_batch(mesh, batch_of())["video"]
    assert video.sharding == batch_sharding(mesh) and video.addressable_shards[0].data.shape[0] == BATCH // 8


class Zero(NamedTuple):
    """A network that answers zero, once it was shown every frame's action and every sample's text."""

    config: TransformerConfig

    def apply(self, variables, streams, condition, mask, prefix_mask=None):
        assert streams["noisy"].action.shape == (BATCH, T, 2) and condition.text.shape == (BATCH, 1, 3, 6)
        return {name: jnp.zeros_like(stream.x) for name, stream in streams.items()}, None


def test_held_out_loss_is_a_function_of_parameters_and_clips():
    """A network that answers zero scores the mean square of the clips; longer clips are cut."""
    recipe, batch = recipe_of(), batch_of()
    recipe = recipe._replace(model=Zero(recipe.model.config))
    video, past = batch["video"], 2
    condition = {"label": batch["label"], "text": batch["text"], "text_mask": batch["text_mask"],
                 "context_action": batch["action"][:, :past], "action": batch["action"][:, past:]}
    loss = held_out_loss(recipe, {}, video, condition)
    assert loss == pytest.approx(np.mean(video**2), rel=1e-5)
    longer = np.concatenate([video, video], axis=1)
    assert held_out_loss(recipe, {}, longer, condition) == loss


@pytest.mark.parametrize(("overrides", "words"), [
    (dict(batch=10, accumulate=4), ("train.batch is 10", "train.accumulate is 4", "try train.batch = 8")),
    (dict(batch=12), ("train.batch 12", "8 devices", "multiple of 8")),
])
def test_batches_that_do_not_divide_are_refused(small, overrides, words):
    with pytest.raises(UserError) as error:
        compile_step(build(small(*(f"train.{key}={value}" for key, value in overrides.items()))), make_mesh())
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)


@pytest.mark.parametrize(("text", "words"), [
    (None, ("model.text is 6", "no text", "model.text = 0 would do")),
    ((3, 5), ("model.text is 6", "5", "must be equal")),
])
def test_text_that_does_not_fit_the_model_is_refused(text, words):
    spec = {name: s for name, s in SPEC.items() if not name.startswith("text")}
    if text:
        spec |= {"text": jax.ShapeDtypeStruct(text, jnp.float32), "text_mask": jax.ShapeDtypeStruct(text[:1], bool)}
    with pytest.raises(UserError) as error:
        compile_step(recipe_of(), make_mesh(), spec)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)
