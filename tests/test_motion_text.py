"""Motions and captions in one space, from a config to what judges and guides: runs, embeddings, bodies, alignment."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import causal_diffusion as cd
from causal_diffusion.autoencoder import build_autoencoder, save_vae
from causal_diffusion.config import config_folder, freeze, load_config, override, thaw
from causal_diffusion.data.motion_clips import MotionClips
from causal_diffusion.errors import UserError
from causal_diffusion.motion import humanml
from causal_diffusion.motion_text import Judge, build_motion_text, by_parts, load_motion_text, rescaled
from causal_diffusion.nn.motion_text import MotionText
from causal_diffusion.parallel.mesh import make_mesh
from causal_diffusion.recipe import build
from causal_diffusion.training import loop
from causal_diffusion.training.objectives.reconstruction import Frozen, autoencoder_gradients
from causal_diffusion.training.runs import make_run
from tests.motion_data import write_bodies
from tests.parameters import perturbed

DATA = dict(source="motion_clips", representation="essential", frames=16, shortest=8, height=0, width=0, channels=64)
SMALL = freeze({
    "name": "small", "trains": "motion_text", "data": DATA | dict(mirror=True),
    "text": dict(encoder="words", tokens=8),
    "motion_text": dict(channels=64, width=8, depth=1, latent=6, vocabulary=40, tokens=8, heads=2),
    "train": dict(steps=2, batch=4, lr=1e-2, warmup=1, decay="constant"), "evaluate": dict(clips=6),
    "log": dict(every=1, evaluate=1, checkpoint=2),
})  # fmt: skip
AUTOENCODER = freeze({
    "name": "small", "trains": "vae", "data": DATA | dict(shortest=0, mirror=True),
    "vae": dict(form="motion", motion=dict(channels=64, latent=4, width=8, depth=1, stages=2, align=6)),
    "reconstruction": dict(fit="likelihood", root=3, align=0.1, kl=1e-3),
    "train": dict(steps=2, batch=4, warmup=1, decay="constant"), "evaluate": dict(clips=0),
    "log": dict(every=1, evaluate=0, checkpoint=2),
})  # fmt: skip
CAPTIONS = ["a person does walk, calm style", "a person does wave-left-hand, angry style", "walk", ""]


@pytest.fixture(autouse=True, scope="module")
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_mesh", lambda config: make_mesh(devices=jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the data, and of the runs in it."""
    return write_bodies(tmp_path_factory.mktemp("motion"), frames=24)


@pytest.fixture(scope="module")
def judge(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "summary", lambda *arguments, **options: "")
        return loop.train(override(SMALL, {"data.path": str(folder)}), folder / "run")


def clips(judge, lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, 64)).astype(np.float32) for n in lengths]


def test_a_run_makes_a_judge_and_says_how_good_it_is(folder, judge):
    source = MotionClips(override(SMALL, {"data.path": str(folder)}).data, "train")
    assert isinstance(judge, Judge) and judge.body == source.body
    parts = humanml.parts(source.body.skeleton, 64)
    assert judge.model.config.parts == tuple(tuple(int(i) for i in part) for part in parts.values())
    log = (folder / "run/metrics.jsonl").read_text()
    assert '"loss"' in log and '"top1"' in log and "held_out/top3" in log
    numbers = json.loads((folder / "run/samples/evaluation.json").read_text())
    assert numbers["clips"] == 6 and 2 <= numbers["pool"] <= 6
    assert 0 <= numbers["top1"] <= numbers["top2"] <= numbers["top3"] <= 1


def test_a_judge_comes_back_from_its_run(folder, judge):
    again = load_motion_text(folder / "run")
    motions = clips(judge, (16, 9, 24))
    np.testing.assert_array_equal(again.embed_motions(motions), judge.embed_motions(motions))
    np.testing.assert_array_equal(again.embed_captions(CAPTIONS), judge.embed_captions(CAPTIONS))
    assert again.body == judge.body and again.model.config == judge.model.config and again.path.endswith("run")
    with pytest.raises(UserError, match="trains is 'motion_text': the config is of a model of motions and captions"):
        cd.Pipeline.from_checkpoint(folder / "run")


def test_an_embedding_depends_on_nothing_but_the_clip(judge):
    """Neither on padding, nor on company, order or number; a rest of less than a feature does not count."""
    motions = clips(judge, (16, 9, 24, 4, *(8,) * 40))
    together = judge.embed_motions(motions)
    assert together.shape == (44, 6) and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    for i in (0, 1, 2, 3, 43):
        np.testing.assert_allclose(judge.embed_motions(motions[i : i + 1])[0], together[i], atol=1e-6)
    np.testing.assert_allclose(judge.embed_motions(motions[::-1])[::-1], together, atol=1e-6)
    np.testing.assert_allclose(judge.embed_motions([motions[1][:8]])[0], together[1], atol=1e-6)
    captions = judge.embed_captions(CAPTIONS * 10)
    np.testing.assert_allclose(judge.embed_captions(CAPTIONS[1:2])[0], captions[1], atol=1e-6)
    np.testing.assert_allclose(captions[:4], captions[-4:], atol=1e-6)
    with pytest.raises(UserError, match="clip 1 has 3 frames: at least 4 are judged"):
        judge.embed_motions(clips(judge, (8, 3)))


