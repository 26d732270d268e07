"""A cost: floating-point operations by what they are for, and bytes that memory must move.

A multiply-add is two operations. Counted are the products of matrices, convolutions among them; norms, softmax,
activations and whatever else works number by number is not, nor is the traffic of activations: both depend on what a
compiler fuses. So a cost is a lower bound, and ``seconds`` the least time that a device takes,

    max(operations / (operations per second), bytes / (bytes per second))            (Williams et al. 2009)      (1)
"""

import dataclasses

from causal_diffusion.cost.peaks import Rates


@dataclasses.dataclass(frozen=True)
class Cost:
    """Costs add, and a number times a cost is a cost.

    linear: operations of Linear layers and convolutions.
    attention: of queries with keys, and of weights with values, among frames.
    cross_attention: the same with condition tokens.
    other: of smaller products, each named where it is counted.
    weights: bytes of parameters read, those of a matrix once per pass.
    read, written: bytes of what is kept of the past (keys and values, frames of convolutions) and of conditions.
    """

    linear: float = 0
    attention: float = 0
    cross_attention: float = 0
    other: float = 0
    weights: float = 0
    read: float = 0
    written: float = 0

    @property
    def flops(self) -> float:
        """All operations."""
        return self.linear + self.attention + self.cross_attention + self.other

    @property
    def bytes(self) -> float:
        """All bytes."""
        return self.weights + self.read + self.written

    def seconds(self, rates: Rates) -> float:
        """Equation (1)."""
        return max(self.flops / rates.flops, self.bytes / rates.bandwidth)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def __mul__(self, factor: float) -> "Cost":
        return Cost(*(factor * each for each in dataclasses.astuple(self)))

    __rmul__ = __mul__
