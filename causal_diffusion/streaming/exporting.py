"""Writes the programs of a stream, for ``causal_diffusion.exported`` to read without the model's code."""

import json
import os
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.checkpoint.paths import write_whole
from causal_diffusion.checkpoint.weights_file import write_weights
from causal_diffusion.config import to_json
from causal_diffusion.errors import UserError
from causal_diffusion.exported import FORMAT, META, PARAMETERS, check_flatbuffers, platform_of_device
from causal_diffusion.file_access import sealed, size_and_sha256
from causal_diffusion.jax_settings import IMPL, under_own_settings
from causal_diffusion.ranges import SIZE, SIZE_OR_NONE, check_number
from causal_diffusion.recipe import null_condition
from causal_diffusion.streaming.pipeline import Pipeline
from causal_diffusion.streaming.state import Action, Observed, sample_keys

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@under_own_settings
def export_stream(
    pipeline: Pipeline, out: str | os.PathLike, *, batch: int = 1, context: int = 0, tokens: int = 0, platforms=()
) -> str:  # fmt: skip
    """Writes the folder that ``exported.read_stream`` reads, and says what it wrote.

    Args:
        pipeline: of one device.
        out: the folder; its files are replaced.
        batch: samples streamed side by side.
        context: frames (of latents, if there are any) that every stream begins with.
        tokens: condition tokens of a prompt; 0: as many as the config says, or one.
        platforms: of ``PLATFORMS``; none: that of the device at hand.

    Raises:
        UserError: what cannot be exported, or ``flatbuffers`` is missing.
        CheckpointError: the parameters cannot be written.
    """
    check_flatbuffers()
    platforms = tuple(platforms) or (platform_of_device(),)
    _check(pipeline, batch, context, tokens, platforms)
    programs, facts = _programs(pipeline, batch, context, tokens)
    out = Path(out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    (out / META).unlink(missing_ok=True)  # what is here is not whole until the end
    arrays = flax.traverse_util.flatten_dict(pipeline.weights, sep="/")
    write_weights(out / PARAMETERS, arrays, {"format": FORMAT})
    names = ["/".join(key.key for key in at) for at, _ in jax.tree.leaves_with_path(pipeline.weights)]
    for name, (function, arguments) in programs.items():
        exported = jax.export.export(jax.jit(function), platforms=platforms)(*arguments)
        write_whole(out / f"{name}.bin", bytes(exported.serialize()))
    files = [PARAMETERS, *(f"{name}.bin" for name in programs)]
    facts |= dict(
        format=FORMAT, jax=jax.__version__, platforms=platforms, parameters=names,
        fingerprints=pipeline.maker.fingerprints(batch), config=json.loads(to_json(pipeline.config)),
        files={name: size_and_sha256(out / name)[1] for name in files},
    )  # fmt: skip
    write_whole(out / META, json.dumps(sealed(facts), indent=1).encode())
    numbers = sum(np.size(array) for array in arrays.values())
    return (f"{out}: {', '.join(programs)} for {', '.join(platforms)}, batch {batch}, {context} frames of context; "
            f"{numbers:,} parameters")


def _check(pipeline, batch, context, tokens, platforms):
    if pipeline.mesh is not None:
        raise UserError("this pipeline lies on a mesh: Pipeline.from_checkpoint(path) without one can be exported")
    check_number("batch", batch, SIZE, error=UserError)
    check_number("tokens", tokens, SIZE_OR_NONE, error=UserError)
    check_number("context", context, SIZE_OR_NONE, error=UserError)
    if context and ((low := pipeline.recipe.layout.whole(context)) != context):
        block, would = pipeline.recipe.layout.block, max(0, low)
        raise UserError(f"context is {context} and a block has {block} frames: whole blocks, {would} would do")
    if pipeline.config.model.backend == "cudnn":
        raise UserError("model.backend is 'cudnn', whose kernels JAX does not export: model.backend = 'auto' would do")
    if unknown := set(platforms) - set(PLATFORMS):
        raise UserError(f"platforms has {min(unknown)!r}; there are {', '.join(PLATFORMS)}")


def _programs(pipeline, batch, context, tokens) -> tuple[dict[str, tuple], dict[str, Any]]:
    """({name: (function of lists of arrays, their shapes)}, what a reader has to know)."""
    rollout, recipe = pipeline.rollout, pipeline.recipe
    model, capacity = recipe.model.config, recipe.config.stream.capacity
    tokens = tokens or recipe.config.text.fixed or 1
    observing = recipe.guidance.observe != "none"

    def acted(*shape):
        return Action(_like((*shape, model.action)), _like(shape, bool)) if model.action and all(shape) else None

    def watched(*shape):
        shape = (*shape, *recipe.frame_shape)
        return Observed(_like(shape), _like(shape, bool)) if observing and all(shape) else None

    def begun(params, keys, encoded, given):
        reference, context, past, ramp, seen = given
        return rollout.init_state(
            params, keys, encoded, context, past, ramp, np.int32(0), reference, seen, np.int32(0)
        )

    def advancing(rollout):
        def advanced(params, state, encoded, steering, n):
            return rollout.advance(params, state, encoded, *steering, n[0], capacity=capacity)

        return advanced

    params = jax.tree.map(lambda a: _like(a.shape, a.dtype), pipeline.weights)
    keys = jax.eval_shape(lambda: sample_keys(0, batch))
    condition = jax.eval_shape(lambda: null_condition(model, batch, tokens=tokens))
    encoded = jax.eval_shape(rollout.encode_condition, params, condition)
    reference = _like((batch, *recipe.frame_shape)) if recipe.layout.reference else None
    waiting = (acted(batch, rollout.waiting), watched(batch, rollout.waiting))
    given = (reference, _like((batch, context, *recipe.frame_shape)), acted(batch, context), *waiting)
    state = jax.eval_shape(begun, params, keys, encoded, given)
    steering = (acted(capacity, batch, rollout.emit), watched(capacity, batch, rollout.emit))
    programs = {
        "encode_condition": _flat(rollout.encode_condition, params, condition),
        "init_state": _flat(begun, params, keys, encoded, given),
    }
    begun = np.full(batch, context or -recipe.layout.pad)
    steps = pipeline.programs.of_stream(begun)
    for name, (_, each) in steps.items():
        programs[name] = _flat(advancing(each), params, state, encoded, steering, [_like((), np.int32)])
    facts = dict(
        batch=batch, context=context, frame_shape=recipe.frame_shape, emit=rollout.emit, waiting=rollout.waiting,
        steps=[(name, step) for name, (step, _) in steps.items()], capacity=capacity, pad=recipe.layout.pad,
        keys=IMPL,
        classes=model.classes, action=model.action, observed=observing, reference=bool(recipe.layout.reference),
        pictures=recipe.pictures,
        text=[] if condition.text is None else condition.text.shape[2:],
    )  # fmt: skip
    return programs, facts


def _like(shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def _flat(function, *arguments):
    """(the function of lists of arrays that returns lists, the shapes of its arguments). Keys are raw."""

    def flat(*groups):
        out = function(*map(_restored, arguments, groups))
        return tuple(map(_leaves, out)) if type(out) is tuple else _leaves(out)

    flat.__name__ = getattr(function, "__name__", "program")
    return flat, [_leaves(argument) for argument in arguments]


def _is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _leaves(tree) -> list:
    """The arrays of a tree, or their shapes; keys of random numbers as raw uint32."""

    def raw(leaf):
        if not _is_key(leaf):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.eval_shape(jax.random.key_data, leaf)
        return jax.random.key_data(leaf)

    return list(map(raw, jax.tree.leaves(tree)))


def _restored(like, leaves):
    shapes, structure = jax.tree.flatten(like)
    wrap = [jax.random.wrap_key_data if _is_key(shape) else lambda a: a for shape in shapes]
    return jax.tree.unflatten(structure, [make(leaf) for make, leaf in zip(wrap, leaves, strict=True)])