def test_frames_of_another_scale_are_judged_alike(judge):
    other = dataclasses.replace(judge.body, mean=tuple(m + 0.5 for m in judge.body.mean),
                                std=tuple(2.0 * s for s in judge.body.std))  # fmt: skip
    motions = clips(judge, (16, 8))
    told = [other.normalise(judge.body.denormalise(clip)) for clip in motions]
    np.testing.assert_allclose(rescaled(told[0], other, judge.body), motions[0], atol=1e-5)
    np.testing.assert_allclose(judge.embed_motions(told, other), judge.embed_motions(motions), atol=1e-4)
    assert np.abs(judge.embed_motions(told) - judge.embed_motions(motions)).max() > 1e-3
    assert rescaled(motions[0], None, judge.body) is motions[0] is rescaled(motions[0], judge.body, judge.body)
    joints = dataclasses.replace(judge.body, representation="joints")
    with pytest.raises(UserError, match="are 'joints' of 21 joints.*knows 'essential' of 21: train it with the same"):
        judge.embed_motions(motions, joints)


def aligned(config, folder):
    """(run, gradients and metrics of one step) of an autoencoder on clips of the folder."""
    config = override(config, {"data.path": str(folder)})
    source = MotionClips(config.data, "train")
    run = make_run(build_autoencoder(config), make_mesh(devices=jax.devices()[:1]), folder / "vae", source)
    rng = np.random.default_rng(0)
    params = jax.eval_shape(run.recipe.init_params, jax.random.key(0))
    params = jax.tree.map(lambda a: jnp.asarray(0.1 * rng.standard_normal(a.shape), jnp.float32), params)
    batch = {"video": np.stack([source[i]["video"] for i in range(4)]), "index": np.arange(4, dtype=np.int32)}
    return run, jax.jit(functools.partial(autoencoder_gradients, run.recipe))(
        params, batch, jax.random.key(0), 0, *run.frozen)[1]  # fmt: skip


@pytest.mark.full
def test_latents_are_aligned_with_what_it_says_of_a_motion(folder, judge):
    """Its features, not the kinematics; with both scales known, since frames of another body are told anew."""
    config = override(AUTOENCODER, {"reconstruction.features": str(folder / "run")})
    (plain, of_kinematics), (run, of_features) = (aligned(c, folder) for c in (AUTOENCODER, config))
    assert plain.frozen == () and plain.recipe.features is None
    assert isinstance(run.frozen[0], Frozen) and run.recipe.features is not None
    x = np.stack(clips(judge, (16, 16)))
    features = run.recipe.features(run.frozen[0].features, x)
    assert features.shape == (2, 4, 6)
    mean = judge.model.apply({"params": judge.params}, x, method="motion")[1].mean(axis=0)
    np.testing.assert_allclose(features, mean, atol=1e-5)
    np.testing.assert_allclose(of_features["fit"], of_kinematics["fit"], rtol=1e-5)
    assert abs(of_features["align"] - of_kinematics["align"]) > 1e-3 * abs(of_kinematics["align"])


@pytest.mark.full
def test_a_complete_run_is_its_judge_again(folder, judge):
    again = loop.train(override(SMALL, {"data.path": str(folder)}), folder / "run")
    motions = clips(judge, (16, 9))
    np.testing.assert_array_equal(again.embed_motions(motions), judge.embed_motions(motions))


