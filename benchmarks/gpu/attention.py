"""Teacher forcing's attention in bfloat16, value and gradient: what is seen alone, against cuDNN under a dense mask.

``share`` is of the ideal speed-up 4 n / (n + 1). The last figure of each size compares with cuDNN's rate without any
mask: how much of it is kept on what is seen.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import paired
from benchmarks.cpu.attention import whole_mask
from benchmarks.rows import Figure
from causal_diffusion.layout import StaticMask
from causal_diffusion.nn.attention_backends import BACKENDS

SIZES = {  # (tokens of a block, blocks, heads, width of a head, asked against dense)
    "full": ((4680, 7, 12, 128, 3.0), (1560, 21, 12, 128, 3.2), (336, 16, 16, 64, 2.5)),
    "tiny": ((4, 3, 2, 8, 1.0),),
}


def sparse(mask: np.ndarray):
    """Our attention over [1, T, N, H, K] as a function of q, k, v: cuDNN inside the rectangles where it is there."""
    name = "cudnn" if jax.default_backend() == "gpu" else "blockwise"
    static = StaticMask(mask)
    return lambda q, k, v: BACKENDS[name](q, [k], [v], static)


def dense(mask: np.ndarray | None):
    """cuDNN's (elsewhere XLA's) attention under the mask by token, or without one."""
    implementation = "cudnn" if jax.default_backend() == "gpu" else "xla"

    def attend(q, k, v):
        shape, N = q.shape, q.shape[2]
        flat = (x.reshape(x.shape[0], -1, *x.shape[3:]) for x in (q, k, v))
        shown = None
        if mask is not None:
            shown = jnp.repeat(jnp.repeat(jnp.asarray(mask), N, axis=0), N, axis=1)[None, None]
        return jax.nn.dot_product_attention(*flat, mask=shown, implementation=implementation).reshape(shape)

    return attend


def with_gradient(attend):
    """(q, k, v, d_out) -> (out, d_q, d_k, d_v)."""

    def both(q, k, v, d_out):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(d_out)

    return both


def waits_for(function, given):
    """A call without arguments that returns when the results are there."""
    return lambda: jax.block_until_ready(function(*given))


def run(pairs: int, size: str) -> dict:
    """Three shapes: Wan by chunks, Wan by frames, NFD."""
    figures, total = [], 0.0
    for tokens, blocks, heads, width, asked in SIZES[size]:
        mask, ideal = whole_mask(blocks), 4 * blocks / (blocks + 1)
        shape = (1, 2 * blocks, tokens, heads, width)
        given = [jax.random.normal(key, shape, jnp.bfloat16) for key in jax.random.split(jax.random.key(0), 4)]
        functions = {"ours": sparse(mask), "dense": dense(mask), "unmasked": dense(None)}
        functions = {name: jax.jit(with_gradient(attend)) for name, attend in functions.items()}
        sides = {name: waits_for(function, given) for name, function in functions.items()}
        ours, theirs = sides["ours"](), sides["dense"]()
        for a, b in zip(ours, theirs, strict=True):
            paired.difference(a, b, "attention in bfloat16", 2e-2)
        del ours, theirs
        sides["unmasked"]()
        seconds = paired.interleave(sides, pairs)
        here, ratio = f"{blocks} blocks of {tokens} tokens", paired.ratio(seconds, "dense")
        more = {"asked": ("value", ">=", asked), "limit": ideal, "share": ratio.value / ideal}
        figures.append(Figure.of(f"{here}: dense cuDNN / ours", ratio, **more))
        # Two products forward, five backward.
        flops = 14 * float(mask.mean()) * (2 * blocks * tokens) ** 2 * heads * width
        mine = float(np.median(seconds["ours"]))
        figures.append(Figure(f"{here}: ours", 1e3 * mine, "ms"))
        figures.append(Figure(f"{here}: TFLOP/s on what is seen", flops / mine / 1e12, ""))
        kept = 100 * float(mask.mean()) * float(np.median(seconds["unmasked"])) / mine
        figures.append(Figure(f"{here}: of cuDNN's rate without a mask", kept, "%", asked=("value", ">=", 70.0)))
        total += flops
    return {"figures": figures, "flops": total}


def abstract() -> list:
    """Ours at full size, traced without an array."""
    outs = []
    for tokens, blocks, heads, width, _ in SIZES["full"]:
        q = jax.ShapeDtypeStruct((1, 2 * blocks, tokens, heads, width), jnp.bfloat16)
        outs.append(jax.eval_shape(with_gradient(sparse(whole_mask(blocks))), q, q, q, q)[0])
    return outs
