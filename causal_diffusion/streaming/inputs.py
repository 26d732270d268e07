"""What users hand to a stream -> arrays of the right shape, or one clear line."""

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.errors import UserError
from causal_diffusion.frames import described as _shape
from causal_diffusion.frames import take_frames
from causal_diffusion.nn.embedders import Condition
from causal_diffusion.nn.transformer import TransformerConfig
from causal_diffusion.recipe import Recipe, null_condition
from causal_diffusion.streaming.state import Action, Observed

KEYS = ("label", "text", "text_mask", "action", "context_action", "reference", "observed")


def conditions(cond) -> dict:
    """A user's ``cond`` as a dict of its own; None has nothing. UserError: it is none."""
    if not isinstance(cond, (dict, type(None))):
        raise UserError(f"cond is {str(cond)[:40]!r}; it is a dict of conditions, try cond = {{'label': 3}}")
    return dict(cond or {})


def parse_condition(
    model: TransformerConfig, cond: dict | None, batch: int, base: Condition | None = None
) -> Condition:
    """A user's ``cond`` -> Condition [B, 1, ...]. Fields left out come from ``base``, or are null.

    ``label``: int or [B], -1 for none. ``text``: condition tokens [M, E] or [B, M, E], with ``text_mask`` [M] or
    [B, M], False at padding (without it every token counts); or ids of words [M] or [B, M], 0 at padding. Actions are
    not part of it, see ``parse_action``.
    """
    cond = cond or {}
    takes = {
        "label": model.classes,
        "text": model.text,
        "text_mask": model.text,
        "action": model.action,
        "context_action": model.action,
    }
    for key in cond:
        if key not in takes:
            raise UserError(f"unknown condition {key!r}; conditions are {', '.join(KEYS)}")
        if cond[key] is not None and not takes[key]:
            known = [k for k in KEYS if takes.get(k)]
            raise UserError(f"this model takes no {key!r}; it takes {', '.join(known) if known else 'no condition'}")
    steering, base = base is not None, base or null_condition(model, batch)
    label, text, mask = base.label, base.text, base.text_mask
    if cond.get("label") is not None:
        given = np.asarray(cond["label"])
        if given.ndim > 1 or given.size not in (1, batch) or not np.issubdtype(given.dtype, np.integer):
            raise UserError(f"cond['label'] is {_shape(given)}; it is one integer, or one for each of {batch} samples")
        if given.size and (given.min() < -1 or given.max() >= model.classes):
            raise UserError(f"cond['label'] has {given.min()} .. {given.max()}; classes are 0 .. {model.classes - 1}")
        label = jnp.broadcast_to(jnp.asarray(given, jnp.int32).reshape(-1, 1), (batch, 1))
    if cond.get("text_mask") is not None and cond.get("text") is None:
        raise UserError("cond['text_mask'] comes without cond['text']; give both, or neither")
    if cond.get("text") is not None:
        given, axes = _tokens(model, cond["text"], batch), 1 if model.vocabulary else 2
        tokens = given.shape[-axes]
        if steering and tokens != text.shape[2]:
            began = text.shape[2]
            wants = f"a text of {began}" if tokens < began else f"a stream that begins with {tokens}"
            raise UserError(
                f"cond['text'] has {tokens} tokens and this stream began with {began}: its shape stays; {wants}, "
                "padded where cond['text_mask'] is False, would do"
            )
        text = jnp.broadcast_to(jnp.asarray(given), (batch, *given.shape[-axes:]))[:, None]
        given = cond.get("text_mask")
        if given is None:
            given = np.asarray(text[:, 0] != 0) if model.vocabulary else np.ones(text.shape[2], bool)
        given = np.asarray(given, bool)
        if given.shape not in ((text.shape[2],), (batch, text.shape[2])):
            raise UserError(f"cond['text_mask'] is {_shape(given)}; it has one entry per token, {text.shape[2]}")
        mask = jnp.broadcast_to(jnp.asarray(given), (batch, text.shape[2]))[:, None]
    return Condition(label, text, mask)


