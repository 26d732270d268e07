"""The diffusion objective: corrupt every block to its own level and predict what the process asks for.

For a clip x0 of n blocks with levels t_b (``levels``), noise eps and the layout's streams,

    loss = mean over scored b of  loss_b(net(x_t; past), x0, eps, t_b)                                  (1)

with x_t and the loss of a block from ``diffusion.process``. The past that a block sees is shown in one of two ways.
Under teacher forcing a clean copy stands beside the noisy stream (several noisy ``copies`` may share one); in a single
stream some blocks may be context. Either is shown as ``levels`` says (at which level, what that does to the data, which
level the network is told), and is not scored.

With ``layout.knot`` every block of the noisy stream is followed by its knot, the first frames of the next block. It is
noisy as its block is, with noise of its own, and scored as other frames are. Its action is that of its block's last
frame, for that is the last one that a stream knows. A ``layout.reference`` is a stream of one frame, the clip's last,
at its place in time, clean, told as clean context is and without an action. All see it, so the loss of that frame of
the noisy stream is small and says little.

With ``train.own_past`` a first pass, without gradients, predicts the data from the clip's own past; a share of the past
is then replaced by these predictions, and the second pass is scored (the two forwards of MotionStreamer, Xiao et al.
2025, arXiv 2503.15451).
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.layout import CLEAN, Ids, StaticMask
from causal_diffusion.nn.embedders import Condition
from causal_diffusion.nn.transformer import Stream
from causal_diffusion.parallel.activations import mesh_axis
from causal_diffusion.parallel.context import balanced
from causal_diffusion.recipe import Recipe, null_condition


def batch_condition(recipe: Recipe, batch: dict, keep=None) -> Condition:
    """The conditions of a batch, [B, 1, ...] or by block; samples with ``keep`` False get the null condition."""
    model, size = recipe.model.config, batch["video"].shape[0]
    null = null_condition(model, size)
    keep = jnp.ones(size, bool) if keep is None else keep
    label, text, mask = null.label, null.text, null.text_mask
    if model.classes:
        label = jnp.where(keep, batch["label"], -1)[:, None]
    text_of = None
    if model.text and "text" in batch:
        kept = keep.reshape(-1, *(1,) * (batch["text"].ndim - 1))
        text, mask = jnp.where(kept, batch["text"], jnp.zeros((), batch["text"].dtype)), batch["text_mask"]
        if "text_of" in batch:  # a block's caption is that of its first frame
            text_of = batch["text_of"][:, :: recipe.layout.block]
        else:
            text, mask = text[:, None], mask[:, None]
    return Condition(label, text, mask, text_of)


def diffusion_loss(recipe: Recipe, params, batch: dict, key, step=None):
    """Equation (1).

    Args:
        params: in the form of ``recipe.model``.
        batch: 'video' [B, T, *space, C], 'index' int32 [B] (global sample index), and the model's conditions; 'length'
            int32 [B] where clips are padded: how many of their frames count.
        key: of the whole run; a sample's levels and noise depend on (key, index) only.
        step: steps done so far, for train.own_past; None: the past is the data's own.

    Returns:
        (loss, {'loss': scalar, 'loss_by_frame': [T]}), float32: the mean over a clip's scored frames, then over clips
        and copies; by frame the mean over the clips that score it, 0 where none does. Coarse frames have no loss.
        Knots count in the loss, but by frame each is only what its own block makes of it.
    """
    video, layout, levels, process = batch["video"], recipe.layout, recipe.levels, recipe.process
    B, T = video.shape[:2]
    b, n, copies = layout.block, layout.block_count(T), layout.copies
    chex.assert_shape(video, (B, recipe.frames, *recipe.frame_shape))
    chex.assert_shape(batch["index"], (B,))
    keys = jax.vmap(lambda index: jax.random.split(jax.random.fold_in(key, index), 6))(batch["index"])

    def per_sample(use, draw):
        return jax.vmap(draw)(keys[:, use])

    def per_copy(use, draw):
        """[B, copies, ...]; a single copy draws with the sample's own key."""
        return per_sample(use, lambda k: jax.vmap(draw)(k[None] if copies == 1 else jax.random.split(k, copies)))

    frame, own = layout.noisy_frames(T)  # of one copy, F of them; a knot shares with its block what ``own`` has
    F, far = len(frame), layout.block_of(layout.coarse)
    at, near = np.tile(frame, copies), np.tile(own, copies)
    drawn = per_copy(0, lambda k: levels.sample(k, n - far))
    t, context, scored = (a[..., layout.block_of(own) - far].reshape(B, copies * F) for a in drawn)
    if "length" in batch:  # what pads a short clip is not scored, nor is a block that has some of it
        scored = scored & (at < layout.whole(batch["length"])[:, None])
    t = jnp.where(context & (at < layout.sinks - layout.pad), 0.0, t)  # sinks are shown clean, as a stream shows them
    x0 = video[:, at]
    eps = per_copy(1, lambda k: jax.random.normal(k, (F, *x0.shape[2:]))).reshape(x0.shape)
    keep = per_sample(2, lambda k: jax.random.uniform(k) >= recipe.config.train.drop)
    gap = b * per_sample(5, lambda k: jax.random.randint(k, (), 0, layout.gap // b + 1))
    order = jnp.arange(T, dtype=jnp.int32)
    place = layout.positions(jnp.broadcast_to(order, (B, T)), gap)
    if recipe.model.config.period:  # a stream goes round and round, so a clip may begin anywhere
        start = per_sample(5, lambda k: jax.random.randint(jax.random.fold_in(k, 1), (), 0, recipe.model.config.period))
        place = place + start[:, None]
    action, given = (batch["action"] if recipe.model.config.action else None), None
    if action is not None and "action" in recipe.guidance.drop:
        given = jnp.broadcast_to(keep[:, None], (B, T))

    def stream(x, level, is_clean, at, near, acts=True):
        """Frames x at a level, told as the process and ``levels`` say.

        ``at`` are their indices in the clip, ``near`` those of the frames that they stand beside and act like.
        """
        told = process.label(level)
        told = jnp.where(is_clean, levels.context_told(told), told)
        acted, known = (None if a is None or not acts else a[:, near] for a in (action, given))
        return Stream(process.network_input(x, level), told, place[:, near] + (at - near), acted, known, clean=is_clean)

    def clean_stream(x, level, at, acts=True):
        return stream(x, level, jnp.ones(level.shape, bool), at, at, acts)

    noisy = x_t = process.corrupt(x0, eps, t)
    if levels.has_context:
        shown = process.show(x0, eps, t, levels.context_data)
        noisy = jnp.where(context.reshape(context.shape + (1,) * (x0.ndim - 2)), shown, x_t)
    streams = {}
    if layout.coarse:
        past = np.arange(layout.coarse)
        streams["coarse"] = clean_stream(video[:, past], jnp.zeros((B, len(past)), jnp.float32), past)
    if layout.separate_clean:
        past = np.arange(T - b)
        level = layout.by_frame(per_sample(3, lambda k: levels.sample_context(k, n - 1)), len(past))
        level = jnp.where(past < layout.sinks - layout.pad, 0.0, level)

        def clean_past(data):
            if levels.context:
                noise = per_sample(4, lambda k: jax.random.normal(k, data.shape[1:]))
                data = process.show(data, noise, level, levels.context_data)
            return clean_stream(data, level, past)

        streams["clean"] = clean_past(video[:, past])
    streams["noisy"] = stream(noisy, t, context, at, near)
    if layout.reference:
        clean = jnp.zeros((B, 1), jnp.float32)
        streams["reference"] = clean_stream(video[:, -1:], clean, np.array([T - 1]), acts=False)
    mask, prefix_mask = _masks(recipe, context, scored, t)
    options = {"prefix_mask": prefix_mask}
    if (shards := mesh_axis("context")) > 1:
        options["order"] = frame_order(layout, T, shards)
    condition = batch_condition(recipe, batch, keep)
    if layout.separate_clean and condition.text_of is not None:  # the clean stream, then the noisy ones
        of = condition.text_of
        condition = dataclasses.replace(condition, text_of=jnp.concatenate([of[:, :-1], *[of] * copies], axis=1))
    if recipe.config.train.own_past and step is not None:
        first, _ = recipe.model.apply(
            {"params": jax.lax.stop_gradient(params)}, streams, condition, mask, **options
        )
        guess = jax.lax.stop_gradient(process.clipped_x0(process.split(first["noisy"])[0], x_t, t))
        share = _share(recipe.config.train, step)
        taken = per_sample(3, lambda k: jax.random.uniform(jax.random.fold_in(k, 1), past.shape) < share)
        taken = taken.reshape(*taken.shape, *(1,) * (video.ndim - 2))
        streams["clean"] = clean_past(jnp.where(taken, guess[:, past], video[:, past]))
    out, _ = recipe.model.apply({"params": params}, streams, condition, mask, **options)
    # One row per noisy copy: some weights look along the sequence.
    rows = [a.reshape(B * copies, F, *a.shape[2:]) for a in (out["noisy"], x0, eps, x_t, t, scored)]
    scored = rows[5]
    by_frame, count = jnp.where(scored, process.frame_loss(*rows[:5]), 0.0), scored.astype(jnp.float32)
    loss = jnp.mean(jnp.sum(by_frame, axis=1) / jnp.maximum(jnp.sum(count, axis=1), 1.0))
    shown = jnp.sum(by_frame, axis=0) / jnp.maximum(jnp.sum(count, axis=0), 1.0)
    return loss, {"loss": loss, "loss_by_frame": shown[frame == own]}


def frame_order(layout, frames: int, shards: int):
    """The order in which the fine frames of a clip's streams lie over ``context``."""
    mask, group = layout.training_mask(frames)[layout.coarse :], layout.block_groups(frames)[layout.coarse :]
    return balanced(mask.sum(axis=1), group, shards)


def _share(train, step):
    """The share of the past that is the network's own, at a step: on a half cosine from the first to the last value."""
    first, last = train.own_past
    return last + (first - last) * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(step / train.steps, 1.0)))


def _masks(recipe, context, scored, t):
    """(mask, prefix mask or None): one for all clips, or by clip where the draw decides who sees whom."""
    layout, prefix = recipe.layout, recipe.model.config.prefix
    streams = layout.training_ids(recipe.frames)
    if not (layout.by_role or layout.ranges or prefix):
        return StaticMask(layout.training_mask(recipe.frames)), None
    noisy = streams["noisy"]
    role, frame = jnp.where(context, CLEAN, noisy.role), noisy.frame
    if layout.kind == "bidirectional_window":  # what is not yet in flight is absent; it keeps its place in time
        frame = jnp.where(context | scored, frame, -1 - frame)
    streams["noisy"] = noisy._replace(role=role, frame=frame, stage=layout.stages(t))
    parts = [Ids(*(jnp.broadcast_to(a, (len(t), ids.frame.shape[-1])) for a in ids)) for ids in streams.values()]
    ids = Ids(*(jnp.concatenate(a, axis=1) for a in zip(*parts, strict=True)))
    return layout.visible(ids, ids), layout.prefix_visible(ids, ids, prefix) if prefix else None
