"""AdamW with warm-up and decay, and global gradient clipping."""

import jax
import optax

from causal_diffusion.config import TrainConfig
from causal_diffusion.errors import UserError

DECAYS = {
    "cosine": lambda peak, steps: optax.cosine_decay_schedule(peak, steps),
    "linear": lambda peak, steps: optax.linear_schedule(peak, 0.0, steps),
    "constant": lambda peak, steps: optax.constant_schedule(peak),
}


def learning_rate(config: TrainConfig):
    """Step -> learning rate: linear from 0 over ``warmup`` steps, then decay to 0 at ``steps``."""
    if config.decay not in DECAYS:
        raise UserError(f"train.decay is {config.decay!r}; it is one of {', '.join(DECAYS)}")
    if config.warmup >= config.steps:
        raise UserError(
            f"train.warmup is {config.warmup} and train.steps is {config.steps}: warm-up ends before training does, "
            f"train.warmup = {config.steps // 10} would do"
        )
    decay = DECAYS[config.decay](config.lr, config.steps - config.warmup)
    if not config.warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, config.lr, config.warmup), decay], [config.warmup])


def make_optimizer(config: TrainConfig, labels=None) -> optax.GradientTransformation:
    """clip -> AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101); only matrices decay.

    ``labels``: parameters -> tree of names of groups, whose norms are clipped apart; those named 'frozen' stay.
    """
    if len(config.betas) != 2:
        raise UserError(f"train.betas is {config.betas}; it holds two numbers, (0.9, 0.99) would do")
    adamw = optax.adamw(
        learning_rate(config),
        *config.betas,
        weight_decay=config.weight_decay,
        mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    )
    whole = optax.chain(optax.clip_by_global_norm(config.clip), adamw) if config.clip else adamw
    if labels is None:
        return whole
    return optax.partition({"vae": whole, "discriminator": whole, "frozen": optax.set_to_zero()}, labels)
