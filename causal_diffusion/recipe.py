"""A config -> the six choices and the network, checked against each other.

Each choice is independent in code, not every combination makes sense. Here every config becomes one of three kinds:

    exact         cached streaming equals the uncached forward pass under the layout's mask
    approximate   by design, with the reason named
    illegal       refused with the keys that clash and a value that would do
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from causal_diffusion.cache import CacheConfig
from causal_diffusion.config import Config, freeze
from causal_diffusion.data.sources import condition_sizes, element_spec
from causal_diffusion.diffusion.guidance import Guidance
from causal_diffusion.diffusion.levels import Levels
from causal_diffusion.diffusion.process import Process
from causal_diffusion.diffusion.schedule import Schedule
from causal_diffusion.diffusion.solvers import SOLVERS, Solver
from causal_diffusion.errors import UserError
from causal_diffusion.layout import Layout
from causal_diffusion.nn.embedders import Condition
from causal_diffusion.nn.transformer import Stream, Transformer, TransformerConfig


class Recipe(NamedTuple):
    """Everything that training and streaming share."""

    config: Config
    layout: Layout  # with its window resolved to frames
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

    def streaming(self) -> "Recipe":
        """The same system with its layers unrolled, for parameters in canonical form."""
        model = Transformer(dataclasses.replace(self.model.config, layers="unrolled", remat="none"))
        return self._replace(model=model)

    def init_params(self, key):
        """Fresh parameters in the form that ``model.config.layers`` asks for, float32."""
        streams, condition, mask = self.example()
        return self.model.init(key, streams, condition, mask)["params"]

    def example(self, batch: int = 1):
        """Zeros in the shape of a training forward pass of two blocks: (streams, condition, mask)."""
        c, frames = self.model.config, 2 * self.layout.block
        streams = {}
        for name, ids in self.layout.training_ids(frames).items():
            T = len(ids.frame)
            streams[name] = Stream(
                x=jnp.zeros((batch, T, *self.frame_shape)),
                t=jnp.zeros((batch, T)),
                frame=jnp.broadcast_to(jnp.asarray(ids.frame, jnp.int32), (batch, T)),
                action=jnp.zeros((batch, T, c.action)) if c.action else None,
            )
        return streams, null_condition(c, batch), jnp.asarray(self.layout.training_mask(frames))


def null_condition(model: TransformerConfig, batch: int, blocks: int = 1) -> Condition:
    """The condition that says nothing, for ``blocks`` blocks."""
    return Condition(
        label=jnp.full((batch, blocks), -1, jnp.int32) if model.classes else None,
        text=jnp.zeros((batch, blocks, 1, model.text)) if model.text else None,
        text_mask=jnp.ones((batch, blocks, 1), bool) if model.text else None,
    )


def build(config) -> Recipe:
    """Checks a config and makes its Recipe. UserError names the keys that clash and a value that would do."""
    config = freeze(config)
    spec = {name: s.shape for name, s in element_spec(config.data).items()}
    frames, *frame_shape = spec["video"]
    layout, model = config.layout, config.model
    _check_shapes(config, frames, frame_shape, spec)
    layout = dataclasses.replace(layout, window=layout.window or frames - layout.block)
    if layout.window < layout.block:
        _refuse(
            f"layout.block is {layout.block} and data.frames is {frames}: a clip holds at least two blocks, "
            f"data.frames = {2 * layout.block} would do"
        )
    _check_sampling(config)
    _check_conditions(config)
    approximations = []
    if config.cache.dtype != "compute":
        stored, computed = config.cache.dtype, jnp.dtype(model.compute_dtype).name
        if jnp.finfo(stored).bits < jnp.finfo(computed).bits:
            approximations.append(f"keys and values are computed in {computed} and stored in {stored}")
    return Recipe(
        config=config,
        layout=layout,
        process=config.process,
        levels=config.levels,
        schedule=config.schedule,
        solver=SOLVERS["euler"],
        guidance=config.guidance,
        cache=config.cache,
        model=Transformer(model),
        frame_shape=tuple(frame_shape),
        frames=frames,
        approximations=tuple(approximations),
    )


def _check_shapes(config, frames, frame_shape, spec):
    layout, model, patch = config.layout, config.model, config.model.patch
    if frames % layout.block:
        low = max(2, frames // layout.block) * layout.block
        _refuse(
            f"data.frames is {frames} and layout.block is {layout.block}: a clip is a whole number of blocks, "
            f"data.frames = {low} would do"
        )
    if model.channels != frame_shape[-1]:
        _refuse(
            f"model.channels is {model.channels} and the data have {frame_shape[-1]} channels: they must be equal, "
            f"model.channels = {frame_shape[-1]} would do"
        )
    if len(patch) != len(frame_shape):
        fitting = (1, *(math.gcd(size, patch[-1]) for size in frame_shape[:-1]))
        _refuse(
            f"model.patch is {patch} and the data are (time, {', '.join(map(str, frame_shape))}): one entry for every "
            f"axis but the last, model.patch = {fitting} would do"
        )
    if patch[0] != 1:
        _refuse(
            f"model.patch is {patch}: streams advance by single frames, model.patch = {(1, *patch[1:])} would do"
        )
    for name, size, part in zip(("data.height", "data.width"), frame_shape[:-1], patch[1:], strict=False):
        if size % part:
            _refuse(
                f"{name} is {size} and model.patch is {patch}: {part} must divide it, "
                f"{name} = {max(1, round(size / part)) * part} would do"
            )
    if model.classes and "label" not in spec:
        _refuse(f"model.classes is {model.classes} and the data have no labels: model.classes = 0 would do")
    action = spec.get("action", (0, 0))[-1]
    if model.action and model.action != action:
        _refuse(
            f"model.action is {model.action} and the data have {action} numbers per action: they must be equal, "
            f"model.action = {action} would do"
        )


def _check_sampling(config):
    layout, schedule, process = config.layout, config.schedule, config.process
    try:
        view = schedule.view()
    except ValueError as error:
        _refuse(str(error))
    if layout.kind == "teacher_forcing" and view.in_flight > 1:
        _refuse(
            f"layout.kind is 'teacher_forcing' and schedule.offset is {schedule.offset!r}: a noisy block sees only "
            "clean blocks, so the one before it must be clean; schedule.offset = 'autoregressive' would do"
        )
    if layout.kind == "frame_causal" and config.levels.kind == "shared":
        _refuse(
            "levels.kind is 'shared' and layout.kind is 'frame_causal': the past is cleaner than the block being "
            "streamed, which training would never show; levels.kind = 'independent' would do"
        )
    if process.predict == "noise" and schedule.t_max > 0.999:
        _refuse(
            f"process.predict is 'noise' and schedule.t_max is {schedule.t_max}: at pure noise the data cannot be "
            "told from the noise; schedule.t_max = 0.99 would do"
        )
    trained = config.levels.context if layout.separate_clean else 1.0
    if config.cache.commit_level > trained:
        _refuse(
            f"cache.commit_level is {config.cache.commit_level} and levels.context is {trained}: the clean copy was "
            f"never trained at that level; cache.commit_level = {trained} would do"
        )


def _check_conditions(config):
    model, guidance = config.model, config.guidance
    if config.train.flip and condition_sizes(config.data)[1]:
        _refuse(
            f"train.flip is True and data.source {config.data.source!r} has actions, which a mirrored clip would "
            "contradict; train.flip = False would do"
        )
    if len(guidance.branches()) == 1:
        return
    takes = {"label": model.classes, "text": model.text, "action": model.action}
    dropped = [name for name in guidance.drop if takes[name]]
    if not dropped:
        _refuse(
            f"guidance.kind is {guidance.kind!r} and the model takes none of {', '.join(guidance.drop)}: there is "
            "nothing to leave out; guidance.kind = 'none' would do"
        )
    if not config.train.drop:
        _refuse(
            f"guidance.kind is {guidance.kind!r} and train.drop is 0: the model never trains without its "
            "conditions; train.drop = 0.1 would do"
        )


def _refuse(message):
    raise UserError(message)


def parameter_count(tree) -> int:
    """Numbers in a (possibly abstract) tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
