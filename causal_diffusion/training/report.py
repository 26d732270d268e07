"""What a run will cost, told before its first step: parameters, FLOPs, memory, collectives."""

import math

import jax
import jax.numpy as jnp

from causal_diffusion.autoencoder import AutoencoderRecipe
from causal_diffusion.compatibility.autoencoder import clip_shapes
from causal_diffusion.compatibility.mesh import note
from causal_diffusion.cost import step_cost, training_cost, vae_decode_cost
from causal_diffusion.cost.peaks import rates
from causal_diffusion.cost.stream import calls
from causal_diffusion.data.pipeline import batch_spec
from causal_diffusion.motion_text import MotionTextRecipe
from causal_diffusion.nn.vae import VAE
from causal_diffusion.parallel.rules import describe
from causal_diffusion.recipe import Recipe
from causal_diffusion.seeds import random_key
from causal_diffusion.training.collectives import collectives
from causal_diffusion.training.state import abstract_state
from causal_diffusion.training.step import gradients


def parameter_table(recipe, mesh) -> str:
    """One line per parameter: path, shape, how it is sharded, numbers, bytes per device; then the totals.

    The last line is all that is held between steps. Gradients, float32 and laid out as the parameters are, come on top
    of it while a step runs, and are part of what the compiled step needs temporarily.
    """
    shapes, shardings = abstract_state(recipe, mesh)
    rows = [("parameter", "shape", "sharding", "numbers", "bytes/device")]
    total = 0

    def per_device(of=lambda state: state):
        return f"{sum(row.bytes_per_device for row in describe(of(shapes), of(shardings))):,}"

    for row in describe(shapes.params, shardings.params):
        numbers = math.prod(row.shape)
        total += numbers
        shape = "x".join(map(str, row.shape)) or "scalar"
        rows.append((row.path, shape, row.spec, f"{numbers:,}", f"{row.bytes_per_device:,}"))
    params = per_device(lambda state: state.params)
    rows.append(("total", "", "", f"{total:,}", params))
    rows.append(("gradients, during a step", "", "", "", params))
    rows.append(("averages", "", "", "", per_device(lambda state: state.ema)))
    optimizer = f"optimizer state ({recipe.config.train.optimizer})"
    rows.append((optimizer, "", "", "", per_device(lambda state: state.opt_state)))
    rows.append(("parameters, averages and optimizer state", "", "", "", per_device()))
    return aligned(rows, right=(3, 4))


def training_flops(recipe, *frozen) -> float:
    """Floating-point operations of one training step, forward and backward, without what remat computes again.

    Of a transformer those of ``cost.training_cost``: matrix products, attention as the mask shows it. Of anything else
    as XLA counts them before optimisation, elementwise work included; of an autoencoder what weighs two losses against
    each other counts too, but not that its forward passes are shared.
    """
    if isinstance(recipe, Recipe):
        return training_cost(recipe).flops
    params = jax.eval_shape(recipe.init_params, random_key(0))
    spec = batch_spec(clip_shapes(recipe.config), recipe.config.train.batch)

    def grad(params, batch, key, *frozen):
        return gradients(recipe, params, batch, key, frozen=frozen)

    lowered = jax.jit(grad).lower(params, spec, jax.eval_shape(lambda: random_key(0)), *frozen)
    return float(lowered.cost_analysis()["flops"])


def peak_of(recipe, mesh) -> float | None:
    """FLOP/s of all devices of a mesh together in the dtype that the network multiplies in, None if not known."""
    known = rates(mesh.devices.flat[0].device_kind, _dtype(recipe))
    return None if known is None else known.flops * mesh.size


def _dtype(recipe):
    sizes = recipe.vae.config.sizes if isinstance(recipe, AutoencoderRecipe) else recipe.model.config
    return jnp.dtype(getattr(sizes, "compute_dtype", jnp.float32))


def memory_estimate(compiled) -> dict[str, int]:
    """Bytes per device of a compiled step: what it holds, what it needs on top, and both; then what it offloads."""
    stats = compiled.memory_analysis()
    held = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    offloaded = {"offloaded to the host": stats.host_temp_size_in_bytes} if stats.host_temp_size_in_bytes else {}
    return {
        "arguments and results": held,
        "temporary": stats.temp_size_in_bytes,
        "total": held + stats.temp_size_in_bytes,
    } | offloaded


