"""Does a frame still show the digit it should? A recogniser for small grey digits on a larger canvas.

A frame is read in two steps.

1. Locate. The background level is subtracted, dim noise is cut off, a blurred map of the rest gives the place
   of the brightest mass, and a few steps of mean shift (the centre of mass inside a window around the last
   centre) refine it below a pixel. Nothing outside the window matters.
2. Classify. A crop one pixel wider than the digit on each side is taken around that centre by bilinear
   sampling, brought to unit energy, and given to a support vector machine.

The machine learns from the real digits drawn at random sub-pixel places, clean, blurred and noisy, located
and cropped by the very same code, so what training and reading do to the picture is the same.
"""

import numpy as np

MARGIN = 1          # pixels around the digit in a crop
NOTHING = -1        # the label of a frame without a digit
_COPIES = 6         # drawings of each digit to learn from
_DIM = 0.15         # brightness (of 0..1, above the background) below which mass does not count when locating
_MEAN_SHIFTS = 4


class DigitRecogniser:
    """`DigitRecogniser.fit(images, labels)` makes one; `predict` and `score` read frames in [-1, 1]."""

    def __init__(self, classifier, size: int):
        self._classifier = classifier
        self.size = size

    @classmethod
    def fit(cls, images, labels, seed: int = 0) -> "DigitRecogniser":
        """Learn from digits [N, S, S] in 0..1 (bright on dark, S = 8 for scikit-learn's) and labels [N] >= 0.

        Use the digits of the train split only. A function of the arguments alone: equal seeds, equal
        recognisers.
        """
        from sklearn.svm import SVC  # here: half a second to import

        images, labels = np.asarray(images, np.float64), np.asarray(labels)
        if images.ndim != 3 or images.shape[1] != images.shape[2] or labels.shape != images.shape[:1]:
            raise ValueError(f"images must be [N, S, S] and labels [N]; got {images.shape}, {labels.shape}")
        if labels.dtype.kind not in "iu" or labels.min() < 0:
            raise ValueError("labels must be whole numbers from 0")
        if images.min() < 0 or images.max() > 1:
            raise ValueError(f"images must lie in 0..1; they reach from {images.min():g} to {images.max():g}")
        size = images.shape[1]
        rng = np.random.default_rng(seed)
        canvas = 2 * size
        drawings, answers = [], []
        for copy in range(_COPIES):
            corner_N2 = rng.uniform(0, canvas - size, (len(images), 2))
            drawn = _sample(images, -corner_N2, canvas)
            if copy % 2:    # half of them as a generative model may draw them: softer, paler, with noise
                drawn = _blur(drawn, rng.uniform(0.3, 0.8))
                drawn = drawn * rng.uniform(0.6, 1.0, (len(images), 1, 1))
                drawn = drawn + rng.uniform(0, 0.12, (len(images), 1, 1)) * rng.standard_normal(drawn.shape)
            drawings.append(drawn)
            answers.append(labels)
        crops, found = _crops(np.clip(np.concatenate(drawings), 0, 1), size)
        # Crops have unit energy, so squared distances are 2 - 2 cos: one gamma fits every size and contrast.
        classifier = SVC(C=10.0, gamma=8.0, random_state=seed)
        classifier.fit(crops[found], np.concatenate(answers)[found])
        return cls(classifier, size)

    def predict(self, frames) -> np.ndarray:
        """Frames [N, H, W, 1] in [-1, 1] -> labels [N]; -1 (`NOTHING`) where blank or not finite."""
        frames = np.asarray(frames, np.float64)
        if frames.ndim != 4 or frames.shape[-1] != 1:
            raise ValueError(f"frames must be [N, H, W, 1]; got {frames.shape}")
        if min(frames.shape[1:3]) < self.size:
            height, width = frames.shape[1:3]
            raise ValueError(f"frames of {height}x{width} cannot hold digits of {self.size} pixels")
        labels = np.full(len(frames), NOTHING)
        usable = np.isfinite(frames).all(axis=(1, 2, 3))
        if usable.any():
            crops, found = _crops(np.clip((frames[usable, :, :, 0] + 1) / 2, 0, 1), self.size)
            answers = self._classifier.predict(crops)
            labels[usable] = np.where(found, answers, NOTHING)
        return labels

    def score(self, frames, labels) -> np.ndarray:
        """Frames [B, T, H, W, 1] in [-1, 1], true labels [B] -> [T], the share recognised at each frame."""
        frames, labels = np.asarray(frames), np.asarray(labels)
        if frames.ndim != 5 or labels.shape != frames.shape[:1]:
            raise ValueError("frames must be [B, T, H, W, 1] and labels [B]; got "
                             f"{frames.shape} and {labels.shape}")
        answers = self.predict(frames.reshape(-1, *frames.shape[2:])).reshape(frames.shape[:2])
        return (answers == labels[:, None]).mean(axis=0)


