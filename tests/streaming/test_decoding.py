"""Systems that work on latents: they train on clips or on encoded ones, and stream through a decoder's own state."""

import dataclasses
import gc
import json

import av
import jax
import numpy as np
import pytest

import causal_diffusion as cd
from causal_diffusion.autoencoder import FOLDER, build_autoencoder, fingerprint, save_vae
from causal_diffusion.config import freeze, override
from causal_diffusion.data.array_source import ArraySource
from causal_diffusion.errors import CheckpointError, UserError
from causal_diffusion.nn import vae as vaes
from causal_diffusion.nn.vae import Codec
from causal_diffusion.parallel.mesh import make_mesh
from causal_diffusion.streaming.decoding import latents_for
from causal_diffusion.streaming.pipeline import Pipeline
from causal_diffusion.streaming.to_file import stream_to_file
from causal_diffusion.training import loop
from tests.parameters import perturbed

VIDEO_VAE = dict(form="video", video=dict(
    channels=1, base=4, latent=4, multipliers=(1, 2, 2), time_down=(True, False), blocks=1, decoder_blocks=1))
MOTION_VAE = dict(form="motion", motion=dict(channels=6, latent=4, width=8, depth=1, stages=1, align=0))
SYSTEM = {
    "name": "latent", "data": dict(source="own", frames=7, height=16, width=16, channels=1),
    "model": dict(width=16, depth=1, heads=2, mlp=32, patch=(1, 2, 2), channels=4),
    "layout": dict(kind="teacher_forcing", block=1, window=3), "process": dict(predict="x0"),
    "schedule": dict(steps=2), "stream": dict(capacity=2),
    "train": dict(steps=2, batch=8, warmup=1, decay="constant"),
    "evaluate": dict(clips=3, context=2, frames=4), "log": dict(every=1, evaluate=0, checkpoint=2),
}  # fmt: skip
SERIES = SYSTEM | {
    "data": dict(source="own", frames=8, height=0, width=0, channels=6),
    "model": SYSTEM["model"] | dict(patch=(1,)), "vae": MOTION_VAE,
}  # fmt: skip
SYSTEMS = {"video": freeze(SYSTEM | {"vae": VIDEO_VAE}), "motion": freeze(SERIES)}


def clips(config, count=12, frames=None, seed=0):
    rng = np.random.default_rng(seed)
    return ArraySource(rng.uniform(-1, 1, (count, frames or config.data.frames, *config.data.frame_shape)))


class Trained:
    """A system trained two steps on the latents of a random autoencoder, encoded as the clips come."""

    def __init__(self, name, folder):
        self.config = SYSTEMS[name]
        recipe = build_autoencoder(dataclasses.replace(self.config, trains="vae"))
        params = perturbed(recipe.init_params)["vae"]
        vae = dataclasses.replace(recipe.vae, mean=(0.1, -0.2, 0.3, 0.0), std=(0.5, 2.0, 1.0, 1.5))
        self.codec, self.folder = Codec(vae, params), folder
        save_vae(folder / "autoencoder", vae, params)
        self.config = override(self.config, {"vae.checkpoint": str(folder / "autoencoder")})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "make_mesh", lambda config: make_mesh(devices=jax.devices()[:1]))
            held_out = clips(self.config, 4, frames=vae.geometry.frames(6), seed=1)
            self.pipeline = loop.train(self.config, folder / "run", source=clips(self.config), held_out=held_out)
        self.context = clips(self.config, 2, seed=2)[0]["video"][None].repeat(2, 0)


@pytest.fixture(scope="module", params=[pytest.param("video", marks=pytest.mark.full), "motion"])
def trained(request, tmp_path_factory):
    return Trained(request.param, tmp_path_factory.mktemp(request.param))


def equal(a, b):
    np.testing.assert_array_equal(a, b)


@pytest.mark.full
def test_it_is_evaluated_by_what_its_latents_stand_for(trained):
    numbers = json.loads((trained.folder / "run/samples/evaluation.json").read_text())
    g = trained.codec.geometry
    assert numbers["context"] == g.frames(2) and numbers["frames"] == g.frames(6) - g.frames(2)
    assert len(numbers["psnr"]) == numbers["frames"] and np.isfinite(numbers["psnr"]).all()


