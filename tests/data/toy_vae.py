"""A causal autoencoder of a few additions, in numpy, and clips of chosen lengths: what the tests of latents encode."""

import dataclasses

import numpy as np

from causal_diffusion.nn.autoencoder import Geometry


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    time: int = 4
    apart: bool = True
    space: int = 2
    axes: int = 2
    channels: int = 3
    scale: float = 2.0


@dataclasses.dataclass(frozen=True)
class Toy:
    """z_l = scale mean(group l) + z_(l-1) / 2, beside the group's last value: 2 C channels, and the same bits for every
    batch and length. ``seen`` collects the shapes and pieces that were asked for."""

    config: ToyConfig = ToyConfig()
    seen: list = dataclasses.field(default_factory=list, compare=False)

    @property
    def geometry(self):
        c = self.config
        return Geometry(c.time, c.apart, c.space, c.axes, c.channels, 2 * c.channels)

    def encode(self, params, video, piece=0):
        assert params == "params" and video.dtype == np.float32
        self.seen.append((video.shape, piece))
        g = self.geometry
        assert not piece or (g.latents(video.shape[1]) - g.apart) % piece == 0
        video = video[(slice(None), slice(None), *(slice(None, None, g.space),) * g.axes)]
        state, out = 0.0, []
        for latent in range(g.latents(video.shape[1])):
            first, last = g.frames(latent), g.frames(latent + 1)
            mean = sum(video[:, t] for t in range(first, last)) / (last - first)
            state = np.float32(self.config.scale) * mean + state / 2
            out.append(np.concatenate([state, video[:, last - 1]], axis=-1))
        return np.stack(out, axis=1).astype(np.float32)


SERIES = ToyConfig(apart=False, space=1, axes=0)


class Whole:
    """Whole clips of given lengths, with names and captions; its elements are the first two frames."""

    def __init__(self, lengths, shape=(3,), seed=0):
        rng = np.random.default_rng(seed)
        self._clips = [rng.standard_normal((n, *shape)).astype(np.float32) for n in lengths]
        self.names = [f"walk {n}" for n in lengths]
        self.clip_captions = [f"walks {n} frames, härlig" for n in lengths]

    clips = property(lambda self: len(self._clips))

    def clip(self, i):
        return self._clips[i]

    def __len__(self):
        return len(self._clips)

    def __getitem__(self, i):
        return {"video": self._clips[i][:2]}

    def __repr__(self):
        return f"Whole({[len(clip) for clip in self._clips]})"


class Pictures:
    """Elements of a few frames with label, action, text and caption, as a source has them."""

    def __init__(self, n=10, frames=9, size=4, seed=0, captions=True, conditions=True):
        self._n, self._frames, self._size, self._seed, self._conditions = n, frames, size, seed, conditions
        if captions:
            self.captions = [f"clip {i}" for i in range(n)]

    def __len__(self):
        return self._n

    def __repr__(self):
        return f"Pictures({self._n}, {self._frames}, {self._size}, {self._seed})"

    def __getitem__(self, i):
        i = range(self._n)[i]
        rng = np.random.default_rng([self._seed, i])
        video = rng.uniform(-1, 1, (self._frames, self._size, self._size, 3)).astype(np.float32)
        if not self._conditions:
            return {"video": video}
        return {
            "video": video,
            "label": np.asarray(i % 5, np.int32),
            "action": rng.standard_normal((self._frames, 2)).astype(np.float32),
            "text": rng.standard_normal((3, 4)).astype(np.float32),
            "text_mask": np.array([True, True, i % 2 == 0]),
        }
