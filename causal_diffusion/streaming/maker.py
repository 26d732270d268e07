"""What the frames of a stream depend on beside its config and seed: weights, text encoder, VAE and steering loss."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from causal_diffusion.autoencoder import fingerprint
from causal_diffusion.checkpoint import fingerprints
from causal_diffusion.nn.layers import split_projections


class WeightsOrigin:
    """Parameters as a pipeline holds them. Their fingerprint is computed when it is first asked for."""

    def __init__(self, weights: Any):
        self._weights, self._fingerprint = weights, None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the parameters in canonical form, however they are laid out."""
        if self._fingerprint is None:
            self._fingerprint = fingerprints.of_tree(split_projections(self._weights))
            self._weights = None
        return self._fingerprint


@dataclasses.dataclass(frozen=True, eq=False)
class Maker:
    """What made a stream: parts of a pipeline.

    frames: of the clean data that the loss is given, (T, *space, C).
    """

    weights: WeightsOrigin
    text: Any
    codec: Any
    loss: Callable | None
    loss_scale: float
    frames: tuple[int, ...]

    def fingerprints(self, batch: int) -> dict[str, str]:
        """Those of each part there is, for ``batch`` samples."""
        found = {"weights": self.weights.fingerprint} | fingerprints.of_text(self.text)
        if self.codec is not None:
            found["vae"] = fingerprint(self.codec.vae, self.codec.params)
        if self.loss is not None and self.loss_scale:
            x = jax.ShapeDtypeStruct((batch, *self.frames), np.float32)
            frame = jax.ShapeDtypeStruct((batch, self.frames[0]), np.int32)
            found["steering"] = fingerprints.of_loss(self.loss, self.loss_scale, x, frame)
        return found

    def is_same(self, other: "Maker") -> bool:
        """Whether the parts are the very same objects, which needs no fingerprints."""
        mine, theirs = ([getattr(maker, field.name) for field in dataclasses.fields(Maker)] for maker in (self, other))
        return all(
            a is b or (isinstance(a, (int, float, tuple)) and a == b) for a, b in zip(mine, theirs, strict=True)
        )
