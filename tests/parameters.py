"""Parameters away from zero: an output layer that starts at zero would hide all that is behind it."""

import math

import jax
import jax.numpy as jnp
import numpy as np

ONES = ("scale", "gamma")  # what norms multiply by


def perturbed(init, noise=0.1):
    """Parameters of the shapes of ``init(key)``, near usual initial values and none at zero.

    Of two axes and more: normal with variance 1 / inputs; norms: 1; the rest: 0; to all ``noise`` times normal numbers
    are added. Nothing is compiled: to draw initial values of a convolutional network XLA compiles for a minute.
    """
    rng = np.random.default_rng(1)

    def leaf(path, spec):
        base = float(path[-1].key in ONES)
        if len(spec.shape) > 1:
            base = rng.standard_normal(spec.shape) / math.sqrt(math.prod(spec.shape[:-1]))
        return jnp.asarray(base + noise * rng.standard_normal(spec.shape), spec.dtype)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(init, jax.random.key(0)))
