"""Guidance: which extra predictions are mixed in.

The network is run once per *branch*, all branches in one batch (an axis right behind the sample axis), and its
outputs are mixed with weights that sum to one at every level. A branch hides conditions, noises the past or hides part
of it. Outputs in x0, noise or velocity space mix alike, since at given (x, t) each is an affine function of the others
with the same coefficients for every branch. With c the prediction that knows everything, u one without conditions, n
one without a past (and, with ``history_drop``, without conditions), h(k) one whose past is noised to level k, h_i one
that sees the last l_i frames of the past only:

    none                 c
    cfg                  u + w (c - u)                         (Ho & Salimans 2022, arXiv 2207.12598, eq. 6)     (1)
    cfg_added            c + w (c - u), (1) with w + 1         (how papers on distillation quote it)             (2)
    history              n + w (c - n)                         (HG-v, Song et al. 2025, arXiv 2502.06764)        (3)
    history_temporal     n + sum_i w_i (h_i - n)               (HG-t)                                            (4)
    history_fractional   n + (c - n) + (w - 1) (h(k) - n)      (HG-f)                                            (5)
    three_way            (1 - p) n' + (p - w) u + w c          (MAGI-1, arXiv 2505.13211), n' without either     (6)

As weights, and as calls of the network per step (NFE; a weight of zero is no call):

                         c        u        n          h            NFE
    cfg                  w        1 - w                            2
    cfg_added            1 + w    -w                               2
    history              w                 1 - w                   2
    history_temporal                       1 - sum w  w_i each     1 + lengths
    history_fractional   1                 1 - w      w - 1        3
    three_way            w        p - w    1 - p                   3

Stabilised history guidance shows generated frames at a small level in every branch: that is ``cache.commit_level``.

At levels outside ``interval`` a mix falls back to c (Kynkäänniemi et al. 2024, arXiv 2404.07724), three_way to u, as
MAGI-1 does at low noise. ``rescale`` pulls the spread of the mix m back to that of c (Lin et al. 2023, arXiv
2305.08891, eq. 15 and 16), frame by frame, since every frame has its own level:

    m <- f m std(c)/std(m) + (1 - f) m,   f = rescale                                                            (7)

``observe`` then steers the mix towards known values by the gradient of a loss on its clean data, at every level: see
``diffusion.steering``. It costs a backward pass through all branches.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp

from causal_diffusion.diffusion.steering import OBSERVED
from causal_diffusion.ranges import INSIDE, SHARE, SIZE, WEIGHT, Range, check_numbers

Array = Any
SCALE = Range(-1_000, 1_000)  # negative: away from the condition


class Branch(NamedTuple):
    """One prediction: what is hidden from it, and its weight in the mix."""

    drop: tuple[str, ...]  # conditions hidden
    weight: float  # at levels inside Guidance.interval
    level: float = 0.0  # the past is noised to at least this level
    past: int = -1  # frames of the past that it sees; -1: all
    outside: float = 0.0  # weight at levels outside the interval


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How predictions are mixed."""

    kind: str = "none"  # a key of KINDS
    scale: float = 1.0  # w
    drop: tuple[str, ...] = ("label", "text")  # conditions hidden from the unconditional branch
    interval: tuple[float, ...] = (0.0, 1.0)  # levels at which there is guidance
    rescale: float = 0.0  # f of equation (7)
    history_scale: float = 1.0  # p of three_way
    history_drop: bool = False  # the branch without a past hides conditions, too
    level: float = 0.5  # k of history_fractional
    lengths: tuple[int, ...] = ()  # l_i of history_temporal, in frames
    scales: tuple[float, ...] = ()  # w_i of history_temporal
    observe: str = "none"  # how known values steer, a key of OBSERVED
    observe_scale: float = 1.0  # w of steering
    observe_std: float = 0.0  # of 'gaussian': standard deviation of the values' error, in units of the data
    observe_levels: tuple[float, ...] = ()  # k of 'quantile', taken by samples in turn; (): spread over the batch

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"guidance.kind is {self.kind!r}; it is one of {', '.join(KINDS)}")
        for name in self.drop:
            if name not in CONDITIONS:
                raise ValueError(f"guidance.drop has {name!r}; conditions are {', '.join(CONDITIONS)}")
        check_numbers(
            self, "guidance", scale=SCALE, interval=SHARE, rescale=SHARE, history_scale=SCALE, level=SHARE,
            lengths=SIZE, scales=Range(-1_000, 1_000), observe_scale=WEIGHT, observe_std=WEIGHT, observe_levels=INSIDE,
        )  # fmt: skip
        if len(self.interval) != 2 or not self.interval[0] < self.interval[1]:
            raise ValueError(f"guidance.interval is {self.interval}; it is two rising levels in [0, 1]")
        if len(self.lengths) != len(self.scales):
            raise ValueError(
                f"guidance.lengths is {self.lengths} and guidance.scales is {self.scales}: one weight for every "
                f"length; guidance.scales = {(1.0,) * len(self.lengths)} would do"
            )
        if bool(self.lengths) != (self.kind == "history_temporal"):
            lengths, scales = ((1,), (1.0,)) if not self.lengths else ((), ())
            raise ValueError(
                f"guidance.lengths is {self.lengths} and guidance.kind is {self.kind!r}: 'history_temporal' has them, "
                f"and no other; guidance.lengths = {lengths} with guidance.scales = {scales} would do"
            )

        self._check_observed()

    def _check_observed(self):
        if self.observe not in OBSERVED:
            raise ValueError(f"guidance.observe is {self.observe!r}; it is one of {', '.join(OBSERVED)}")
        for name, form, unset in (("observe_std", "gaussian", 0.0), ("observe_levels", "quantile", ())):
            if getattr(self, name) != unset and self.observe != form:
                raise ValueError(
                    f"guidance.{name} is {getattr(self, name)} and guidance.observe is {self.observe!r}: only {form!r} "
                    f"reads it; guidance.{name} = {unset} would do"
                )

    def branches(self) -> tuple[Branch, ...]:
        """The branches that count, the one that knows most first."""
        everywhere = self.interval == (0.0, 1.0)
        return tuple(b for b in KINDS[self.kind](self) if b.weight or b.outside and not everywhere)


