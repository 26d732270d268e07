"""The entrance of frames: what a user, a file or a source hands over -> float32 in the range of the data.

Every place that takes frames asks here: the context, reference and observed values of a stream, those of an exported
one, what an autoencoder encodes, clips of one's own. The rules are the same for all of them:

    uint8                 pixels 0 .. 255, mapped to [-1, 1]
    floating point        values in the range of the data; of pictures that is [-1, 1], beyond which they may lie by
                          ROUNDING where they train a network, by OVERSHOOT where they are given to one: frames that a
                          decoder or a stream returned overshoot a little, and may be given back
    anything else         refused

and no value is NaN or infinite.
"""

import numpy as np

from causal_diffusion.errors import UserError

PIXELS = (1, 3)  # channels of pictures: grey or RGB
ROUNDING = 1e-3
OVERSHOOT = 0.25


def are_pictures(shape: tuple[int, ...]) -> bool:
    """Whether frames [height, width, channels] (more axes in front do not count) are pictures: grey or RGB."""
    return len(shape) >= 3 and shape[-1] in PIXELS


def take_frames(
    name: str, frames, shape: tuple[int, ...] | None = None, *, pictures: bool, tolerance: float = OVERSHOOT,
    unknown: bool = False,
) -> np.ndarray:  # fmt: skip
    """Frames as float32, in an array of their own.

    Args:
        name: what the caller calls them, for messages.
        frames: [..., *shape], uint8 or floating point.
        shape: of one frame, [*space, C]; None: any.
        pictures: whether floating point values lie in [-1, 1], up to ``tolerance``; else they need only be finite.
        tolerance: how far beyond.
        unknown: whether NaN is allowed, as a value that is not known.

    Raises:
        UserError: no array of numbers, another dtype or shape, a value that is not finite or out of range.
    """
    try:
        given = np.asarray(frames)
    except (TypeError, ValueError):  # ragged
        given = np.asarray(None)
    if given.dtype.kind not in "biufcV" or (given.dtype.kind == "V" and not _is_float(given.dtype)):
        raise UserError(f"{name} is {str(frames)[:40]!r}; it is an array of numbers")
    if given.dtype != np.uint8 and not _is_float(given.dtype):
        raise UserError(f"{name} is {described(given)}; it is float in {_range(pictures)}, or uint8 pixels")
    if shape is not None and given.shape[max(0, given.ndim - len(shape)) :] != tuple(shape):
        raise UserError(f"{name} is {described(given)}; its last axes are {list(shape)}")
    with np.errstate(over="ignore", invalid="ignore"):
        taken = as_floats(given)
    if given.dtype != np.uint8:
        check_values(name, taken, pictures=pictures, tolerance=tolerance, unknown=unknown)
    return taken


def as_floats(frames):
    """A new float32 array, of pixels (uint8) in [-1, 1]; other values are kept. Takes NumPy and JAX arrays."""
    floats = frames.astype(np.float32)
    return floats / np.float32(127.5) - np.float32(1.0) if frames.dtype == np.uint8 else floats


def check_values(name: str, frames: np.ndarray, *, pictures: bool, tolerance: float = OVERSHOOT, unknown=False) -> None:
    """UserError where floating point frames break the rules above; see ``take_frames``."""
    if not frames.size:
        return
    low, high = (np.nanmin, np.nanmax) if unknown and not np.isnan(frames).all() else (np.min, np.max)
    low, high = float(low(frames)), float(high(frames))
    if unknown and np.isnan(low):  # nothing is known
        return
    if not (np.isfinite(low) and np.isfinite(high)):
        wrong = np.isinf(frames) if unknown else ~np.isfinite(frames)
        which = "; unknown values are NaN" if unknown else ""
        raise UserError(f"{name} has a value that is not finite, at {_first(wrong)}{which}")
    if pictures and not (low >= -1.0 - tolerance and high <= 1.0 + tolerance):
        raise UserError(
            f"{name} has values from {low:.4g} to {high:.4g}: floats of pictures lie in [-1, 1], within {tolerance:g}; "
            "try pixels / 127.5 - 1, or pixels as uint8"
        )


def described(array) -> str:
    """dtype and shape, as 'float32[2, 4, 16, 16, 1]'."""
    return f"{array.dtype}[{', '.join(map(str, array.shape))}]"


def _first(where):
    """Index of the first True, as a list."""
    return np.argwhere(where)[0].tolist()


def _is_float(dtype) -> bool:
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))  # ml_dtypes are of kind V or f


def _range(pictures):
    return "[-1, 1]" if pictures else "the range of the data"