def summary(recipe, mesh, compiled, *frozen, flops: float | None = None) -> str:
    """Everything above, ready to print. ``flops``: ``training_flops``, where they have been counted already."""
    config = recipe.config
    abouts = {Recipe: _about_system, AutoencoderRecipe: _about_autoencoder, MotionTextRecipe: _about_motion_text}
    about = abouts[type(recipe)]
    flops = training_flops(recipe, *frozen) if flops is None else flops
    lines = [
        parameter_table(recipe, mesh),
        "",
        *about(recipe),
        f"mesh        {', '.join(f'{axis} {size}' for axis, size in mesh.shape.items())}"
        f" on {jax.devices()[0].device_kind}" + "".join(f"; {said}" for said in [note(config, mesh)] if said),
        f"batch       {config.train.batch} clips of {config.data.frames} frames, {config.train.steps:,} steps",
        f"FLOPs       {flops:,.0f} per step, {flops * config.train.steps:.3g} in all",
    ]
    if isinstance(recipe, Recipe):
        lines += _costs(recipe, mesh, flops)
    lines += [f"memory      {size / 2**20:,.1f} MiB {name}" for name, size in memory_estimate(compiled).items()]
    lines += [
        f"collectives {traffic.count:,} {kind}, {traffic.bytes / 2**20:,.1f} MiB per step and device"
        for kind, traffic in (collectives(compiled.as_text()) if mesh.size > 1 else {}).items()
    ]
    return "\n".join(lines)


def _about_system(recipe: Recipe):
    ahead = recipe.schedule.view().frames_ahead(recipe.layout.block, recipe.layout.knot)
    lines = [
        f"system      {recipe.config.name}: {recipe.kind} streaming"
        + "".join(f"; approximate because {why}" for why in recipe.approximations),
        f"look-ahead  {ahead.action} frames of actions; a prompt shows after {ahead.prompt} frames, of which "
        f"{ahead.begun} have begun",
    ]
    if recipe.config.vae.form != "none":
        geometry = recipe.config.vae.geometry
        lines.append(
            f"latents     {recipe.frames} of {'x'.join(map(str, recipe.frame_shape))}, {geometry.time} frames each"
            + (", the first of one; look-ahead counts latents" if geometry.apart else "; look-ahead counts latents")
        )
    return lines


def _costs(recipe: Recipe, mesh, flops):
    """What training FLOPs are for, what a stream of one sample costs, and how fast both can be at best."""
    train, dense, stream = training_cost(recipe), training_cost(recipe, visible=False), step_cost(recipe)
    emit, block = recipe.schedule.view().emit, recipe.layout.block
    passes = sum(call.run.mask is not None for call in calls(recipe))
    lines = [
        f"            linear {train.linear / train.flops:.0%}, attention {train.attention / train.flops:.0%} "
        f"({train.attention / dense.attention:.0%} of a dense mask's), cross-attention "
        f"{train.cross_attention / train.flops:.0%}",
        f"stream      {emit} block{'s' * (emit > 1)} of {block} frame{'s' * (block > 1)}: {stream.flops:.3g} FLOPs in "
        f"{passes} passes of the network; {stream.weights:.3g} bytes of weights read, {stream.read:.3g} of the past",
    ]
    vae = recipe.config.vae
    if vae.form != "none":
        decode = vae_decode_cost(VAE(vae), (1, emit * block, *recipe.frame_shape))
        lines.append(f"            and {decode.flops:.3g} FLOPs of the autoencoder, which decodes them")
    best = rates(mesh.devices.flat[0].device_kind, _dtype(recipe))
    if best is not None:
        lines.append(
            f"limits      {best.flops * mesh.size / flops:.3g} training steps/s on this mesh, "
            f"{emit / stream.seconds(best):.3g} blocks/s of one stream on one device, at its peak"
        )
    return lines


def _about_autoencoder(recipe: AutoencoderRecipe):
    geometry = recipe.vae.geometry
    frames = (recipe.frames, *recipe.frame_shape)
    latents = geometry.latent_shape(frames)
    ratio = math.prod(frames) / math.prod(latents)
    return [
        f"system      {recipe.config.name}: {recipe.vae.config.form} autoencoder, {'x'.join(map(str, frames))} -> "
        f"{'x'.join(map(str, latents))}, {ratio:.1f} numbers to one",
    ]


def _about_motion_text(recipe: MotionTextRecipe):
    model = recipe.model.config
    return [f"system      {recipe.config.name}: motions and captions in one space of {model.latent} numbers, "
            f"{len(model.groups)} parts of the body"]  # fmt: skip


def aligned(rows, right=()) -> str:
    """A plain table: columns padded to their widest cell, those in ``right`` flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
