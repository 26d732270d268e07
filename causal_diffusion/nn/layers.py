"""The forms of a transformer's parameters.

canonical   ``block_0`` ... ``block_{L-1}``, and q, k and v of an attention each by itself: what is on disk
stacked     all layers under ``blocks``, each leaf with an axis of L in front: a model with ``layers='scan'``
joined      as canonical, q, k and v of an attention side by side under ``qkv``: one product instead of three, which is
            faster where a pass has few tokens, so what streams run
"""

import jax
import jax.numpy as jnp


def unstack_layers(params: dict) -> dict:
    """Parameters of layers='scan' -> the canonical form, one ``block_i`` per layer. Canonical ones pass through."""
    if "blocks" not in params:
        return params
    rest = {name: value for name, value in params.items() if name != "blocks"}
    depth = jax.tree.leaves(params["blocks"])[0].shape[0]
    return rest | {f"block_{i}": jax.tree.map(lambda p, i=i: p[i], params["blocks"]) for i in range(depth)}


def stack_layers(params: dict) -> dict:
    """Canonical parameters -> those of layers='scan'."""
    if "blocks" in params:
        return params
    names = sorted((name for name in params if name.startswith("block_")), key=lambda name: int(name[6:]))
    rest = {name: value for name, value in params.items() if name not in names}
    return rest | {"blocks": jax.tree.map(lambda *p: jnp.stack(p), *(params[name] for name in names))}


def join_projections(params: dict) -> dict:
    """Canonical parameters -> those of a joined model. Joined ones pass through; cross-attention stays as it is."""
    return _in_blocks(params, _joined)


def split_projections(params: dict) -> dict:
    """Joined parameters -> the canonical form. Canonical ones pass through."""
    return _in_blocks(params, _apart)


def _in_blocks(params, change):
    """The parameters with every attention of every block changed."""

    def attentions(block):
        return {name: change(part) if name.endswith("attention") and name != "cross_attention" else part
                for name, part in block.items()}  # fmt: skip

    return {name: attentions(part) if name.startswith("block_") else part for name, part in params.items()}


def _joined(attention):
    if "qkv" in attention:
        return attention
    rest = {name: part for name, part in attention.items() if name not in ("q", "k", "v")}
    parts = [attention[name] for name in "qkv"]
    return rest | {"qkv": jax.tree.map(lambda *each: jnp.concatenate(each, axis=-1), *parts)}


def _apart(attention):
    if "qkv" not in attention:
        return attention
    rest, joined = {name: part for name, part in attention.items() if name != "qkv"}, attention["qkv"]
    parts = {leaf: jnp.split(a, 3, axis=-1) for leaf, a in joined.items()}
    return rest | {name: {leaf: each[i] for leaf, each in parts.items()} for i, name in enumerate("qkv")}
