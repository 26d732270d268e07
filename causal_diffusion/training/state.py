"""Train state: one frozen pytree, and the order in which it is made.

    abstract = eval_shape(create)  ->  shardings of every leaf  ->  jit(create, out_shardings=shardings)

so that no leaf is ever replicated by accident, the optimizer's least of all. What has the shape of a parameter, be it
its average or a moment of its gradient, lies where the parameter lies.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from causal_diffusion.parallel.mesh import replicated
from causal_diffusion.parallel.rules import param_shardings
from causal_diffusion.seeds import random_key
from causal_diffusion.training.guard import no_norms
from causal_diffusion.training.optimizer import make_optimizer

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step: int32 []; params, ema: trees of float32; opt_state: optax's; key: typed PRNG key of the run.

    norms: with train.spike, gradient norms of the last steps, see ``guard``; None without.
    """

    step: Array
    params: Any
    ema: Any
    opt_state: Any
    key: Array
    norms: Array | None = None


def optimizer_of(recipe):
    """The optimizer of a recipe, with the groups of parameters that it names."""
    return make_optimizer(recipe.config.train, getattr(recipe, "labels", None))


def create(recipe, key) -> TrainState:
    """A fresh state. The averaged parameters start as the parameters."""
    init, run = jax.random.split(key)
    params = recipe.init_params(init)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer_of(recipe).init(params),
        key=run,
        norms=no_norms() if recipe.config.train.spike else None,
    )


@functools.lru_cache(maxsize=4)  # a run asks four times, and tracing takes as long as reading a small program
def abstract_state(recipe, mesh) -> tuple[TrainState, TrainState]:
    """(ShapeDtypeStructs, shardings) of every leaf. Makes no arrays."""
    shapes = jax.eval_shape(lambda key: create(recipe, key), random_key(0))
    params, one = param_shardings(shapes.params, mesh), replicated(mesh)
    return shapes, TrainState(
        step=one,
        params=params,
        ema=params,
        opt_state=moment_shardings(shapes.opt_state, shapes.params, params, mesh),
        key=one,
        norms=None if shapes.norms is None else one,
    )


def moment_shardings(opt_state, params, shardings, mesh):
    """The sharding of each leaf of an optimizer's state.

    A leaf whose path ends with that of a parameter and whose shape is the same lies as the parameter does. Others,
    such as the row and column sums of adafactor, are split by size alone: rules name dimensions that they lack.
    """
    of = {
        keys: (leaf.shape, sharding)
        for (keys, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }

    def place(keys, leaf):
        shape, sharding = next((of[keys[i:]] for i in range(len(keys)) if keys[i:] in of), (None, None))
        return sharding if shape == leaf.shape else param_shardings({"": leaf}, mesh, rules=())[""]

    return jax.tree_util.tree_map_with_path(place, opt_state)


def sharded_state(recipe, mesh, seed: int) -> TrainState:
    """A fresh state laid out over the mesh."""
    _, shardings = abstract_state(recipe, mesh)
    return jax.jit(lambda key: create(recipe, key), out_shardings=shardings)(random_key(seed))


def apply_gradients(recipe, state: TrainState, grads, good=None) -> TrainState:
    """One optimizer step and one step of the average, e <- d e + (1 - d) p with d = min(ema, (1 + n) / (10 + n)).

    ``good``: bool []; where it is False, only the step counts on. None: it is True.
    """
    config = recipe.config.train

    def kept(new, old):
        return new if good is None else jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)

    updates, opt_state = optimizer_of(recipe).update(grads, state.opt_state, state.params)
    # Kept at once, not with the average: so each new leaf can take the old one's place, and none waits in memory.
    params, opt_state = kept(optax.apply_updates(state.params, updates), state.params), kept(opt_state, state.opt_state)
    n = state.step.astype(jnp.float32)
    decay = jnp.minimum(config.ema, (1.0 + n) / (10.0 + n))
    ema = kept(jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), state.ema, params), state.ema)
    return dataclasses.replace(state, step=state.step + 1, params=params, ema=ema, opt_state=opt_state)
