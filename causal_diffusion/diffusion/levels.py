"""Levels: how noisy each block is during training.

A clip of n blocks gets n times t in [0, 1]. One level has a ``density``,

    uniform           t ~ U(0, 1)
    logit_normal      t = sigmoid(mean + std z), z ~ N(0, 1)             (Esser et al. 2024, arXiv 2403.03206, eq. 19)
    edm_log_normal    t = 2/pi atan(sigma), ln sigma = mean + std z      (Karras et al. 2022, arXiv 2206.00364, table 1)

where sigma is in units of the data's standard deviation and clipped to [0.002, 80]: DIAMOND's ln sigma ~ N(-0.4, 1.2)
at data_std 0.5 has mean = -0.4 + ln 2. The blocks of a clip share it by ``kind``. Drawn for n = 6, with .9 for a level,
``c`` for a block shown as context, ``1`` for pure noise and brackets around what is scored:

    shared            [ .4 .4 .4 .4 .4 .4 ]   one level (full-sequence diffusion)
    independent       [ .7 .1 .9 .2 .4 .6 ]   every block alone (diffusion forcing, Chen et al. 2024, arXiv 2407.01392)
    sorted            [ .1 .2 .4 .6 .7 .9 ]   independent, then sorted
    fopp              [ .1 .1 .3 .3 .4 .8 ]   monotone, anchored at a random block (``fopp``, equation 6)
    fopp_forward      [ .1 .3 .4 .6 .7 .9 ]   monotone, all sequences alike (``fopp``, equation 5)
    uniform_future    [ .7 .1 .5 .5 .5 .5 ]   ``known`` = 2 blocks alone, the others share one (DFoT, arXiv 2502.06764)
    prefix              c [.6 .6] 1  1  1     ``chunk`` = 2 blocks behind a prefix of P, the others unavailable; P is
                        c  c  c [.6 .6] 1     uniform over known, known + prefix_stride, ... as far as
                                              the chunk fits (Ca2-VDM, arXiv 2411.16375)
    staircase         [.9] 1  1  1  1  1      a window of W = ``in_flight`` = 3 blocks (MAGI-1, arXiv 2505.13211), here
                      [.5 .9] 1  1  1  1      with u = 0.6, in each of its n + W - 1 places, which are equally likely:
                      [.2 .5 .9] 1  1  1      its block w has level (w + u)/W, u ~ U(0, 1), blocks behind it are clean
                        c [.2 .5 .9] 1  1     context, those ahead of it pure noise. A window that is not whole is a
                        c  c [.2 .5 .9] 1     stream that fills or drains. Block b is context with probability
                        c  c  c [.2 .5 .9]    (n-1-b)/(n+W-1), noise with b/(n+W-1), in flight with W/(n+W-1), and then
                        c  c  c  c [.2 .5]    its level is U(0, 1)
                        c  c  c  c  c [.2]

Every block of the first three and of uniform_future has ``density`` as its marginal (sorted: the blocks together; under
the uniform density block b is Beta(b+1, n-b)); fopp and staircase are laws of their own. Then levels are moved,

    t <- m t / (1 + (m - 1) t),  m = shift        (the shift of the linear path, Esser et al. 2024, eq. 23)          (1)
    t <- ceil(K t) / K,          K = grid         (the levels (i+1)/K, i = 0..K-1, of a process with K steps)        (2)

**Context.** Each block is with probability p = ``clean`` replaced by clean context (FAR, arXiv 2503.19325). Where all
of them would be, one of them, chosen uniformly, stays noisy: a clip always has something to score, and a block is
context with probability p - p^n/n. What the past looks like to the network is said by three settings, which apply to
context inside the noisy stream and to the separate clean copies of teacher forcing alike:

    level     ``context``, drawn from U(0, context) or always that one (``context_draw``)
    data      ``context_data``: noised to the level (a x0 + s eps), scaled (a x0) or clean (x0)
    told      ``context_label``: the level, or always ``context_label_at``, which may be a mark below 0

    system                              context  draw      data     label   label_at
    GameNGen (arXiv 2408.14837)         0.7      uniform   noised   level              told what was done
    DFoT (arXiv 2502.06764)             k        fixed     noised   level              history guidance at level k
    Ca2-VDM, step 100 of 1000           0.101    fixed     noised   fixed   0.0        noised, told it is clean
    Diffusion Forcing, step 14          0.015    fixed     scaled   level              dimmed, told it is noised
    Oasis, step 14                      0.015    fixed     clean    level              untouched, told it is noised
    FAR                                 0.0                clean    fixed   -0.001     a mark of its own (-1 of 1000)
    ACDiT (arXiv 2412.07720)            0.0                clean    fixed   0.0        and nothing is modulated by it
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.diffusion import fopp
from causal_diffusion.diffusion.process import PRESENTED
from causal_diffusion.ranges import POSITIVE, SHARE, SIZE, SIZE_OR_NONE, Range, check_numbers

Array = Any
EDM_SIGMAS = (2e-3, 80.0)  # what edm_log_normal is clipped to, in units of data_std
FOPP_LEVELS = 1000  # of FoPP where levels.grid is 0


class Drawn(NamedTuple):
    """Levels of the blocks of one clip, [blocks] each. Neither context nor scored: unavailable, at level 1."""

    t: Array  # float32; of a context block it is the level given to its data
    context: Array  # bool: shown as context inside the noisy stream
    scored: Array  # bool: enters the loss


@dataclasses.dataclass(frozen=True)
class Levels:
    """Joint distribution of the levels of a clip's blocks."""

    kind: str = "independent"  # a key of KINDS
    density: str = "uniform"  # a key of DENSITIES
    mean: float = 0.0  # of logit_normal, in logits; of edm_log_normal, of ln(sigma / data_std)
    std: float = 1.0  # likewise
    shift: float = 1.0  # m of equation (1)
    grid: int = 0  # K of equation (2); 0: levels are continuous (FoPP: FOPP_LEVELS of them)
    clean: float = 0.0  # probability that a block is replaced by clean context
    known: int = 1  # uniform_future: blocks with levels of their own; prefix: blocks of the shortest prefix
    prefix_stride: int = 1  # prefix: blocks between one length and the next
    chunk: int = 1  # prefix: blocks behind it that share a level and are scored
    in_flight: int = 4  # staircase: blocks of a whole window
    context: float = 0.0  # largest level of context
    context_draw: str = "uniform"  # a key of CONTEXT_DRAWS
    context_data: str = "noised"  # one of process.PRESENTED, what ``Process.show`` does to the data
    context_label: str = "level"  # a key of CONTEXT_LABELS
    context_label_at: float = 0.0  # what a 'fixed' label says

    def __post_init__(self):
        for name, table in CHOICES.items():
            if getattr(self, name) not in table:
                raise ValueError(f"levels.{name} is {getattr(self, name)!r}; it is one of {', '.join(table)}")
        check_numbers(
            self, "levels", mean=Range(-100, 100), std=Range(0, 100, open_low=True), shift=POSITIVE,
            grid=Range(0, 100_000), clean=SHARE, known=SIZE_OR_NONE, prefix_stride=SIZE, chunk=SIZE, in_flight=SIZE,
            context=SHARE, context_label_at=Range(-1, 1),
        )  # fmt: skip
        self._check_pairs()

    def _check_pairs(self):
        if self.kind in OWN_LAW and self.density != "uniform":
            self._refuse("kind", "density", "this kind has a law of its own", "density = 'uniform'")
        if self.kind in PLACED and self.clean:
            self._refuse("kind", "clean", "this kind says itself which blocks are clean", "clean = 0.0")
        if self.kind == "uniform_future" and not self.known:
            self._refuse("kind", "known", "all blocks would share a level", "known = 1")
        if self.density == "edm_log_normal" and self.shift != 1.0:
            why = "the shift is that of the linear path, here levels.mean moves sigma"
            self._refuse("density", "shift", why, "shift = 1.0")
        if self.context_label == "level" and self.context_label_at:
            self._refuse("context_label", "context_label_at", "nobody would be told", "context_label = 'fixed'")
        if self.context and self.context_data == "clean" and self.context_label == "fixed":
            why = "with a fixed levels.context_label nobody would meet that level"
            self._refuse("context", "context_data", why, "context = 0.0")

    def _refuse(self, one, other, why, instead):
        values = f"levels.{one} is {getattr(self, one)!r} and levels.{other} is {getattr(self, other)!r}"
        raise ValueError(f"{values}: {why}; levels.{instead} would do")

    def check(self, blocks: int) -> None:
        """ValueError where a clip of that many blocks cannot have levels of this kind."""
        if self.kind == "uniform_future" and self.known >= blocks:
            instead = f"known = {blocks - 1}" if blocks > 1 else "kind = 'shared'"
            self._refuse("kind", "known", f"of the clip's {blocks} blocks none would be future", instead)
        if self.kind == "prefix" and self.known + self.chunk > blocks:
            chunk = min(self.chunk, blocks)
            instead = f"chunk = {blocks - self.known}" if self.known < blocks else f"known = {blocks - chunk}"
            if self.known >= blocks and self.chunk > blocks:
                instead = f"known = 0 with levels.chunk = {chunk}"
            self._refuse("known", "chunk", f"they do not fit a clip of {blocks} blocks", instead)

    @property
    def monotone(self) -> bool:
        """From a block to the next, context aside, the level never falls."""
        return self.kind in MONOTONE

    @property
    def has_context(self) -> bool:
        """The noisy stream has blocks that are shown as context."""
        return self.clean > 0.0 or self.kind in PLACED

    @property
    def shows_clean_past(self) -> bool:
        """A noisy stream alone shows blocks behind cleaner ones, as streaming block after block does."""
        return self.kind != "shared" or self.has_context

    def sample(self, key: Array, blocks: int) -> Drawn:
        """Levels of the noisy stream of one clip; pure, to be mapped over keys.

        Raises:
            ValueError: as ``check``.
        """
        self.check(blocks)
        draw = KINDS[self.kind]
        if not self.has_context:
            return Drawn(self._move(draw(self, key, blocks)), jnp.zeros(blocks, bool), jnp.ones(blocks, bool))
        noisy, shown, context = jax.random.split(key, 3)
        if self.kind in PLACED:
            t, is_context, scored = draw(self, noisy, blocks)
        else:
            t, is_context = draw(self, noisy, blocks), self._replaced(shown, blocks)
            scored = ~is_context
        return Drawn(jnp.where(is_context, self.sample_context(context, blocks), self._move(t)), is_context, scored)

    def sample_context(self, key: Array, blocks: int) -> Array:
        """Levels given to context, such as the separate clean copies of one clip, float32 [blocks]."""
        return CONTEXT_DRAWS[self.context_draw](self, key, blocks)

    def context_told(self, label: Array) -> Array:
        """What the network is told of context whose own level would have this label."""
        return CONTEXT_LABELS[self.context_label](self, label)

    def _move(self, t):
        """Equations (1) and (2)."""
        if self.shift != 1.0:
            t = t / (t + (1.0 - t) / self.shift)  # this form maps 1 to 1 without rounding
        if self.grid:
            t = _steps(self.grid)[jnp.clip(jnp.ceil(t * self.grid), 1, self.grid).astype(jnp.int32)]
        return t

    def _replaced(self, key, blocks):
        flip, pick = jax.random.split(key)
        clean = jax.random.uniform(flip, (blocks,)) < self.clean
        spared = jnp.arange(blocks, dtype=jnp.int32) == jax.random.randint(pick, (), 0, blocks)
        return clean & ~(jnp.all(clean) & spared)