@pytest.mark.full
def test_an_autoencoder_trains_on_its_features(folder, judge):
    config = override(AUTOENCODER, {"reconstruction.features": str(folder / "run"), "data.path": str(folder)})
    vae, params = loop.train(config, folder / "aligned")
    assert vae.config.motion.align == 6 and len(vae.mean) == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(("overrides", "said"), [
    ({"vae.motion.align": 5}, "vae.motion.align is 5 and the features in .* have 6 numbers: they must be equal, 6"),
    ({"data.representation": "joints", "data.channels": 65, "vae.motion.channels": 65}, "train it with the same"),
])  # fmt: skip
def test_features_that_do_not_fit_are_refused(folder, judge, overrides, said):
    config = override(AUTOENCODER, {"reconstruction.features": str(folder / "run")} | overrides)
    with pytest.raises(UserError, match=said) as refusal:
        aligned(config, folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("overrides", "said"), [
    ({"motion_text.channels": 63}, "motion_text.channels is 63 and data.channels is 64: they must be equal"),
    ({"motion_text.tokens": 7}, "motion_text.tokens is 7 and text.tokens is 8: they must be equal, motion_text.tokens"),
    ({"data.frames": 18}, "data.frames is 18 and motion_text.time is 4: a whole number of features, data.frames = 16"),
    ({"data.height": 4, "data.width": 4}, "a motion has no space, data.height = 0 would do"),
    ({"text.encoder": "none"}, "it learns from captions, text.encoder = 'words' would do"),
    ({"motion_text.vocabulary": 0}, "motion_text.vocabulary is 0: ids of words.*motion_text.vocabulary = 1000"),
    ({"text.encoder": "clip"}, "text.encoder is 'clip' and motion_text.vocabulary is 40.*motion_text.vocabulary = 0"),
    pytest.param({"train.init_from": "runs/x"}, "train.init_from is of transformers.*train.init_from = ''",
                 marks=pytest.mark.full),
])  # fmt: skip
def test_bad_configs_are_told_in_one_line(folder, tmp_path, overrides, said):
    with pytest.raises(UserError, match=said) as refusal:
        loop.train(override(SMALL, {"data.path": str(folder)} | overrides), tmp_path / "run")
    assert "\n" not in str(refusal.value)


def test_runs_of_other_kinds_are_refused(folder, tmp_path):
    config = override(AUTOENCODER, {"data.path": str(folder), "reconstruction.align": 0.0})
    recipe = build_autoencoder(config)
    save_vae(tmp_path / "vae", recipe.vae, perturbed(recipe.init_params)["vae"])
    with pytest.raises(UserError, match="holds no model of motions and captions: its config says trains = 'vae'"):
        load_motion_text(tmp_path / "vae")


def test_numbers_go_to_the_part_that_they_are_of(judge):
    recipe = build_motion_text(SMALL)
    assert by_parts(recipe, None) == recipe and len(recipe.model.config.groups) == 1
    assert by_parts(recipe, dataclasses.replace(judge.body, representation="joints")) == recipe
    told = by_parts(recipe, judge.body)
    assert len(told.model.config.parts) == len(humanml.PARTS)
    assert by_parts(told, judge.body) == told


NAMES = ("motion_text", "motion_text:tiny")


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_config_builds_and_is_the_same_when_frozen_twice(name):
    config = load_config(name)
    assert freeze(thaw(freeze(config))) == freeze(config)
    recipe = build_motion_text(config)
    assert recipe.config.name == "motion_text" and isinstance(recipe.model, MotionText)
    assert 0 < recipe.config.train.warmup < recipe.config.train.steps
    with pytest.raises(UserError, match="trains is 'motion_text'"):
        build(config)
    every = [path.stem for path in config_folder().glob("*.py")]
    assert [n for n in every if load_config(n).trains == "motion_text"] == ["motion_text"]


def test_its_docstring_says_how_to_run_it_and_what_to_expect():
    text = (config_folder() / "motion_text.py").read_text().split('"""')[1]
    assert "python train.py --config=configs/motion_text.py --workdir=" in text.replace("\n", " ")
    for word in ("Command:", "Method:", "Hardware:", "Expected:", "'tiny'", "arXiv"):
        assert word in text
    with pytest.raises(UserError, match="motion_text.py: motion_text has no variant 'tinny'.*'tiny'"):
        load_config("motion_text:tinny")


def test_the_tiny_configs_of_text_to_motion_fit_each_other():
    """The autoencoder can be aligned with the model's features, and the systems stream its latents."""
    told, vae = (freeze(load_config(name)) for name in ("motion_text:tiny", "motion_vae:text"))
    assert vae.vae.motion.align == told.motion_text.latent
    assert vae.data.frames % told.motion_text.time == 0 and vae.vae.geometry.time == told.motion_text.time
    for name in ("cmdm:tiny", "flooddiffusion:tiny", "motionstreamer:tiny", "motion_vae:text", "motion_text:tiny"):
        data = freeze(load_config(name)).data
        assert (data.representation, data.fps, data.channels, data.mirror) == ("essential", 20.0, 64, True)


@pytest.mark.parametrize("name", [pytest.param("motion_text", marks=pytest.mark.full), "motion_text:tiny"])
def test_it_is_sized_without_data(name):
    """Frozen tokens too, whose captions are told apart by their number."""
    config = override(freeze(load_config(name)), {"train.batch": 8, "motion_text.width": 32})
    said = loop.dry_run(config)
    assert "motions and captions in one space" in said and "FLOPs" in said and "1 parts of the body" in said
