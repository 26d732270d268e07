"""Attention alone, forward and with its gradient: what is computed blockwise against what is computed densely.

``run`` takes teacher forcing's mask over [clean; noisy] of n blocks, whole, so that (n + 1) / (4 n) of it are seen and
the ideal speed-up is 4 n / (n + 1). ``rule`` takes the masks that training makes, at sizes around those at which
'auto' changes its mind, and shows what it chooses; and, forward alone, a frame of a stream under a ring that is full.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import paired
from benchmarks.rows import Figure
from causal_diffusion.cache import lay
from causal_diffusion.layout import CLEAN, NOISY, Ids, Layout, StaticMask, concatenate
from causal_diffusion.nn.attention_backends import BACKENDS, choose

SIZES = {"full": ((16, 64), (8, 128)), "tiny": ((4, 2),)}  # (blocks, tokens of a block): 2,048 tokens
HEADS, WIDTH = 6, 64
RULE = {  # (kind of mask, blocks, tokens of a block)
    "full": (
        *(("teacher_forcing", *size) for size in ((50, 4), (32, 16), (8, 32), (16, 32), (4, 64), (16, 64), (4, 256))),
        *(("block_causal", *size) for size in ((64, 16), (8, 64), (16, 64), (4, 256), (16, 128))),
    ),
    "tiny": (("teacher_forcing", 4, 2), ("block_causal", 4, 2)),
}  # fmt: skip
RINGS = {"full": ((50, 4), (8, 64), (16, 64), (64, 64), (16, 256)), "tiny": ((4, 2),)}  # (frames, tokens of a frame)


def whole_mask(blocks: int) -> np.ndarray:
    """Teacher forcing's mask by block, the last clean one included: bool [2 n, 2 n]."""
    frame = np.arange(blocks)
    ids = concatenate(Ids.of(CLEAN, frame), Ids.of(NOISY, frame))
    return Layout("teacher_forcing").visible(ids, ids)


def arrays(shape, seed: int = 0) -> list[np.ndarray]:
    """Queries, keys, values and the output's gradient, each float32 [1, T, N, H, K]."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((1, *shape), np.float32) for _ in range(4)]


def ours(name: str, mask: np.ndarray, q, k, v, d_out):
    """(forward, value and gradients) of a backend as functions without arguments that wait for their results."""
    backend, static = BACKENDS[name], StaticMask(mask)
    shown = static if name != "reference" else jnp.asarray(mask)

    def attend(q, k, v):
        return backend(q, [k], [v], shown)

    def both(q, k, v, d_out):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(d_out)

    forward, gradient = jax.jit(attend), jax.jit(both)
    given = [jnp.asarray(x) for x in (q, k, v, d_out)]
    return (
        lambda: jax.block_until_ready(forward(*given[:3])),
        lambda: jax.block_until_ready(gradient(*given)),
    )


def run(pairs: int, size: str) -> dict:
    """Blockwise against our dense attention and PyTorch's."""
    from benchmarks.peers.attention import dense

    figures, differences = [], []
    for blocks, tokens in SIZES[size]:
        mask = whole_mask(blocks)
        given, ideal = arrays((len(mask), tokens, HEADS, WIDTH)), 4 * blocks / (blocks + 1)
        functions = {
            "ours": ours("blockwise", mask, *given),
            "our dense": ours("reference", mask, *given),
            "PyTorch, dense mask": dense(mask, *given),
        }
        outputs = {name: both() for name, (_, both) in functions.items()}
        for name, theirs in outputs.items():
            for a, b in zip(outputs["ours"], theirs, strict=True):
                differences.append(paired.difference(a, b, name))
        for at, what in enumerate(("value", "value and gradient")):
            sides = {name: pair[at] for name, pair in functions.items()}
            for side in sides.values():
                side()
            seconds = paired.interleave(sides, pairs)
            here = f"{blocks} blocks of {tokens} tokens, {what}"
            saved = paired.ratio(seconds, "our dense")
            more = {"limit": ideal, "share": saved.value / ideal, "asked": ("value", ">=", round(0.75 * ideal, 3))}
            figures.append(Figure.of(f"{here}: our dense / ours", saved, **more))
            asked = ("value", ">=", 1.4) if at else None
            ratio = paired.ratio(seconds, "PyTorch, dense mask")
            figures.append(Figure.of(f"{here}: PyTorch / ours", ratio, asked=asked))
            figures.append(Figure(f"{here}: ours", 1e3 * float(np.median(seconds["ours"])), "ms"))
    return {"figures": figures, "difference": max(differences)}


def rule(pairs: int, size: str) -> dict:
    """What 'auto' chooses around the sizes at which it changes its mind, and how much longer it takes than the best."""
    figures, table = [], []
    for kind, blocks, tokens in RULE[size]:
        mask = Layout(kind).training_mask(blocks)
        given = arrays((len(mask), tokens, HEADS, WIDTH))
        sides = {name: ours(name, mask, *given)[1] for name in ("reference", "blockwise")}
        for side in sides.values():
            side()
        seconds = paired.interleave(sides, pairs)
        sizes = ((len(mask), tokens),)
        chosen = choose("auto", sizes[0], sizes, StaticMask(mask))
        other = next(name for name in sides if name != chosen)
        ratio = paired.ratio(seconds, other, chosen)
        here = f"{kind}, {blocks} blocks of {tokens} tokens: {other} / {chosen}, which 'auto' takes"
        figures.append(Figure.of(here, ratio, asked=("high", ">=", 0.95)))
        table.append({"kind": kind, "blocks": blocks, "tokens": tokens, "chosen": chosen})
    for frames, tokens in RINGS[size]:
        mask = StaticMask(np.ones((1, frames + 1), bool))
        sides = {name: under_ring(name, frames, tokens, mask) for name in ("reference", "blockwise")}
        paired.difference(sides["blockwise"](), sides["reference"](), "a frame under a full ring")
        seconds = paired.interleave(sides, 5 * pairs)
        chosen = choose("auto", (1, tokens), ((frames, tokens), (1, tokens)), mask)
        other = next(name for name in sides if name != chosen)
        here = f"a ring of {frames} frames of {tokens} tokens: {other} / {chosen}, which 'auto' takes"
        figures.append(Figure.of(here, paired.ratio(seconds, other, chosen), asked=("high", ">=", 0.95)))
        table.append({"kind": "ring", "blocks": frames, "tokens": tokens, "chosen": chosen})
    return {"figures": figures, "table": table}


def under_ring(name: str, frames: int, tokens: int, mask: StaticMask):
    """Attention of one frame to the slots of a stream, as a cache keeps them, and to itself; without arguments."""
    q, k, v, _ = arrays((frames + 1, tokens, HEADS, WIDTH))
    keys, values = ([lay(jnp.asarray(x[:, :frames])), jnp.asarray(x[:, frames:])] for x in (k, v))
    attend = jax.jit(lambda q, keys, values: BACKENDS[name](q, keys, values, mask))
    q = jnp.asarray(q[:, frames:])
    return lambda: jax.block_until_ready(attend(q, keys, values))
