"""The one table of devices, and the least time that follows from it."""

import numpy as np
import pytest

from causal_diffusion.cost import Cost
from causal_diffusion.cost.peaks import PEAKS, Rates, peak_flops, rates


def test_peaks_are_those_of_the_dtype():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 2 * peak_flops("NVIDIA H100 80GB HBM3", "float32")
    assert peak_flops("TPU v5 lite", np.dtype("float32")) == PEAKS["TPU v5e"].bf16
    assert peak_flops("cpu", "float32") is None and peak_flops("TPU v4", "float64") is None
    assert all(peak.f32 <= peak.bf16 and peak.bandwidth > 1e11 and peak.memory >= 16e9 for peak in PEAKS.values())


def test_rates_in_practice_are_lower():
    for name, peak in PEAKS.items():
        best = rates(name, "bfloat16")
        assert best == (peak.bf16, peak.bandwidth) and rates(name, "float32") == (peak.f32, peak.bandwidth)
        reached = rates(name, "bfloat16", reached=True)
        assert reached == best if peak.reached is None else (np.array(reached) < best).all()
        assert rates(name, "float32", reached=True) == rates(name, "float32")
    assert rates("NVIDIA H200", "bfloat16", reached=True) == (790e12, 4.3e12)
    assert rates("cpu", "bfloat16") is None


def test_costs_add_and_scale_and_take_the_longer_of_two_times():
    one = Cost(linear=1, attention=2, cross_attention=3, other=4, weights=5, read=6, written=7)
    assert (one.flops, one.bytes) == (10, 18)
    assert one + one == 2 * one == one * 2 and (3 * one).read == 18
    assert one.seconds(Rates(10.0, 1.0)) == 18.0 and one.seconds(Rates(0.1, 1.0)) == pytest.approx(100.0)
