"""Only what is seen is computed: the rectangles of a static mask, merged by their softmax sums.

Over the rectangles r that a query sees keys in, with scores s = q k / sqrt(K),

    m_r = max s,   l_r = sum exp(s - m_r),   o_r = sum exp(s - m_r) v                                       (1)
    m = max_r m_r,   l = sum_r l_r exp(m_r - m),   out = sum_r o_r exp(m_r - m) / l                         (2)
    L = m + log l                                            (log-sum-exp over all that is seen)            (3)

The backward pass keeps q, k, v, out and L, and computes each rectangle's weights again (FlashAttention, Dao et al.
2022, arXiv 2205.14135, section 3.2), so that scores of one rectangle exist at a time:

    p = exp(s - L)   dv += p' dout   dp = dout v'   ds = p (dp - sum_K dout out)   dq += ds k   dk += ds' q  (4)

Where a rectangle has a mask of its own, s is -inf and ds is 0 at what it hides, and m_r is kept finite.

Sums and softmax are in float32, products take the dtype of q. Heads come first in memory, so that every product is one
of plain matrices. There is no forward-mode derivative; ``reference`` has one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.layout import StaticMask
from causal_diffusion.nn.attention_backends.rectangles import plan

LOWEST = -1e30  # of the largest score of a row: the row may see nothing in a rectangle


def blockwise(q_BTNHK, keys, values, mask: StaticMask):
    """As ``reference``, of a StaticMask, in time and memory for what it shows."""
    sizes = tuple(k.shape[1] for k in keys)
    q, *rest = (_heads_first(x) for x in (q_BTNHK, *keys, *values))
    out = _attend(mask, q_BTNHK.shape[1], sizes, q, tuple(rest[: len(keys)]), tuple(rest[len(keys) :]))
    return out.swapaxes(1, 2).reshape(q_BTNHK.shape)


def _heads_first(x_BTNHK):
    B, T, N, H, K = x_BTNHK.shape
    return x_BTNHK.reshape(B, T * N, H, K).swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(mask, frames, sizes, q_BHQK, keys, values):
    """Equations (1) and (2); keys and values are tuples of [B, H, S, K] of ``sizes`` frames each."""
    return _forward(mask, frames, sizes, q_BHQK, keys, values)[0]


def _forward(mask, frames, sizes, q, keys, values):
    N, scale, parts = q.shape[2] // frames, q.shape[-1] ** -0.5, []
    rectangles, runs = plan(mask, sizes, N)
    for rectangle in rectangles:
        queries = _rows(q * scale, rectangle, N)
        k, v = (_keys(x, rectangle, sizes) for x in (keys, values))
        score = _product("...qk,...sk->...qs", queries, k)
        m = jnp.max(score, axis=-1, keepdims=True)
        if rectangle.mask is not None:
            score = jnp.where(_shown(rectangle, score), score, -jnp.inf)
            m = jnp.maximum(jnp.max(score, axis=-1, keepdims=True), LOWEST)
        p = jnp.exp(score - m)
        part = (m, jnp.sum(p, axis=-1, keepdims=True), _product("...qs,...sk->...qk", p.astype(q.dtype), v))
        parts.append([_flat(x, rectangle) for x in part])
    outs, sums = [], []
    for run in runs:
        own = [[x[:, :, at * N : (at + run.end - run.start) * N] for x in parts[i]] for i, at in run.at]
        m = functools.reduce(jnp.maximum, (part[0] for part in own))
        if len(own) == 1:
            ((_, sum_, out),) = own
        else:
            weight = [jnp.exp(part[0] - m) for part in own]
            sum_ = sum(w * part[1] for w, part in zip(weight, own, strict=True))
            out = sum(w * part[2] for w, part in zip(weight, own, strict=True))
        outs.append((out / sum_).astype(q.dtype))
        sums.append(m + jnp.log(sum_))
    out = jnp.concatenate(outs, axis=2)
    return out, (q, keys, values, out, jnp.concatenate(sums, axis=2))


def _backward(mask, frames, sizes, kept, d_out):
    """Equation (4)."""
    q, keys, values, out, logsum = kept
    N, scale, dtype = q.shape[2] // frames, q.shape[-1] ** -0.5, q.dtype
    rectangles, runs = plan(mask, sizes, N)
    delta = jnp.sum(d_out.astype(jnp.float32) * out, axis=-1, keepdims=True)
    d_keys, d_values = ([jnp.zeros(x.shape, jnp.float32) for x in xs] for xs in (keys, values))
    d_queries = []
    for rectangle in rectangles:
        queries, d_o, shift, total = (_rows(x, rectangle, N) for x in (q * scale, d_out, logsum, delta))
        k, v = (_keys(x, rectangle, sizes) for x in (keys, values))
        p = jnp.exp(_product("...qk,...sk->...qs", queries, k) - shift)
        d_score = p * (_product("...qk,...sk->...qs", d_o, v) - total)
        if rectangle.mask is not None:
            shown = _shown(rectangle, p)
            p, d_score = jnp.where(shown, p, 0.0), jnp.where(shown, d_score, 0.0)
        d_score = d_score.astype(dtype)
        here, start, end = rectangle.part, *_tokens(rectangle.keys, keys[rectangle.part], sizes[rectangle.part])
        for sums, weight, by in ((d_keys, d_score, queries), (d_values, p.astype(dtype), d_o)):
            new = _flat(_product("...qs,...qk->...sk", weight, by), rectangle)
            sums[here] = sums[here].at[:, :, start:end].add(new)
        d_queries.append(_flat(scale * _product("...qs,...sk->...qk", d_score, k), rectangle))
    d_q = [
        sum(d_queries[i][:, :, at * N : (at + run.end - run.start) * N] for i, at in run.at).astype(dtype)
        for run in runs
    ]
    d_keys, d_values = (tuple(d.astype(x.dtype) for d, x in zip(ds, xs, strict=True))
                        for ds, xs in ((d_keys, keys), (d_values, values)))  # fmt: skip
    return jnp.concatenate(d_q, axis=2), d_keys, d_values


_attend.defvjp(_forward, _backward)


def _shown(rectangle, score):
    """The mask of a rectangle by token."""
    rows, keys = rectangle.mask.shape
    tokens = np.ones((score.shape[-2] // rows, score.shape[-1] // keys), bool)
    return np.kron(rectangle.mask.array, tokens)


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
