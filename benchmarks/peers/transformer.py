"""Our transformer in eager PyTorch: Wan's block with adaLN 'linear', q and k normed over the whole width, rotary axes.

Written as one would who wants it fast: the projections of q, k and v are one product, modulation is applied in one pass
over the tokens, the rotation is a complex product with a table that was made before, attention is
``scaled_dot_product_attention``. Tokens are [B, T, N, D], T frames of N tokens, as ours are.

``attend(layer, q, k, v)`` says what a query sees: a cache of the past, or a mask. All three are [B, T N, H, K], q and k
turned; it returns the same.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from causal_diffusion.nn.config import TransformerConfig
from causal_diffusion.nn.rope import axis_widths

THREADS = 2


def rotate(x_BSHK, cis_SK):
    """Turns the channel pairs of every head by ``cis_SK``, complex [S, K / 2]."""
    pairs = torch.view_as_complex(x_BSHK.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * cis_SK[:, None]).flatten(-2)


class Block(nn.Module):
    """One block; what it sees is up to ``attend``."""

    def __init__(self, c: TransformerConfig):
        super().__init__()
        D = c.width
        self.heads = c.heads
        self.modulation = nn.Linear(D, 6 * D)
        self.qkv, self.o = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.q_norm, self.k_norm = nn.RMSNorm(D, eps=1e-6), nn.RMSNorm(D, eps=1e-6)
        self.mlp_in, self.mlp_out = nn.Linear(D, c.mlp), nn.Linear(c.mlp, D)

    def _projected(self, x, shift, scale, cis):
        """Turned q and k, and v, each [B, S, H, K]."""
        h = torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale).flatten(1, 2)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in self._normed(self.qkv(h)))
        return rotate(q, cis), rotate(k, cis), v

    def _normed(self, qkv):
        q, k, v = qkv.chunk(3, dim=-1)
        return self.q_norm(q), self.k_norm(k), v

    def parts(self, e):
        """The six modulation vectors of silu(e) [B, T, D], each [B, T, 1, D]."""
        return self.modulation(e).unsqueeze(2).chunk(6, dim=-1)

    def forward(self, x, e, cis, attend):
        """x [B, T, N, D], e silu of the embedding [B, T, D], cis complex [T N, K / 2]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.parts(e)
        out = attend(*self._projected(x, shift1, scale1, cis)).reshape(x.shape)
        x = torch.addcmul(x, gate1, self.o(out))
        h = torch.addcmul(shift2, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale2)
        return torch.addcmul(x, gate2, self.mlp_out(F.gelu(self.mlp_in(h), approximate="tanh")))

    def remember(self, x, e, cis, keep):
        """Hands its keys and values to ``keep`` and does no more."""
        shift, scale = self.parts(e)[:2]
        keep(*self._projected(x, shift, scale, cis)[1:])


class Network(nn.Module):
    """The whole network on tokens of data [B, T, N, P]."""

    def __init__(self, c: TransformerConfig, grid: tuple[int, ...]):
        """``grid``: tokens along each spatial axis."""
        super().__init__()
        if (c.modulation, c.head, c.qk_norm, c.positions) != ("linear", "linear", "full", "rotary"):
            raise ValueError("the peer has adaLN 'linear', a modulated head, q and k normed as one, rotary positions")
        D, P = c.width, int(np.prod(c.patch)) * c.channels
        self.config, self.grid = c, grid
        self.embed, self.head = nn.Linear(P, D), nn.Linear(D, P)
        self.time_in, self.time_out = nn.Linear(c.frequencies, D), nn.Linear(D, D)
        self.head_modulation = nn.Linear(D, 2 * D)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))

    def embed_time(self, t):
        """t [...] in [0, 1] -> silu of its embedding, [..., D]."""
        half = self.config.frequencies // 2
        frequency = torch.from_numpy((10000.0 ** (-np.arange(half) / half)).astype(np.float32))
        angle = 1000.0 * t[..., None] * frequency
        x = torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)
        return F.silu(self.time_out(F.silu(self.time_in(x))))

    def rotary(self, frames: int):
        """The table of positions, complex64 [frames, N, K / 2]."""
        c = self.config
        widths = axis_widths(c.width // c.heads, 1 + len(self.grid), c.rope_split)
        axes = [np.arange(frames), *(np.arange(n) for n in self.grid)]
        places = np.meshgrid(*axes, indexing="ij")
        angles = [
            place.reshape(frames, -1, 1) * c.theta ** (-np.arange(0, width, 2) / width)
            for place, width in zip(places, widths, strict=True)
        ]
        angle = torch.from_numpy(np.concatenate(angles, axis=-1)).float()
        return torch.polar(torch.ones_like(angle), angle)

    def forward(self, x, e, cis, attend):
        """Predictions [B, T, N, P] of x [B, T, N, P]; e [B, T, D] from ``embed_time``, cis complex [T N, K / 2]."""
        x = self.embed(x)
        for i, block in enumerate(self.blocks):
            x = block(x, e, cis, lambda q, k, v, i=i: attend(i, q, k, v))
        return x

    def predict(self, x, e):
        """The head on what ``forward`` returned."""
        # Our head takes the embedding through SiLU as well (``nn.block.Modulation``).
        shift, scale = self.head_modulation(e).unsqueeze(2).chunk(2, dim=-1)
        return self.head(torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale))

    def remember(self, x, e, cis, attend, keep):
        """Runs only as far as keys and values are needed: nobody reads what the last block makes of them."""
        x = self.embed(x)
        for i, block in enumerate(self.blocks[:-1]):
            x = block(x, e, cis, lambda q, k, v, i=i: attend(i, q, k, v))
        self.blocks[-1].remember(x, e, cis, lambda k, v: keep(len(self.blocks) - 1, k, v))


def load(network: Network, params: dict) -> Network:
    """Copies our parameters, in canonical form, into a network."""

    def put(layer, *ours):
        layer.weight.copy_(torch.from_numpy(np.concatenate([np.array(p["kernel"]) for p in ours], axis=1).T.copy()))
        layer.bias.copy_(torch.from_numpy(np.concatenate([np.array(p["bias"]) for p in ours])))

    with torch.no_grad():
        put(network.embed, params["embed"])
        put(network.head, params["head"])
        put(network.time_in, params["time"]["in"])
        put(network.time_out, params["time"]["out"])
        put(network.head_modulation, params["head_modulation"]["linear"])
        for i, block in enumerate(network.blocks):
            ours = params[f"block_{i}"]
            attention = ours["attention"]
            put(block.modulation, ours["modulation"]["linear"])
            put(block.qkv, attention["q"], attention["k"], attention["v"])
            put(block.o, attention["o"])
            put(block.mlp_in, ours["mlp_in"])
            put(block.mlp_out, ours["mlp_out"])
            block.q_norm.weight.copy_(torch.from_numpy(np.array(attention["q_norm"]["scale"])))
            block.k_norm.weight.copy_(torch.from_numpy(np.array(attention["k_norm"]["scale"])))
    return network
