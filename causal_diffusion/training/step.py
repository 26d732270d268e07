"""The jitted training step over a mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from causal_diffusion.autoencoder import AutoencoderRecipe
from causal_diffusion.compatibility.autoencoder import clip_shapes
from causal_diffusion.compatibility.mesh import check_attention, check_mesh
from causal_diffusion.data.pipeline import batch_spec
from causal_diffusion.errors import UserError
from causal_diffusion.motion_text import MotionTextRecipe
from causal_diffusion.nn.remat import check_memories
from causal_diffusion.parallel.mesh import batch_sharding, replicated
from causal_diffusion.recipe import Recipe
from causal_diffusion.seeds import random_key
from causal_diffusion.training.guard import judged
from causal_diffusion.training.objectives.contrastive import contrastive_loss
from causal_diffusion.training.objectives.diffusion import diffusion_loss
from causal_diffusion.training.objectives.reconstruction import autoencoder_gradients
from causal_diffusion.training.optimizer import applied_rate
from causal_diffusion.training.state import TrainState, abstract_state, apply_gradients


def diffusion_gradients(recipe: Recipe, params, batch, key, step):
    """Gradients and metrics of the diffusion objective."""
    return jax.grad(functools.partial(diffusion_loss, recipe), has_aux=True)(params, batch, key, step)


def contrastive_gradients(recipe: MotionTextRecipe, params, batch, key, step):
    """Gradients and metrics of the contrastive objective."""

    def loss(params):
        return contrastive_loss(recipe.model, params, batch, jax.random.fold_in(key, step), recipe.config.train.drop)

    return jax.grad(loss, has_aux=True)(params)


OBJECTIVES = {
    Recipe: diffusion_gradients,
    AutoencoderRecipe: autoencoder_gradients,
    MotionTextRecipe: contrastive_gradients,
}


def gradients(recipe, params, batch, key, accumulate: int = 1, step=0, frozen=(), shardings=None):
    """Mean gradient and metrics of a batch, in ``accumulate`` micro-batches one after the other, all in float32.

    ``step``: steps done so far. ``frozen``: networks that judge and do not learn, as the objective takes them.
    ``shardings``: those of the parameters. Gradients and their sums lie as the parameters do: left to itself, the
    compiler may give every device all of them. None: it is left to itself.
    """

    check_accumulate(recipe, accumulate)

    def pinned(grads):
        return grads if shardings is None else jax.lax.with_sharding_constraint(grads, shardings)

    def grad(params, batch, key):
        grads, metrics = OBJECTIVES[type(recipe)](recipe, params, batch, key, step, *frozen)
        return pinned(grads), metrics

    if accumulate == 1:
        return grad(params, batch, key)

    def split(x):  # strided, so that every micro-batch keeps the rows of each device on that device
        return x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)

    def body(total, micro):
        grads, metrics = jax.tree.map(jnp.add, total, grad(params, micro, key))
        return (pinned(grads), metrics), None

    parts = jax.tree.map(split, batch)
    grads, metrics = jax.tree.map(
        lambda a: jnp.zeros(a.shape, jnp.float32),
        jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], parts), key),
    )
    total, _ = jax.lax.scan(body, (pinned(grads), metrics), parts)
    return jax.tree.map(lambda x: x / accumulate, total)


def check_accumulate(recipe, accumulate: int) -> None:
    """UserError where micro-batches do not give the gradient of the whole batch.

    Their gradients are averaged. That is exact where the loss is a mean over clips of what each clip gives by itself.
    """
    if accumulate == 1:
        return
    why, instead = None, "train.accumulate = 1"
    if isinstance(recipe, MotionTextRecipe):
        why = "trains is 'motion_text': each clip is compared with all captions of the batch"
    elif isinstance(recipe, AutoencoderRecipe):
        loss, form = recipe.config.reconstruction, recipe.config.vae.form
        quantise = getattr(recipe.config.vae.sizes, "quantise", "none")
        if loss.fit == "likelihood":
            why = "reconstruction.fit is 'likelihood', whose deviation is that of the whole batch"
            instead += " or reconstruction.fit = 'charbonnier'"
        elif loss.gan or loss.align:
            name = "gan" if loss.gan else "align"
            why = (f"reconstruction.{name} is {getattr(loss, name)}: its weight is a ratio of gradients of the whole "
                   "batch")  # fmt: skip
            instead += f" or reconstruction.{name} = 0.0"
        elif quantise == "lfq":
            why = f"vae.{form}.quantise is 'lfq', whose loss is of the use of codes in the whole batch"
    if why is not None:
        raise UserError(f"train.accumulate is {accumulate} and {why}, so that micro-batches give another gradient; "
                        f"try {instead}")  # fmt: skip


def train_step(recipe, state: TrainState, batch: dict, *frozen, shardings=None) -> tuple[TrainState, dict]:
    """One update, or none where the guard holds it back.

    Metrics: those of the objective, 'loss' among them, and grad_norm, param_norm, lr, and those of ``guard.judged``.
    ``shardings``: of the parameters, as ``gradients`` takes them.
    """
    config = recipe.config.train
    grads, metrics = gradients(recipe, state.params, batch, state.key, config.accumulate, state.step, frozen, shardings)
    norm = optax.tree.norm(grads)
    good, norms, guarded = judged(config, state, metrics["loss"], norm)
    new = dataclasses.replace(apply_gradients(recipe, state, grads, good), norms=norms)
    metrics |= guarded | {
        "grad_norm": norm,
        "param_norm": optax.tree.norm(new.params),
        "lr": applied_rate(config, state.opt_state),
    }
    return new, metrics


def compile_step(recipe, mesh, spec: dict | None = None, *frozen):
    """The compiled step (state, batch, *frozen) -> (state, metrics) on a mesh; see ``lower_step``."""
    return lower_step(recipe, mesh, spec, *frozen).compile()


def lower_step(recipe, mesh, spec: dict | None = None, *frozen, platforms=None):
    """The step (state, batch, *frozen) -> (state, metrics) on a mesh, lowered; the state is donated. Needs no arrays.

    ``spec``: shapes of one clip, see ``data.sources``, or of its latents; None: those that the config states.
    ``frozen``: pytrees of arrays or their shapes, as ``gradients`` takes them; every device holds them whole.
    ``platforms``: ('tpu',) or the like, for a mesh that is abstract: one without devices, which is not compiled.
    """
    config = recipe.config.train
    check_accumulate(recipe, config.accumulate)
    check_mesh(recipe, mesh)
    spec = spec or clip_shapes(recipe.config)
    text = recipe.config.model.text if isinstance(recipe, Recipe) else 0
    if text and "text" not in spec:
        raise UserError(f"model.text is {text} and the clips have no text: model.text = 0 would do")
    if text and not recipe.config.model.vocabulary and spec["text"].shape[-1] != text:
        raise UserError(f"model.text is {text} and the clips have tokens of width {spec['text'].shape[-1]}: "
                        "they must be equal")
    abstract = isinstance(mesh, jax.sharding.AbstractMesh)
    if isinstance(recipe, Recipe):
        check_memories(recipe.model.config.remat, mesh)
        for platform in platforms or ([] if abstract else [mesh.devices.flat[0].platform]):
            check_attention(recipe.model.config, platform)
    shapes, shardings = abstract_state(recipe, mesh)
    spec = batch_spec(spec, config.batch)
    rows = batch_sharding(mesh)
    step = jax.jit(
        functools.partial(train_step, recipe, shardings=shardings.params),
        in_shardings=(shardings, {name: rows for name in spec}, *(replicated(mesh) for _ in frozen)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    with jax.sharding.use_abstract_mesh(mesh) if abstract else jax.set_mesh(mesh):
        return step.trace(shapes, spec, *frozen).lower(lowering_platforms=platforms)


def held_out_loss(recipe: Recipe, params, video, condition: dict) -> float:
    """The training objective on held-out clips [B, T, ...], always with the same levels and noise."""
    T = recipe.frames
    batch = {"video": jnp.asarray(video[:, :T]), "index": jnp.arange(len(video), dtype=jnp.int32)}
    batch |= {name: jnp.asarray(condition[name]) for name in ("label", "text", "text_mask") if name in condition}
    if "action" in condition:
        action = jnp.concatenate([condition["context_action"], condition["action"]], axis=1)
        batch["action"] = action[:, :T]
    return float(_held_out_loss(recipe, params, batch))


@functools.partial(jax.jit, static_argnums=0)
def _held_out_loss(recipe, params, batch):
    return diffusion_loss(recipe, params, batch, random_key(0))[0]