def test_the_run_carries_its_autoencoder(trained):
    """The one that it was trained with: it still streams when the other is gone, and from no other."""
    pipe = Pipeline.from_checkpoint(trained.folder / "run", overrides={"vae.checkpoint": "nowhere"})
    assert fingerprint(*pipe.codec) == fingerprint(*trained.codec)
    assert pipe.codec.vae.mean == trained.codec.vae.mean
    vae, _ = cd.load_vae(trained.folder / "run")
    assert vae == trained.codec.vae
    kept = trained.folder / "run" / FOLDER
    kept.rename(kept.with_name("away"))
    try:
        other = jax.tree.map(lambda a: a + 0.01, trained.codec.params)
        save_vae(trained.folder / "other", trained.codec.vae, other)
        with pytest.raises(CheckpointError, match="another autoencoder than the one"):
            Pipeline.from_checkpoint(
                trained.folder / "run", overrides={"vae.checkpoint": str(trained.folder / "other")}
            )
    finally:
        kept.with_name("away").rename(kept)


@pytest.mark.parametrize(
    "given", [0, *(pytest.param(n, marks=pytest.mark.full) for n in (1, 2))], ids=lambda n: f"{n} latents given"
)
def test_frames_are_the_decoded_latents_whole_clip_or_piece_by_piece(trained, given):
    """generate == stream == decoding the latents of a pipeline without a decoder, context and all, at once."""
    g, pipe = trained.codec.geometry, trained.pipeline
    context = trained.context[:, : g.frames(given)] if given else None
    frames = pipe.generate(seed=3, frames=9, batch=2, context=context)
    assert frames.shape[:2] == (2, 9) and frames.shape[2:] == trained.context.shape[2:]
    stream, parts = pipe.stream(seed=3, batch=2, context=context), []
    while sum(p.shape[1] for p in parts) < 9:
        parts.append(next(stream))
    equal(np.concatenate(parts, axis=1)[:, :9], frames)
    assert [p.shape[1] for p in parts] == [g.frames(1, start=not given and not i) for i in range(len(parts))]
    plain = Pipeline(trained.config, pipe.params)
    past = None if context is None else np.asarray(trained.codec.encode(context))
    latents = plain.generate(seed=3, frames=len(parts), batch=2, context=past)
    whole = latents if past is None else np.concatenate([past, latents], axis=1)
    decoded = np.asarray(trained.codec.decode(whole))[:, g.frames(given) :]
    np.testing.assert_allclose(frames, decoded[:, :9], atol=1e-5 * np.abs(decoded).max())
    if past is not None:
        equal(pipe.generate(seed=3, frames=9, batch=2, context=past), frames)  # latents may be given as they are


def test_a_stream_goes_into_a_file(trained, tmp_path, capsys):
    if trained.codec.geometry.axes:
        stream_to_file(trained.pipeline, tmp_path / "clip.mp4", frames=6, batch=2, context=0)
        with av.open(str(tmp_path / "clip.mp4")) as container:
            assert len(list(container.decode(video=0))) == 6
        assert "2 x 6 frames after 0 given ones" in capsys.readouterr().out


def test_frames_are_counted_up_to_whole_latents(trained):
    for begun in (False, True):
        for frames in range(1, 14):
            n, g = latents_for(trained.codec, frames, begun), trained.codec.geometry
            assert g.frames(n, start=not begun) >= frames > g.frames(n - 1, start=not begun)


def test_a_stream_forks_rewinds_and_comes_back_from_a_file(trained, tmp_path):
    stream = trained.pipeline.stream(seed=1, batch=2, context=trained.context[:, : trained.codec.geometry.frames(1)])
    next(stream)
    mark, twin = stream.mark(), stream.fork()
    stream.save(tmp_path / "stream.npz")
    wanted = stream.take(3)
    equal(twin.take(3), wanted)
    stream.rewind(mark)
    equal(stream.take(3), wanted)
    equal(Pipeline.from_checkpoint(trained.folder / "run").resume(tmp_path / "stream.npz").take(3), wanted)
    fresh = trained.pipeline.stream(seed=1, batch=2)
    fresh.save(tmp_path / "fresh.npz")  # before the decoder has begun
    equal(trained.pipeline.resume(tmp_path / "fresh.npz").take(2), fresh.take(2))


