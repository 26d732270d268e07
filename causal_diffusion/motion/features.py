"""What a motion looks like at the rate of latents, told by a function without parameters.

It stands in for a frozen network of motion and text (CMDM aligns its latents with one, arXiv 2602.22594) where there is
none: kinematics, which say how the body is posed and how it moves, and nothing of what that is called.

A clip x has C numbers per frame, each about 0 with deviation 1, as a source of motion gives them. For latent i, the
frames 4i .. 4i+3 if a latent stands for four:

    f_i = [ mean of x_t | RATE times mean of x_t - x_(t-1) ] Q                                              (1)

Q [2C, F] has orthonormal rows if F >= 2C: then angles between features are those of the kinematics. Else it has
orthonormal columns times sqrt(2C/F), a random projection that keeps them nearly. Feature i sees no later frame.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from causal_diffusion.errors import UserError

Array = Any
RATE = 8.0  # frames: makes pose and motion about equally long (of full-body mocap at 30 fps, 10.4 and 8 x 1.26)


def motion_features(x: Array, time: int, width: int = 256) -> Array:
    """Equation (1): normalised clips [B, T, C] -> float32 [B, T / time, width]; before the first frame nothing moves.

    Raises:
        UserError: the frames are no whole number of groups of ``time``.
    """
    B, T, C = x.shape
    if T % time:
        raise UserError(f"{T} frames are no whole number of groups of {time}: {max(1, T // time) * time} would do")
    x = x.astype(jnp.float32)
    change = jnp.diff(x, axis=1, prepend=x[:, :1])
    kinematics = jnp.concatenate([x, RATE * change], axis=-1)
    pooled = jnp.mean(kinematics.reshape(B, T // time, time, 2 * C), axis=2)
    return pooled @ _frame(2 * C, width)


@functools.lru_cache(maxsize=8)
def _frame(rows: int, columns: int) -> np.ndarray:
    """Q, the same everywhere: float32 [rows, columns]."""
    tall = np.random.default_rng(0).standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(tall)
    q = q * np.sign(np.diag(r))  # the one factorisation whose r has a positive diagonal
    return (q * (rows / columns) ** 0.5 if rows > columns else q.T).astype(np.float32)
