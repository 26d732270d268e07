"""Floating-point operations of what is timed, and what the hardware would need for them at best.

The achievable rate is 0.8 of a device's peak for dense bfloat16 products: 790 of 989.5 TFLOP/s on an H100 or H200.
"""

import jax

from causal_diffusion import cost
from causal_diffusion.cost.peaks import PEAKS

ACHIEVABLE = 0.8


def stream_flops(recipe, batch: int = 1) -> float:
    """Of one step of a stream once its ring is full: all denoising passes and the commit."""
    return cost.step_cost(recipe, batch).flops


def training_flops(recipe) -> float:
    """Of one training step, forward and backward, on visible attention."""
    return cost.training_cost(recipe).flops


def decode_flops(vae, latents_shape) -> float:
    """Of decoding a block of latents."""
    return cost.vae_decode_cost(vae, latents_shape).flops


def peak() -> float | None:
    """FLOP/s of this device in bfloat16 as its maker states it; None where it is not known, as of processors."""
    known = PEAKS.get(jax.devices()[0].device_kind)
    return known and known.bf16


def seconds(flops: float) -> float | None:
    """What this device needs at least at the achievable rate; None where its peak is not known."""
    return flops / (ACHIEVABLE * peak()) if peak() else None
