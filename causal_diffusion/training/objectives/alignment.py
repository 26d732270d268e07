"""Latents aligned with the features of a frozen network, so that they mean something and generate well.

The loss of VA-VAE (Yao, Yang & Wang 2025, arXiv 2501.01423, section 4), over the frames i, j of one clip, with latents
z, their linear map z' to the width of the features, and features f at the rate of the latents:

    L_mcos = mean over i      of relu(1 - m1 - cos(z'_i, f_i))                                              (1)
    L_mdms = mean over i, j   of relu(|cos(z_i, z_j) - cos(f_i, f_j)| - m2)                                 (2)

(1) asks each latent to point where its feature does, (2) that latents lie to each other as features do; the margins say
how nearly. Frames of different clips are not compared. The weight is found from gradients at the last encoder layer
(Esser et al. 2021, arXiv 2012.09841, equation 7), where the two losses meet:

    weight = |g_reconstruction| / (|g_alignment| + 1e-4), at most 1e8, times a base weight                  (3)

The features may come from any frozen function of a clip to [B, L, F], such as ``motion.features.motion_features``.
"""

from typing import Any

import jax
import jax.numpy as jnp

Array = Any


def margin_cosine(projected: Array, features: Array, margin: float = 0.5) -> Array:
    """Equation (1), [B, L, F] and [B, L, F]; scalar."""
    cosine = jnp.sum(_unit(projected) * _unit(features), axis=-1)
    return jnp.mean(jax.nn.relu(1.0 - margin - cosine))


def margin_distances(latents: Array, features: Array, margin: float = 0.25) -> Array:
    """Equation (2), [B, L, Z] and [B, L, F], which may differ in width; scalar."""
    return jnp.mean(jax.nn.relu(jnp.abs(_cosines(latents) - _cosines(features)) - margin))


def alignment(
    projected: Array, latents: Array, features: Array, cosine_margin: float = 0.5, distance_margin: float = 0.25
) -> Array:
    """L_mcos + L_mdms.

    Args:
        projected: z' [B, L, F].
        latents: z [B, L, Z].
        features: f [B, L, F], through which no gradient flows.
        cosine_margin, distance_margin: m1 and m2.

    Raises:
        ValueError: the shapes do not go together.
    """
    if projected.shape != features.shape or latents.shape[:-1] != features.shape[:-1]:
        raise ValueError(
            f"latents {latents.shape}, projected to {projected.shape}, cannot be aligned with features "
            f"{features.shape}: as many frames of the width of the projection would do"
        )
    features = jax.lax.stop_gradient(features)
    return margin_cosine(projected, features, cosine_margin) + margin_distances(latents, features, distance_margin)


def adaptive_weight(gradient_rec: Array, gradient_other: Array, limit: float = 1e8) -> Array:
    """Equation (3) without the base weight, in [0, limit]; a constant to gradients. Either argument is a pytree."""
    weight = _norm(gradient_rec) / (_norm(gradient_other) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(weight, 0.0, limit))


def _norm(tree):
    return jnp.sqrt(sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(tree)))


def _unit(x):
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def _cosines(x):
    x = _unit(x)
    return jnp.einsum("blc,bmc->blm", x, x)
