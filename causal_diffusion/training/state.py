"""Train state: one frozen pytree, and the order in which it is made.

    abstract = eval_shape(create)  ->  shardings of every leaf  ->  jit(create, out_shardings=shardings)

so that no leaf is ever replicated by accident, the optimizer's least of all.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from causal_diffusion.parallel.rules import param_shardings
from causal_diffusion.training.optimizer import make_optimizer

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step: int32 []; params, ema: trees of float32; opt_state: optax's; key: typed PRNG key of the run."""

    step: Array
    params: Any
    ema: Any
    opt_state: Any
    key: Array


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
    )


def abstract_state(recipe, mesh) -> tuple[TrainState, TrainState]:
    """(ShapeDtypeStructs, shardings) of every leaf. Makes no arrays."""
    shapes = jax.eval_shape(lambda key: create(recipe, key), jax.random.key(0))
    return shapes, param_shardings(shapes, mesh)


def sharded_state(recipe, mesh, seed: int) -> TrainState:
    """A fresh state laid out over the mesh."""
    _, shardings = abstract_state(recipe, mesh)
    return jax.jit(lambda key: create(recipe, key), out_shardings=shardings)(jax.random.key(seed))


def apply_gradients(recipe, state: TrainState, grads) -> TrainState:
    """One optimizer step and one step of the average, e <- d e + (1 - d) p with d = min(ema, (1 + n) / (10 + n))."""
    config = recipe.config.train
    updates, opt_state = optimizer_of(recipe).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    n = state.step.astype(jnp.float32)
    decay = jnp.minimum(config.ema, (1.0 + n) / (10.0 + n))
    ema = jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), state.ema, params)
    return dataclasses.replace(state, step=state.step + 1, params=params, ema=ema, opt_state=opt_state)