def _uniform(levels, key, shape):
    del levels
    return jax.random.uniform(key, shape)


def _logit_normal(levels, key, shape):
    return jax.nn.sigmoid(levels.mean + levels.std * jax.random.normal(key, shape))


def _edm_log_normal(levels, key, shape):
    low, high = (math.log(sigma) for sigma in EDM_SIGMAS)
    log_sigma = jnp.clip(levels.mean + levels.std * jax.random.normal(key, shape), low, high)
    return (2.0 / math.pi) * jnp.arctan(jnp.exp(log_sigma))


def _independent(levels, key, blocks):
    return DENSITIES[levels.density](levels, key, (blocks,))


def _shared(levels, key, blocks):
    return jnp.broadcast_to(DENSITIES[levels.density](levels, key, ()), (blocks,))


def _sorted(levels, key, blocks):
    return jnp.sort(_independent(levels, key, blocks))


def _uniform_future(levels, key, blocks):
    t = _independent(levels, key, blocks)
    return jnp.where(jnp.arange(blocks, dtype=jnp.int32) < levels.known, t, t[levels.known])


def _fopp(draw):
    def kind(levels, key, blocks):
        count = levels.grid or FOPP_LEVELS
        i = draw(key, count, blocks)
        # On a grid the middle of the step is handed on, so that rounding cannot push (2) to the next one.
        return (i + 0.5) / count if levels.grid else _steps(count)[i + 1]

    return kind


