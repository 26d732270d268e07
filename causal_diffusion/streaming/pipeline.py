"""The pipeline: a trained system, ready to generate and to stream.

A system that works on latents carries its autoencoder. Frames go in and come out; a block of latents is decoded as soon
as it is clean, by a decoder that remembers what it needs of the blocks before (``decoding``).
"""

import dataclasses
import math

import jax
import numpy as np

from causal_diffusion.autoencoder import FOLDER, check_sizes, fingerprint, load_vae
from causal_diffusion.checkpoint import beside, folder_of, load_tree, read_ema, read_meta
from causal_diffusion.checkpoint.fingerprints import check_same
from causal_diffusion.config import differences, freeze, override
from causal_diffusion.errors import CheckpointError, UserError
from causal_diffusion.file_access import is_dir
from causal_diffusion.jax_settings import under_own_settings
from causal_diffusion.motion.body import Body
from causal_diffusion.nn.layers import join_projections, split_projections, unstack_layers
from causal_diffusion.nn.text.encoder import FOLDER as TEXT
from causal_diffusion.nn.text.encoder import check_encoder, open_text_encoder
from causal_diffusion.nn.vae import Codec
from causal_diffusion.ranges import SIZE, WEIGHT, check_number, is_number
from causal_diffusion.recipe import build, null_condition
from causal_diffusion.seeds import check_seed
from causal_diffusion.streaming.decoding import decoder_like, encode_context, latents_for, prime
from causal_diffusion.streaming.entering import Mark
from causal_diffusion.streaming.inputs import (
    as_action,
    check_context_action,
    conditions,
    parse_action,
    parse_condition,
    parse_context,
    parse_observed,
    parse_reference,
    take_actions,
    take_observed,
)
from causal_diffusion.streaming.maker import Maker, WeightsOrigin
from causal_diffusion.streaming.output import Output
from causal_diffusion.streaming.placement import as_mesh, compiled, placing, put, put_params, say_if_whole
from causal_diffusion.streaming.programs import Programs
from causal_diffusion.streaming.rollout import Rollout
from causal_diffusion.streaming.session import Session
from causal_diffusion.streaming.state import Action, as_made, sample_keys
from causal_diffusion.streaming.watch import Watch


