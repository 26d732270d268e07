"""What the backward pass keeps of a block and what it computes again (rematerialisation), by name.

Blocks mark two kinds of activations with ``checkpoint_name``::

    attention    what every attention sums, and its output projection      2 D numbers per token and attention
    mlp          the hidden layer of the feed-forward, and its output       M + D numbers per token

======================  =====================================  ============================================
model.remat             kept on the device, beside the input   computed again
======================  =====================================  ============================================
none                    everything                             nothing
dots                    all matrix products                    norms, softmax, activation functions
dots_no_batch           products with parameters               attention scores and weights, and the above
attention_mlp           both kinds                             norms, q, k, v, scores and weights
attention, mlp          that kind                              all others
full                    nothing                                the whole block
offload_NAME            nothing; the kind NAME goes to the     as NAME
                        memory of the host and comes back
======================  =====================================  ============================================

Every name gives the same gradients; memory falls and time rises from top to bottom. The other names are those of
``jax.checkpoint_policies`` that need no arguments. Offloading needs a backend with a memory space of kind
``pinned_host`` (GPU and TPU; on CPU, where both memories are one, it saves nothing).
"""

import flax.linen as nn
import jax

from causal_diffusion.errors import UserError

HOST = "pinned_host"
KINDS = {"attention": ("attention",), "mlp": ("mlp",), "attention_mlp": ("attention", "mlp")}

_jax = jax.checkpoint_policies


def _offloaded(names):
    return _jax.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=list(names), offload_src="device", offload_dst=HOST
    )


POLICIES = {
    "none": _jax.everything_saveable,  # never asked: such blocks are left as they are
    "full": _jax.nothing_saveable,
    "dots": _jax.dots_saveable,
    "dots_no_batch": _jax.dots_with_no_batch_dims_saveable,
    **{name: _jax.save_only_these_names(*kinds) for name, kinds in KINDS.items()},
    **{f"offload_{name}": _offloaded(kinds) for name, kinds in KINDS.items()},
    **{name: getattr(_jax, name) for name in (
        "everything_saveable", "nothing_saveable", "dots_saveable", "checkpoint_dots",
        "dots_with_no_batch_dims_saveable", "checkpoint_dots_with_no_batch_dims",
    )},
}  # fmt: skip


def rematerialised(block, name: str, scanned: bool):
    """The module class ``block`` with the policy ``name``; ``scanned``: its layers run in a scan."""
    if name == "none":
        return block
    # Inside a scan, XLA cannot merge the second forward pass with the first, so nothing has to prevent it.
    return nn.remat(block, policy=POLICIES[name], prevent_cse=not scanned)


def check_memories(name: str, mesh) -> None:
    """Raises UserError where model.remat offloads and the devices of ``mesh`` cannot reach the host's memory.

    An abstract mesh has no devices to ask: there every name passes.
    """
    if not name.startswith("offload_") or isinstance(mesh, jax.sharding.AbstractMesh):
        return
    device = mesh.local_devices[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise UserError(
            f"model.remat is {name!r} and {device.device_kind} has no memory of kind {HOST!r}, only "
            f"{', '.join(kinds)}: model.remat = {name.removeprefix('offload_')!r} would do"
        )
