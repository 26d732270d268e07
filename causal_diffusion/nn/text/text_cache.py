"""Features of captions on disk: a folder with one .npz per caption.

    FOLDER/3f/3f9c...e1.npz     named by SHA-256 of the encoder's fingerprint and the caption
        features                float32 [L, E] of the caption's own tokens

Any number of encoders and processes may share a folder. Files are renamed into place whole. One that is damaged is as
good as missing.
"""

import hashlib
import io
import json
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from causal_diffusion.checkpoint.leaves import reason_of
from causal_diffusion.errors import UserError


class TextCache:
    """The features that one encoder, known by its fingerprint, has left in a folder."""

    def __init__(self, folder: str | os.PathLike, fingerprint: str):
        self._folder, self._fingerprint = Path(folder).expanduser(), fingerprint

    def path(self, caption: str) -> Path:
        """Where the features of a caption are, or would be."""
        key = hashlib.sha256(json.dumps([self._fingerprint, caption]).encode()).hexdigest()
        return self._folder / key[:2] / f"{key}.npz"

    def get(self, caption: str, length: int, width: int) -> np.ndarray | None:
        """float32 [length, width], bit by bit as they were put; None where there are none, or not of that shape."""
        try:
            with zipfile.ZipFile(self.path(caption)) as file:
                content = file.read("features.npy")  # compared with its checksum before anything is made of it
            features = np.load(io.BytesIO(content), allow_pickle=False)
        except Exception:  # a damaged file fails in a dozen ways
            return None
        return features if features.dtype == np.float32 and features.shape == (length, width) else None

    def put(self, caption: str, features: np.ndarray) -> None:
        """Keeps features, float32 [L, E].

        Raises:
            UserError: the folder cannot be written.
        """
        path = self.path(caption)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A name of its own: several processes may compute the same caption at once.
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
                try:
                    np.savez(file, features=features)
                    file.close()
                    os.replace(file.name, path)
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
        except OSError as error:
            raise UserError(f"cannot write the text cache {self._folder}: {reason_of(error)}") from error
