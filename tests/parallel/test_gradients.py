"""Rule 5: a mesh of any shape computes what one device does. Leaf by leaf, and over steps."""

import functools
import re

import jax
import numpy as np
import optax
import pytest

from causal_diffusion.autoencoder import build_autoencoder
from causal_diffusion.config import freeze
from causal_diffusion.nn.layers import stack_layers, unstack_layers
from causal_diffusion.parallel.mesh import MeshConfig, batch_sharding, global_batch, make_mesh
from causal_diffusion.parallel.rules import param_shardings
from causal_diffusion.recipe import build
from causal_diffusion.training import state as states
from causal_diffusion.training.step import compile_step, gradients
from tests.parallel import processes
from tests.parameters import perturbed

BATCH, BETA, MIN_SIZE = 8, 0.9, 64
MESHES = [(8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 2, 1), (2, 1, 2, 2), (1, 2, 2, 2), (2, 2, 1, 2)]
SYSTEM = {
    "data": dict(source="own", frames=8, height=8, width=8, channels=1, classes=3),
    "model": dict(width=16, depth=1, heads=4, mlp=32, patch=(1, 4, 4), channels=1, classes=3, frequencies=16),
    "layout": dict(kind="teacher_forcing", block=2),
    "process": dict(predict="x0"),
    "levels": dict(context=0.3),
    # No clipping: after one step the first moment is (1 - beta) times the gradient.
    "train": dict(batch=BATCH, steps=100, warmup=0, lr=1e-3, decay="constant", betas=(BETA, 0.99), clip=0.0, drop=0.2,
                  weight_decay=0.0),
}  # fmt: skip
VARIANTS = {
    "keys gathered, scanned, recomputed": {"model.heads": 2, "model.layers": "scan", "model.remat": "full"},
    "micro-batches": {"train.accumulate": 2},
    "factorised": {
        "layout.kind": "frame_causal", "layout.block": 2, "model.attention": "factorised", "model.prefix": 2,
        "model.mask_channel": True, "model.axial_mlp": True, "levels.kind": "prefix",
    },
    "registers": {"layout.kind": "block_causal", "model.registers": 2, "model.label_tokens": True},
    "coarse": {"layout.kind": "block_causal", "layout.coarse": 4, "model.coarse": 2, "model.patch": (1, 2, 2),
               "layout.window": 2, "cache.kind": "two_level"},
    "knot and reference": {"layout.knot": 1, "layout.reference": 1, "cache.positions": "ahead", "cache.ahead": 4,
                           "cache.ahead_step": 2},
    "copies": {"layout.copies": 2, "model.modulate_clean": False, "model.modulation": "table"},
    "captions by block": {"model.text": 6, "data.frames": 8, "train.own_past": (0.0, 1.0)},
    "blockwise attention": {"model.backend": "blockwise"},
    "a head per token": {"model.head": "diffusion", "model.head_width": 8, "model.head_depth": 1},
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def small_leaves_are_split():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "param_shardings", functools.partial(param_shardings, min_size=MIN_SIZE))
        yield


def recipe_of(changes):
    config = {section: dict(values) for section, values in SYSTEM.items()}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        config.setdefault(section, {})[name] = value
    return build(freeze(config))


def batch_of(recipe):
    rng, T, model = np.random.default_rng(0), recipe.frames, recipe.model.config
    batch = {"video": rng.uniform(-1, 1, (BATCH, T, *recipe.frame_shape)).astype(np.float32),
             "label": rng.integers(3, size=BATCH).astype(np.int32), "index": np.arange(BATCH, dtype=np.int32) + 1000}
    if model.text:  # of each clip two captions
        batch["text"] = rng.standard_normal((BATCH, 2, 3, model.text)).astype(np.float32)
        batch["text_mask"] = rng.random((BATCH, 2, 3)) < 0.7
        batch["text_of"] = np.tile(np.repeat(np.array([0, 1], np.int32), T // 2), (BATCH, 1))
    return batch


def random_params(recipe, scale=0.25):
    """None at zero: at their initial zeros most gradients would vanish."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(recipe.init_params, jax.random.key(0))
    return jax.tree.map(lambda leaf: scale * rng.standard_normal(leaf.shape).astype(np.float32), shapes)


def placed(leaf, sharding):
    """A host's array, or a key, on the devices of all processes, in memory of its own: the step overwrites it."""
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding, may_alias=False)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(leaf))
        return jax.jit(lambda: jax.random.wrap_key_data(data), out_shardings=sharding)()
    return jax.make_array_from_callback(np.shape(leaf), sharding, lambda index: np.array(leaf)[index])