def mix(out: Array, guidance: Guidance, t: Array) -> Array:
    """The mixed prediction.

    Args:
        out: outputs of all branches, [B, G, T, ...].
        t: levels, [B, T].

    Returns:
        float32 [B, T, ...].
    """
    branches = guidance.branches()
    if len(branches) == 1:
        return out[:, 0]
    wide = t.reshape(t.shape + (1,) * (out.ndim - 3))
    inside = (guidance.interval[0] <= wide) & (wide <= guidance.interval[1])
    mixed = 0.0
    for g, branch in enumerate(branches):
        weight = branch.weight
        if guidance.interval != (0.0, 1.0):
            weight = jnp.where(inside, branch.weight, branch.outside)
        mixed = mixed + weight * out[:, g]
    mixed = mixed.astype(jnp.float32)
    if guidance.rescale:
        axes = tuple(range(2, mixed.ndim))
        spread = jnp.std(mixed, axis=axes, keepdims=True)
        ratio = jnp.std(out[:, 0], axis=axes, keepdims=True) / jnp.where(spread > 0.0, spread, 1.0)
        mixed = mixed * (guidance.rescale * ratio + 1.0 - guidance.rescale)
    return mixed


def _alone(g, weight, outside=0.0):
    """Without a past."""
    return Branch(g.drop if g.history_drop else (), weight, past=0, outside=outside)


def _none(g):
    del g
    return (Branch((), 1.0, outside=1.0),)


def _cfg(g):
    return Branch((), g.scale, outside=1.0), Branch(g.drop, 1.0 - g.scale)


def _cfg_added(g):
    return Branch((), 1.0 + g.scale, outside=1.0), Branch(g.drop, -g.scale)


def _history(g):
    return Branch((), g.scale, outside=1.0), _alone(g, 1.0 - g.scale)


def _history_temporal(g):
    seen = tuple(Branch((), w, past=length) for length, w in zip(g.lengths, g.scales, strict=True))
    # Outside the interval the longest history stands for the prediction that knows everything.
    longest = max(range(len(seen)), key=lambda i: g.lengths[i])
    seen = tuple(b._replace(outside=float(i == longest)) for i, b in enumerate(seen))
    return *seen, _alone(g, 1.0 - sum(g.scales))


def _history_fractional(g):
    return Branch((), 1.0, outside=1.0), Branch((), g.scale - 1.0, level=g.level), _alone(g, 1.0 - g.scale)


def _three_way(g):
    text_free = Branch(g.drop, g.history_scale - g.scale, outside=1.0)
    return Branch((), g.scale), text_free, Branch(g.drop, 1.0 - g.history_scale, past=0)


CONDITIONS = ("label", "text", "action")
KINDS = {
    "none": _none,
    "cfg": _cfg,
    "cfg_added": _cfg_added,
    "history": _history,
    "history_temporal": _history_temporal,
    "history_fractional": _history_fractional,
    "three_way": _three_way,
}
