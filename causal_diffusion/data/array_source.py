"""Clips that are already in memory (or in a memory map)."""

import numpy as np

from causal_diffusion.errors import UserError

PIXELS = (1, 3)  # channels of pictures: grey or RGB


class ArraySource:
    """Arrays as a source: see sources.py for what an element holds.

    Args:
        video: uint8 [N, T, H, W, C] with values 0 .. 255, or floating point: pixels (C is 1 or 3) in [-1, 1]; any
            other number of channels is taken for latents, whose values need only be finite. A series: [N, T, C].
        label: integers [N], or None.
        action: [N, T, A], or None; row f of a clip is what leads from frame f-1 to f.
        text: condition tokens [N, M, E] (the output of a text encoder), or None.
        text_mask: bool [N, M], False at padding; None where every token counts.

    Raises:
        UserError: a wrong shape or dtype at once, a value out of range when its clip is read.
    """

    def __init__(self, video: np.ndarray, label: np.ndarray | None = None, action: np.ndarray | None = None,
                 text: np.ndarray | None = None, text_mask: np.ndarray | None = None):
        label = None if label is None else np.asarray(label)
        action = None if action is None else np.asarray(action)
        if video.ndim not in (3, 5):
            raise UserError("video must have the axes [clip, frame, channel] or [clip, frame, height, width, channel], "
                            f"got shape {video.shape}")
        if video.dtype != np.uint8 and not np.issubdtype(video.dtype, np.floating):
            raise UserError(f"video must be uint8 or floating point in [-1, 1], got {video.dtype}")
        if label is not None and (label.shape != video.shape[:1] or label.dtype.kind not in "iu"):
            raise UserError(f"label must be integers of shape {video.shape[:1]}, one per clip, "
                            f"got {label.dtype} of shape {label.shape}")
        if action is not None and (action.ndim != 3 or action.shape[:2] != video.shape[:2]):
            raise UserError(f"action must have shape ({video.shape[0]}, {video.shape[1]}, numbers), "
                            f"one row per frame, got {action.shape}")
        if text is not None and (text.ndim != 3 or len(text) != len(video)):
            raise UserError(f"text must have shape ({len(video)}, tokens, width), got {text.shape}")
        if text is not None and text_mask is None:
            text_mask = np.ones(text.shape[:2], bool)
        if text_mask is not None and (text is None or text_mask.shape != text.shape[:2]):
            raise UserError("text_mask must have one entry for each token of text, "
                            f"got {text_mask.shape} for {None if text is None else text.shape}")
        self._video_N, self._label_N, self._action_NTA = video, label, action
        self._text_NME, self._text_mask_NM = text, text_mask

    def __len__(self) -> int:
        return len(self._video_N)

    def __repr__(self) -> str:
        arrays = {"video": self._video_N, "label": self._label_N, "action": self._action_NTA,
                  "text": self._text_NME}
        parts = [f"{name}={x.dtype}{list(x.shape)}" for name, x in arrays.items() if x is not None]
        return f"ArraySource({', '.join(parts)})"

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        i = range(len(self))[i]
        element = {"video": to_unit_range(self._video_N[i])}
        largest = np.abs(element["video"]).max()
        if element["video"].ndim == 4 and element["video"].shape[-1] in PIXELS:
            if not largest <= 1.001:  # also catches nan; the slack is for rounding
                raise UserError(f"clip {i} of video leaves [-1, 1]: scale floats to [-1, 1], "
                                "or pass uint8 in 0 .. 255")
        elif not np.isfinite(largest):
            raise UserError(f"clip {i} of video has a value that is not finite")
        if self._label_N is not None:
            element["label"] = np.asarray(self._label_N[i], np.int32)
        if self._action_NTA is not None:
            element["action"] = np.array(self._action_NTA[i], np.float32)
        if self._text_NME is not None:
            element["text"] = np.array(self._text_NME[i], np.float32)
            element["text_mask"] = np.array(self._text_mask_NM[i], bool)
        return element


def to_unit_range(video: np.ndarray) -> np.ndarray:
    """A new float32 array in [-1, 1] from uint8 in 0 .. 255; floating point keeps its values."""
    scaled = np.array(video, np.float32)
    if video.dtype == np.uint8:
        scaled /= 127.5
        scaled -= 1.0
    return scaled
