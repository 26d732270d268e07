"""The objective of an autoencoder: to give back what went in, from latents that a transformer can learn.

With x a clip, z ~ q(z | x) a draw from its posterior and x' the decoder's answer,

    loss = fit(x, x') + lambda_p d(x, x') + L_q + beta KL(q || N(0, 1)) + w_a L_align(z) + w_g L_adv(x')       (1)

fit and KL are in ``likelihood``; with ``velocity`` the fit is also that of the differences from frame to frame
(T2M-GPT, Zhang et al. 2023, arXiv 2301.06052, equation 3), so that what comes back does not tremble. d is LPIPS or the
feature distance of ``nn.perceptual``, L_q is what quantisation adds, L_align is in ``alignment``, L_adv in
``adversarial``. The last two are weighed by what the fit itself does to the last kernel W before it (Esser et al. 2021,
arXiv 2012.09841; Yao et al. 2025, arXiv 2501.01423):

    w = base |d fit / dW| / (|d L / dW| + 1e-4)       W of the encoder for L_align, of the decoder for L_adv   (2)

The discriminator learns in the same step from its own loss: neither side's gradient reaches the other.

With a *teacher* the encoder is its encoder, frozen, and the decoder has two targets, the clip and the teacher's own
decoding of the same latent:  (fit + lambda_p d)(x, x') and (fit + lambda_p d)(teacher(z), x'), half each.   (3)

Gradients, not a scalar, are what this objective is asked for, since (2) needs parts of them first. XLA computes only
the parts of a gradient that are used, and the forward passes of (2) are those of (1).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from causal_diffusion.autoencoder import AutoencoderRecipe
from causal_diffusion.motion.features import motion_features
from causal_diffusion.nn.perceptual import feature_distance, lpips
from causal_diffusion.training.objectives import alignment, likelihood
from causal_diffusion.training.objectives.adversarial import discriminator_term, generator_term, ramp

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """Networks that judge and do not learn: LPIPS weights, parameters of a teacher and of features; None without."""

    lpips: Any = None
    teacher: Any = None
    features: Any = None


def autoencoder_gradients(recipe: AutoencoderRecipe, params, batch: dict, key, step, frozen: Frozen = Frozen()):
    """Gradients of (1), and of the discriminator's own loss.

    Args:
        params: {'vae', 'discriminator'} as ``recipe.init_params`` makes them.
        batch: 'video' [B, T, *space, C], 'index' int32 [B] (global sample index).
        key: of the whole run; a sample's draw depends on (key, index) only.
        step: int, steps done so far; warm-ups depend on it.
        frozen: networks that judge.

    Returns:
        (gradients as ``params``, metrics): 'loss' is (1), beside it each of its parts by name and 'psnr' of x' in dB.
    """
    loss, steps = recipe.config.reconstruction, recipe.config.train.steps
    network = recipe.vae.network
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
    losses = functools.partial(parts, recipe, batch=batch, keys=keys, frozen=frozen)
    weights = {"fit": 1.0, "kl": loss.kl * likelihood.kl_warmup(step, loss.kl_warmup)}

    def balance(name, end):
        """Equation (2), without its base."""
        end = ("vae", *end)

        def slope(which):
            return jax.grad(lambda kernel: losses(_put(params, end, kernel))[0][which])(_get(params, end))

        return alignment.adaptive_weight(slope("fit"), slope(name))

    if loss.align:
        # From one to a tenth of its weight between the end of the warm-up and that of training (CMDM's code).
        done = jnp.clip((step - loss.kl_warmup) / max(1, steps - loss.kl_warmup), 0.0, 1.0)
        weights["align"] = loss.align * (1.0 - 0.9 * done) * balance("align", network.encoder_end)
    if loss.gan:
        weights["adversarial"] = loss.gan * ramp(step, loss.gan_start) * balance("adversarial", network.decoder_end)
        weights["discriminator"] = 1.0  # it learns before anyone listens to it

    def total(params):
        each, aux = losses(params)
        whole = sum(weights[name] * value for name, value in each.items())
        own = whole - weights["discriminator"] * each["discriminator"] if loss.gan else whole
        return whole, aux | each | {"loss": own}

    grads, metrics = jax.grad(total, has_aux=True)(params)
    metrics |= {f"{name}_weight": jnp.asarray(weights[name]) for name in ("align", "adversarial") if name in weights}
    return grads, metrics


def parts(recipe: AutoencoderRecipe, params, batch, keys, frozen: Frozen = Frozen()):
    """Each loss of (1) by itself, unweighted, 'fit' with the perceptual and the quantiser's: (scalars, metrics)."""
    loss, x = recipe.config.reconstruction, batch["video"]

    def apply(*arguments, method):
        return recipe.vae.network.apply({"params": params["vae"]}, *arguments, method=method)

    if loss.teacher:
        z = jax.lax.stop_gradient(apply(x, method="encode")[0].mean)
        out = apply(z, method="decode")[0]
        wanted = recipe.teacher.network.apply({"params": frozen.teacher}, z, method="decode")[0]
        pairs, each = ((0.5, x), (0.5, jax.lax.stop_gradient(wanted))), {"kl": jnp.zeros((), jnp.float32)}
    else:
        encoded, z, out = apply(x, keys, method="reconstruct")
        pairs = ((1.0, x),)
        each = {"kl": likelihood.kl(encoded.mean, encoded.logvar, x.shape) if encoded.logvar is not None else 0.0}
    out = out.astype(jnp.float32)
    fit = sum(share * _fit(loss, target, out) for share, target in pairs)
    aux = {"psnr": _psnr(x, out)}
    if loss.perceptual:
        judge = feature_distance if frozen.lpips is None else functools.partial(lpips, frozen.lpips)
        aux["perceptual"] = sum(share * jnp.mean(judge(out, target)) for share, target in pairs)
        fit = fit + loss.perceptual * aux["perceptual"]
    if not loss.teacher:
        fit = fit + encoded.loss
    each["fit"] = fit
    if loss.align:
        if recipe.features is None:
            features = motion_features(x, recipe.vae.geometry.time, recipe.vae.config.sizes.align)
        else:
            features = recipe.features(frozen.features, x)
        each["align"] = alignment.alignment(apply(z, method="project"), z, features, *loss.align_margins)
    if loss.gan:
        def score(params, x):
            return recipe.discriminator.apply({"params": params}, x)

        each["adversarial"] = generator_term(score, params["discriminator"], out)
        each["discriminator"] = discriminator_term(score, params["discriminator"], x, out)
    return each, aux


def _fit(loss, target, out):
    """How well ``out`` is ``target``, and moves as it does."""
    fit = likelihood.fit(loss.fit, target, out, loss.root, loss.root_weight)
    if not loss.velocity:
        return fit
    steps = (jnp.diff(clip, axis=1) for clip in (target, out))
    return fit + loss.velocity * likelihood.fit(loss.fit, *steps, loss.root, loss.root_weight)


def _psnr(x, out):
    """Mean over samples, of data in [-1, 1]; of others it only tells whether the error falls."""
    error = jnp.mean((out - x) ** 2, axis=tuple(range(1, x.ndim)))
    return jnp.mean(10.0 * jnp.log10(4.0 / jnp.maximum(error, 1e-10)))


def _get(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def _put(tree, path, leaf):
    if not path:
        return leaf
    return tree | {path[0]: _put(tree[path[0]], path[1:], leaf)}
