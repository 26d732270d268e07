"""HDR pictures (PQ and HLG) -> SDR pictures.

A pixel's three code values become light, the light is compressed to what an SDR screen shows, and becomes code values
again:

    PQ   (SMPTE ST 2084)  code value -> nits
    HLG  (BT.2100)        code value -> scene light -> nits, with the system gamma 1.2 of a screen of 1000 nits
    tone curve            nits of the brightest channel -> at most WHITE nits, by BT.2390's curve (EETF); the other two
                          channels are scaled by the same factor, so that colours keep their hue
    primaries             BT.2020 -> BT.709; what lies outside is clipped
    SDR  (BT.1886)        share of WHITE -> code value, the power 1 / 2.4

WHITE is the 203 nits that BT.2408 gives to diffuse white, so a white page in an HDR film becomes nearly white, and
what is brighter (a lamp, the sky) shares the few values above it.
"""

import functools

import numpy as np

WHITE = 203.0       # nits of diffuse white in HDR, BT.2408
PEAK = 1000.0       # nits of the brightest pixel, where a file does not say
_HLG_SCREEN = 1000  # nits of the screen for which the system gamma is 1.2
_BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)
_BT2020_TO_BT709 = np.array([[1.660491, -0.587641, -0.072850],
                             [-0.124550, 1.132900, -0.008349],
                             [-0.018151, -0.100579, 1.118730]], np.float32)  # fmt: skip
_CODES = 1 << 16    # code values are 16 bits wide


def pq_to_nits(code: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084's EOTF: code values in [0, 1] -> nits in [0, 10000]."""
    power = np.power(code, 32 / 2523)
    return 10000 * np.power(np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power), 16384 / 2610)


def nits_to_pq(nits: np.ndarray) -> np.ndarray:
    """The inverse of pq_to_nits."""
    power = np.power(np.asarray(nits) / 10000, 2610 / 16384)
    return np.power((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power), 2523 / 32)


def hlg_to_scene(code: np.ndarray) -> np.ndarray:
    """BT.2100's inverse OETF: code values in [0, 1] -> scene light in [0, 1]."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, np.square(code) / 3, (np.exp((np.maximum(code, 0.5) - c) / a) + b) / 12)


def compress(nits: np.ndarray, peak: float) -> np.ndarray:
    """BT.2390's EETF: nits in [0, peak] -> nits in [0, WHITE].

    Up to a knee nothing changes; above it a Hermite spline, in PQ code values, ends at WHITE with slope 0.
    """
    if peak <= WHITE:
        return np.minimum(nits, WHITE)
    top = nits_to_pq(peak)
    x = nits_to_pq(np.minimum(nits, peak)) / top
    most = nits_to_pq(WHITE) / top
    knee = 1.5 * most - 0.5
    t = np.clip((x - knee) / (1 - knee), 0, 1)
    spline = ((2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * most)
    return pq_to_nits(np.where(x < knee, x, spline) * top)


def to_sdr(picture: np.ndarray, transfer: str, peak: float = PEAK) -> np.ndarray:
    """An HDR picture in BT.2020 primaries -> an SDR picture in BT.709 primaries.

    Args:
        picture: uint16 [H, W, 3], RGB code values of full range.
        transfer: 'pq' or 'hlg'.
        peak: nits of the brightest pixel of the film. PQ only: HLG's is that of its screen.

    Returns:
        uint8 [H, W, 3].
    """
    if transfer == "pq":
        nits_of, share_of = _pq_tables(float(peak))
        # The brightest channel is the one of the largest code value, so the tone curve is a table too.
        light = nits_of[picture] * share_of[picture.max(axis=-1)][..., None]
    else:
        scene = _hlg_table()[picture]
        luminance = scene @ _BT2020_LUMA
        light = scene * (_HLG_SCREEN * np.power(luminance, 0.2))[..., None]
        brightest = light.max(axis=-1)
        light *= (compress(brightest, PEAK) / np.maximum(brightest, 1e-6))[..., None]
    share = np.clip(light @ (_BT2020_TO_BT709.T / np.float32(WHITE)), 0, 1)
    return np.rint(255 * np.power(share, np.float32(1 / 2.4))).astype(np.uint8)


@functools.lru_cache(maxsize=4)
def _pq_tables(peak: float) -> tuple[np.ndarray, np.ndarray]:
    """(nits of each code value, factor by which the tone curve scales a pixel whose brightest channel has it)."""
    nits = pq_to_nits(np.arange(_CODES) / (_CODES - 1))
    return nits.astype(np.float32), (compress(nits, peak) / np.maximum(nits, 1e-6)).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _hlg_table() -> np.ndarray:
    return hlg_to_scene(np.arange(_CODES) / (_CODES - 1)).astype(np.float32)
