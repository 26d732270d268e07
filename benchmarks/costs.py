"""Operations of what is timed, and what the hardware needs for them at least (``causal_diffusion.cost``).

A limit goes by the rates that large products and plain copies reach in practice, where they are known: 790 TFLOP/s and
4.3 TB/s on an H200.
"""

import jax

try:
    from causal_diffusion import cost
    from causal_diffusion.cost import peaks
except ImportError:  # a checkout without the counter: operations and limits are not told
    cost = peaks = None


def stream_cost(recipe, batch: int = 1):
    """Of one step of a stream once its ring is full: all denoising passes and the commit."""
    return cost and cost.step_cost(recipe, batch)


def dense_ratio(whole, cached) -> float | None:
    """Operations of a step that runs the whole window in every pass, nothing hidden, over those of one with a cache."""
    return cost and cost.step_cost(whole, visible=False).flops / cost.step_cost(cached).flops


def training_cost(recipe):
    """Of one training step, forward and backward, on visible attention."""
    return cost and cost.training_cost(recipe)


def decode_cost(vae, latents_shape):
    """Of decoding a block of latents [B, T, *space, C]."""
    return cost and cost.vae_decode_cost(vae, latents_shape)


def least_seconds(*costs) -> float | None:
    """What this device needs for all of them in bfloat16 at least; None where its rates are not known."""
    rates = peaks and peaks.rates(jax.devices()[0].device_kind, "bfloat16", reached=True)
    return sum(each.seconds(rates) for each in costs) if rates else None


def reached_rate(flops: float, seconds: float) -> float | None:
    """Share of the peak of this device that ``flops`` in ``seconds`` are; None where it is not known."""
    peak = peaks and peaks.peak_flops(jax.devices()[0].device_kind, "bfloat16")
    return flops / seconds / peak if peak else None


def flops(each) -> float | None:
    """Operations of a cost, or None of None."""
    return each and float(each.flops)
