"""What a training step of a transformer costs.

The backward pass is twice the forward one: a gradient of the inputs of every product, and one of its weights (or of the
other factor). What remat computes again does not count: it is the price of memory, not of the model (Chowdhery et al.
2022, arXiv 2204.02311, appendix B). Counted are

* every frame of every stream, a clean copy too, in all matrices; clips that are padded count whole;
* attention as its mask shows it, see ``network``. With text all of ``text.tokens`` count, padding too;
* with ``train.own_past`` the first forward pass, which has no gradient;
* the weights as read by the forward and by the backward pass, and as written by their gradients.

The optimizer's few operations per weight are not.
"""

from causal_diffusion.compatibility.autoencoder import clip_shapes
from causal_diffusion.cost.count import Cost
from causal_diffusion.cost.masks import training_masks
from causal_diffusion.cost.network import Pass, forward
from causal_diffusion.recipe import Recipe


def training_pass(recipe: Recipe) -> Pass:
    """The forward pass of one clip."""
    model, streams = recipe.model.config, recipe.layout.training_ids(recipe.frames)
    coarse = len(streams["coarse"].frame) if "coarse" in streams else 0
    mask, prefix = training_masks(recipe)
    text, captions = 0, 1
    if model.text:
        text, spec = 1, clip_shapes(recipe.config)  # of clips without, the null token
        if "text" in spec:
            shape = spec["text"].shape  # [M, E] or ids [M], of two captions with an axis in front
            captions, text = (1, *(shape if model.vocabulary else shape[:-1]))[-2:]
    fine = len(mask) - coarse
    return Pass(
        mask, fine, coarse, prefix=prefix, registers=int(model.registers > 0), text=text, captions=captions,
        encode=True, head=fine,
    )  # fmt: skip


def training_cost(recipe: Recipe, visible: bool = True) -> Cost:
    """One training step, forward and backward, of the whole batch.

    visible: False counts attention densely, as a backend computes it that masks afterwards.
    """
    model, train = recipe.model.config, recipe.config.train
    one = forward(model, recipe.frame_shape, training_pass(recipe), 1, visible)
    passes = 4 if train.own_past else 3
    flops = passes * train.batch * one
    return Cost(flops.linear, flops.attention, flops.cross_attention, flops.other,
                weights=passes * train.accumulate * one.weights)  # fmt: skip