def _steps(count):
    """0, 1/K, ..., 1 correctly rounded: compiled, a division by K becomes a product that may miss 1."""
    return jnp.asarray(np.arange(count + 1) / count, jnp.float32)


def _prefix(levels, key, blocks):
    length, level = jax.random.split(key)
    lengths = (blocks - levels.chunk - levels.known) // levels.prefix_stride + 1
    start = levels.known + levels.prefix_stride * jax.random.randint(length, (), 0, lengths)
    place = jnp.arange(blocks, dtype=jnp.int32) - start
    scored = (place >= 0) & (place < levels.chunk)
    return jnp.where(scored, _shared(levels, level, blocks), 1.0), place < 0, scored


def _staircase(levels, key, blocks):
    where, phase = jax.random.split(key)
    W = levels.in_flight
    place = jnp.arange(blocks, dtype=jnp.int32) - jax.random.randint(where, (), 1 - W, blocks)
    scored = (place >= 0) & (place < W)
    return jnp.where(scored, (place + jax.random.uniform(phase)) / W, 1.0), place < 0, scored


def _context_uniform(levels, key, blocks):
    return levels.context * jax.random.uniform(key, (blocks,))


def _context_fixed(levels, key, blocks):
    del key
    return jnp.full((blocks,), levels.context, jnp.float32)


DENSITIES = {"uniform": _uniform, "logit_normal": _logit_normal, "edm_log_normal": _edm_log_normal}
KINDS = {
    "independent": _independent,
    "shared": _shared,
    "sorted": _sorted,
    "fopp": _fopp(fopp.anchored),
    "fopp_forward": _fopp(fopp.forward),
    "uniform_future": _uniform_future,
    "prefix": _prefix,
    "staircase": _staircase,
}
PLACED = ("prefix", "staircase")  # kinds that return (t, context, scored) instead of t
OWN_LAW = ("fopp", "fopp_forward", "staircase")  # kinds without a density
MONOTONE = ("shared", "sorted", "fopp", "fopp_forward", "prefix", "staircase")
CONTEXT_DRAWS = {"uniform": _context_uniform, "fixed": _context_fixed}
CONTEXT_LABELS = {
    "level": lambda levels, t: t,
    "fixed": lambda levels, t: jnp.full_like(t, levels.context_label_at),
}
CHOICES = {
    "kind": KINDS,
    "density": DENSITIES,
    "context_draw": CONTEXT_DRAWS,
    "context_data": PRESENTED,
    "context_label": CONTEXT_LABELS,
}
