"""Operations of what is timed, and what the hardware needs for them at least (``causal_diffusion.cost``).

A limit goes by the rates that large products and plain copies reach in practice, where they are known: 790 TFLOP/s and
4.3 TB/s on an H200; else by the maker's.
"""

import jax

from causal_diffusion.cost import Cost, peaks, step_cost


def least_seconds(*costs: Cost) -> float | None:
    """What this device needs for all of them, one after the other, in bfloat16; None where its rates are not known."""
    rates = peaks.rates(jax.devices()[0].device_kind, "bfloat16", reached=True)
    return sum(each.seconds(rates) for each in costs) if rates else None


def dense_ratio(whole, cached) -> float:
    """Operations of a step that runs the whole window in every pass, nothing hidden, over those of one with a cache."""
    return step_cost(whole, visible=False).flops / step_cost(cached).flops


def share_of_peak(flops: float, seconds: float) -> float | None:
    """Share of the peak of this device that ``flops`` in ``seconds`` are; None where it is not known."""
    peak = peaks.peak_flops(jax.devices()[0].device_kind, "bfloat16")
    return flops / seconds / peak if peak else None
