"""What a run makes: a pipeline or an autoencoder. The loop is the same; what is loaded, shown and kept differs.

A run is asked, in this order: ``frozen`` networks for the step, the ``spec`` of a clip as the step sees it, the state
to ``begin`` with, each batch to be ``prepared``, what a checkpoint keeps (``canonical``, ``meta``), how it is getting
on (``quick``) and what came of it (``final``).
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from causal_diffusion import config as configs
from causal_diffusion.autoencoder import (
    FOLDER,
    AutoencoderRecipe,
    build_autoencoder,
    check_sizes,
    fingerprint,
    load_vae,
    save_vae,
    statistics_of,
)
from causal_diffusion.checkpoint.fingerprints import of_text
from causal_diffusion.compatibility.autoencoder import clip_shapes
from causal_diffusion.data.captioned import Captioned
from causal_diffusion.data.composed import composed
from causal_diffusion.data.latents import check_made_by
from causal_diffusion.errors import UserError
from causal_diffusion.file_access import is_dir
from causal_diffusion.motion_text import MotionTextRecipe, build_motion_text, features_of, load_motion_text
from causal_diffusion.nn.layers import unstack_layers
from causal_diffusion.nn.perceptual import lpips_weights
from causal_diffusion.nn.vae import Codec
from causal_diffusion.parallel.distributed import barrier, is_writer
from causal_diffusion.parallel.mesh import batch_sharding, replicated
from causal_diffusion.recipe import Recipe, build
from causal_diffusion.render.sheet import contact_sheet
from causal_diffusion.streaming.pipeline import Pipeline
from causal_diffusion.training import evaluate, evaluate_vae
from causal_diffusion.training.evaluate_motion import draw_prompts
from causal_diffusion.training.init_from import init_from
from causal_diffusion.training.kept import meta_of, open_text, whole
from causal_diffusion.training.motion_text_run import MotionTextRun
from causal_diffusion.training.objectives.reconstruction import Frozen
from causal_diffusion.training.step import held_out_loss


def make_recipe(config):
    """A config -> the recipe of what it trains."""
    config = configs.freeze(config)
    return {"vae": build_autoencoder, "motion_text": build_motion_text, "transformer": build}[config.trains](config)


def make_run(recipe, mesh, workdir=None, source=None):
    """The run of a recipe; ``workdir`` and ``source`` None: one that is only sized."""
    kinds = {AutoencoderRecipe: AutoencoderRun, MotionTextRecipe: MotionTextRun, Recipe: TransformerRun}
    return kinds[type(recipe)](recipe, mesh, None if workdir is None else Path(workdir).expanduser(), source)


class TransformerRun:
    """Makes a Pipeline. Where the system works on latents, frames are encoded as they come, or come encoded."""

    frozen = ()

    def __init__(self, recipe: Recipe, mesh, workdir, source):
        self.recipe, self._mesh, self._workdir, self.codec = recipe, mesh, workdir, None
        config, self.body = recipe.config, getattr(source, "body", None)
        self.text = None if workdir is None else open_text(config, config.model.vocabulary, workdir, source)
        if workdir is not None and config.vae.form != "none":
            self.codec = self._open_codec(config, source)
        self.encodes = self.codec is not None and config.data.source != "latents"
        if self.encodes:
            rows, one = batch_sharding(mesh), replicated(mesh)
            vae = self.codec.vae
            self._params = jax.device_put(self.codec.params, one)
            self._encode = jax.jit(
                lambda params, video: vae.normalise(vae.encode(params, video)), in_shardings=(one, rows),
                out_shardings=rows,
            )  # fmt: skip

    def _open_codec(self, config, source):
        kept = self._workdir / FOLDER
        where = kept if is_dir(kept) else config.vae.checkpoint
        if not where:
            raise UserError(
                f"vae.form is {config.vae.form!r} and vae.checkpoint is '': name the workdir of the run that trained "
                "this autoencoder"
            )
        vae, params = load_vae(where)
        check_sizes(vae, config.vae, where)
        self.fingerprint = fingerprint(vae, params)
        if config.data.source == "latents":
            check_made_by(source, self.fingerprint, where)
            vae = dataclasses.replace(vae, mean=source.mean, std=source.std)
        elif not vae.mean:
            raise UserError(f"{where} has no statistics of its latents yet: train that autoencoder to its last step")
        barrier("the autoencoder is read")  # before it is written where others might look
        if is_writer():
            save_vae(kept, vae, params)
        return Codec(vae, params)

    def dress(self, source):
        """The source as training reads it: with its captions as condition tokens."""
        return source if self.text is None else Captioned(source, self.text.encode)

    def augment(self, source):
        """What is done to elements of the dressed source, None for nothing."""
        train, time = self.recipe.config.train, self.codec.geometry.time if self.encodes else 1
        return composed(source, train.compose, train.blend, time) if train.compose else None

    def spec(self, spec: dict) -> dict:
        """Shapes of a clip of the source -> as the step sees it."""
        shapes = clip_shapes(self.recipe.config)
        if self.recipe.config.train.compose:
            spec = spec | {name: shapes[name] for name in ("text", "text_mask", "text_of")}
        return spec | {"video": shapes["video"]} if self.encodes else spec

    def prepare(self, batch: dict) -> dict:
        """A global batch -> as the step takes it."""
        if not self.encodes:
            return batch
        batch = batch | {"video": self._encode(self._params, batch["video"])}
        if "length" in batch:
            batch["length"] = self.codec.geometry.whole_latents(batch["length"])
        return batch

    def begin(self, state, shardings):
        """The fresh state as it is to start, and what was taken over from where."""
        path = self.recipe.config.train.init_from
        return init_from(self.recipe, state, shardings, path) if path else (state, [])

    def canonical(self, ema):
        """Averaged parameters as a checkpoint keeps them."""
        return unstack_layers(ema)

    def meta(self, ema, last: bool) -> dict:
        """What else a checkpoint keeps."""
        made_with = of_text(self.text) | ({} if self.codec is None else {"vae": self.fingerprint})
        meta = meta_of(self.recipe.config, self.body, made_with)
        if self.codec is not None:
            meta["vae"] = {"fingerprint": self.fingerprint} | statistics_of(self.codec.vae)
        return meta

    def open(self, ema, held_out) -> None:
        """Gets ready to evaluate; ``held_out``: a source, None: as the config says, False: there is none."""
        encode = self.codec if self.encodes else None
        self._clips = None
        if held_out is not False:
            self._clips = evaluate.held_out(self.recipe.config, held_out, encode, self.dress)
        own = dict(codec=self.codec, text=self.text, body=self.body)
        self.product = Pipeline(self.recipe.config, unstack_layers(whole(ema)), **own)
        # Evaluation streams latents, and decodes them beside the true ones.
        self._plain = Pipeline(self.recipe.config, self.product.params) if self.codec is not None else self.product

    def quick(self, step: int, state, logger) -> None:
        """Held-out loss, next-frame PSNR and a short clip of the averaged parameters."""
        clips, recipe = self._clips, self.recipe
        if clips is None:
            return
        loss = held_out_loss(recipe, state.ema, clips.video[:, : recipe.frames], clips.condition)
        self._plain.params = unstack_layers(whole(state.ema))
        streamed = evaluate.stream_held_out(self._plain, clips, min(recipe.frames, clips.frames))
        if self.codec is not None:
            clips, streamed = evaluate.decoded(self.codec, clips, streamed)
        known = clips.future[:, : streamed.shape[1]]
        model = evaluate.mean_psnr(streamed[:, : known.shape[1]], known)
        values = {"held_out/loss": loss, "held_out/next_frame_psnr": float(model[0]),
                  "held_out/last_frame_psnr": float(model[-1])}
        logger.scalars(step, values)
        if evaluate.are_pictures(clips.video):
            rows, beside = evaluate.rows(clips, streamed)
            logger.video(step, "held_out/stream", beside, recipe.config.data.fps or 10.0)
            sheet = contact_sheet(rows, context=clips.context, group=2, max_columns=18)
            logger.image(step, "held_out/sheet", sheet)
        logger.write(f"step {step:,}: held-out loss {loss:.4f}, next-frame PSNR {model[0]:.2f} dB, "
                     f"{known.shape[1]} frames on {model[-1]:.2f} dB")

    def final(self, state, logger) -> None:
        """Streams on from the held-out context and writes what came of it."""
        self.product.params = self._plain.params = unstack_layers(whole(state.ema))
        if self._clips is None or not is_writer():
            return
        result = evaluate.final(self._plain, self._clips, self._workdir / "samples", self.codec)
        if self.body is not None and self.text is not None and self._clips.captions:
            result.pictures["prompts"] = draw_prompts(self.product, self._clips.captions, self._workdir / "samples")
        steps = self.recipe.config.train.steps
        for tag, pixels in result.pictures.items():
            logger.image(steps, f"final/{tag}", pixels)
        if result.clip is not None:
            logger.video(steps, "final/stream", result.clip, self.recipe.config.data.fps or 10.0)
        logger.write(f"\n{result.table}\nclip, contact sheet and curves are in {self._workdir / 'samples'}")


class AutoencoderRun:
    """Makes (vae, params). Its last checkpoint also keeps the statistics of its latents over the training clips."""

    def __init__(self, recipe: AutoencoderRecipe, mesh, workdir, source):
        self._mesh, self._workdir, self._source = mesh, workdir, source
        loss, teacher = recipe.config.reconstruction, None
        if loss.teacher:
            vae, teacher = load_vae(loss.teacher)
            check_sizes(_encoder_of(vae, recipe.vae), recipe.config.vae, loss.teacher)
            recipe = recipe._replace(teacher=vae)
        judge = None
        if loss.align and loss.features:
            judge = load_motion_text(loss.features)
            width, there = recipe.config.vae.sizes.align, judge.model.config.latent
            if width != there:
                raise UserError(f"vae.{recipe.config.vae.form}.align is {width} and the features in {loss.features} "
                                f"have {there} numbers: they must be equal, {there} would do")  # fmt: skip
            recipe = recipe._replace(features=features_of(judge, getattr(source, "body", None)))
        self.recipe = recipe
        frozen = Frozen(
            lpips_weights(loss.lpips) if loss.lpips else None, teacher, None if judge is None else judge.params
        )
        self.frozen = (jax.device_put(frozen, replicated(mesh)),) if jax.tree.leaves(frozen) else ()
        self.statistics = None

    def spec(self, spec: dict) -> dict:
        """The step looks at the clips alone, or at a part of them."""
        return {"video": clip_shapes(self.recipe.config)["video"]}

    def dress(self, source):
        """The source as training reads it."""
        return source

    def augment(self, source):
        """What is done to its elements besides: nothing."""
        return None

    def prepare(self, batch: dict) -> dict:
        """A global batch -> as the step takes it."""
        return {name: batch[name] for name in ("video", "index")}

    def begin(self, state, shardings):
        """The fresh state as it is to start, and what was taken over from where."""
        if self.recipe.config.train.init_from:
            raise UserError("train.init_from is of transformers: an autoencoder starts afresh, train.init_from = ''")
        if self.recipe.teacher is None:
            return state, []
        network, given = self.recipe.vae.network, self.frozen[0].teacher
        taken = {name: given[name] for name in network.encoder_modules if name in given}

        def take_over(params, shardings):
            vae = params["vae"] | taken
            return jax.device_put(params | {"vae": jax.tree.map(jnp.copy, vae)}, shardings)

        state = dataclasses.replace(
            state, params=take_over(state.params, shardings.params), ema=take_over(state.ema, shardings.ema)
        )
        return state, [f"  taken over: {', '.join(taken)} from {self.recipe.config.reconstruction.teacher}"]

    def canonical(self, ema):
        """Averaged parameters as a checkpoint keeps them: without the discriminator's."""
        return self.recipe.canonical(ema)

    def meta(self, ema, last: bool) -> dict:
        """What else a checkpoint keeps."""
        meta = meta_of(self.recipe.config, getattr(self._source, "body", None))
        if last:
            vae = evaluate_vae.with_statistics(self.recipe.vae, whole(self.canonical(ema)), self._source)
            self.recipe = self.recipe._replace(vae=vae)
            meta["latents"] = statistics_of(vae)
        return meta

    def open(self, ema, held_out) -> None:
        """Gets ready to evaluate; ``held_out``: a source, None: as the config says, False: there is none."""
        config = self.recipe.config
        self._clips = None if held_out is False else evaluate_vae.held_out(config, held_out)
        self._params = whole(self.canonical(ema))

    @property
    def product(self):
        """(vae, averaged parameters)."""
        return self.recipe.vae, self._params

    def quick(self, step: int, state, logger) -> None:
        """Held-out reconstruction of the averaged parameters, beside what they are given."""
        if self._clips is None:
            return
        self._params = whole(self.canonical(state.ema))
        result = evaluate_vae.reconstruct(self.recipe, self._params, self._clips)
        logger.scalars(step, {f"held_out/{name}": value for name, value in result.numbers.items()})
        if result.sheet is not None:
            logger.image(step, "held_out/sheet", result.sheet)
        logger.write(f"step {step:,}: {result.headline}")

    def final(self, state, logger) -> None:
        """Reconstructs the held-out clips and writes what came of it."""
        self._params = whole(self.canonical(state.ema))
        if not self.recipe.vae.mean:  # the run was complete already
            self.recipe = self.recipe._replace(vae=load_vae(self._workdir)[0])
        if self._clips is None or not is_writer():
            return
        result = evaluate_vae.reconstruct(self.recipe, self._params, self._clips)
        evaluate_vae.write(result, self._workdir / "samples")
        if result.sheet is not None:
            logger.image(self.recipe.config.train.steps, "final/reconstruction", result.sheet)
        logger.write(f"\n{result.headline}\npictures and numbers are in {self._workdir / 'samples'}")


def _encoder_of(teacher, student):
    """The teacher with the student's decoder, which may be smaller."""
    sizes = student.config.sizes
    own = {f.name: getattr(sizes, f.name) for f in dataclasses.fields(sizes) if f.name.startswith("decoder_")}
    video = dataclasses.replace(teacher.config.video, **own)
    return dataclasses.replace(teacher, config=dataclasses.replace(teacher.config, video=video))
