"""FoPP: random levels that never fall from a block to the next.

Frame-oriented probability propagation (AR-Diffusion, Sun et al. 2025, arXiv 2503.07418) draws levels t_0 <= t_1
<= ... <= t_{F-1} from {0, ..., K-1} for F blocks. It counts the monotone sequences that lead to level t at block f and
those that go on from there:

    e[t,f] = e[t-1,f] + e[t,f-1],   e[0,f] = e[t,0] = 1          so  e[t,f] = C(t + f, f)                       (1)
    s[t,f] = s[t+1,f] + s[t,f+1],   s[K-1,f] = s[t,F-1] = 1      so  s[t,f] = C(K-1-t + F-1-f, F-1-f)           (2)

The walks step by

    forward    P(t_f | t_{f-1})  =  s[t_f,f] / sum_{t >= t_{f-1}} s[t,f]  =  s[t_f,f] / s[t_{f-1},f-1]          (3)
    backward   P(t_f | t_{f+1})  =  e[t_f,f] / sum_{t <= t_{f+1}} e[t,f]  =  e[t_f,f] / e[t_{f+1},f+1]          (4)

where the sums are those of Pascal's triangle along a diagonal. The products telescope, which gives both laws:

    ``forward``    P(t_0, ..., t_{F-1}) = 1 / C(K+F-1, F): all sequences alike                                  (5)
    ``anchored``   a block c and its level are uniform, the others are walked to from there ("mid-sample"):
                   P(t_0, ..., t_{F-1}) = 1/(F K) sum_c 1 / (e[t_c,c] s[t_c,c])                                 (6)

Under (5) the t_f + f are the order statistics of F distinct numbers below K+F-1, so each block stays near its mean

    E t_f = (f+1) (K+F) / (F+1) - (f+1)                                                                         (7)

and hardly ever meets the ends. Under (6) every block meets every level: that is why the anchor is the usual choice.

The counts overflow float32 (C(1014, 15) is about 1e33, C(1062, 63) about 1e103), their logarithms do not: they come
from lgamma in float64 and are drawn from in float32.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any


@functools.lru_cache(maxsize=16)
def log_counts(levels: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """(log e, log s) of equations (1) and (2), float32 [blocks, levels] each."""
    K, F = levels, blocks
    log_factorial = np.array([math.lgamma(n + 1) for n in range(K + F)])

    def log_choose(t, f):
        return log_factorial[t + f] - log_factorial[t] - log_factorial[f]

    t, f = np.arange(K)[None, :], np.arange(F)[:, None]
    e, s = log_choose(t, f), log_choose(K - 1 - t, F - 1 - f)
    return e.astype(np.float32), s.astype(np.float32)


def forward(key: Array, levels: int, blocks: int) -> Array:
    """One sequence of law (5), int32 [blocks] with values in 0..levels-1."""
    grid = jnp.arange(levels, dtype=jnp.int32)

    def step(last, at):
        log_s, key = at
        return (_draw(key, log_s, grid >= last),) * 2

    log_s = jnp.asarray(log_counts(levels, blocks)[1])
    _, t = jax.lax.scan(step, jnp.int32(0), (log_s, jax.random.split(key, blocks)))
    return t


def anchored(key: Array, levels: int, blocks: int) -> Array:
    """One sequence of law (6), int32 [blocks] with values in 0..levels-1."""
    log_e, log_s = (jnp.asarray(table) for table in log_counts(levels, blocks))
    grid, block = (jnp.arange(n, dtype=jnp.int32) for n in (levels, blocks))
    which, where, walk = jax.random.split(key, 3)
    c = jax.random.randint(which, (), 0, blocks, jnp.int32)
    anchor = jax.random.randint(where, (), 0, levels, jnp.int32)

    # One walk serves both directions: steps 1..c go back to block 0, the others start again at the anchor and go on.
    def step(last, at):
        j, key = at
        back = j <= c
        last = jnp.where(j == c + 1, anchor, last)
        logits = jnp.where(back, log_e[jnp.maximum(c - j, 0)], log_s[j])
        return (_draw(key, logits, jnp.where(back, grid <= last, grid >= last)),) * 2

    _, t = jax.lax.scan(step, anchor, (block[1:], jax.random.split(walk, blocks - 1)))
    return jnp.concatenate([anchor[None], t])[jnp.where(block <= c, c - block, block)]


def _draw(key, logits, allowed):
    return jax.random.categorical(key, jnp.where(allowed, logits, -jnp.inf)).astype(jnp.int32)
