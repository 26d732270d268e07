"""Between the latents that a rollout emits and the frames that a user sees.

A decoder's memory is a pytree beside the stream's state (``nn.causal_conv``)::

    context latents      prime          ->  memory                        their frames are known: they are not shown
    block of latents     decode_blocks  ->  frames, memory                one compiled program per block size

Where the first frame has a latent of its own, the first block of a clip stands for fewer frames than the others and is
a program of its own; so a sample of a batch can start again in mid-stream only from given frames.
"""

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.errors import UserError
from causal_diffusion.frames import check_values, take_frames
from causal_diffusion.nn.vae import Codec


def encode_context(codec: Codec | None, recipe, context):
    """Given frames [(B,) T, *space, C] -> latents. What has the shape of latents already, or no codec, stays.

    Raises:
        UserError: frames that the autoencoder cannot encode.
    """
    if codec is None or context is None:
        return context
    given = take_frames("context", context, pictures=False)  # or latents; the autoencoder knows the range of frames
    axes = len(recipe.frame_shape)
    if given.shape[-axes:] == recipe.frame_shape and given.shape[-1] != codec.geometry.channels:
        return given
    if given.ndim not in (axes + 1, axes + 2) or given.shape[-axes - 1] == 0:
        return None if given.size == 0 else given  # parse_context tells what is wrong
    check_values("context", given, pictures=codec.geometry.pictures)
    single = given.ndim == axes + 1
    latents = np.asarray(codec.encode(given[None] if single else given))
    return latents[0] if single else latents


def latents_for(codec: Codec, frames: int, begun: bool) -> int:
    """The fewest latents that stand for ``frames`` frames, in a clip that has begun or not."""
    geometry = codec.geometry
    latents = -(-frames // geometry.time)
    return latents if geometry.frames(latents, start=not begun) >= frames else latents + 1


def prime(codec: Codec | None, context):
    """What a decoder remembers after context latents [B, L, ...]; None after none."""
    if codec is None or not context.shape[1]:
        return None
    return codec.decode_piece(context)[1]


def decode_blocks(codec: Codec, blocks, void: int, memory):
    """Blocks of latents [B, E, ...], one by one, less the first ``void`` latents -> (their frames, memory).

    The frames, a list of [B, T, ...] with one entry per block, are on the device and may still be under way.
    """
    out = []
    for block in blocks:
        shown, void = block[:, void:] if void else block, max(0, void - block.shape[1])
        if shown.shape[1]:
            frames, memory = codec.decode_piece(shown, memory)
        else:
            frames = np.zeros((len(block), 0, *codec.geometry.frame_shape(block.shape[2:])), np.float32)
        out.append(frames)
    return out, memory


def replace_samples(codec: Codec | None, memory, fresh, which):
    """Samples marked in ``which`` (bool [B]) remember what is in ``fresh``, the others what is in ``memory``."""
    if codec is None or (memory is None and fresh is None):
        return memory
    if which.shape[0] == 1:
        return fresh
    if memory is None or fresh is None:
        if codec.geometry.apart:
            one = codec.geometry.frames(1)
            raise UserError(
                f"the first latent of a clip stands for {one} frame and later ones for {codec.geometry.time}: a sample "
                f"starts again beside others that are as far on; give all of them a context, {one} frame would do"
            )
        nothing = jax.tree.map(jnp.zeros_like, fresh if memory is None else memory)  # a clip begins after zeros
        memory, fresh = (nothing, fresh) if memory is None else (memory, nothing)
    return jax.tree.map(lambda new, old: jnp.where(which.reshape(-1, *(1,) * (old.ndim - 1)), new, old), fresh, memory)


def decoder_like(codec: Codec, batch: int, latent: tuple[int, ...]):
    """Shapes and dtypes of a decoder's memory, for samples of latents [*space', Z]."""
    z = jax.ShapeDtypeStruct((batch, 1, *latent), np.float32)
    return jax.eval_shape(lambda z: codec.decode_piece(z)[1], z)
