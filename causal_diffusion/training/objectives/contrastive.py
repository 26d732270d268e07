"""Motions and captions drawn together where they belong to each other: symmetric InfoNCE that knows equal captions.

With unit embeddings m_i of motions and t_j of captions, a temperature, and c_i the caption of clip i (Radford et al.
2021, arXiv 2103.00020; van den Oord et al. 2018, arXiv 1807.03748):

    s_ij = m_i . t_j / temperature,     y_ij = [c_i = c_j] / number of j' with c_j' = c_i                    (1)
    loss = - 1/2 mean_i sum_j y_ij log softmax_j(s_ij) - 1/2 mean_j sum_i y_ij log softmax_i(s_ij)           (2)

Clips of equal captions are positives of one another, not negatives: to push them apart would be to learn noise. Where
all captions differ, or equal ones embed alike, (2) has the value of CLIP's loss; it differs where captions that count
as equal are worded in other ways, or lose other words. Its least value is the mean entropy of y, not 0.
"""

from typing import Any

import jax
import jax.numpy as jnp

Array = Any


def contrastive_loss(model, params, batch: dict, key, drop: float = 0.0):
    """Equation (2).

    Args:
        model: a ``nn.motion_text.MotionText`` that takes captions. params: its parameters.
        batch: 'video' [B, T, C], normalised; 'length' int [B], frames of each that are its own (absent: all);
            'text' int [B, M] or float [B, M, E], 'text_mask' bool [B, M] (absent: all words count); 'caption' int [B],
            equal where captions are (absent: captions of ids are equal where all their ids are).
        key: of the step; words are dropped by it.
        drop: probability that a word of a caption is hidden, so that captions are not learned by heart. A caption of
            which nothing would be left stays whole.

    Returns:
        (loss, metrics), float32 scalars: 'loss'; 'top1', how often the nearest caption of the batch is the motion's own
        or equal to it, and the same the other way round, averaged; 'temperature'.

    Raises:
        ValueError: captions are float and there is no 'caption', or the batch has no captions.
    """
    same = equal_captions(batch)
    mask = batch.get("text_mask")
    if drop:
        mask = jnp.ones(batch["text"].shape[:2], bool) if mask is None else mask
        left = mask & jax.random.bernoulli(key, 1.0 - drop, mask.shape)
        mask = jnp.where(jnp.any(left, axis=-1, keepdims=True), left, mask)
    variables = {"params": params}
    motion, _ = model.apply(variables, batch["video"], batch.get("length"), method="motion")
    text = model.apply(variables, batch["text"], mask, method="text")
    temperature = model.apply(variables, method="temperature")
    scores = jnp.matmul(motion, text.T, precision=jax.lax.Precision.HIGHEST) / temperature
    loss = 0.5 * (_cross_entropy(scores, same) + _cross_entropy(scores.T, same))
    top1 = 0.5 * (_hits(scores, same) + _hits(scores.T, same))
    return loss, {"loss": loss, "top1": top1, "temperature": temperature}


def equal_captions(batch: dict) -> Array:
    """bool [B, B]: which clips of a batch have equal captions."""
    if "text" not in batch:
        raise ValueError("a batch has no 'text': captions [B, M] or [B, M, E] would do")
    caption, text = batch.get("caption"), batch["text"]
    if caption is not None:
        return caption[:, None] == caption[None]
    if not jnp.issubdtype(text.dtype, jnp.integer):
        raise ValueError("a batch has captions as tokens and no 'caption': ids [B], equal where captions are, would do")
    mask = batch.get("text_mask")
    ids = text if mask is None else jnp.where(mask, text, 0)
    return jnp.all(ids[:, None] == ids[None], axis=-1)


def _cross_entropy(scores, same):
    """Mean over rows of - sum_j y_ij log softmax_j."""
    share = same / jnp.sum(same, axis=-1, keepdims=True)
    return -jnp.mean(jnp.sum(share * jax.nn.log_softmax(scores, axis=-1), axis=-1))


def _hits(scores, same):
    best = jnp.argmax(scores, axis=-1)
    return jnp.mean(jnp.take_along_axis(same, best[:, None], axis=-1).astype(jnp.float32))
