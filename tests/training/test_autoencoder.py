"""Autoencoders in the train loop: objective, balance of gradients, resuming, distillation, statistics, bad configs."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.autoencoder import build_autoencoder, check_sizes, fingerprint, load_vae, save_vae
from causal_diffusion.checkpoint import Checkpoints
from causal_diffusion.config import freeze, override
from causal_diffusion.data.array_source import ArraySource
from causal_diffusion.errors import CheckpointError, UserError
from causal_diffusion.parallel.mesh import MeshConfig, make_mesh
from causal_diffusion.training import loop
from causal_diffusion.training.evaluate_vae import patch_means, with_statistics
from causal_diffusion.training.objectives import likelihood
from causal_diffusion.training.objectives.reconstruction import _fit, autoencoder_gradients, parts
from causal_diffusion.training.step import compile_step
from tests.parameters import perturbed

VIDEO = freeze({
    "name": "small", "trains": "vae",
    "data": dict(source="own", frames=5, height=8, width=8, channels=1),
    "vae": dict(form="video", video=dict(channels=1, base=4, latent=2, multipliers=(1, 2, 2), time_down=(True, True),
                                         blocks=1, decoder_blocks=1)),
    "reconstruction": dict(fit="charbonnier", kl=1e-3),
    "train": dict(steps=6, batch=8, lr=3e-3, warmup=1, decay="constant", ema=0.9),
    "evaluate": dict(clips=4), "log": dict(every=2, evaluate=3, checkpoint=3),
})  # fmt: skip
MOTION = override(VIDEO, {
    "data.height": 0, "data.width": 0, "data.channels": 6, "data.frames": 8, "vae.form": "motion",
    "vae.motion.channels": 6, "vae.motion.latent": 3, "vae.motion.width": 8, "vae.motion.align": 5,
    "vae.motion.depth": 1, "reconstruction.fit": "likelihood", "reconstruction.root": 2, "reconstruction.align": 0.1,
    "reconstruction.kl_warmup": 4,
})  # fmt: skip


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(loop, "make_mesh", lambda config: make_mesh(devices=jax.devices()[:1]))


def clips(config, count=16, seed=0):
    rng = np.random.default_rng(seed)
    shape = (count, config.data.frames, *config.data.frame_shape)
    return ArraySource(rng.uniform(-1, 1, shape).astype(np.float32))


def batch_of(config, size=8):
    source = clips(config, size)
    return {"video": np.stack([source[i]["video"] for i in range(size)]), "index": np.arange(size, dtype=np.int32)}


def params_of(recipe):
    """None at zero."""
    return perturbed(recipe.init_params)


def drawn(recipe):
    """Initial values plus a tenth of normal numbers, drawn by JAX, which compiles many small programs.

    With them the gradients of the video VAE cancel less than with those of ``params_of``: the rounding that is measured
    below is 0.4 instead of 2 times what is allowed.
    """
    leaves, tree = jax.tree.flatten(recipe.init_params(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    )


def norm(tree):
    return float(jnp.sqrt(sum(jnp.sum(a**2) for a in jax.tree.leaves(tree))))


@pytest.mark.full
@pytest.mark.parametrize("config", [VIDEO, MOTION], ids=["video", "motion"])
def test_a_run_resumes_bitwise_and_its_checkpoint_is_the_autoencoder(config, tmp_path, one_device, train):
    source, held_out = clips(config), clips(config, 5, seed=1)
    vae, params = train(config, tmp_path / "whole", source=source, held_out=held_out)
    complete, again = train(config, tmp_path / "whole", source=source, held_out=held_out)  # nothing is left to do
    assert complete == vae
    jax.tree.map(np.testing.assert_array_equal, params, again)
    train(override(config, {"train.steps": 3}), tmp_path / "parts", source=source)
    _, resumed = train(config, tmp_path / "parts", source=source)
    jax.tree.map(np.testing.assert_array_equal, params, resumed)
    loaded, again = load_vae(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert loaded == vae and len(vae.mean) == vae.geometry.latent and min(vae.std) > 0
    assert fingerprint(loaded, again) == fingerprint(vae, params)
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "fit" in line] == [2, 4, 6]
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    numbers = json.loads((tmp_path / "whole/samples/evaluation.json").read_text())
    assert all(np.isfinite(list(numbers.values())))
    assert (tmp_path / "whole/samples/reconstruction.png").exists() == (config is VIDEO)


def test_statistics_are_those_of_the_latents():
    recipe = build_autoencoder(VIDEO)
    params, source = params_of(recipe)["vae"], clips(VIDEO, 24)
    vae = with_statistics(recipe.vae, params, source)
    z = np.asarray(vae.encode(params, np.stack([source[i]["video"] for i in range(24)])))
    np.testing.assert_allclose(vae.mean, z.mean((0, 1, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(vae.std, z.std((0, 1, 2, 3)), rtol=1e-4)
    normal = vae.normalise(z)
    np.testing.assert_allclose(normal.std((0, 1, 2, 3)), 1.0, rtol=1e-4)
    np.testing.assert_allclose(vae.denormalise(normal), z, atol=1e-5)


def test_patch_means_have_the_means_of_patches():
    geometry = build_autoencoder(VIDEO).vae.geometry
    video = np.random.default_rng(0).uniform(-1, 1, (2, 5, 8, 8, 1)).astype(np.float32)
    out = patch_means(video, geometry)
    np.testing.assert_allclose(out[:, 1:5, :4, 4:], np.broadcast_to(
        video[:, 1:5, :4, 4:].mean((1, 2, 3), keepdims=True), (2, 4, 4, 4, 1)), atol=1e-6)
    np.testing.assert_allclose(out[:, 0, :4, :4], np.broadcast_to(
        video[:, 0, :4, :4].mean((1, 2), keepdims=True), (2, 4, 4, 1)), atol=1e-6)


ALL_LOSSES = {"reconstruction.gan": 0.5, "reconstruction.gan_width": 4, "reconstruction.perceptual": 0.3}


@pytest.mark.parametrize("overrides", [
    {}, *(pytest.param(losses, marks=pytest.mark.full)
          for losses in (ALL_LOSSES, {"reconstruction.fit": "l1"}, {"reconstruction.fit": "mse"})),
], ids=["plain", "gan and features", "l1", "mse"])  # fmt: skip
def test_the_parts_add_up_and_every_parameter_learns(overrides):
    config = override(VIDEO, overrides)
    recipe = build_autoencoder(config)
    params, batch = params_of(recipe), batch_of(config)
    grads, metrics = jax.jit(functools.partial(autoencoder_gradients, recipe))(params, batch, jax.random.key(0), 3)
    still = [jax.tree_util.keystr(path, simple=True, separator="/")
             for path, leaf in jax.tree_util.tree_leaves_with_path(grads) if not norm(leaf)]  # fmt: skip
    # Inside both margins of the hinge a shift of all logits changes nothing.
    assert still == (["discriminator/out/bias"] if config.reconstruction.gan else [])
    loss = config.reconstruction
    total = metrics["fit"] + loss.kl * metrics["kl"]
    if loss.gan:
        total += metrics["adversarial_weight"] * metrics["adversarial"]
        assert metrics["adversarial_weight"] > 0 and metrics["perceptual"] > 0
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)


@pytest.mark.parametrize("form", ["l1", "mse", "likelihood"])
def test_velocities_are_fitted_as_their_frames_are(form):
    x, y = np.random.default_rng(0).standard_normal((2, 2, 6, 3)).astype(np.float32)
    loss = override(MOTION, {"reconstruction.fit": form, "reconstruction.velocity": 0.5}).reconstruction
    own, steps = (likelihood.fit(form, *pair, 2, 7.0) for pair in ((x, y), (np.diff(x, axis=1), np.diff(y, axis=1))))
    np.testing.assert_allclose(_fit(loss, x, y), own + 0.5 * steps, rtol=1e-5)
    assert _fit(dataclasses.replace(loss, velocity=0.0), x, y) == own
    still = jnp.broadcast_to(x[:, :1], x.shape)  # a constant offset moves as it should
    assert _fit(loss, still, still + 1.0) < likelihood.fit(form, still, still + 1.0, 2, 7.0) + 1e-6


@pytest.mark.full
def test_two_losses_are_balanced_at_the_last_kernel_of_their_side():
    """w_g |d L_adv / dW| = gan |d fit / dW|, and each network gets the gradient of its own loss alone."""
    config = override(
        VIDEO, {"reconstruction.gan": 0.5, "reconstruction.gan_width": 4, "reconstruction.gan_start": 5}
    )
    recipe = build_autoencoder(config)
    params, batch, key = params_of(recipe), batch_of(config), jax.random.key(0)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["index"])

    @jax.jit
    def alone(params):
        names = ("fit", "adversarial", "discriminator")
        return [jax.grad(lambda p, n=n: parts(recipe, p, batch, keys)[0][n])(params) for n in names]

    fit, adversarial, discriminator = alone(params)
    gradients = jax.jit(functools.partial(autoencoder_gradients, recipe))
    grads, metrics = gradients(params, batch, key, 5)
    end = functools.partial(functools.reduce, lambda tree, name: tree[name], recipe.vae.network.decoder_end)
    weight = 0.5 * norm(end(fit["vae"])) / (norm(end(adversarial["vae"])) + 1e-4)
    np.testing.assert_allclose(metrics["adversarial_weight"], weight, rtol=1e-4)
    assert norm(discriminator["vae"]) == norm(adversarial["discriminator"]) == norm(fit["discriminator"]) == 0.0
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7),
        grads["discriminator"], discriminator["discriminator"],
    )  # fmt: skip
    assert gradients(params, batch, key, 4)[1]["adversarial_weight"] == 0.0


@pytest.mark.full
def test_alignment_fades_and_is_balanced_at_the_encoders_end():
    recipe = build_autoencoder(MOTION)
    params, batch = params_of(recipe), batch_of(MOTION)
    step = jax.jit(functools.partial(autoencoder_gradients, recipe))
    weights = [float(step(params, batch, jax.random.key(0), s)[1]["align_weight"]) for s in (0, 4, 5, 6)]
    assert weights[0] == weights[1] > weights[2] > weights[3] > 0
    np.testing.assert_allclose(weights[3] / weights[0], 0.1, rtol=1e-4)
    grads, _ = step(params, batch, jax.random.key(0), 6)
    assert all(norm(leaf) > 0 for leaf in jax.tree.leaves(grads))


@pytest.mark.full
@pytest.mark.parametrize("config", [VIDEO, MOTION], ids=["video", "motion"])
def test_one_device_computes_what_eight_do(config):
    """Per leaf: |d| <= 1e-5 (|g_leaf| + 1e-3 |g_all|), parameters split over fsdp included."""
    recipe = build_autoencoder(config)
    batch, params = batch_of(config), drawn(recipe)
    batch["video"] = 0.5 + 0.3 * batch["video"]  # about zero the terms of a gradient cancel and leave rounding
    whole, _ = jax.jit(functools.partial(autoencoder_gradients, recipe))(params, batch, jax.random.key(0), 3)
    for mesh in (make_mesh(MeshConfig(8, 1)), make_mesh(MeshConfig(1, 8))):
        rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
        split = jax.tree.map(
            lambda a, m=mesh: jax.device_put(a, jax.NamedSharding(
                m, jax.P("fsdp") if a.shape[0] % m.shape["fsdp"] == 0 else jax.P())), params)  # fmt: skip
        step = jax.jit(functools.partial(autoencoder_gradients, recipe))
        with jax.set_mesh(mesh):
            grads, _ = step(split, jax.device_put(batch, rows), jax.random.key(0), 3)
        total = norm(jax.device_get(whole))
        for a, b in zip(jax.tree.leaves(jax.device_get(whole)), jax.tree.leaves(jax.device_get(grads)), strict=True):
            assert norm(a - b) <= 1e-5 * (norm(a) + 1e-3 * total)


@pytest.mark.full
def test_a_decoder_is_distilled_and_the_encoder_stays(tmp_path, one_device, train):
    source = clips(VIDEO)
    teacher, params = train(VIDEO, tmp_path / "teacher", source=source)
    config = override(VIDEO, {"reconstruction.teacher": str(tmp_path / "teacher"), "vae.video.decoder_base": 2})
    vae, student = train(config, tmp_path / "fast", source=source)
    network = vae.network
    for name in network.encoder_modules:
        if name in params:
            jax.tree.map(np.testing.assert_array_equal, params[name], student[name])
    assert vae.geometry == teacher.geometry
    x = batch_of(VIDEO)["video"]
    np.testing.assert_allclose(vae.encode(student, x), teacher.encode(params, x), atol=1e-6)
    np.testing.assert_allclose(vae.mean, teacher.mean, atol=1e-6)
    wrong = override(config, {"vae.video.base": 8})
    with pytest.raises(UserError, match="vae.video.base is 8 and the autoencoder in .* has 4: set vae.video.base = 4"):
        loop.train(wrong, tmp_path / "wrong", source=source)


def test_an_autoencoder_by_itself_round_trips_and_another_is_refused(tmp_path):
    recipe = build_autoencoder(VIDEO)
    params = params_of(recipe)["vae"]
    vae = dataclasses.replace(recipe.vae, mean=(0.5, -0.25), std=(1.0, 2.0))
    save_vae(tmp_path / "vae", vae, params)
    save_vae(tmp_path / "vae", vae, params)  # the same one: nothing happens
    loaded, again = load_vae(tmp_path / "vae")
    assert loaded == vae
    jax.tree.map(np.testing.assert_array_equal, params, again)
    other = jax.tree.map(lambda a: a + 1e-3, params)
    assert fingerprint(vae, other) != fingerprint(vae, params)
    with pytest.raises(CheckpointError, match="another autoencoder"):
        save_vae(tmp_path / "vae", vae, other)
    with pytest.raises(UserError, match="vae.video.latent is 4 and the autoencoder in here has 2"):
        check_sizes(vae, override(VIDEO, {"vae.video.latent": 4}).vae, "here")


def test_weights_of_another_variant_name_the_first_leaf(tmp_path):
    recipe = build_autoencoder(VIDEO)
    save_vae(tmp_path, recipe.vae, params_of(recipe)["vae"])
    wrong = jax.eval_shape(build_autoencoder(override(VIDEO, {"vae.video.base": 6})).vae.init, jax.random.key(0))
    with pytest.raises(CheckpointError, match=r"leaf decoder/.*float32.* in the checkpoint but float32"):
        Checkpoints(tmp_path).restore({"ema": wrong})


@pytest.mark.parametrize(("base", "overrides", "words"), [
    (VIDEO, {"data.frames": 6}, "6 frames are no whole number of latents: a clip has 1 + 4 n, 5 or 9 would do"),
    (VIDEO, {"data.height": 10}, "the height is 10: a multiple of 4, 8 or 12 would do"),
    (VIDEO, {"data.channels": 3}, "a clip has 3 channels: this autoencoder takes 1"),
    (MOTION, {"data.frames": 7}, "7 frames are no whole number of latents: a clip has 4 n, 4 or 8 would do"),
    (VIDEO, {"vae.form": "none"}, "vae.form is 'none': vae.form = 'video' would do"),
    (VIDEO, {"vae.form": "wan"}, "vae.form is 'wan'; it is one of none, motion"),
    (VIDEO, {"reconstruction.fit": "l3"}, "reconstruction.fit is 'l3'; it is one of l1"),
    (VIDEO, {"reconstruction.kl": -1.0}, "reconstruction.kl is -1.0; it is at least 0"),
    (VIDEO, {"reconstruction.align": 1.0}, "no projection onto the features: reconstruction.align = 0"),
    (MOTION, {"vae.motion.align": 0}, "vae.motion.align = 256 would do"),
    (MOTION, {"reconstruction.teacher": "x"}, "only the decoder of the video autoencoder is distilled"),
    (VIDEO, {"reconstruction.lpips": "x"}, "reconstruction.perceptual = 1.0 would do"),
    (MOTION, {"reconstruction.perceptual": 1.0, "reconstruction.lpips": "x"}, "no pictures"),
    (VIDEO, {"reconstruction.root": 2}, "at most as many count as root"),
    (VIDEO, {"trains": "both"}, "trains is 'both'; it is 'transformer', 'vae' or 'motion_text'"),
    (VIDEO, {"trains": "transformer"}, "trains is 'transformer'"),
    (VIDEO, {"data.height": 0}, "a series has neither"),
    (VIDEO, {"train.crop": 6}, "the height is 6: a multiple of 4, 4 or 8 would do"),
    (VIDEO, {"train.crop": 12}, "frames are 8 x 8: train.crop = 8 would do"),
    (MOTION, {"train.crop": 4}, "no pictures: train.crop = 0 would do"),
])
def test_bad_configs_are_told_in_one_line(base, overrides, words):
    with pytest.raises(UserError) as error:
        build_autoencoder(override(base, overrides))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.full
def test_it_may_learn_from_squares_and_is_evaluated_on_whole_frames(tmp_path, one_device, train):
    config = override(VIDEO, {"train.crop": 4, "log.evaluate": 0})
    assert build_autoencoder(config).frame_shape == (4, 4, 1)
    vae, params = train(config, tmp_path, source=clips(config), held_out=clips(config, 3))
    x = batch_of(config)["video"]
    assert vae.decode(params, vae.encode(params, x)).shape == x.shape == (8, 5, 8, 8, 1)


def test_frames_that_are_no_numbers_are_refused():
    recipe = build_autoencoder(VIDEO)
    params, x = params_of(recipe)["vae"], batch_of(VIDEO)["video"]
    x[1, 3, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match=r"video has a value that is not finite, at \[1, 3, 0, 0, \d\]"):
        recipe.vae.encode(params, x)


@pytest.mark.full
def test_the_step_compiles_on_a_mesh_and_tells_its_cost(one_device):
    mesh = make_mesh(MeshConfig(4, 2))
    recipe = build_autoencoder(override(VIDEO, {"reconstruction.gan": 0.1, "reconstruction.gan_width": 4}))
    assert compile_step(recipe, mesh) is not None
    said = loop.dry_run(MOTION)
    assert "motion autoencoder, 8x6 -> 2x3, 8.0 numbers to one" in said and "FLOPs" in said
