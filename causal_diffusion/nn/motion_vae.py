"""A causal autoencoder of series, human motion above all: CMDM's MAC-VAE (CVPR 2026, arXiv 2602.22594).

It is the causal temporal autoencoder of MotionStreamer (Xiao et al. 2025, arXiv 2503.15451), wider. With n stages and
width W, C numbers per frame and Z per latent, ``k`` taps along time, every convolution causal::

    encoder   conv(C -> W, k3), ReLU
              n x [ conv(W -> W, k4, stride 2), residual blocks ]
              conv(W -> W, k3), linear(W -> 2 Z) = mean and log variance of the latent
    decoder   linear(Z -> W), conv(W -> W, k3), ReLU
              n x [ residual blocks, every frame twice, conv(W -> W, k3) ]
              conv(W -> W, k3), ReLU, conv(W -> C, k3)

    residual blocks, widest first: x + linear(ReLU(conv(ReLU(x), k3, dilation g^i))),  i = depth - 1 ... 0           (1)

A latent stands for 2^n frames and sees those and earlier ones; there are no norms. Beside it there is a linear map of
the latent, ``project``, to the features of a frozen network that training may align it with (VA-VAE, Yao et al. 2025,
arXiv 2501.01423). With the default sizes there are 76,312,199 parameters, 16,640 of them that map's.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from causal_diffusion.nn.attention import dense
from causal_diffusion.nn.autoencoder import Autoencoder, Encoded, Geometry, narrow
from causal_diffusion.nn.causal_conv import Carry, CausalConv, State
from causal_diffusion.nn.dtypes import compute_dtype
from causal_diffusion.ranges import WIDTH, WIDTH_OR_NONE, Range, check_numbers

DILATED = Range(0, 10)  # residual blocks of a stage, whose dilations grow by a factor from one to the next
FARTHEST = 2**16  # frames between two taps of a convolution


@dataclasses.dataclass(frozen=True)
class MotionVAEConfig:
    """Sizes; the defaults are CMDM's. Data are [B, T, channels], latents [B, T / 2^stages, latent]."""

    channels: int = 263  # C, numbers per frame
    latent: int = 64  # Z, numbers per latent
    width: int = 1024  # W
    depth: int = 3  # residual blocks per stage
    dilation_growth: int = 3  # g of equation (1)
    stages: int = 2  # each halves the number of frames
    align: int = 256  # width of the features that latents are aligned with; 0: no such map
    dtype: str = "auto"  # of matmuls: 'float32', 'bfloat16'; 'auto' is float32 on CPU, else bfloat16

    def __post_init__(self):
        check_numbers(
            self, "vae.motion", channels=WIDTH, latent=WIDTH, width=WIDTH, depth=DILATED, dilation_growth=Range(1, 100),
            stages=Range(0, 10), align=WIDTH_OR_NONE,
        )  # fmt: skip
        if self.dilation_growth ** max(0, self.depth - 1) > FARTHEST:
            raise ValueError(
                f"vae.motion.dilation_growth is {self.dilation_growth} and vae.motion.depth is {self.depth}: the last "
                f"dilation is at most {FARTHEST:,} frames, try vae.motion.dilation_growth = 3"
            )
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"vae.motion.dtype is {self.dtype!r}; it is one of auto, float32, bfloat16")

    @property
    def geometry(self) -> Geometry:
        """What a latent stands for."""
        return Geometry(2**self.stages, apart=False, space=1, axes=0, channels=self.channels, latent=self.latent)

    @property
    def compute_dtype(self):
        """The dtype of matmuls on the backend at hand."""
        return compute_dtype(self.dtype)


class Residual(nn.Module):
    """One block of equation (1): [B, T, W] -> [B, T, W]."""

    dilation: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, state: State = None):
        carry, width = Carry(state), x.shape[-1]
        h = carry(CausalConv(width, (3,), dilation=self.dilation, dtype=self.dtype, name="conv"), nn.relu(x))
        h = nn.Dense(width, dtype=self.dtype, param_dtype=jnp.float32, name="linear")(nn.relu(h))
        return x + h, carry.state


class Blocks(nn.Module):
    """Residual blocks of one stage: [B, T, W] -> [B, T, W]."""

    config: MotionVAEConfig

    @nn.compact
    def __call__(self, x, state: State = None):
        c, carry = self.config, Carry(state)
        for i in range(c.depth):
            dilation = c.dilation_growth ** (c.depth - 1 - i)
            x = carry(Residual(dilation, c.compute_dtype, name=f"block_{i}"), x)
        return x, carry.state


class Encoder(nn.Module):
    """[B, T, C] -> moments [B, T / 2^stages, 2 Z]."""

    config: MotionVAEConfig

    @nn.compact
    def __call__(self, x, state: State = None):
        c, carry = self.config, Carry(state)
        dtype = c.compute_dtype
        x = nn.relu(carry(CausalConv(c.width, (3,), dtype=dtype, name="conv_in"), x))
        for i in range(c.stages):
            x = carry(CausalConv(c.width, (4,), stride=2, dtype=dtype, name=f"down_{i}"), x)
            x = carry(Blocks(c, name=f"blocks_{i}"), x)
        x = carry(CausalConv(c.width, (3,), dtype=dtype, name="conv_out"), x)
        return dense(2 * c.latent, dtype, bias_init=narrow, name="moments")(x), carry.state


class Decoder(nn.Module):
    """[B, L, Z] -> [B, 2^stages L, C], float32."""

    config: MotionVAEConfig

    @nn.compact
    def __call__(self, z, state: State = None):
        c, carry = self.config, Carry(state)
        dtype = c.compute_dtype
        x = dense(c.width, dtype, name="latent")(z)
        x = nn.relu(carry(CausalConv(c.width, (3,), dtype=dtype, name="conv_in"), x))
        for i in range(c.stages):
            x = carry(Blocks(c, name=f"blocks_{i}"), x)
            x = carry(CausalConv(c.width, (3,), dtype=dtype, name=f"up_{i}"), jnp.repeat(x, 2, axis=1))
        x = nn.relu(carry(CausalConv(c.width, (3,), dtype=dtype, name="conv_mid"), x))
        x = carry(CausalConv(c.channels, (3,), dtype=dtype, name="conv_out"), x)
        return x.astype(jnp.float32), carry.state


class MotionVAE(Autoencoder):
    """See the module's docstring."""

    config: MotionVAEConfig

    encoder_end = ("encoder", "moments", "kernel")

    def setup(self):
        c = self.config
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        if c.align:
            self.projection = dense(c.align, c.compute_dtype)

    def encode(self, x, state: State = None):
        """[B, T, C] -> (Encoded [B, T / 2^stages, Z], state)."""
        moments, state = self.encoder(x, state)
        return Encoded.gaussian(moments), state

    def decode(self, z, state: State = None):
        """[B, L, Z] -> ([B, 2^stages L, C], state)."""
        return self.decoder(z, state)

    def project(self, z):
        """Latents as features: [B, L, Z] -> float32 [B, L, align]."""
        return self.projection(z).astype(jnp.float32)

    def __call__(self, x):
        """Makes all parameters."""
        if self.config.align:
            self.project(jnp.zeros((1, 1, self.config.latent), jnp.float32))
        return super().__call__(x)