def test_a_sample_starts_again_as_it_would_alone(trained):
    g = trained.codec.geometry
    context = trained.context[:, : g.frames(1)]
    stream = trained.pipeline.stream(seed=5, batch=2, context=context)
    wanted = stream.take(3)
    other = stream.fork().take(3)
    stream.reset(1, context=context[1])
    again = stream.take(3)
    np.testing.assert_allclose(again[1], wanted[1], atol=1e-5 * np.abs(wanted).max())
    equal(again[0], other[0])
    if g.apart:
        with pytest.raises(UserError, match="first latent of a clip stands for 1 frame and later ones for 2"):
            stream.reset(0)
    else:
        stream.reset(0)
        alone = trained.pipeline.stream(seed=5, batch=2).take(2)
        np.testing.assert_allclose(stream.take(2)[0], alone[0], atol=1e-5 * np.abs(alone).max())


def test_two_shapes_at_most_are_compiled_however_long_the_stream(trained):
    stream = trained.pipeline.stream(seed=0, batch=2)
    stream.take(3)
    before = vaes._decode._cache_size()
    sizes = []
    gc.collect()  # arrays of other tests
    for _ in range(12):
        next(stream)
        sizes.append(sum(a.nbytes for a in jax.live_arrays()))
    assert vaes._decode._cache_size() == before and len(set(sizes[2:])) == 1


def test_bad_frames_are_told_in_one_line(trained):
    g, pipe, context = trained.codec.geometry, trained.pipeline, trained.context
    for given, words in (
        (context[:, : g.frames(1) + 1], "frames are no whole number of latents"),
        (np.full_like(context[:, : g.frames(1)], np.nan), "context has a value that is not finite, at [0, 0, 0"),
        (context[:, : g.frames(1), ..., :0], "channels"),
    ):
        with pytest.raises(UserError) as error:
            pipe.stream(batch=2, context=given)
        assert words in str(error.value) and "\n" not in str(error.value)
    if g.axes:
        with pytest.raises(UserError, match="the height is 14: a multiple of 4, 12 or 16 would do"):
            pipe.stream(batch=2, context=context[:, :1, :14])


@pytest.mark.parametrize(("overrides", "words"), [
    ({"vae.checkpoint": ""}, "vae.checkpoint is '': name the workdir"),
    ({"vae.video.base": 6}, "vae.video.base is 6 and the autoencoder in"),
    ({"model.channels": 3}, "model.channels is 3"),
    ({"data.frames": 6}, "6 frames are no whole number of latents: a clip has 1 + 2 n, 5 or 7 would do"),
    ({"guidance.observe": "square"}, "guidance.observe = 'none' would do"),
    ({"vae.form": "none"}, "vae.form is 'none'"),
    ({"data.action_dim": 2, "model.action": 2}, "a latent stands for 2 frames: actions go with single frames"),
    ({"train.crop": 8}, "train.crop = 0 would do"),
    ({}, "no statistics of its latents yet"),
])
def test_configs_that_do_not_fit_the_autoencoder_are_refused(tmp_path, overrides, words):
    recipe = build_autoencoder(dataclasses.replace(SYSTEMS["video"], trains="vae"))
    save_vae(tmp_path / "autoencoder", recipe.vae, perturbed(recipe.init_params)["vae"])
    config = override(SYSTEMS["video"], {"vae.checkpoint": str(tmp_path / "autoencoder")} | overrides)
    with pytest.raises(UserError) as error:
        loop.train(config, tmp_path / "run", source=clips(SYSTEMS["video"]))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_an_autoencoder_is_no_pipeline(trained):
    with pytest.raises(UserError, match="holds an autoencoder: load_vae reads it"):
        Pipeline.from_checkpoint(trained.folder / "autoencoder")
