"""Real handwritten digits that drift over a black canvas and bounce off its walls.

The digits are scikit-learn's copy of the UCI optical recognition set: 1,797 scans, 8x8, seventeen grey
levels. Clips of them are a virtual, endless set: element i is a function of (seed, split, i) alone, and its
first frames do not depend on how many frames are asked for.

Per axis, with R the room a digit has (canvas minus digit) and v the velocity, frame f has

    u(f) = u(0) + v f                                     the path without walls              (1)
    p(f) = R - |R - (u(f) mod 2R)|                        the position, folded into [0, R]    (2)
    a(f) = s(f-1) v / speed                               the action                          (3)
    s(f) = +1 if u(f) mod 2R < R else -1                  forth or back

so a(f) is the velocity with which the digit leaves frame f-1, in units of the top speed, and the world's law
is p(f) = reflect(p(f-1) + speed a(f)). A bounce on the way to frame f shows as a change of sign from a(f) to
a(f+1).

A digit at a fractional position is spread over its neighbours by bilinear weights (4), which keep its mass
and move its centre of mass by exactly the displacement:

    canvas[h, w] = sum_kl hat(h - p_y - k) digit[k, l] hat(w - p_x - l),   hat(d) = max(0, 1 - |d|)    (4)
"""

import functools
import importlib.util
from pathlib import Path

import numpy as np

from causal_diffusion.data.config import SPLITS, DataConfig, held_out_count
from causal_diffusion.errors import UserError

DIGIT_SIZE = 8  # pixels
CLASSES = 10


class MovingDigits:
    """Endless clips of moving digits: see the module's docstring, and sources.py for what an element holds.

    A digit's pace is uniform between half the top speed and all of it. The label is the class of the first
    digit and the action its velocity (right, down), each in [-1, 1]. Further digits move on their own and are
    combined by the maximum.
    """

    def __init__(self, config: DataConfig, split: str):
        if min(config.height, config.width) < DIGIT_SIZE:
            raise UserError(f"moving_digits needs a canvas of at least {DIGIT_SIZE}x{DIGIT_SIZE}, got "
                            f"data.height={config.height}, data.width={config.width}")
        self._config = config
        self._split = split
        self._images_NKL, self._labels_N = digit_images(split, config.holdout)

    @staticmethod
    def condition_sizes(config: DataConfig) -> tuple[int, int]:
        return CLASSES, 2

    def __len__(self) -> int:
        return 2**30  # grain shuffles 32-bit indices; nobody will see the end

    def __repr__(self) -> str:
        c = self._config
        size = (c.frames, c.height, c.width, c.channels)
        return (f"MovingDigits(split={self._split!r}, seed={c.seed}, size={size}, digits={c.digits}, "
                f"speed={c.speed}, holdout={c.holdout})")

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        c = self._config
        i = range(len(self))[i]
        rng = np.random.default_rng([c.seed, SPLITS.index(self._split), i])
        # The first digit goes round the set, so that any run of elements shows all digits equally often.
        which_D = np.append(i % len(self._labels_N), rng.integers(len(self._labels_N), size=c.digits - 1))
        position_DTX, action_DTX = self._paths(rng)
        weight_y_DTHK = _hat_weights(position_DTX[..., 0], c.height)
        weight_x_DTWK = _hat_weights(position_DTX[..., 1], c.width)
        # One small product per digit and frame: a frame's bits cannot depend on the number of frames.
        canvas_DTHW = weight_y_DTHK @ self._images_NKL[which_D][:, None] @ weight_x_DTWK.swapaxes(-1, -2)
        canvas_THW = 2.0 * np.minimum(canvas_DTHW.max(axis=0), 1.0) - 1.0
        return {
            "video": np.repeat(canvas_THW[..., None], c.channels, axis=-1),
            "label": self._labels_N[which_D[0]],
            "action": action_DTX[0, :, ::-1].astype(np.float32),
        }

    def _paths(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The digits' upper left corners in pixels and their actions, both [D, T, 2], axes (y, x)."""
        c = self._config
        room_X = np.array([c.height - DIGIT_SIZE, c.width - DIGIT_SIZE], np.float64)
        angle_D, rate_D = rng.uniform(0, 2 * np.pi, c.digits), rng.uniform(0.5, 1.0, c.digits)
        start_DX = rng.uniform(0, 1, (c.digits, 2)) * room_X
        action_DX = rate_D[:, None] * np.stack([np.sin(angle_D), np.cos(angle_D)], axis=-1)
        frame_T = np.arange(-1, c.frames)  # from frame -1: its velocity is the action of frame 0
        free_DTX = start_DX[:, None] + c.speed * action_DX[:, None] * frame_T[:, None]             # (1)
        phase_DTX = free_DTX % np.maximum(2 * room_X, 1)
        position_DTX = np.where(room_X > 0, room_X - np.abs(room_X - phase_DTX), 0)                # (2)
        sign_DTX = np.where(phase_DTX < room_X, 1, -1)
        return position_DTX[:, 1:], (sign_DTX * action_DX[:, None])[:, :-1]                        # (3)


@functools.cache
def digit_images(split: str, holdout: float) -> tuple[np.ndarray, np.ndarray]:
    """The digits of a split themselves, for classifiers and contact sheets.

    Every class gives the same share to the held-out split, and the choice never depends on any seed: a digit
    held out in one run is held out in all runs of that share.

    Returns:
        Images float32 [N, 8, 8] in [0, 1] (1 is ink) and labels int32 [N], both read-only.
    """
    scans_NKL, target_N = _scans()
    shuffled_N = np.random.default_rng(0).permutation(len(target_N))
    chosen = []
    for label in range(CLASSES):
        mine = shuffled_N[target_N[shuffled_N] == label]
        cut = held_out_count(len(mine), holdout)
        chosen.append(mine[:cut] if split == "test" else mine[cut:])
    chosen_N = np.sort(np.concatenate(chosen))
    images_NKL = (scans_NKL[chosen_N] / 16.0).astype(np.float32)
    labels_N = target_N[chosen_N].astype(np.int32)
    images_NKL.flags.writeable = labels_N.flags.writeable = False  # they are cached and shared
    return images_NKL, labels_N


def _scans() -> tuple[np.ndarray, np.ndarray]:
    """All images [N, 8, 8], 0 .. 16, and labels [N]: the file that scikit-learn has of them.

    It is read without scikit-learn, whose import takes longer than compiling a small network from the cache.
    """
    package = importlib.util.find_spec("sklearn")
    path = Path(package.origin).parent / "datasets/data/digits.csv.gz" if package else None
    if path is None or not path.is_file():  # it lies elsewhere by now
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.images, digits.target
    table = np.loadtxt(path, delimiter=",")
    return table[:, :-1].reshape(-1, DIGIT_SIZE, DIGIT_SIZE), table[:, -1].astype(int)


def _hat_weights(position: np.ndarray, size: int) -> np.ndarray:
    """Equation (4)'s weights along one axis: positions [...] -> float32 [..., size, DIGIT_SIZE]."""
    pixel = np.arange(size)[:, None] - np.arange(DIGIT_SIZE)
    return np.maximum(0, 1 - np.abs(pixel - position[..., None, None])).astype(np.float32)
