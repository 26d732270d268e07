"""The diffusion objective: corrupt every block to its own level and predict what the process asks for.

For a clip x0 of n blocks with levels t_b (``levels``), noise eps and the layout's streams,

    loss = mean_b  w(t_b) | net(x_t; clean past) - target |^2                                       (1)

with x_t, target and w from ``diffusion.process``. Under teacher forcing the clean copy stands beside the noisy
stream, itself noised to its own small levels where ``levels.context`` is above zero; only noisy blocks are scored.
"""

import chex
import jax
import jax.numpy as jnp

from causal_diffusion.nn.embedders import Condition
from causal_diffusion.nn.transformer import Stream
from causal_diffusion.recipe import Recipe, null_condition


def batch_condition(recipe: Recipe, batch: dict, keep=None) -> Condition:
    """The conditions of a batch, [B, 1, ...]; samples with ``keep`` False get the null condition."""
    model, size = recipe.model.config, batch["video"].shape[0]
    null = null_condition(model, size)
    keep = jnp.ones(size, bool) if keep is None else keep
    label, text, mask = null.label, null.text, null.text_mask
    if model.classes:
        label = jnp.where(keep, batch["label"], -1)[:, None]
    if model.text and "text" in batch:
        text = jnp.where(keep[:, None, None], batch["text"], 0.0)[:, None]
        mask = batch["text_mask"][:, None]
    return Condition(label, text, mask)


def diffusion_loss(recipe: Recipe, params, batch: dict, key):
    """Equation (1).

    Args:
        params: in the form of ``recipe.model``.
        batch: 'video' [B, T, *space, C], 'index' int32 [B] (global sample index), and the model's conditions.
        key: of the whole run; a sample's levels and noise depend on (key, index) only.

    Returns:
        (loss, {'loss': scalar, 'loss_by_frame': [T]}), float32.
    """
    x0, layout, levels, process = batch["video"], recipe.layout, recipe.levels, recipe.process
    B, T = x0.shape[:2]
    b = layout.block
    chex.assert_shape(x0, (B, recipe.frames, *recipe.frame_shape))
    chex.assert_shape(batch["index"], (B,))
    keys = jax.vmap(lambda index: jax.random.split(jax.random.fold_in(key, index), 6))(batch["index"])

    def per_sample(use, draw):
        return jax.vmap(draw)(keys[:, use])

    t = jnp.repeat(per_sample(0, lambda k: levels.sample(k, T // b)), b, axis=1)
    eps = per_sample(1, lambda k: jax.random.normal(k, x0.shape[1:]))
    keep = per_sample(2, lambda k: jax.random.uniform(k) >= recipe.config.train.drop)
    gap = b * per_sample(5, lambda k: jax.random.randint(k, (), 0, layout.gap // b + 1))
    order = jnp.arange(T, dtype=jnp.int32)
    frame = layout.positions(jnp.broadcast_to(order, (B, T)), gap)
    action, given = (batch["action"] if recipe.model.config.action else None), None
    if action is not None and "action" in recipe.guidance.drop:
        given = jnp.broadcast_to(keep[:, None], (B, T))
    streams = {"noisy": Stream(process.corrupt(x0, eps, t), t, frame, action, given)}
    if layout.separate_clean:
        past = T - b
        level = jnp.repeat(per_sample(3, lambda k: levels.sample_context(k, past // b)), b, axis=1)
        level = jnp.where(order[:past] < layout.sinks, 0.0, level)
        clean = x0[:, :past]
        if levels.context:
            noise = per_sample(4, lambda k: jax.random.normal(k, clean.shape[1:]))
            clean = process.corrupt(clean, noise, level)
        acted, known = (None if a is None else a[:, :past] for a in (action, given))
        streams = {"clean": Stream(clean, levels.context_label(level), frame[:, :past], acted, known)} | streams
    mask = jnp.asarray(layout.training_mask(T))
    condition = batch_condition(recipe, batch, keep)
    out, _ = recipe.model.apply({"params": params}, streams, condition, mask)
    error = jnp.square(out["noisy"] - process.target(x0, eps, t))
    by_frame = process.loss_weight(t) * jnp.mean(error, axis=tuple(range(2, error.ndim)))
    return jnp.mean(by_frame), {"loss": jnp.mean(by_frame), "loss_by_frame": jnp.mean(by_frame, axis=0)}
