"""Process: what is noise, what the network predicts, how its error is weighed.

Time t runs from 0 (clean) to 1 (pure noise). A Gaussian path mixes data x0 and noise eps ~ N(0, I):

    x_t = a(t) x0 + s(t) eps                                                            (1)
    v_t = dx_t/dt = a'(t) x0 + s'(t) eps                                                (2)

The network may predict x0, eps (``noise``) or v_t (``velocity``). Given x_t, each determines the others. With
D = a s' - s a' (never zero on a path worth its name), solving (1) and (2) gives

    x0  = (s' x_t - s v_t) / D        eps = (a v_t - a' x_t) / D                        (3)
    x0  = (x_t - s eps) / a           eps = (x_t - a x0) / s                            (4)

An error d made in x0 at fixed x_t is, by (4) and (2), an error -a/s d in eps and -D/s d in v_t. So the squared
error measured in space L of a network that predicts P is its squared error in P times

    w_L/P = (c_L / c_P)^2,    c_x0 = s,  c_noise = a,  c_velocity = D                   (5)

The linear path (rectified flow, Liu et al. 2023, arXiv 2209.03003) has a = 1 - t, s = t, v = eps - x0 and D = 1.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp

Array = Any


class Path(NamedTuple):
    """Values of equation (1) and (2) at some times: a, s and their derivatives, each shaped like t."""

    a: Array
    s: Array
    da: Array
    ds: Array


def _linear(t):
    one = jnp.ones_like(t)
    return Path(a=1.0 - t, s=t, da=-one, ds=one)


PATHS = {"linear": _linear}
SPACES = ("velocity", "x0", "noise")
WEIGHTS = {"none": lambda path: jnp.ones_like(path.a)}


@dataclasses.dataclass(frozen=True)
class Process:
    """Corruption, prediction target and loss weight of a Gaussian path."""

    path: str = "linear"  # a key of PATHS
    predict: str = "velocity"  # what the network's output means, one of SPACES
    loss: str = ""  # the space in which its error is measured; '' is the one it predicts
    weight: str = "none"  # a key of WEIGHTS, on top of the space's own weight (5)
    floor: float = 0.05  # lower bound of c_P in (5), so that no single level dominates

    def __post_init__(self):
        for name, table in (("path", PATHS), ("predict", SPACES), ("loss", ("", *SPACES)), ("weight", WEIGHTS)):
            value = getattr(self, name)
            if value not in table:
                names = ", ".join(repr(x) for x in table)
                raise ValueError(f"process.{name} is {value!r}; it is one of {names}")
        if not 0.0 < self.floor <= 1.0:
            raise ValueError(f"process.floor is {self.floor}; it lies in (0, 1]")

    def at(self, t: Array, like: Array) -> Path:
        """The path at times t [B, T], shaped to broadcast against ``like`` [B, T, ...]."""
        t = jnp.asarray(t, jnp.float32)
        return PATHS[self.path](t.reshape(t.shape + (1,) * (like.ndim - t.ndim)))

    def corrupt(self, x0: Array, eps: Array, t: Array) -> Array:
        """x_t of equation (1). x0 and eps [B, T, ...], t [B, T]."""
        path = self.at(t, x0)
        return path.a * x0 + path.s * eps

    def target(self, x0: Array, eps: Array, t: Array) -> Array:
        """What a perfect network would output for this pair of data and noise."""
        if self.predict == "x0":
            return x0
        if self.predict == "noise":
            return eps
        path = self.at(t, x0)
        return path.da * x0 + path.ds * eps

    def to_x0(self, out: Array, x: Array, t: Array) -> Array:
        """The clean data that the network's output ``out`` at (x, t) stands for."""
        path = self.at(t, x)
        if self.predict == "x0":
            return out
        if self.predict == "noise":
            return (x - path.s * out) / path.a
        return (path.ds * x - path.s * out) / _wronskian(path)

    def to_noise(self, out: Array, x: Array, t: Array) -> Array:
        """The noise that the network's output stands for."""
        path = self.at(t, x)
        if self.predict == "noise":
            return out
        if self.predict == "x0":
            return (x - path.a * out) / path.s
        return (path.a * out - path.da * x) / _wronskian(path)

    def to_velocity(self, out: Array, x: Array, t: Array) -> Array:
        """The velocity dx/dt that the network's output stands for."""
        if self.predict == "velocity":
            return out
        path = self.at(t, x)
        if self.predict == "x0":
            return path.da * out + path.ds * (x - path.a * out) / path.s
        return path.da * (x - path.s * out) / path.a + path.ds * out

    def loss_weight(self, t: Array) -> Array:
        """Factor on the squared error of the network's output, equation (5). Shaped like t."""
        path = PATHS[self.path](jnp.asarray(t, jnp.float32))
        size = {"x0": path.s, "noise": path.a, "velocity": _wronskian(path)}
        space = self.loss or self.predict
        factor = WEIGHTS[self.weight](path)
        if space != self.predict:
            factor *= (size[space] / jnp.maximum(jnp.abs(size[self.predict]), self.floor)) ** 2
        return factor


def _wronskian(path: Path) -> Array:
    return path.a * path.ds - path.s * path.da
