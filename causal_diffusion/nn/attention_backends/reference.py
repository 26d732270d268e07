"""The reference: every score is computed, and what the mask hides is thrown away.

Right for every mask and on every device. Its cost is that of a full mask, and the scores of all queries and keys,
4 H Q S bytes a sample, exist at once.
"""

import jax
import jax.numpy as jnp

from causal_diffusion.cache import heads_first
from causal_diffusion.layout import StaticMask


def reference(q_BTNHK, keys, values, mask):
    """Dense masked attention, softmax in float32.

    Args:
        q_BTNHK: queries, already rotated.
        keys, values: lists of [B, S, M, H, K], or HeadsFirst of them, joined along S and M; each may have its own M.
        mask: bool, [T, sum S] or [B, T, sum S], or a StaticMask; every query sees at least one key. One row may stand
            for all T.

    Returns:
        [B, T, N, H, K] in q's dtype.
    """
    B, T, N, H, K = q_BTNHK.shape
    everything = isinstance(mask, StaticMask) and mask.full
    if isinstance(mask, StaticMask):
        mask = mask.array
    mask = jnp.broadcast_to(mask, (B, *mask.shape[-2:]))
    q_BHQK = heads_first(q_BTNHK * K**-0.5)
    scores, start = [], 0
    for k_BSMHK in keys:  # scored apart, so that the cache is not copied to join it with the block's own keys
        S, M = k_BSMHK.shape[1:3]
        score = jnp.einsum("BHQK,BHXK->BHQX", q_BHQK, heads_first(k_BSMHK), preferred_element_type=jnp.float32)
        if not everything:
            seen = mask[:, None, :, None, start : start + S, None]
            score = jnp.where(seen, score.reshape(B, H, T, N, S, M), -jnp.inf)
        scores.append(score.reshape(B, H, T * N, S * M))
        start += S
    weight = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(q_BTNHK.dtype)
    out, start = 0, 0
    for v_BSMHK in values:
        S, M = v_BSMHK.shape[1:3]
        part = weight[..., start : start + S * M]
        out += jnp.einsum("BHQX,BHXK->BHQK", part, heads_first(v_BSMHK))
        start += S * M
    return out.swapaxes(1, 2).reshape(B, T, N, H, K)