class Pipeline:
    """A system with its parameters.

    Attributes:
        params: the averaged (EMA) parameters in canonical form.
        weights: the same as programs take them (``nn.layers``).
        programs: those that make blocks, compiled (``programs``).
        recipe: the checked config; ``recipe.config`` is the config itself.
        rollout: the pure functions underneath, to build one's own loop from.
        codec: the autoencoder whose latents the system works on, with its parameters; None: there is none, and where
            the system works on latents, latents are what comes out.
        text: the encoder of prompts (``nn.text.encoder``); None: prompts are handed over as condition tokens.
        body: of a system of human motion, what the numbers of a frame mean (``motion.body``); else None.
        mesh: that its streams lie on (``placement``); None: on one device.
    """

    @under_own_settings
    def __init__(
        self, config, params, *, codec: Codec | None = None, text=None, body: Body | None = None, loss=None,
        loss_scale: float = 1.0, mesh=None,
    ):  # fmt: skip
        """A pipeline, steered down the gradient of ``loss`` where there is one; see ``steered``.

        ``mesh``: a jax.sharding.Mesh, or a MeshConfig for all devices.
        """
        self.recipe = build(config).streaming()
        self.text, self.body = text, body
        self.mesh = mesh = as_mesh(mesh, self.recipe.model.config)
        self.rollout = Rollout(self.recipe, loss=loss, loss_scale=loss_scale)
        params, self.codec = put_params(unstack_layers(params), codec, mesh)
        self.params = params
        self.encode_condition = compiled(self.rollout.encode_condition, mesh)
        self.init_state = compiled(self.rollout.init_state, mesh)
        self.recache = compiled(self.rollout.recache, mesh)
        self.programs = Programs(self.rollout, self.recipe.config.stream.capacity, mesh)

    @property
    def config(self):
        """The frozen config."""
        return self.recipe.config

    @property
    def params(self):
        """The averaged (EMA) parameters in canonical form; others may be put in their place, in any form."""
        return split_projections(self.weights)

    @params.setter
    @under_own_settings
    def params(self, params):
        # Over `tensor` heads are dealt out, those of q, k and v alike; side by side they would not be.
        self.weights = join_projections(params) if self.mesh is None else params
        self._origin = WeightsOrigin(self.weights)

    @property
    def maker(self) -> Maker:
        """What the frames of its streams depend on beside config and seed."""
        rollout, recipe = self.rollout, self.recipe
        frames = rollout.in_flight * rollout.block + recipe.layout.knot
        return Maker(self._origin, self.text, self.codec, rollout.loss, rollout.loss_scale,
                     (frames, *recipe.frame_shape))  # fmt: skip

    @classmethod
    @under_own_settings
    def from_checkpoint(cls, path, *, step: int | None = None, overrides=(), mesh=None) -> "Pipeline":
        """Reads the newest intact checkpoint of a run.

        Args:
            path: the run's workdir, or its folder of checkpoints.
            step: a certain checkpoint instead of the newest.
            overrides: elastic keys to change, {'schedule.steps': 4} or ['schedule.steps=4'].
            mesh: a jax.sharding.Mesh, or a MeshConfig for all devices: samples are split over its axes data and fsdp,
                heads over tensor. None: one device.

        The autoencoder of a system that works on latents lies in the workdir, too.

        Raises:
            CheckpointError: nothing intact is there, or another autoencoder than the one it was trained with.
            UserError: an override of an identity key, or the run of an autoencoder.
        """
        folder = folder_of(path)
        meta = read_meta(folder, step).meta
        saved = freeze(meta["config"])
        if saved.trains == "vae":
            raise UserError(f"{path} holds an autoencoder: load_vae reads it, and there is nothing to stream")
        config = _overridden(saved, overrides)
        recipe = build(config).streaming()
        mesh = as_mesh(mesh, recipe.model.config)
        ema = read_ema(folder, recipe.init_params, step, placing(mesh))
        codec = _codec(folder, config, meta["vae"]) if meta.get("vae") else None
        text = open_text_encoder(config.text, beside(folder, TEXT)) if config.text.encoder != "none" else None
        check_encoder(folder, meta, text)
        return cls(config, ema, codec=codec, text=text, body=Body.of_meta(meta.get("body")), mesh=mesh)

    @under_own_settings
    def steered(self, loss, scale: float = 1.0) -> "Pipeline":
        """The same system, pulled down the gradient of a loss of one's own (``diffusion.steering``).

        Args:
            loss: differentiable, (x0 float32 [B, T, *space, C], frame int32 [B, T]) -> [B] or a scalar, a sum over
                samples: of the clean data predicted for the frames in flight, and of their indices in time. Frames
                at negative indices pad a short first block, and a knot's last frames are the next block's first.
            scale: how strongly; 0 changes nothing. The likelihood of a measurement, as -log p, has 1.

        A system that works on latents hands the loss latents.
        """
        scale = check_number("scale", scale, WEIGHT, default=1.0, kind=float, error=UserError)
        return Pipeline(
            self.config, self.params, codec=self.codec, text=self.text, body=self.body, loss=loss, loss_scale=scale,
            mesh=self.mesh,
        )  # fmt: skip

    @under_own_settings
    def generate(self, seed: int = 0, frames: int = 64, batch: int = 1, cond=None, context=None) -> np.ndarray:
        """``frames`` new frames after the context: float32 [B, frames, *space, C] in data range.

        Args:
            seed: 0 .. 2^64 - 1; sample i's noise depends on (seed, i) only.
            frames: rounded up to whole blocks, then trimmed; where latents are decoded, decoded frames are counted.
            batch: samples.
            cond: dict of 'label' (int or [B]), 'text' (a prompt, or one for each sample; or condition tokens, [M, E] or
                [B, M, E], with 'text_mask'), 'action' ([T, A] or
                [B, T, A], one per new frame, the last is held) and 'context_action'; 'reference' ([*space, C] or
                [B, *space, C], else the context's first frame); 'observed' ([T, *space, C] or [B, T, *space, C],
                values of new frames, NaN where they are not known); whatever the system takes.
            context: given frames, [T, *space, C] or [B, T, *space, C], uint8 pixels or floats in data range
                (``causal_diffusion.frames``); or, where the system works on latents, latents in that place.

        Raises:
            UserError: an argument that the system does not take, or that is out of range.
        """
        frames = check_number("frames", frames, SIZE, default=64, error=UserError)
        session = self._begin(seed, batch, cond, context)
        wanted = frames if self.codec is None else latents_for(self.codec, frames, session.decoded)
        steps = math.ceil((wanted + session.void) / self.rollout.emit)
        session.prepare(steps)
        return session.take(steps)[:, :frames]

    @under_own_settings
    def stream(self, seed: int = 0, batch: int = 1, cond=None, context=None, ahead: bool = False) -> Session:
        """An endless iterator of blocks [B, b, *space, C]; arguments as ``generate``.

        ``ahead``: the next block is begun before one is waited for, so that the device works while the user does.
        What steers the stream then shows one block later; one that nobody steers is the same bit for bit.
        """
        session = self._begin(seed, batch, cond, context, ahead)
        session.prepare()
        return session

    def _begin(self, seed, batch, cond, context, ahead=False):
        seed = check_seed(seed)
        batch = check_number("batch", batch, SIZE, error=UserError)
        say_if_whole(batch, self.mesh)
        watch = Watch()
        model, cond = self.recipe.model.config, conditions(cond)
        reference, watched = cond.pop("reference", None), cond.pop("observed", None)
        fixed = self.config.text.fixed
        null = null_condition(model, batch, tokens=fixed) if fixed else None
        condition = put(parse_condition(model, self.read_prompts(cond), batch, null), self.mesh)
        context = parse_context(self.recipe, encode_context(self.codec, self.recipe, context), batch)
        reference = parse_reference(self.recipe, reference, context, batch)
        watched = parse_observed(self.recipe, watched, batch)
        queue = parse_action(model, cond.get("action"), batch, "cond['action']")
        past = parse_action(model, cond.get("context_action"), batch, "cond['context_action']")
        check_context_action(past, context, "cond['context_action']")
        with watch.phase("condition"):
            encoded = self.encode_condition(self.weights, condition)
        held, ramp = None, None
        if model.action and self.rollout.waiting:
            void = 0 if context.shape[1] else self.recipe.layout.pad
            value, given, queue, held = take_actions(queue, held, self.rollout.waiting, batch, model.action, void)
            ramp = Action(value, given)
        seen = None
        if self.recipe.guidance.observe != "none" and self.rollout.waiting:
            void = 0 if context.shape[1] else self.recipe.layout.pad
            seen, watched = take_observed(watched, self.rollout.waiting, batch, self.recipe.frame_shape, void)
        keys = sample_keys(seed, batch)
        # The cursor is typed, so that `reset` finds this very program compiled.
        with watch.phase("beginning"):
            state = self.init_state(
                self.weights, keys, encoded, context, as_action(past), ramp, np.int32(0), reference, seen, np.int32(0)
            )
        decoder, frame = prime(self.codec, context), np.full(batch, context.shape[1] or -self.recipe.layout.pad)
        mark = Mark(state, frame, condition, encoded, queue, held, watched, decoder)
        return Session(self, mark, seed, ahead=ahead, watch=watch)

    @under_own_settings
    def compose(self, prompts, seed: int = 0, batch: int = 1, context=None) -> np.ndarray:
        """One clip under prompts that change: [(prompt, frames), ...] -> float32 [B, sum of frames, *space, C].

        Blocks in flight at a change are denoised beside each other, each under its own prompt, so that there is no
        seam. A block's prompt is that of its first frame, in decoded frames; the blocks that a stream begins with all
        have the first one.
        """
        if not prompts or any(not is_number(frames, int) or frames < 1 for _, frames in prompts):
            raise UserError(f"prompts is {prompts!r}; it is a list of (prompt, frames) with at least 1 frame each")
        ends = np.cumsum([frames for _, frames in prompts])
        session, now, parts, made = self.stream(seed, batch, {"text": prompts[0][0]}, context), 0, [], 0
        time = 1 if self.codec is None else self.codec.geometry.time
        while made < ends[-1]:
            entering = made + (self.rollout.waiting - session.void) * time
            wanted = int(np.searchsorted(ends[:-1], entering, side="right"))
            if wanted != now:
                session.update({"text": prompts[wanted][0]})
                now = wanted
            parts.append(session.next())
            made += parts[-1].shape[1]
        return np.concatenate(parts, axis=1)[:, : ends[-1]]

    def positions(self, frames) -> np.ndarray:
        """Frames of motion [..., T, C] -> joints in the world, [..., T, J, 3] in metres, y up, from over the origin.

        A stream goes on from where its last block ended: ``joints, at = pipe.body.positions(block, at)``.
        """
        if self.body is None:
            raise UserError("this system is not of human motion: its frames have no joints")
        return self.body.positions(np.asarray(frames))[0]

    def read_prompts(self, cond: dict) -> dict:
        """A user's ``cond`` with its prompts as condition tokens."""
        text = cond.get("text")
        prompts = [text] if isinstance(text, str) else text
        if not isinstance(prompts, (list, tuple)) or not prompts or not all(isinstance(p, str) for p in prompts):
            return cond
        if self.text is None:
            raise UserError(
                f"cond['text'] is {prompts[0]!r} and text.encoder is 'none': this system takes condition tokens"
            )
        tokens, mask = self.text.encode(list(prompts))
        if isinstance(text, str):
            tokens, mask = tokens[0], mask[0]
        return cond | {"text": tokens, "text_mask": mask}

    @under_own_settings
    def resume(self, path) -> Session:
        """Goes on with a stream that ``Session.save`` wrote: bitwise the same continuation.

        Raises:
            CheckpointError: a damaged file, or the stream of another system: the first differing key is named, or
                whether weights, word list, text encoder, VAE or steering loss are others.
            UnreadableError: the file cannot be read now.
        """
        _, meta = load_tree(path, None)
        identity, _ = differences(freeze(meta["config"]), self.config)
        sampling = {k: v for k, v in differences(freeze(meta["config"]), self.config)[1].items() if _shapes(k)}
        for key, (old, new) in (identity | sampling).items():
            raise CheckpointError(f"{path} was saved with {key} = {old!r}; this pipeline has {new!r}")
        batch, model = meta["batch"], self.recipe.model.config
        check_same(path, meta.get("fingerprints"), self.maker.fingerprints(batch), "try the pipeline that saved it")
        condition = jax.eval_shape(lambda: null_condition(model, batch))
        if meta["text"] is not None:
            shape, ids = (batch, 1, meta["text"]), model.vocabulary
            text = jax.ShapeDtypeStruct(shape if ids else (*shape, model.text), np.int32 if ids else np.float32)
            mask = jax.ShapeDtypeStruct((batch, 1, meta["text"]), np.bool_)
            condition = dataclasses.replace(condition, text=text, text_mask=mask)
        encoded = jax.eval_shape(self.rollout.encode_condition, self.weights, condition)
        keys = jax.eval_shape(lambda: sample_keys(0, batch))
        reference = None
        if self.recipe.layout.reference:
            reference = jax.ShapeDtypeStruct((batch, *self.recipe.frame_shape), np.float32)
        state = jax.eval_shape(
            lambda *given: as_made(self.rollout.init_state(*given[:3], reference=given[3])),
            self.weights, keys, encoded, reference,
        )  # fmt: skip
        like = {"state": state, "condition": condition}
        if meta["queue"] is not None:
            like["queue"] = jax.ShapeDtypeStruct((batch, meta["queue"], model.action), np.float32)
        if meta["held"]:
            like["held"] = jax.ShapeDtypeStruct((batch, 1, model.action), np.float32)
        if meta["observed"] is not None:
            like["observed"] = jax.ShapeDtypeStruct((batch, meta["observed"], *self.recipe.frame_shape), np.float32)
        if meta.get("decoded"):
            like["decoder"] = decoder_like(self.codec, batch, self.recipe.frame_shape)
        shapes = meta.get("ahead") or []
        if shapes and isinstance(shapes[0], int):  # the one block of a stream that an earlier version saved
            like["ahead"] = jax.ShapeDtypeStruct(tuple(shapes), np.float32)
        elif shapes:
            like["ahead"] = {i: jax.ShapeDtypeStruct(tuple(shape), np.float32) for i, shape in enumerate(shapes)}
        tree = load_tree(path, like)[0]
        tree["state"] = self.rollout.laid(tree["state"])
        frame, ahead = np.asarray(tree["state"].frame), tree.pop("ahead", None)
        tree = put(tree, self.mesh)
        ahead = tuple(Output(1, 0, (), [np.asarray(frames)]) for frames in jax.tree.leaves(ahead))
        encoded = self.encode_condition(self.weights, tree["condition"])
        rest = (None if name not in tree else np.asarray(tree[name]) for name in ("queue", "held", "observed"))
        mark = Mark(tree["state"], frame, tree["condition"], encoded, *rest, tree.get("decoder"), ahead)
        session = Session(self, mark, meta["seed"], ahead=meta.get("is_ahead", bool(ahead)))
        session.prepare()
        return session


def _shapes(key):
    """Elastic keys that a saved stream nevertheless depends on."""
    return key.startswith(("schedule.", "solver.", "guidance.", "cache."))


def _codec(folder, config, made_with):
    """The autoencoder beside the checkpoints, or where the config says it is."""
    kept = beside(folder, FOLDER)
    where = kept if is_dir(kept) else config.vae.checkpoint
    vae, params = load_vae(where)
    check_sizes(vae, config.vae, where)
    if fingerprint(vae, params) != made_with["fingerprint"]:
        raise CheckpointError(f"{where} holds another autoencoder than the one that this system was trained with")
    latents = {name: tuple(made_with[name]) for name in ("mean", "std")}
    return Codec(dataclasses.replace(vae, **latents), params)


def _overridden(saved, overrides):
    config = override(saved, overrides)
    identity, _ = differences(saved, config)
    for key, (old, new) in identity.items():
        raise UserError(f"{key} is {old!r} in this checkpoint and cannot become {new!r}: train again to change it")
    return config
