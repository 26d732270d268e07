"""A config -> the six choices and the network, checked against each other.

Each choice is independent in code, not every combination makes sense. Here every config becomes one of three kinds:

    exact         cached streaming equals the uncached forward pass under the layout's mask
    approximate   by design, with the reason named
    illegal       refused with the keys that clash and a value that would do (``compatibility``)
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from causal_diffusion.cache import CacheConfig
from causal_diffusion.compatibility import check
from causal_diffusion.config import Config, freeze
from causal_diffusion.diffusion import solvers
from causal_diffusion.diffusion.guidance import Guidance
from causal_diffusion.diffusion.levels import Levels
from causal_diffusion.diffusion.process import Process
from causal_diffusion.diffusion.schedule import Schedule
from causal_diffusion.diffusion.solvers import Solver
from causal_diffusion.errors import UserError
from causal_diffusion.frames import are_pictures
from causal_diffusion.layout import Layout, StaticMask
from causal_diffusion.nn.embedders import Condition
from causal_diffusion.nn.transformer import Stream, Transformer, TransformerConfig


class Recipe(NamedTuple):
    """Everything that training and streaming share."""

    config: Config
    layout: Layout  # with its window resolved to frames
    slots: int  # frames of the past that a stream remembers beside the sinks
    kept: int  # and beside these: reference frames, or frames of tokens that compression keeps
    process: Process
    levels: Levels
    schedule: Schedule
    solver: Solver
    guidance: Guidance
    cache: CacheConfig
    model: Transformer
    frame_shape: tuple[int, ...]  # (*space, channels) of one frame
    frames: int  # of a training clip
    approximations: tuple[str, ...]  # why cached streaming is not exact; empty: it is

    @property
    def kind(self) -> str:
        """'exact' or 'approximate'."""
        return "approximate" if self.approximations else "exact"

    @property
    def pictures(self) -> bool:
        """Whether frames are pictures, whose values lie in [-1, 1]: grey or RGB, and no latents."""
        latents = self.config.vae.form != "none" or self.config.data.source == "latents"
        return not latents and are_pictures(self.frame_shape)

    @property
    def one_past(self) -> bool:
        """Whether the past looks the same to all guidance branches, so that they share a cache.

        It does where committed blocks are told of no condition that a branch hides (MAGI-1 commits without text; in
        ACDiT nothing tells clean frames of their condition), at one level, and see all of their own past.
        """
        model, cache, branches = self.model.config, self.cache, self.guidance.branches()
        hidden = {name for branch in branches for name in branch.drop} - set(cache.commit_drop)
        told = model.modulate_clean or model.text or model.label_tokens
        alike = all(branch.level == 0.0 and branch.past <= 0 for branch in branches)
        return alike and not (hidden and told) and not cache.budget  # branches look at different tokens

    def streaming(self) -> "Recipe":
        """The same system with its layers unrolled, for parameters in canonical form."""
        model = Transformer(dataclasses.replace(self.model.config, layers="unrolled", remat="none"))
        return self._replace(model=model)

    def init_params(self, key):
        """Fresh parameters in the form that ``model.config.layers`` asks for, float32."""
        streams, condition, mask = self.example()
        return self.model.init(key, streams, condition, mask)["params"]

    def example(self, batch: int = 1):
        """Zeros in the shape of a training forward pass: (streams, condition, mask), as short as the layout allows."""
        c, layout = self.model.config, dataclasses.replace(self.layout, copies=1)
        layout = dataclasses.replace(layout, coarse=min(layout.coarse, layout.block - layout.pad))
        frames = 2 * layout.block - layout.pad
        streams = {}
        for name, ids in layout.training_ids(frames).items():
            T = len(ids.frame)
            streams[name] = Stream(
                x=jnp.zeros((batch, T, *self.frame_shape), jnp.float32),
                t=jnp.zeros((batch, T), jnp.float32),
                frame=jnp.broadcast_to(jnp.asarray(ids.frame, jnp.int32), (batch, T)),
                action=jnp.zeros((batch, T, c.action), jnp.float32) if c.action and name != "reference" else None,
                clean=jnp.zeros((batch, T), bool),
            )
        return streams, null_condition(c, batch), StaticMask(layout.training_mask(frames))


def null_condition(model: TransformerConfig, batch: int, blocks: int = 1, tokens: int = 1) -> Condition:
    """The condition that says nothing, for ``blocks`` blocks; of ``tokens`` null tokens of text the first counts."""
    text = mask = None
    if model.text:
        shape = (batch, blocks, tokens)
        text = jnp.zeros(shape, jnp.int32) if model.vocabulary else jnp.zeros((*shape, model.text), jnp.float32)
        mask = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32) == 0, shape)
    return Condition(
        label=jnp.full((batch, blocks), -1, jnp.int32) if model.classes else None, text=text, text_mask=mask
    )


def build(config) -> Recipe:
    """Checks a config and makes its Recipe. UserError names the keys that clash and a value that would do."""
    config = freeze(config)
    if config.trains != "transformer":
        what = {"vae": "an autoencoder", "motion_text": "a model of motions and captions"}[config.trains]
        raise UserError(f"trains is {config.trains!r}: the config is of {what}, trains = 'transformer' would do")
    resolved = check(config)
    return Recipe(
        config=config,
        layout=resolved.layout,
        slots=resolved.slots,
        kept=resolved.kept,
        process=config.process,
        levels=config.levels,
        schedule=config.schedule,
        solver=solvers.make(config.solver),
        guidance=config.guidance,
        cache=config.cache,
        model=Transformer(dataclasses.replace(config.model, outputs=config.process.outputs)),
        frame_shape=resolved.frame_shape,
        frames=resolved.frames,
        approximations=resolved.approximations,
    )


def parameter_count(tree) -> int:
    """Numbers in a (possibly abstract) tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
