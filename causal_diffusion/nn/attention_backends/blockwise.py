"""Only what is seen is computed: the rectangles of a static mask, merged by their softmax sums.

Over the rectangles r that a query sees keys in, with scores s = q k / sqrt(K),

    m_r = max s,   l_r = sum exp(s - m_r),   o_r = sum exp(s - m_r) v                                       (1)
    m = max_r m_r,   l = sum_r l_r exp(m_r - m),   out = sum_r o_r exp(m_r - m) / l                         (2)
    L = m + log l                                            (log-sum-exp over all that is seen)            (3)

The backward pass keeps q, k, v, out and L, and computes each rectangle's weights again (FlashAttention, Dao et al.
2022, arXiv 2205.14135, section 3.2), so that scores of one rectangle exist at a time, and of a large one those of some
of its rows:

    p = exp(s - L)   dv += p' dout   dp = dout v'   ds = p (dp - sum_K dout out)   dq += ds k   dk += ds' q  (4)

Where a rectangle has a mask of its own, s is -inf and ds is 0 at what it hides, and m_r is kept finite.

Sums and softmax are in float32, products take the dtype of q. Heads come first in memory, so that every product is one
of plain matrices. There is no forward-mode derivative; ``reference`` has one.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.cache import heads_first
from causal_diffusion.layout import StaticMask
from causal_diffusion.nn.attention_backends.rectangles import LEAST_ROWS, plan
from causal_diffusion.nn.attention_backends.reference import reference
from causal_diffusion.parallel import activations

MOST_SCORES = 2**26  # that exist at once on a device, over samples and heads: 256 MiB
LOWEST = -1e30  # of the largest score of a row: the row may see nothing in a rectangle


def blockwise(q_BTNHK, keys, values, mask):
    """As ``reference``; of a StaticMask in time and memory for what it shows, of another one in memory for a part."""
    if not isinstance(mask, StaticMask):
        return _by_queries(q_BTNHK, keys, values, mask)
    sizes = tuple(k.shape[1] for k in keys)
    q, *rest = (heads_first(x) for x in (q_BTNHK, *keys, *values))
    out = _attend(mask, q_BTNHK.shape[1], sizes, q, tuple(rest[: len(keys)]), tuple(rest[len(keys) :]))
    return out.swapaxes(1, 2).reshape(q_BTNHK.shape)


def _by_queries(q_BTNHK, keys, values, mask):
    """``reference`` of some query frames at a time, all of which is computed again for the backward pass."""
    B, T, N, H, _ = q_BTNHK.shape
    scores = T * N * sum(k.shape[1] * k.shape[2] for k in keys)
    chunks = _chunks((B, H), scores, T, 1)
    if chunks == 1:
        return reference(q_BTNHK, keys, values, mask)
    some = jax.checkpoint(lambda now: reference(now[0], keys, values, now[1]))
    cut = (jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)
           for x in (q_BTNHK, jnp.broadcast_to(mask, (B, T, mask.shape[-1]))))  # fmt: skip
    out = jax.lax.map(some, tuple(cut))
    return jnp.moveaxis(out, 0, 1).reshape(q_BTNHK.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(mask, frames, sizes, q_BHQK, keys, values):
    """Equations (1) and (2); keys and values are tuples of [B, H, S, K] of ``sizes`` frames each."""
    return _forward(mask, frames, sizes, q_BHQK, keys, values)[0]


def _forward(mask, frames, sizes, q, keys, values):
    N, scale, parts = q.shape[2] // frames, q.shape[-1] ** -0.5, []
    rectangles, runs = plan(mask, sizes, N)
    for rectangle in rectangles:
        queries, (k, v) = _rows(q * scale, rectangle, N), (_keys(x, rectangle, sizes) for x in (keys, values))
        chunks = _chunks_of(queries, k)

        def sums(queries, shown, k=k, v=v):
            score = _product("...qk,...sk->...qs", queries, k)
            if shown is None:
                m = jnp.max(score, axis=-1, keepdims=True)
            else:
                score = jnp.where(shown, score, -jnp.inf)
                m = jnp.maximum(jnp.max(score, axis=-1, keepdims=True), LOWEST)
            p = jnp.exp(score - m)
            return m, jnp.sum(p, axis=-1, keepdims=True), _product("...qs,...sk->...qk", p.astype(v.dtype), v)

        given = _cut_up((queries, _shown(rectangle, queries, k, N)), chunks)
        part = sums(*given) if chunks == 1 else _joined(jax.lax.map(lambda now: sums(*now), given))
        parts.append([_flat(x, rectangle) for x in part])
    outs, logs = [], []
    for run in runs:
        own = [[x[:, :, at * N : (at + run.end - run.start) * N] for x in parts[i]] for i, at in run.at]
        m = functools.reduce(jnp.maximum, (part[0] for part in own))
        if len(own) == 1:
            ((_, total, out),) = own
        else:
            weight = [jnp.exp(part[0] - m) for part in own]
            total = sum(w * part[1] for w, part in zip(weight, own, strict=True))
            out = sum(w * part[2] for w, part in zip(weight, own, strict=True))
        outs.append((out / total).astype(q.dtype))
        logs.append(m + jnp.log(total))
    out = jnp.concatenate(outs, axis=2)
    return out, (q, keys, values, out, jnp.concatenate(logs, axis=2))


def _backward(mask, frames, sizes, kept, d_out):
    """Equation (4)."""
    q, keys, values, out, logsum = kept
    N, scale, dtype = q.shape[2] // frames, q.shape[-1] ** -0.5, q.dtype
    rectangles, runs = plan(mask, sizes, N)
    delta = jnp.sum(d_out.astype(jnp.float32) * out, axis=-1, keepdims=True)
    d_keys, d_values = ([jnp.zeros(x.shape, jnp.float32) for x in xs] for xs in (keys, values))
    d_queries = []
    for rectangle in rectangles:
        rows = tuple(_rows(x, rectangle, N) for x in (q * scale, d_out, logsum, delta))
        k, v = (_keys(x, rectangle, sizes) for x in (keys, values))
        chunks = _chunks_of(rows[0], k)

        def slopes(queries, d_o, shift, total, shown, k=k, v=v):
            p = jnp.exp(_product("...qk,...sk->...qs", queries, k) - shift)
            d_score = p * (_product("...qk,...sk->...qs", d_o, v) - total)
            if shown is not None:
                p, d_score = jnp.where(shown, p, 0.0), jnp.where(shown, d_score, 0.0)
            p, d_score = p.astype(dtype), d_score.astype(dtype)
            d_k, d_v = (_product("...qs,...qk->...sk", *pair) for pair in ((d_score, queries), (p, d_o)))
            return scale * _product("...qs,...sk->...qk", d_score, k), (d_k, d_v)

        def more(sums, now, slopes=slopes):
            d_q, own = slopes(*now)
            return jax.tree.map(jnp.add, sums, own), d_q

        given = _cut_up((*rows, _shown(rectangle, rows[0], k, N)), chunks)
        if chunks == 1:
            d_q, d_kv = slopes(*given)
        else:
            d_kv, d_q = jax.lax.scan(more, tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v)), given)
            d_q = _joined(d_q)
        here, start, end = rectangle.part, *_tokens(rectangle.keys, keys[rectangle.part], sizes[rectangle.part])
        for sums, new in zip((d_keys, d_values), d_kv, strict=True):
            sums[here] = sums[here].at[:, :, start:end].add(_flat(new, rectangle))
        d_queries.append(_flat(d_q, rectangle))
    d_q = [
        sum(d_queries[i][:, :, at * N : (at + run.end - run.start) * N] for i, at in run.at).astype(dtype)
        for run in runs
    ]
    d_keys, d_values = (tuple(d.astype(x.dtype) for d, x in zip(ds, xs, strict=True))
                        for ds, xs in ((d_keys, keys), (d_values, values)))  # fmt: skip
    return jnp.concatenate(d_q, axis=2), d_keys, d_values


_attend.defvjp(_forward, _backward)


def _chunks(many, scores, rows, least):
    """Into how many equal parts rows are cut, so that at most MOST_SCORES exist at once on a device.

    ``many``: (samples, heads) with as many ``scores`` each; ``least``: rows of a part, below which products are slow.
    """
    scores = scores * math.prod(many) // activations.parts(many, "batch", "all heads")
    divisors = [n for n in range(1, max(1, rows // least) + 1) if rows % n == 0]
    return next((n for n in divisors if scores <= n * MOST_SCORES), divisors[-1])


def _chunks_of(queries, keys):
    """Those of a rectangle's rows, of every one of its squares."""
    squares, rows = math.prod(queries.shape[2:-2]), queries.shape[-2]
    return _chunks(queries.shape[:2], squares * rows * keys.shape[-2], rows, LEAST_ROWS)


