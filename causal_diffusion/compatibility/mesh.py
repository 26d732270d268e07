"""Do a system and a mesh go together?

    axis             splits                              of
    data, fsdp       the batch; fsdp also parameters     everything
    tensor           heads and MLP                       transformers; others are repeated along it, which `note` says
    context          the blocks of a clip                transformers; others are refused
"""

import math

from causal_diffusion.compatibility.refusal import refuse
from causal_diffusion.nn.attention_backends import check_backend
from causal_diffusion.parallel.mesh import check_batch

WHAT = {"vae": "an autoencoder", "motion_text": "a model of motions and captions"}


def check_mesh(recipe, mesh) -> None:
    """UserError of one line where a recipe cannot be trained on a mesh."""
    config = recipe.config
    check_batch(mesh, config.train.batch, name="train.batch")
    context = mesh.shape.get("context", 1)
    if config.trains != "transformer":
        if context > 1:
            refuse(
                f"mesh.context is {context} and trains is {config.trains!r}: only a transformer's frames are split, "
                "mesh.context = 1 would do"
            )
        return
    check_heads(config.model, mesh)
    layout = recipe.layout
    blocks = layout.block_count(recipe.frames) - layout.block_of(layout.coarse)
    if blocks % context:
        refuse(
            f"mesh.context is {context} and a clip of {recipe.frames} frames has {blocks} blocks to share: each device "
            f"has as many, mesh.context = {math.gcd(blocks, context)} would do"
        )


def check_heads(model, mesh) -> None:
    """UserError of one line where the heads or the MLP of a transformer do not divide over ``tensor``."""
    tensor = mesh.shape.get("tensor", 1)
    for name, size, what in (("heads", model.heads, "whole heads"), ("mlp", model.mlp, "as much of the MLP")):
        if size % tensor:
            refuse(
                f"model.{name} is {size} and mesh.tensor is {tensor}: each device has {what}, "
                f"mesh.tensor = {math.gcd(model.heads, model.mlp, tensor)} would do"
            )


def check_attention(model, platform: str) -> None:
    """UserError of one line where a transformer's attention does not run on a platform ('cpu', 'gpu', 'tpu')."""
    try:
        check_backend(model.backend, platform, model.compute_dtype, model.width // model.heads)
    except ValueError as error:
        refuse(str(error))


def note(config, mesh) -> str:
    """What an axis does not do for this system, in one line; '' where there is nothing to say."""
    tensor = mesh.shape.get("tensor", 1)
    if config.trains == "transformer" or tensor == 1:
        return ""
    return f"tensor {tensor} only repeats {WHAT[config.trains]}, which is split over data and fsdp alone"
