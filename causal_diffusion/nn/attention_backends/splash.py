"""Splash attention on TPUs: a kernel that walks over the tiles of a mask and skips those in which nothing is seen.

The mask of a tile that is seen in part is computed inside the kernel, not read: a query carries what it sees as one
number, two ranges of blocks of keys with seven bits for each end, which every layout with at most 127 blocks fits::

    bits    27 .. 21   20 .. 14   13 .. 7   6 .. 0
            start      end        start     end          of keys: block = token / tokens of a block

Where that is not enough, tiles are cut out of the mask by frame as they are needed, and read by the kernel. Never is
there an array of all queries by all keys.

Lengths are padded to whole tiles: further keys are seen by nobody, further queries see what the first one does. On a
mesh the kernel runs under ``shard_map`` over samples and heads.

The kernel is that of ``jax.experimental.pallas.ops.tpu.splash_attention``.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import PartitionSpec

from causal_diffusion.cache import heads_first
from causal_diffusion.layout import StaticMask
from causal_diffusion.nn.attention_backends.rectangles import ranges
from causal_diffusion.parallel.activations import spec_of

TILES = (512, 256, 128)  # tokens; the largest that pads at most an eighth
BITS = 7  # for each end of a range


def splash(q_BTNHK, keys, values, mask: StaticMask, interpret: bool = False):
    """As ``reference``, of a StaticMask; ``interpret``: the kernel runs step by step, on any device."""
    B, T, N, H, K = q_BTNHK.shape
    widths = tuple((k.shape[1], k.shape[2]) for k in keys)
    q = heads_first(q_BTNHK * K**-0.5)
    k, v = (jnp.concatenate([heads_first(x) for x in xs], axis=2) for xs in (keys, values))
    S, shape = k.shape[2], q.shape
    tiles = tuple(next((t for t in TILES if -n % t <= n / 8), TILES[-1]) for n in (q.shape[2], S))
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % tile), (0, 0)))
               for x, tile in zip((q, k, v), (tiles[0], tiles[1], tiles[1]), strict=True))  # fmt: skip

    def attend(q, k, v):
        kernel = _kernel(mask, N, widths, (q.shape[2], k.shape[2]), tiles, q.shape[1], interpret)
        return jax.vmap(kernel)(q, k, v)

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:  # the compiler cannot split a kernel by itself
        whole = ("batch", "heads") if mesh.shape.get("context", 1) == 1 else ("batch", "all heads")
        spec = PartitionSpec(*spec_of(shape, whole, mesh))
        attend = jax.shard_map(attend, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    return attend(q, k, v)[:, :, : T * N].swapaxes(1, 2).reshape(B, T, N, H, K)


def unsupported(platform: str, dtype, width: int) -> str | None:
    """Why a device, a dtype or a head of ``width`` numbers cannot have it; None: they can."""
    return None if platform == "tpu" else f"it runs on TPUs, and this is {platform}"


@functools.lru_cache(maxsize=32)
def _kernel(mask, tokens, widths, padded, tiles, heads, interpret):
    by_token = tokens_mask(mask, tokens, widths, padded)
    block_q, block_k = tiles
    sizes = splash_attention_kernel.BlockSizes(
        block_q=block_q, block_kv=block_k, block_kv_compute=block_k, block_q_dkv=block_q, block_kv_dkv=block_k,
        block_kv_dkv_compute=block_k, block_q_dq=block_q, block_kv_dq=block_k,
    )  # fmt: skip
    with jax.ensure_compile_time_eval():  # its tables outlive the trace that asks for them first
        return splash_attention_kernel.make_splash_mha(
            splash_attention_mask.MultiHeadMask([by_token] * heads),
            block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret,
        )  # fmt: skip


def tokens_mask(mask: StaticMask, tokens: int, widths, padded):
    """A mask by frame as the kernel takes it, by token.

    Args:
        mask: [T, S].
        tokens: of a query frame; widths: (frames, tokens of a frame) of each array of keys.
        padded: queries and keys in tokens, with what fills up the tiles.
    """
    rows = np.minimum(np.arange(padded[0]) // tokens, len(mask.array))  # from T on: what fills up
    columns = np.concatenate([[0], *(np.repeat([m], s) for s, m in widths)]).cumsum()
    unit = math.gcd(*_borders(mask.array, columns))
    starts = np.searchsorted(columns, np.arange(0, columns[-1], unit), side="right") - 1
    blocks = mask.array[:, starts]
    seen = [ranges(row) for row in blocks]
    if blocks.shape[1] < 2**BITS and max(map(len, seen)) <= 2:
        codes = [_code(of) for of in seen]
        return Computed(padded, np.array([*codes, codes[0]], np.int32)[rows], unit)
    return Cut(padded, np.concatenate([mask.array, mask.array[:1]]), rows, columns)


def _borders(array, columns):
    """Tokens of the keys at which any query begins or ceases to see, and their end."""
    change = 1 + np.flatnonzero(np.any(array[:, 1:] != array[:, :-1], axis=0))
    return [int(columns[-1]), *map(int, columns[change])]


def _code(seen):
    (a, b), (c, d) = (*seen, (0, 0))[:2]
    return ((a << BITS | b) << BITS | c) << BITS | d


class Computed(splash_attention_mask._ComputableMask):
    """A mask that the kernel computes from the numbers that queries carry."""

    def __init__(self, shape, codes, unit):
        low = 2**BITS - 1

        def shown(code, key):
            # Keys are not negative: no sign has to be looked at, for which the kernel has no instruction.
            block = key // unit if isinstance(key, np.ndarray) else jax.lax.div(key, jnp.full_like(key, unit))
            a, b, c, d = (code >> shift & low for shift in (3 * BITS, 2 * BITS, BITS, 0))
            return ((block >= a) & (block < b)) | ((block >= c) & (block < d))

        super().__init__(shape, shown)
        self.q_sequence, self.unit = codes, unit

    def __eq__(self, other):
        alike = isinstance(other, Computed) and (self.shape, self.unit) == (other.shape, other.unit)
        return alike and np.array_equal(self.q_sequence, other.q_sequence)

    def __hash__(self):
        return hash((self.shape, self.unit, self.q_sequence.tobytes()))


class Cut(splash_attention_mask.Mask):
    """A mask by token of which any part is cut out of the one by frame."""

    def __init__(self, shape, array, rows, columns):
        self._shape, self._array, self._rows, self._columns = shape, array, rows, columns

    @property
    def shape(self):
        return self._shape

    def __getitem__(self, at):
        rows, keys = self._rows[at[0]], np.arange(self._shape[1])[at[1]]
        frames = np.searchsorted(self._columns, keys, side="right") - 1
        real = frames < self._array.shape[1]
        return self._array[np.ix_(rows, np.where(real, frames, 0))] & real

    def __eq__(self, other):
        return self is other

    def __hash__(self):
        return id(self)