def _cut_up(xs, chunks):
    """[..., q, K] each -> [chunks, ..., q / chunks, K]; as they are where that is one, and None stays."""
    if chunks == 1:
        return xs
    return tuple(
        None if x is None else jnp.moveaxis(x.reshape(*x.shape[:-2], chunks, -1, x.shape[-1]), -3, 0) for x in xs
    )


def _joined(xs):
    """Back again, of a tree."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -3).reshape(*x.shape[1:-2], -1, x.shape[-1]), xs)


def _shown(rectangle, queries, keys, tokens):
    """The mask of a rectangle by token, or None; ``tokens``: of a query frame."""
    if rectangle.mask is None:
        return None
    rows, columns = rectangle.mask.shape
    by_token = np.kron(rectangle.mask.array, np.ones((tokens, keys.shape[-2] // columns), bool))
    return np.tile(by_token, (queries.shape[-2] // (rows * tokens), 1))


def _product(form, a, b):
    return jnp.einsum(form, a, b, preferred_element_type=jnp.float32)


def _tokens(frames, x_BHSK, size):
    """A range of frames of an array of ``size`` frames as one of tokens."""
    tokens = x_BHSK.shape[2] // size
    return frames[0] * tokens, frames[1] * tokens


def _rows(x_BHQK, rectangle, tokens):
    """The queries of a rectangle, [B, H, (squares,) q, K]."""
    parts = [x_BHQK[:, :, start * tokens : end * tokens] for start, end in rectangle.rows]
    return _cut(parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=2), rectangle)


def _keys(xs, rectangle, sizes):
    """Its keys or values, [B, H, (squares,) s, K]."""
    x = xs[rectangle.part]
    start, end = _tokens(rectangle.keys, x, sizes[rectangle.part])
    return _cut(x[:, :, start:end], rectangle)


def _cut(x, rectangle):
    return x if rectangle.squares == 1 else x.reshape(*x.shape[:2], rectangle.squares, -1, x.shape[-1])


def _flat(x, rectangle):
    return x if rectangle.squares == 1 else x.reshape(*x.shape[:2], -1, x.shape[-1])