def _tokens(model, given, batch):
    """Condition tokens [M, E] or [B, M, E], or ids of words [M] or [B, M]."""
    if model.vocabulary:
        given = np.asarray(given)
        fits = given.ndim in (1, 2) and given.size and np.issubdtype(given.dtype, np.integer)
        if not fits or (given.ndim == 2 and len(given) != batch):
            raise UserError(f"cond['text'] is {_shape(given)}; it holds ids of words: [M] or [{batch}, M] integers")
        if given.min() < 0 or given.max() >= model.vocabulary:
            raise UserError(
                f"cond['text'] has {given.min()} .. {given.max()}; ids of words are 0 .. {model.vocabulary - 1}"
            )
        return given.astype(np.int32)
    given = _numbers("cond['text']", given)
    wide = given.ndim in (2, 3) and given.shape[-2] and given.shape[-1] == model.text
    if not wide or (given.ndim == 3 and len(given) != batch):
        raise UserError(
            f"cond['text'] is {_shape(given)}; it holds tokens of width {model.text}: [M, {model.text}] or "
            f"[{batch}, M, {model.text}]"
        )
    return given


def parse_action(model: TransformerConfig, action, batch: int, name: str = "action") -> np.ndarray | None:
    """Actions [A] (held for one frame), [T, A] or [B, T, A] -> float32 [B, T, A]; None stays None."""
    if action is None:
        return None
    if not model.action:
        raise UserError("this model takes no actions")
    given = _numbers(name, action)
    if given.ndim == 1:
        given = given[None]
    if given.ndim == 2:
        given = np.broadcast_to(given[None], (batch, *given.shape))
    if given.ndim != 3 or given.shape[0] != batch or given.shape[2] != model.action or not given.shape[1]:
        raise UserError(
            f"{name} is {_shape(np.asarray(action))}; it is [{model.action}], [frames, {model.action}] or "
            f"[{batch}, frames, {model.action}]"
        )
    return given


def check_context_action(action: np.ndarray | None, context: np.ndarray, name: str) -> None:
    """Refuses actions [B, T, A] of another length than the context [B, T, ...] that they belong to."""
    if action is not None and action.shape[1] != context.shape[1]:
        raise UserError(f"{name} has {action.shape[1]} frames and the context {context.shape[1]}: they must be equal")


def parse_context(recipe: Recipe, context, batch: int) -> np.ndarray:
    """Given frames [T, *space, C] or [B, T, *space, C], float in data range or uint8 -> float32 [B, T, ...]."""
    if context is None:
        return np.zeros((batch, 0, *recipe.frame_shape), np.float32)
    given = take_frames("context", context, pictures=recipe.pictures)
    if given.ndim == 1 + len(recipe.frame_shape):
        given = np.broadcast_to(given[None], (batch, *given.shape))
    shape = f"[{batch}, frames, {', '.join(map(str, recipe.frame_shape))}]"
    if given.ndim < 2 or given.shape[0] != batch or given.shape[2:] != recipe.frame_shape:
        raise UserError(f"context is {_shape(np.asarray(context))}; it is {shape}, with or without the first axis")
    layout, block, frames = recipe.layout, recipe.layout.block, given.shape[1]
    if frames and (low := layout.whole(frames)) != frames:
        first = f", the first one {layout.first}" if layout.pad else ""
        raise UserError(
            f"context has {frames} frames and a block has {block}{first}: whole blocks are given, {max(0, low)} or "
            f"{low + block}"
        )
    return given


def parse_reference(recipe: Recipe, reference, context: np.ndarray, batch: int) -> np.ndarray | None:
    """A frame [*space, C] or [B, *space, C], as ``parse_context``; else the context's first one: float32 [B, ...]."""
    if not recipe.layout.reference:
        if reference is not None:
            raise UserError("this system takes no 'reference': layout.reference is 0")
        return None
    if reference is None:
        if not context.shape[1]:
            raise UserError("this system needs cond['reference'], a frame, or a context whose first frame is taken")
        return context[:, 0]
    given, shape = np.asarray(reference), recipe.frame_shape
    if given.shape == shape:
        given = np.broadcast_to(given, (batch, *shape))
    if given.shape != (batch, *shape):
        raise UserError(f"cond['reference'] is {_shape(given)}; it is {list(shape)} or {[batch, *shape]}")
    return take_frames("cond['reference']", given, pictures=recipe.pictures)


