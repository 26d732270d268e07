"""Optimizers by name, with warm-up and decay, and global gradient clipping. All are optax's.

================  =======================================================  ==================================
train.optimizer   source                                                   bytes of state per float32 number
================  =======================================================  ==================================
adamw             Loshchilov & Hutter 2019, arXiv 1711.05101               8
adamw_bf16        the same with its first moment in bfloat16               6
lion              Chen et al. 2023, arXiv 2302.06675; wants a learning     4
                  rate 3 to 10 times smaller
muon              Jordan 2024, scaled to AdamW's step (Liu et al. 2025,    4 of matrices inside blocks, which it
                  arXiv 2502.16982); AdamW for all other parameters        makes orthogonal; 8 of all others
adafactor         Shazeer & Stern 2018, arXiv 1804.04235, without first    about 0 of matrices of 128 x 128 and
                  moment and relative steps                                more, 4 of all others
================  =======================================================  ==================================

Weight decay is decoupled, times the learning rate, and on matrices alone. ``train.betas`` are the decays of the first
and second moments; of lion those of its update and its moment; of muon the first is that of its momentum, and both
are AdamW's beside it; adafactor has decays of its own.
"""

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from causal_diffusion.errors import UserError
from causal_diffusion.run_config import TrainConfig

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


def _adamw(rate, config, mu_dtype=None):
    decay = dict(weight_decay=config.weight_decay, mask=_matrices)
    return optax.adamw(rate, *config.betas, mu_dtype=mu_dtype, **decay)


def _lion(rate, config):
    return optax.lion(rate, *config.betas, weight_decay=config.weight_decay, mask=_matrices)


def _adafactor(rate, config):
    def decay(count):  # optax adds it after the learning rate
        return config.weight_decay * rate(count)

    own = dict(weight_decay_rate=decay, weight_decay_mask=_matrices) if config.weight_decay else {}
    return optax.adafactor(rate, multiply_by_parameter_scale=False, **own)


def _muon(rate, config):
    first, second = config.betas
    return muon(
        rate,
        beta=first,
        weight_decay=config.weight_decay,
        adam_b1=first,
        adam_b2=second,
        muon_weight_dimension_numbers=_block_matrices,
        consistent_rms=0.2,
    )


OPTIMIZERS = {
    "adamw": _adamw,
    "adamw_bf16": lambda rate, config: _adamw(rate, config, mu_dtype=jnp.bfloat16),
    "lion": _lion,
    "muon": _muon,
    "adafactor": _adafactor,
}


def make_optimizer(config: TrainConfig, labels=None) -> optax.GradientTransformation:
    """clip -> the optimizer that ``config`` names.

    ``labels``: parameters -> tree of names of groups, whose norms are clipped apart; those named 'frozen' stay.
    """
    if config.optimizer not in OPTIMIZERS:
        raise UserError(f"train.optimizer is {config.optimizer!r}; it is one of {', '.join(OPTIMIZERS)}")
    if labels is not None and config.optimizer == "muon":
        raise UserError(
            "train.optimizer is 'muon' and an autoencoder trains: it is for matrices of transformer blocks, "
            "train.optimizer = 'adamw' would do"
        )
    optimizer = OPTIMIZERS[config.optimizer](learning_rate(config), config)
    whole = optax.chain(optax.clip_by_global_norm(config.clip), optimizer) if config.clip else optimizer
    if labels is None:
        return whole
    return optax.partition({"vae": whole, "discriminator": whole, "frozen": optax.set_to_zero()}, labels)


def applied_rate(config: TrainConfig, opt_state):
    """The learning rate of the next update, float32 []. Updates that were skipped do not count."""
    counts = [
        count
        for path, count in optax.tree.get_all_with_path(opt_state, "count")
        if any(getattr(key, "tuple_name", None) == "ScaleByScheduleState" for key in path)
    ]
    return jnp.asarray(learning_rate(config)(counts[0]), jnp.float32)


def _matrices(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _block_matrices(params):
    """Which kernels muon takes, those of transformer blocks, and which of their axes are input and output."""

    def axes(keys, p):
        path = [getattr(key, "key", "") for key in keys]
        stacked = "blocks" in path
        inside = stacked or any(name.startswith("block_") for name in path)
        if not inside or path[-1] != "kernel" or p.ndim != 2 + stacked:
            return None
        return MuonDimensionNumbers(p.ndim - 2, p.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)