class Run:
    """A compiled step on a mesh, and what it makes of the same state and batch."""

    def __init__(self, recipe, mesh):
        self.recipe, self.mesh, self.batch = recipe, mesh, batch_of(recipe)
        self.shapes, self.shardings = states.abstract_state(recipe, mesh)
        spec = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in self.batch.items() if name != "index"}
        self.step = compile_step(recipe, mesh, spec)
        self.text = self.step.as_text()

    def steps(self, n):
        """(the state after n steps, their losses)."""
        # Random numbers go by the canonical form, so that scanned layers begin as the others do.
        params = random_params(self.recipe.streaming())
        if self.recipe.model.config.layers == "scan":
            params = jax.tree.map(np.array, stack_layers(params))
        moments = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), self.shapes.opt_state)
        state = states.TrainState(np.int32(0), params, params, moments, jax.random.key(5))
        state = jax.tree.map(placed, state, self.shardings)
        losses, batch = [], global_batch(self.mesh, self.batch)
        for _ in range(n):
            state, metrics = self.step(state, batch)
            losses.append(float(metrics["loss"]))
        return state, np.array(losses)

    def gradients(self):
        state, _ = self.steps(1)
        grads = jax.device_get(optax.tree.get(state.opt_state, "mu"))
        return unstack_layers(jax.tree.map(lambda m: m / (1 - BETA), grads))


@functools.cache
def alone(name=""):
    return Run(recipe_of(VARIANTS.get(name, {})), make_mesh(devices=jax.devices()[:1]))


@functools.cache
def on(sizes, name=""):
    return Run(recipe_of(VARIANTS.get(name, {})), make_mesh(MeshConfig(*sizes)))


def norm(tree):
    return float(optax.tree.norm(tree))


def assert_same(found, wanted):
    """Per leaf: |d| <= 1e-5 (|g_leaf| + 1e-3 |g_all|)."""
    total, leaves = norm(wanted), jax.tree_util.tree_leaves_with_path(wanted)
    off = []
    for (path, b), a in zip(leaves, jax.tree.leaves(found), strict=True):
        allowed = 1e-5 * (norm(b) + 1e-3 * total)
        if not norm(a - b) <= allowed:
            off.append(f"{jax.tree_util.keystr(path)}: |d| = {norm(a - b):.3g} > {allowed:.3g}, |g| = {norm(b):.3g}")
    assert not off, "\n".join(off)


def first_tier(*which):
    return [pytest.param(sizes, marks=() if sizes in which else pytest.mark.full, id=str(sizes)) for sizes in MESHES]


@pytest.mark.parametrize("sizes", first_tier((2, 1, 2, 2)))
def test_gradients(sizes):
    wanted = alone().gradients()
    assert all(np.any(g) for g in jax.tree.leaves(wanted))
    assert_same(on(sizes).gradients(), wanted)


@pytest.mark.parametrize("sizes", first_tier((2, 1, 2, 2), (1, 2, 2, 2)))
def test_losses_of_five_steps(sizes):
    (_, found), (_, wanted) = on(sizes).steps(5), alone().steps(5)
    assert abs(wanted[-1] / wanted[0] - 1) > 1e-3  # it learns
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_losses_of_fifty_steps(sizes):
    np.testing.assert_allclose(on(sizes).steps(50)[1], alone().steps(50)[1], rtol=1e-3)


@pytest.mark.parametrize("sizes", first_tier((2, 1, 2, 2), (1, 2, 2, 2)))
def test_specs(sizes):
    """No large leaf is whole on a device where something could split it; averages and moments lie as parameters do."""
    state, shape = on(sizes).steps(1)[0], dict(zip(("data", "fsdp", "context", "tensor"), sizes, strict=True))
    mu, nu = optax.tree.get(state.opt_state, "mu"), optax.tree.get(state.opt_state, "nu")
    placed = [jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in (state.params, state.ema, mu, nu)]
    assert placed[0] == placed[1] == placed[2] == placed[3]
    for keys, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        used = {axis for axes in leaf.sharding.spec for axis in ([axes] if isinstance(axes, str) else axes or ())}
        assert "data" not in used and "context" not in used
        if shape["tensor"] > 1 and re.search(r"block_\d.*/(?:[qkvo]|mlp_in|mlp_out)/kernel", path):
            inner = 0 if "/o/" in path or "mlp_out" in path else 1
            assert leaf.sharding.spec[inner] == "tensor", path
        divides = any(size % shape["fsdp"] == 0 for size in leaf.shape)
        if shape["fsdp"] > 1 and leaf.size >= MIN_SIZE and divides and "embedding" not in path:
            assert "fsdp" in used, path


def test_heads_are_exchanged_where_they_divide():
    """4 heads over tensor 2 x context 2."""
    assert " all-to-all(" in on((2, 1, 2, 2)).text


@pytest.mark.full
def test_heads_that_do_not_divide_stay():
    text = on((2, 1, 2, 2), "keys gathered, scanned, recomputed").text
    assert " all-to-all(" not in text and " all-gather(" in text


