"""Clips that are already in memory (or in a memory map)."""

import numpy as np

from causal_diffusion.errors import UserError
from causal_diffusion.frames import ROUNDING, are_pictures, take_frames


class ArraySource:
    """Arrays as a source: see sources.py for what an element holds.

    Args:
        video: uint8 [N, T, H, W, C] with values 0 .. 255, or floating point: pixels (C is 1 or 3) in [-1, 1]; any
            other number of channels is taken for latents, whose values need only be finite. A series: [N, T, C].
        label: integers [N], classes from 0 and -1 for none, or None.
        action: [N, T, A], or None; row f of a clip is what leads from frame f-1 to f.
        text: condition tokens [N, M, E] (the output of a text encoder), or None.
        text_mask: bool [N, M], False at padding; None where every token counts.

    Raises:
        UserError: a wrong shape, dtype or label at once, a value out of range when its clip is read.
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
        if label is not None and len(label) and not -1 <= label.min() <= label.max() < 2**31:
            row = int(np.argmax((label < -1) | (label >= 2**31)))
            raise UserError(f"label of clip {row} is {label[row]}; labels count from 0, and -1 is none")
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
        pictures = self._video_N.ndim == 5 and are_pictures(self._video_N.shape)
        element = {"video": take_frames(f"clip {i} of video", self._video_N[i], pictures=pictures, tolerance=ROUNDING)}
        if self._label_N is not None:
            element["label"] = np.asarray(self._label_N[i], np.int32)
        if self._action_NTA is not None:
            element["action"] = np.array(self._action_NTA[i], np.float32)
        if self._text_NME is not None:
            element["text"] = np.array(self._text_NME[i], np.float32)
            element["text_mask"] = np.array(self._text_mask_NM[i], bool)
        return element
