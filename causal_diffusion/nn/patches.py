"""Patches: a few frames of a few pixels each as the channels of one position, and back."""

import jax.numpy as jnp


def patchify(x, patch: tuple[int, int, int]):
    """[B, T, H, W, C] -> [B, T / t, H / p, W / q, t p q C] for ``patch`` (t, p, q)."""
    B, T, H, W, C = x.shape
    t, p, q = patch
    x = x.reshape(B, T // t, t, H // p, p, W // q, q, C)
    return jnp.transpose(x, (0, 1, 3, 5, 2, 4, 6, 7)).reshape(B, T // t, H // p, W // q, t * p * q * C)


def unpatchify(x, patch: tuple[int, int, int]):
    """The inverse of ``patchify``."""
    B, L, h, w, N = x.shape
    t, p, q = patch
    C = N // (t * p * q)
    x = x.reshape(B, L, h, w, t, p, q, C)
    return jnp.transpose(x, (0, 1, 4, 2, 5, 3, 6, 7)).reshape(B, L * t, h * p, w * q, C)
