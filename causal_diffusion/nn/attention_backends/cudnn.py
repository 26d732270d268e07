"""cuDNN's fused attention on NVIDIA GPUs: one call without a mask for the queries that see the same keys.

A boolean mask makes cuDNN compute everything and add a bias, so none is given where frames are large: each run of
``rectangles`` attends to exactly the keys that it sees, laid side by side. (Calls on parts, merged by their
log-sum-exp, would save that copy, but JAX's derivative of them leaves the one of the log-sum-exp out.) Neighbours of
few tokens, which are one run, do get a mask among themselves.

Numbers: bfloat16 or float16 alone, heads of a multiple of 8 numbers, at most 256 (128 before Hopper).
"""

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.layout import StaticMask
from causal_diffusion.nn.attention_backends.rectangles import seen_by_run

WIDEST = 256  # numbers per head


def cudnn(q_BTNHK, keys, values, mask: StaticMask, implementation: str = "cudnn"):
    """As ``reference``, of a StaticMask; ``implementation``: of ``jax.nn.dot_product_attention``."""
    B, T, N, H, K = q_BTNHK.shape
    sizes, outs = tuple(k.shape[1] for k in keys), []
    for run, seen in seen_by_run(mask, sizes, N):
        q = q_BTNHK[:, run.start : run.end].reshape(B, -1, H, K)
        k, v = (_side_by_side([xs[part][:, slice(*at)] for part, at, _ in seen]) for xs in (keys, values))
        shown = _by_token(seen, run.end - run.start, N, [k.shape[2] for k in keys])
        if shown is not None:  # cuDNN's bias is of every sample and head, and of even lengths
            q, k, v, shown = _even(q, k, v, shown)
            shown = jnp.broadcast_to(shown, (B, H, *shown.shape))
        out = jax.nn.dot_product_attention(q, k, v, mask=shown, implementation=implementation)
        outs.append(out[:, : (run.end - run.start) * N].reshape(B, -1, N, H, K))
    return jnp.concatenate(outs, axis=1)


def unsupported(platform: str, dtype, width: int) -> str | None:
    """Why a device, a dtype or a head of ``width`` numbers cannot have it; None: they can."""
    if platform not in ("gpu", "cuda"):
        return f"it runs on NVIDIA GPUs, and this is {platform}"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"it multiplies bfloat16 or float16, and model.dtype is {jnp.dtype(dtype).name!r}"
    if width % 8 or width > WIDEST:
        return f"heads have a multiple of 8 numbers, at most {WIDEST}, and these have {width}"
    return None


def _side_by_side(parts):
    """[B, S, M, H, K] each -> [B, tokens, H, K]."""
    return jnp.concatenate([x.reshape(x.shape[0], -1, *x.shape[3:]) for x in parts], axis=1)


def _by_token(seen, frames, tokens, widths):
    """bool [queries, keys] of a run, or None where all of them see everything."""
    if all(shown is None for _, _, shown in seen):
        return None
    columns = []
    for part, (start, end), shown in seen:
        frame = np.ones((frames, end - start), bool) if shown is None else shown.array
        columns.append(np.kron(frame, np.ones((tokens, widths[part]), bool)))
    return np.concatenate(columns, axis=1)


def _even(q, k, v, shown):
    """Padded to even lengths: further keys are seen by nobody, a further query sees what the last one does."""
    rows, columns = (size % 2 for size in shown.shape)
    q = jnp.pad(q, ((0, 0), (0, rows), (0, 0), (0, 0)))
    k, v = (jnp.pad(x, ((0, 0), (0, columns), (0, 0), (0, 0))) for x in (k, v))
    return q, k, v, np.pad(np.pad(shown, ((0, rows), (0, 0)), mode="edge"), ((0, 0), (0, columns)))
