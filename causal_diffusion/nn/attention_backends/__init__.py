"""How attention is computed, by name; ``model.backend``.

=========  ===================================  ===================================================================
name       what is computed                     where
=========  ===================================  ===================================================================
reference  every score; what is hidden is       everywhere
           thrown away
blockwise  what a static mask shows, in         everywhere
           rectangles without a mask
cudnn      the same, a fused call for each row  NVIDIA GPUs; bfloat16, float16; head width a multiple of 8, at most 256
           of rectangles
splash     the same, by tiles that are not      TPUs
           empty
auto       as ``choose`` says: reference or     everywhere
           blockwise
=========  ===================================  ===================================================================

All share one signature, that of ``reference``, and agree with it in value and gradient. Only a ``StaticMask`` can be
planned for. Under a mask that is computed while the program runs (who sees whom is drawn with every clip, or a ring of
slots is not full yet) attention is dense under every name, in parts of the queries where it is large, and the log says
so. Such a mask may have one row for all queries; then cuDNN, too, computes what it shows alone.
"""

import functools
import logging

import jax
import numpy as np

from causal_diffusion.layout import StaticMask
from causal_diffusion.nn.attention_backends import cudnn, splash
from causal_diffusion.nn.attention_backends.blockwise import blockwise
from causal_diffusion.nn.attention_backends.rectangles import plan
from causal_diffusion.nn.attention_backends.reference import reference
from causal_diffusion.parallel.activations import frames_stay_split

log = logging.getLogger(__name__)

BACKENDS = {"reference": reference, "blockwise": blockwise, "cudnn": cudnn.cudnn, "splash": splash.splash}
LIMITED = {"cudnn": cudnn.unsupported, "splash": splash.unsupported}
NAMES = ("auto", *BACKENDS)

# The rule of 'auto', from the rows of `python -m benchmarks cpu_attention_rule`.
MOST_COMPUTED = 0.75  # share of a dense mask above which there is too little to save
LEAST_TOKENS = 256  # queries, below which the parts of a plan cost more than they save
MANY_KEYS = 512  # of several arrays, from which on their scores had better not be laid side by side
MOST_SCORES = 2**28  # of a sample, a GiB of them, above which they had better not exist all at once


def check_backend(name: str, platform: str, dtype, width: int) -> None:
    """ValueError of one line where a device, a dtype or a head of ``width`` numbers cannot have a backend.

    ``platform``: as JAX names it, 'cpu', 'gpu' or 'tpu'.
    """
    why = {each: LIMITED[each](platform, dtype, width) if each in LIMITED else None for each in NAMES}
    if why[name]:
        able = ", ".join(each for each in NAMES if not why[each])
        raise ValueError(f"model.backend is {name!r}: {why[name]}; there are {able}")


def attend(name: str, q_BTNHK, keys, values, mask):
    """Attention as the backend ``name`` computes it; arguments as ``reference``."""
    sizes = tuple(k.shape[1:3] for k in keys)
    chosen = choose(name, q_BTNHK.shape[1:3], sizes, mask, q_BTNHK.shape[3])
    return BACKENDS[chosen](q_BTNHK, keys, values, mask)


def choose(name: str, queries, sizes, mask, heads: int = 1) -> str:
    """The name of the backend that computes a call.

    'auto' takes 'blockwise' where there are more than MOST_SCORES; where the mask is static, there are LEAST_TOKENS
    queries, and the rectangles of its plan are at most MOST_COMPUTED of it; and where all of several arrays is seen
    that have MANY_KEYS, as in a stream whose ring is full. Else 'reference'.

    Args:
        queries: (frames, tokens of a frame); sizes: the same of every array of keys.
        heads: of the queries, over which a mesh may deal them out.
    """
    static = isinstance(mask, StaticMask)
    if frames_stay_split(heads):
        why, chosen = "frames are split over devices", "reference"
    elif name == "reference" or (static and name != "auto") or (name == "cudnn" and mask.shape[-2] == 1):
        return name
    elif not static:
        large = heads * np.prod(queries) * sum(np.prod(size) for size in sizes) > MOST_SCORES
        why = "densely, since the mask is computed while the program runs"
        chosen = "blockwise" if large or name != "auto" else "reference"
    else:
        why, chosen = _by_rule(tuple(queries), tuple(map(tuple, sizes)), mask, heads)
    _say(name, chosen, why, int(np.prod(queries)), sum(int(np.prod(size)) for size in sizes))
    return chosen


@functools.lru_cache(maxsize=256)
def _by_rule(queries, sizes, mask, heads):
    """(why, name) for 'auto'."""
    frames, tokens = queries
    keys = sum(int(np.prod(size)) for size in sizes)
    if mask.full and len(sizes) > 1 and keys >= MANY_KEYS:
        return f"{keys} keys of {len(sizes)} arrays are all seen", "blockwise"
    if frames * tokens < LEAST_TOKENS:
        return f"{frames * tokens} queries are few", "reference"
    pairs = sum(part.pairs * sizes[part.part][1] for part in plan(mask, tuple(s for s, _ in sizes), tokens).rectangles)
    if heads * frames * tokens * keys > MOST_SCORES:
        return f"{heads} x {frames * tokens} x {keys} scores are many", "blockwise"
    share = pairs / (frames * keys)
    chosen = "blockwise" if share <= MOST_COMPUTED else "reference"
    return f"{share:.0%} of a dense mask would be computed", chosen


@functools.lru_cache(maxsize=1024)
def _say(name, chosen, why, queries, keys):
    """Once for every kind of call."""
    log.info("attention of %d queries to %d keys: %s (%s; model.backend is %r)", queries, keys, chosen, why, name)


def within_frames(name, q_BTNHK, k_BTNHK, v_BTNHK):
    """Every token sees its own frame."""

    def one(q, k, v):  # mapped instead of folded into the batch: frames may be sharded
        return attend(name, q[:, None], [k[:, None]], [v[:, None]], StaticMask(np.ones((1, 1))))[:, 0]

    return jax.vmap(one, in_axes=1, out_axes=1)(q_BTNHK, k_BTNHK, v_BTNHK)


def along_cells(name, q_BTNHK, keys, values, mask):
    """Every token sees the tokens of its own cell in the frames that the mask shows; arguments as ``reference``."""

    def one(q, keys, values):
        keys, values = ([x[:, :, None] for x in xs] for xs in (keys, values))
        return attend(name, q[:, :, None], keys, values, mask)[:, :, 0]

    return jax.vmap(one, in_axes=2, out_axes=2)(q_BTNHK, keys, values)
