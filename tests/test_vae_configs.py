"""The shipped configs of autoencoders: each builds, is counted, says what it is, and has a small variant."""

import dataclasses

import jax
import pytest

import causal_diffusion as cd
from causal_diffusion.autoencoder import build_autoencoder
from causal_diffusion.config import config_folder, differences, freeze, load_config, thaw
from causal_diffusion.parallel.mesh import make_mesh
from causal_diffusion.recipe import build, parameter_count
from causal_diffusion.training import loop

VARIANTS = {
    "cdt": ("", "tiny"), "frame_vae": ("", "tiny"), "motion_vae": ("", "tiny", "text"),
    "phenaki_tokenizer": ("", "tiny"), "video_vae": ("", "tiny", "fast"),
}  # fmt: skip
NAMES = sorted(VARIANTS)
ALL = [f"{name}:{variant}".rstrip(":") for name in NAMES for variant in VARIANTS[name]]
PARAMETERS = {"motion_vae": 76_312_199, "video_vae": 126_892_531}  # published, or of the reference implementation
TINY = ("data", "vae", "reconstruction", "train", "evaluate", "log")


def test_every_autoencoder_is_known_here():
    names = [path.stem for path in config_folder().glob("*.py")]
    assert sorted(name for name in names if load_config(name).trains == "vae") == NAMES


@pytest.mark.parametrize("name", ALL)
def test_it_builds_and_survives_a_round_trip(name):
    config = load_config(name)
    assert freeze(thaw(freeze(config))) == freeze(config)
    recipe = build_autoencoder(config)
    assert recipe.config.name == name.partition(":")[0] and build_autoencoder(recipe.config) == recipe
    latents = recipe.vae.geometry.latent_shape((recipe.frames, *recipe.frame_shape))
    assert latents[0] >= 2 and 0 < recipe.config.train.warmup < recipe.config.train.steps
    with pytest.raises(cd.UserError, match="trains is 'vae'"):
        build(config)


@pytest.mark.parametrize("name", NAMES)
def test_its_docstring_says_how_to_run_it_and_what_to_expect(name):
    text = (config_folder() / f"{name}.py").read_text().split('"""')[1]
    own = load_config(name).data.source == "own"  # clips that no command line can name
    command = f'cd.train(cd.load_config("{name}"), workdir=' if own else (
        f"python train.py --config=configs/{name}.py --workdir=")
    assert command in text.replace("\n", " ")
    for word in ("Command:", "Method:", "Hardware:", "Expected:", "'tiny'", "arXiv"):
        assert word in text
    with pytest.raises(cd.UserError, match=f"{name}.py: {name} has no variant 'tinny'.*'tiny'"):
        load_config(f"{name}:tinny")


@pytest.mark.parametrize("name", NAMES)
def test_tiny_is_the_same_system_for_two_cores(name):
    full, tiny = (freeze(load_config(n)) for n in (name, f"{name}:tiny"))
    changed = {**differences(full, tiny)[0], **differences(full, tiny)[1]}
    assert {key.partition(".")[0] for key in changed} <= set(TINY)
    assert tiny.vae.form == full.vae.form
    g, h = full.vae.geometry, tiny.vae.geometry
    assert (g.apart, g.axes) == (h.apart, h.axes)
    count = parameter_count(jax.eval_shape(build_autoencoder(tiny).vae.init, jax.random.key(0)))
    assert 1e4 < count < 2e7


@pytest.mark.parametrize("name", NAMES)
def test_the_full_size_is_counted_without_being_made(name):
    before = {id(a) for a in jax.live_arrays()}
    recipe = build_autoencoder(load_config(name))
    count = parameter_count(jax.eval_shape(recipe.vae.init, jax.random.key(0)))
    assert sum(a.nbytes for a in jax.live_arrays() if id(a) not in before) < 2**22
    assert count == PARAMETERS.get(name, count) and count > 2e7
    text = (config_folder() / f"{name}.py").read_text()
    assert f"{count:,} parameters" in text or f"{count / 1e6:.0f} M parameters" in text


@pytest.mark.full
def test_a_latent_system_is_sized_from_the_two_configs_alone(monkeypatch):
    """As docs/vae.md writes it: the transformer's config takes the autoencoder's section over."""
    monkeypatch.setattr(loop, "make_mesh", lambda config: make_mesh(devices=jax.devices()[:1]))
    vae = load_config("video_vae:tiny").vae.to_dict() | {"checkpoint": "runs/video_vae"}
    config = load_config("video_folder:tiny").to_dict()
    config["vae"] = vae
    config["data"] |= dict(frames=9, height=64, width=64)
    config["model"] |= dict(channels=16, patch=(1, 2, 2))
    config["evaluate"] |= dict(context=1)
    said = loop.dry_run(freeze(config))
    assert "latents     3 of 8x8x16, 4 frames each, the first of one" in said
    encoded = dataclasses.replace(
        freeze(config), data=dataclasses.replace(freeze(config).data, source="latents", frames=3, height=8, width=8,
                                                 channels=16))  # fmt: skip
    assert build(encoded).frame_shape == build(freeze(config)).frame_shape == (8, 8, 16)
    with pytest.raises(cd.UserError, match="data.channels is 12 .* data.channels = 16 would do"):
        build(dataclasses.replace(encoded, data=dataclasses.replace(encoded.data, channels=12)))
