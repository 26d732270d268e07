"""Guidance: which extra predictions are mixed in.

The network is run once per *branch*, all branches in one batch (an axis right behind the sample axis), and its
outputs are mixed with fixed weights that sum to one. Outputs in x0, noise or velocity space mix alike, since at
given (x, t) each is an affine function of the others with the same coefficients for every branch.

    none   one branch with every condition
    cfg    out = uncond + w (cond - uncond): weights w and 1 - w (Ho & Salimans 2022, arXiv 2207.12598, eq. 6)

A branch whose conditions are dropped also encodes its past without them, so it has a cache of its own. With w = 1
the second branch would weigh nothing and is left out.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp

Array = Any


class Branch(NamedTuple):
    """One prediction: the conditions hidden from it and its weight in the mix."""

    drop: tuple[str, ...]
    weight: float


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How predictions are mixed."""

    kind: str = "none"  # a key of KINDS
    scale: float = 1.0  # w of cfg
    drop: tuple[str, ...] = ("label", "text")  # conditions hidden from the unconditional branch

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"guidance.kind is {self.kind!r}; it is one of {', '.join(KINDS)}")
        for name in self.drop:
            if name not in CONDITIONS:
                raise ValueError(f"guidance.drop has {name!r}; conditions are {', '.join(CONDITIONS)}")

    def branches(self) -> tuple[Branch, ...]:
        """The branches, the fully conditioned one first."""
        return KINDS[self.kind](self)


def mix(out: Array, branches: tuple[Branch, ...]) -> Array:
    """Weighted sum over the branch axis: [B, G, ...] -> [B, ...]."""
    if len(branches) == 1:
        return out[:, 0]
    return sum(branch.weight * out[:, i] for i, branch in enumerate(branches)).astype(jnp.float32)


def _none(guidance):
    del guidance
    return (Branch((), 1.0),)


def _cfg(guidance):
    if guidance.scale == 1.0:
        return _none(guidance)
    return (Branch((), guidance.scale), Branch(guidance.drop, 1.0 - guidance.scale))


CONDITIONS = ("label", "text", "action")
KINDS = {"none": _none, "cfg": _cfg}
