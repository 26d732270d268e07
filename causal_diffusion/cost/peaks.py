"""What accelerators can do at best: one table, of what JAX calls a device.

    device_kind            bf16    f32     HBM     per device, dense, without sparsity
                           FLOP/s  FLOP/s  bytes/s, bytes

'f32' is what a product of float32 matrices runs at under JAX's default precision: in bfloat16 passes on TPUs, in TF32
on NVIDIA's GPUs. A JAX device is a chip on TPU v4 to v6, half of one on TPU7x. What is not in the table has no peak,
CPUs among it: nothing is derived from a guess.

Nothing runs at its data sheet. Where it is known, ``reached`` is what large bfloat16 products and plain copies run at;
limits that benchmarks state go by it. MFU goes by the data sheet, as it is defined.

Sources: Google's pages of each version, https://cloud.google.com/tpu/docs/v4, .../v5e, .../v5p, .../v6e, .../tpu7x;
NVIDIA's data sheets of the A100 (2021), H100 and H200 (2024), DGX B200 and GB200 NVL72 (2024), the FLOP/s of H100 and
H200 as in the H100 white paper.
"""

from typing import NamedTuple


class Rates(NamedTuple):
    """FLOP/s of matrix products, and bytes/s from memory."""

    flops: float
    bandwidth: float


class Peak(NamedTuple):
    """Of one device: FLOP/s of matrix products, bytes/s from its memory, how many bytes that memory has; ``reached``:
    what bfloat16 products and copies run at in practice, None where that is not known."""

    bf16: float
    f32: float
    bandwidth: float
    memory: float
    reached: Rates | None = None


_V5E = Peak(197e12, 197e12, 819e9, 16e9)
_V5P = Peak(459e12, 459e12, 2765e9, 95e9)
_V6E = Peak(918e12, 918e12, 1638e9, 32e9)

PEAKS: dict[str, Peak] = {
    "TPU v4": Peak(275e12, 275e12, 1200e9, 32 * 2**30),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": Peak(1153.5e12, 1153.5e12, 3690e9, 96e9),
    "NVIDIA A100-SXM4-40GB": Peak(312e12, 156e12, 1555e9, 40e9),
    "NVIDIA A100-SXM4-80GB": Peak(312e12, 156e12, 2039e9, 80e9),
    "NVIDIA A100 80GB PCIe": Peak(312e12, 156e12, 1935e9, 80e9),
    "NVIDIA H100 80GB HBM3": Peak(989.4e12, 494.7e12, 3350e9, 80e9),
    "NVIDIA H100 PCIe": Peak(756e12, 378e12, 2000e9, 80e9),
    "NVIDIA H200": Peak(989.4e12, 494.7e12, 4800e9, 141e9, Rates(790e12, 4300e9)),
    "NVIDIA B200": Peak(2250e12, 1125e12, 8000e9, 180e9),
    "NVIDIA GB200": Peak(2500e12, 1250e12, 8000e9, 186e9),
}


def peak_flops(device_kind: str, dtype) -> float | None:
    """FLOP/s of one device at matrix products in ``dtype`` ('bfloat16' or 'float32'); None where it is not known."""
    peak, column = PEAKS.get(device_kind), {"bfloat16": "bf16", "float32": "f32"}.get(str(dtype))
    return None if peak is None or column is None else getattr(peak, column)


def rates(device_kind: str, dtype, reached: bool = False) -> Rates | None:
    """Both rates of one device in ``dtype``; None where they are not known.

    ``reached``: those of practice, which are of bfloat16, where the table has them.
    """
    flops, peak = peak_flops(device_kind, dtype), PEAKS.get(device_kind)
    if flops is None:
        return None
    if reached and peak.reached is not None and str(dtype) == "bfloat16":
        return peak.reached
    return Rates(flops, peak.bandwidth)
