"""Global settings of JAX that other libraries change: streams and training give the same numbers."""

import contextlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.autoencoder import build_autoencoder
from causal_diffusion.config import load_config
from causal_diffusion.jax_settings import IMPL, own_settings, under_own_settings
from causal_diffusion.nn.vae import Codec
from causal_diffusion.recipe import build
from causal_diffusion.seeds import random_key
from causal_diffusion.streaming.pipeline import Pipeline
from causal_diffusion.training.loop import train
from causal_diffusion.workers import Once

FLAGS = {
    "x64": {"jax_enable_x64": True},
    "rbg": {"jax_default_prng_impl": "rbg"},
    "unsafe": {"jax_default_prng_impl": "unsafe_rbg", "jax_threefry_partitionable": False},
    "precision": {"jax_default_matmul_precision": "bfloat16"},
    "promotion": {"jax_numpy_dtype_promotion": "strict", "jax_numpy_rank_promotion": "raise"},
    "device": {"jax_default_device": 3},
}
RARE = ("rbg", "unsafe", "precision", "promotion", "device")
EACH = pytest.mark.parametrize("flag", ["x64", *(pytest.param(name, marks=pytest.mark.full) for name in RARE)])
TINY = {
    "data.height": 8, "data.width": 8, "model.width": 16, "model.depth": 1, "model.heads": 2, "model.mlp": 16,
    "model.patch": (1, 8, 8), "schedule.steps": 2, "stream.capacity": 2, "train.steps": 2, "train.batch": 8,
    "train.warmup": 1, "log.every": 1, "log.checkpoint": 2, "log.evaluate": 0, "evaluate.clips": 0,
}  # fmt: skip


@contextlib.contextmanager
def flags(name):
    """Global settings, as another library makes them."""
    changes = dict(FLAGS[name])
    if name == "device":
        changes["jax_default_device"] = jax.devices()[changes["jax_default_device"]]
    before = {key: jax.config._read(key) for key in changes}
    for key, value in changes.items():
        jax.config.update(key, value)
    try:
        yield
    finally:
        for key, value in before.items():
            jax.config.update(key, value)


@pytest.fixture(scope="module")
def system():
    """(config, parameters) as an earlier process made them."""
    config = load_config("quickstart:tiny", TINY)
    recipe = build(config).streaming()
    return config, jax.tree.map(np.asarray, jax.jit(recipe.init_params)(random_key(0)))


def streamed(system):
    """All that a stream gives: frames, a sample that starts again, and one of a larger batch."""
    pipe = Pipeline(*system)
    stream = pipe.stream(seed=3, batch=2, cond={"label": 3})
    first = stream.take(3)
    stream.reset(1)
    again = stream.take(3)
    wide = pipe.generate(seed=3, frames=3, batch=3, cond={"label": 3})
    assert {each.dtype for each in (first, again, wide)} == {np.dtype(np.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(stream.mark().state)} <= {
        np.dtype(np.float32), np.dtype(np.int32), np.dtype(bool), random_key(0).dtype}  # fmt: skip
    np.testing.assert_allclose(again[1], first[1], atol=1e-5)
    np.testing.assert_allclose(wide[:2], first, atol=1e-5)
    return first


@pytest.fixture(scope="module")
def wanted(system):
    return streamed(system)


@EACH
def test_streams_are_the_same(system, wanted, flag):
    with flags(flag):
        np.testing.assert_array_equal(streamed(system), wanted)


def test_a_saved_stream_is_read_under_other_flags(system, tmp_path):
    pipe = Pipeline(*system)
    stream = pipe.stream(seed=1)
    stream.take(2)
    stream.save(tmp_path / "stream")
    rest = stream.take(2)
    with flags("x64"), flags("rbg"):
        np.testing.assert_array_equal(pipe.resume(tmp_path / "stream").take(2), rest)


@pytest.mark.full
@pytest.mark.parametrize("flag", ["x64", "rbg"])
def test_training_is_the_same(tmp_path, flag):
    config = load_config("quickstart:tiny", TINY)
    train(config, tmp_path / "plain")
    with flags(flag):
        train(config, tmp_path / "other")
    assert (tmp_path / "plain/metrics.jsonl").read_bytes() == (tmp_path / "other/metrics.jsonl").read_bytes()


@pytest.mark.full
def test_an_autoencoder_gives_the_same_latents():
    recipe = build_autoencoder(load_config("frame_vae:tiny"))
    vae, shape = recipe.vae, clip_shape(recipe)
    codec = Codec(vae, vae.init(random_key(0)))
    video = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    wanted = np.asarray(codec.encode(video))
    with flags("x64"):
        found = codec.encode(video)
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, wanted)


def clip_shape(recipe):
    data = recipe.config.data
    return (1, recipe.vae.geometry.frames(1), data.height, data.width, data.channels)


@pytest.mark.parametrize("flag", FLAGS)
def test_settings_are_the_librarys_inside_and_the_users_outside(flag):
    @under_own_settings
    def inside():
        return [jax.random.key_impl(jax.random.key(0)), jnp.zeros(1).dtype, jnp.zeros(1).devices()]

    plain = inside()
    with flags(flag):
        before = {key: jax.config._read(key) for key in FLAGS[flag]}
        with own_settings(), own_settings():
            assert inside() == plain
        assert Once(inside).result() == plain
        assert str(jax.random.key_impl(random_key(0))) == IMPL
        assert {key: jax.config._read(key) for key in FLAGS[flag]} == before
        other = threading.Thread(target=inside)
        other.start()
        other.join()