def parse_observed(recipe: Recipe, values, batch: int) -> np.ndarray | None:
    """Values of new frames [T, *space, C] or [B, T, *space, C], NaN where unknown, or uint8 -> float32 [B, T, ...]."""
    if values is None:
        return None
    if recipe.guidance.observe == "none":
        raise UserError(
            "guidance.observe is 'none' and there is cond['observed']; guidance.observe = 'square' would do"
        )
    given = take_frames("cond['observed']", values, pictures=recipe.pictures, unknown=True)
    if given.ndim == 1 + len(recipe.frame_shape):
        given = np.broadcast_to(given[None], (batch, *given.shape))
    if given.ndim != 2 + len(recipe.frame_shape) or given.shape[0] != batch or given.shape[2:] != recipe.frame_shape:
        shape = ", ".join(map(str, recipe.frame_shape))
        raise UserError(f"cond['observed'] is {_shape(np.asarray(values))}; it is [{batch}, frames, {shape}]")
    return given


def check_recache(recipe: Recipe) -> None:
    """Refuses to encode the past anew where the frames themselves are not remembered."""
    cache = recipe.cache
    if not cache.latents:
        raise UserError(
            "recache is True and cache.latents is False: the frames of the past are not kept; cache.latents = True "
            "would do"
        )
    if cache.kind in ("two_level", "state"):
        raise UserError(
            f"recache is True and cache.kind is {cache.kind!r}: of what is far only tokens are kept, not frames; "
            "cache.kind = 'kv' would do"
        )


def take_actions(queue, held, frames: int, batch: int, width: int, void: int = 0):
    """The next ``frames`` actions: from the queue, then the last one held, else unknown; the first ``void`` take none.

    Returns:
        (value [B, frames, A], given [B, frames], the rest of the queue, what is held now).
    """
    value = np.zeros((batch, frames, width), np.float32)
    known = void
    if queue is not None:
        taken = min(frames - void, queue.shape[1])
        known += taken
        value[:, void:known] = queue[:, :taken]
        held = queue[:, taken - 1 : taken]
        queue = queue[:, taken:] if queue.shape[1] > taken else None
    if held is not None:
        value[:, known:] = held
        known = frames
    order = np.arange(frames)
    given = np.broadcast_to((order >= void) & (order < known), (batch, frames))
    return value, given, queue, held


def take_observed(queue, frames: int, batch: int, shape: tuple[int, ...], void: int = 0):
    """The known values of the next ``frames`` frames, and the rest of the queue; the first ``void`` have none.

    Returns:
        (Observed [B, frames, *shape], the rest of ``queue`` [B, T, *shape] or None).
    """
    value = np.full((batch, frames, *shape), np.nan, np.float32)
    if queue is not None:
        taken = min(frames - void, queue.shape[1])
        value[:, void : void + taken] = queue[:, :taken]
        queue = queue[:, taken:] if queue.shape[1] > taken else None
    known = np.isfinite(value)
    return Observed(np.where(known, value, 0.0), known), queue


def as_action(value: np.ndarray | None) -> Action | None:
    """Known actions [B, T, A] -> Action; None stays None."""
    if value is None:
        return None
    return Action(jnp.asarray(value), jnp.ones(value.shape[:2], bool))


def copy_tree(tree):
    """A copy on device, so that one may be donated and the other kept."""
    return jax.tree.map(jnp.copy, tree)


def _numbers(name, value):
    """The value as finite float32."""
    try:
        given = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise UserError(f"{name} is {str(value)[:40]!r}; it is an array of numbers") from None
    if not np.isfinite(given).all():
        raise UserError(f"{name} has a value that is not finite")
    return given