def _crops(canvas_NHW, size):
    """Canvases [N, H, W] in 0..1 -> crops [N, (size + 2 MARGIN)^2] of unit energy, and [N] whether one shows
    anything at all.
    """
    height, width = canvas_NHW.shape[1:]
    # At least a quarter of every canvas is background; its level is what a frame has too much everywhere.
    level_N11 = np.quantile(canvas_NHW, 0.25, axis=(1, 2), keepdims=True)
    bright = np.maximum(canvas_NHW - level_N11, 0)
    mass = np.maximum(bright - _DIM, 0)
    found = mass.sum(axis=(1, 2)) > 0.01 * size * size
    heat = _blur(mass, size / 4).reshape(len(mass), -1).argmax(axis=1)
    centre_N2 = np.stack([heat // width, heat % width], axis=1).astype(np.float64)
    rows, columns = np.arange(height), np.arange(width)
    half = size / 2 + 0.5
    for _ in range(_MEAN_SHIFTS):
        near_y = np.clip(half + 0.5 - np.abs(rows - centre_N2[:, :1]), 0, 1)
        near_x = np.clip(half + 0.5 - np.abs(columns - centre_N2[:, 1:]), 0, 1)
        near = mass * near_y[:, :, None] * near_x[:, None, :]
        total = np.maximum(near.sum(axis=(1, 2)), 1e-12)
        centre_N2 = np.stack([near.sum(axis=2) @ rows, near.sum(axis=1) @ columns], axis=1) / total[:, None]
    side = size + 2 * MARGIN
    crop = _sample(bright, centre_N2 - (side - 1) / 2, side).reshape(len(bright), -1)
    energy = np.sqrt(np.square(crop).sum(axis=1, keepdims=True))
    return crop / np.maximum(energy, 1e-12), found


def _sample(image_NHW, corner_N2, side):
    """Bilinear samples [N, side, side] of images at corner + (0 ... side - 1); outside an image there is 0.

    A negative corner draws a small image at -corner on a larger canvas: shifting and cropping are one thing.
    """
    def weights(first_N, count):       # [N, side, count]: the tent around each sampled coordinate
        at = first_N[:, None, None] + np.arange(side)[None, :, None]
        return np.maximum(0, 1 - np.abs(at - np.arange(count)))

    down = weights(corner_N2[:, 0], image_NHW.shape[1])
    across = weights(corner_N2[:, 1], image_NHW.shape[2])
    return down @ image_NHW @ across.transpose(0, 2, 1)


def _blur(image_NHW, sigma):
    """Gaussian blur, 0 outside the image."""
    def matrix(count):
        distance = np.arange(count)[:, None] - np.arange(count)
        kernel = np.exp(-0.5 * np.square(distance / sigma))
        return kernel / kernel[count // 2].sum()

    return matrix(image_NHW.shape[1]) @ image_NHW @ matrix(image_NHW.shape[2]).T