@pytest.mark.full
@pytest.mark.parametrize("name", list(VARIANTS))
def test_gradients_of_other_systems(name):
    assert_same(on((1, 2, 2, 2), name).gradients(), alone(name).gradients())


@pytest.mark.full
def test_backends_have_the_same_gradients():
    assert_same(alone("blockwise attention").gradients(), alone().gradients())


ACROSS = [(2, 2, 2, 1), (2, 1, 2, 2), (1, 2, 2, 2)]
TWO_PROCESSES = """
    import functools, sys
    import jax, numpy as np, optax
    from jax.experimental import multihost_utils
    from causal_diffusion.parallel import distributed
    from causal_diffusion.parallel.mesh import batch_part

    distributed.initialise()
    from tests.parallel import test_gradients as test

    test.states.param_shardings = functools.partial(test.param_shardings, min_size=test.MIN_SIZE)
    for sizes in test.ACROSS:
        run = test.on(sizes)
        part, parts = batch_part(run.mesh)
        rows = slice(part * test.BATCH // parts, (part + 1) * test.BATCH // parts)
        run.batch = {name: array[rows] for name, array in run.batch.items()}
        losses = run.steps(5)[1]
        moments = multihost_utils.process_allgather(optax.tree.get(run.steps(1)[0].opt_state, "mu"), tiled=True)
        if distributed.is_writer():
            leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(moments))}
            np.savez(f"{sys.argv[1]}/{'_'.join(map(str, sizes))}.npz", losses=losses, **leaves)
    distributed.barrier("the end")
"""


@pytest.mark.full
def test_gradients_of_two_processes(tmp_path):
    """Of two processes with four devices each, on meshes that span them by each of the first axes."""
    ended = processes.run(TWO_PROCESSES, 2, tmp_path, devices=4)
    assert [e.code for e in ended] == [0, 0], ended
    wanted = alone().gradients()
    for sizes in ACROSS:
        found = np.load(tmp_path / f"{'_'.join(map(str, sizes))}.npz")
        leaves, structure = jax.tree.flatten(wanted)
        assert_same(jax.tree.unflatten(structure, [found[str(i)] / (1 - BETA) for i in range(len(leaves))]), wanted)
        np.testing.assert_allclose(found["losses"], alone().steps(5)[1], rtol=1e-5)


AUTOENCODERS = {
    "motion": {
        "data": dict(height=0, width=0, channels=6, frames=8),
        "vae": dict(form="motion", motion=dict(channels=6, latent=3, width=8, depth=1)),
    },
    "video": {
        "data": dict(height=8, width=8, channels=1, frames=5),
        "vae": dict(form="video", video=dict(channels=1, base=4, latent=2, multipliers=(1, 2, 2),
                                             time_down=(True, True), blocks=1, decoder_blocks=1)),
    },
}  # fmt: skip


def autoencoder_of(form):
    own = AUTOENCODERS[form]
    return build_autoencoder(freeze({
        "trains": "vae", "data": dict(source="own") | own["data"], "vae": own["vae"],
        "reconstruction": dict(fit="mse", kl=1e-3), "train": dict(batch=BATCH, steps=10, warmup=0),
    }))  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("form", ["motion", "video"])
def test_gradients_of_autoencoders(form):
    """Split by size over data and fsdp, against one device that takes clip after clip, as each of the eight does.

    Convolutions round differently by batch: on one device, eight clips at once are off from one at a time by 1.2 times
    what is allowed, without any mesh. The loss is smooth: at a kink, rounding decides which way a gradient points.
    (tests/training/test_autoencoder.py compares whole batches, of other parameters.)
    """
    recipe, rng = autoencoder_of(form), np.random.default_rng(0)
    video = 0.5 + 0.3 * rng.uniform(-1, 1, (BATCH, recipe.frames, *recipe.frame_shape)).astype(np.float32)
    batch = {"video": video, "index": np.arange(BATCH, dtype=np.int32)}
    params = jax.device_get(perturbed(recipe.init_params))

    def step(params, batch):
        return gradients(recipe, params, batch, jax.random.key(0))[0]

    one = jax.jit(step)
    clips = [jax.device_get(one(params, {name: a[i : i + 1] for name, a in batch.items()})) for i in range(BATCH)]
    wanted = jax.tree.map(lambda *g: np.mean(np.stack(g), axis=0), *clips)
    for sizes in MESHES[:2]:
        mesh = make_mesh(MeshConfig(*sizes))
        shardings = param_shardings(params, mesh, min_size=MIN_SIZE)
        assert any(not s.is_fully_replicated for s in jax.tree.leaves(shardings)) == (sizes[1] > 1)
        on_mesh = jax.jit(step, in_shardings=(shardings, batch_sharding(mesh)), out_shardings=shardings)
        with jax.set_mesh(mesh):
            assert_same(jax.device_get(on_mesh(params, global_batch(mesh, batch))), wanted)
