"""Streaming one block at a time in eager PyTorch, with one of two caches of keys and values.

``Ring`` holds window + 1 blocks in one buffer per layer and writes in place: the block being denoised lies in the slot
that is next, so that a commit is a step of the cursor and attention reads the buffer as it is. ``Concatenated`` joins
old and new keys for every pass, as many published systems do.
"""

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.peers.transformer import THREADS, Network, load


def attention(q, k, v, mask=None):
    """Queries, keys, values [B, S, H, K] -> [B, S, H, K]."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


class Ring:
    """Keys and values of the last ``window`` blocks and of the one in flight, written in place."""

    def __init__(self, layers: int, shape: tuple[int, int, int, int], window: int):
        """``shape``: of a block's keys, [B, tokens, H, K]."""
        B, self.tokens, H, K = shape
        self.size = (window + 1) * self.tokens
        self.keys, self.values = ([torch.zeros(B, self.size, H, K) for _ in range(layers)] for _ in range(2))
        self.at, self.filled = 0, 0

    def keep(self, layer, k, v):
        """Writes a block's keys and values at the cursor."""
        self.keys[layer][:, self.at : self.at + self.tokens] = k
        self.values[layer][:, self.at : self.at + self.tokens] = v

    def attend(self, layer, q, k, v):
        """Attention of the block in flight to the past and to itself."""
        self.keep(layer, k, v)
        seen = min(self.filled + self.tokens, self.size)
        return attention(q, self.keys[layer][:, :seen], self.values[layer][:, :seen])

    def commit(self):
        """What was written last stays."""
        self.at = (self.at + self.tokens) % self.size
        self.filled = min(self.filled + self.tokens, self.size - self.tokens)


class Concatenated:
    """Keys and values of the last ``window`` blocks, joined with those of the block in flight in every pass."""

    def __init__(self, layers: int, shape: tuple[int, int, int, int], window: int):
        B, self.tokens, H, K = shape
        self.kept = window * self.tokens
        self.past = [(torch.zeros(B, 0, H, K),) * 2 for _ in range(layers)]
        self.joined = list(self.past)

    def keep(self, layer, k, v):
        """Joins a block's keys and values with the past."""
        self.joined[layer] = tuple(torch.cat(pair, 1) for pair in zip(self.past[layer], (k, v), strict=True))

    def attend(self, layer, q, k, v):
        """Attention of the block in flight to the past and to itself."""
        self.keep(layer, k, v)
        return attention(q, *self.joined[layer])

    def commit(self):
        """What was joined last is the past."""
        self.past = [tuple(part[:, -self.kept :] for part in pair) for pair in self.joined]


CACHES = {"ring": Ring, "concatenating": Concatenated}


class Stream:
    """A stream of blocks of one frame, without conditions.

    Args:
        recipe: of our stream; blocks of one frame, Euler steps, a velocity, a commit of its own.
        params: ours, in canonical form.
        cache: a key of CACHES.
        frames: the table of positions is made for so many.
    """

    def __init__(self, recipe, params, cache: str, frames: int = 4096):
        torch.set_num_threads(THREADS)
        c, layout = recipe.model.config, recipe.layout
        plain = (layout.block, recipe.config.solver.kind, recipe.process.predict, recipe.cache.commit)
        if plain != (1, "euler", "velocity", "separate"):
            raise ValueError(f"the peer streams single frames by Euler steps of a velocity; this is {plain}")
        *space, _ = recipe.frame_shape
        grid = tuple(size // part for size, part in zip(space, c.patch[1:], strict=True))
        self.network = load(Network(c, grid), params).eval()
        with torch.inference_mode():
            self.times = np.asarray(recipe.schedule.times(), np.float32)[::-1].tolist()
            told = recipe.process.label(np.array([*self.times[:-1], recipe.cache.commit_level], np.float32))
            self.embedded = self.network.embed_time(torch.from_numpy(np.array(told)))[:, None, None]
            self.positions = self.network.rotary(frames)
        tokens = int(np.prod(grid))
        self.shape = (1, 1, tokens, int(np.prod(c.patch)) * c.channels)
        self.cache = CACHES[cache](c.depth, (1, tokens, c.heads, c.width // c.heads), recipe.slots)
        self.frame = 0

    @torch.inference_mode()
    def next(self, noise=None):
        """The next frame as tokens of data [1, 1, N, P]; ``noise``: that to start from, of this shape."""
        network, cache, cis = self.network, self.cache, self.positions[self.frame % len(self.positions)]
        x = torch.randn(self.shape) if noise is None else torch.from_numpy(np.array(noise))
        for e, t, s in zip(self.embedded, self.times, self.times[1:], strict=False):
            x = x + (s - t) * network.predict(network(x, e, cis, cache.attend), e)
        network.remember(x, self.embedded[-1], cis, cache.attend, cache.keep)
        cache.commit()
        self.frame += 1
        return x.numpy()
