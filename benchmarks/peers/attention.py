"""Attention under a dense boolean mask by PyTorch's scaled_dot_product_attention, value and gradient."""

import numpy as np
import torch

from benchmarks.peers.streaming import attention
from benchmarks.peers.transformer import THREADS


def dense(mask: np.ndarray, q, k, v, d_out):
    """(forward, value and gradients) as functions without arguments.

    Args:
        mask: bool by frame [T, T].
        q, k, v, d_out: [B, T, N, H, K].

    Returns:
        forward: -> out; gradient: -> (out, d_q, d_k, d_v), arrays as the inputs.
    """
    torch.set_num_threads(THREADS)
    shape, N = q.shape, q.shape[2]
    by_token = torch.from_numpy(np.repeat(np.repeat(mask, N, axis=0), N, axis=1))
    q, k, v, d_out = (torch.from_numpy(x).flatten(1, 2) for x in (q, k, v, d_out))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]

    @torch.inference_mode()
    def forward():
        return attention(q, k, v, by_token)

    def gradient():
        out = attention(*leaves, by_token)
        return [x.detach().numpy().reshape(shape) for x in (out, *torch.autograd.grad(out, leaves, d_out))]

    return forward, gradient
