"""A training step of teacher forcing in eager PyTorch: a dense mask, fused AdamW, clipping, averaged parameters."""

import numpy as np
import torch

from benchmarks.peers.streaming import attention
from benchmarks.peers.transformer import THREADS, Network, load


class Trainer:
    """Trains a network as our recipe does, in the same order of work.

    Args:
        recipe: teacher forcing with blocks of one frame, a velocity, AdamW at a constant rate, no conditions.
        params: ours, in canonical form.
    """

    def __init__(self, recipe, params):
        torch.set_num_threads(THREADS)
        c, train = recipe.model.config, recipe.config.train
        plain = (recipe.layout.kind, recipe.process.predict, train.optimizer, train.decay, train.warmup)
        if plain != ("teacher_forcing", "velocity", "adamw", "constant", 0):
            raise ValueError(f"the peer trains by teacher forcing with AdamW at a constant rate; this is {plain}")
        *space, _ = recipe.frame_shape
        grid = tuple(size // part for size, part in zip(space, c.patch[1:], strict=True))
        self.config, self.frames, self.block = train, recipe.frames, recipe.layout.block
        self.network = load(Network(c, grid), params)
        self.averaged = [p.detach().clone() for p in self.network.parameters()]
        named = list(self.network.named_parameters())
        groups = [
            {"params": [p for _, p in named if p.ndim > 1], "weight_decay": train.weight_decay},
            {"params": [p for _, p in named if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, fused=True)
        at = np.concatenate([np.arange(self.frames - self.block), np.arange(self.frames)])
        self.cis = self.network.rotary(self.frames)[torch.from_numpy(at)].flatten(0, 1)
        self.mask = torch.from_numpy(recipe.layout.token_mask(self.frames, int(np.prod(grid))))
        self.steps = 0

    def loss(self, x0, t=None, noise=None):
        """The loss on tokens of clean data [B, T, N, P]; levels t [B, T] and noise are drawn where not given."""
        t = torch.rand(x0.shape[:2]) if t is None else t
        noise = torch.randn_like(x0) if noise is None else noise
        past = x0[:, : self.frames - self.block]
        noisy = torch.lerp(x0, noise, t[..., None, None])
        e = self.network.embed_time(torch.cat([torch.zeros(past.shape[:2]), t], dim=1))

        def attend(layer, q, k, v):
            return attention(q, k, v, self.mask)

        x = self.network(torch.cat([past, noisy], dim=1), e, self.cis, attend)
        last = past.shape[1]
        out = self.network.predict(x[:, last:], e[:, last:])
        return torch.nn.functional.mse_loss(out, noise - x0)

    def step(self, x0, *given):
        """One update; returns the loss."""
        loss = self.loss(x0, *given)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = list(self.network.parameters())
        torch.nn.utils.clip_grad_norm_(parameters, self.config.clip)
        self.optimizer.step()
        decay = min(self.config.ema, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.averaged, [p.detach() for p in parameters], 1.0 - decay)
        self.steps += 1
        return float(loss.detach())


def gradients(network: Network) -> dict:
    """Gradients under the names that they have in our tree, as NumPy arrays."""

    def linear(layer, part=slice(None)):
        return {"kernel": layer.weight.grad[part].numpy().T, "bias": layer.bias.grad[part].numpy()}

    D = network.config.width
    grads = {
        "embed": linear(network.embed),
        "head": linear(network.head),
        "time": {"in": linear(network.time_in), "out": linear(network.time_out)},
        "head_modulation": {"linear": linear(network.head_modulation)},
    }
    for i, block in enumerate(network.blocks):
        grads[f"block_{i}"] = {
            "modulation": {"linear": linear(block.modulation)},
            "attention": {
                **{name: linear(block.qkv, slice(j * D, (j + 1) * D)) for j, name in enumerate("qkv")},
                "o": linear(block.o),
                "q_norm": {"scale": block.q_norm.weight.grad.numpy()},
                "k_norm": {"scale": block.k_norm.weight.grad.numpy()},
            },
            "mlp_in": linear(block.mlp_in),
            "mlp_out": linear(block.mlp_out),
        }
    return grads
