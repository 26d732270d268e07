"""Which models fit on which machines, told without any of them: the tables of docs/pods.md.

    python -m causal_diffusion.training.fits

A device holds its part of the *state*: parameters, their averages and the optimizer's, as ``abstract_state`` lays them
out over the mesh. That is exact. On top come, with scanned layers, ``model.remat = 'full'`` and blockwise attention,

    gradients   4 bytes per parameter of the device                                                            (1)
    layer       one layer's parameters cast to c bytes, before that whole in float32 where fsdp splits them; twice, as
                the next layer's come while this one runs                                                      (2)
    carried     b S L D c, the input of every layer                                                            (3)
    working     b S (16 D + 4 M / tensor) c, of the layer whose backward pass runs                             (4)
    attention   b S D (8 + 4 c) / tensor, heads of q, k, v and out, and gradients of keys and values in float32 (5)
    scores      r (12 + 2 c), its attention's scores and weights, and gradients of both, of the rectangle that is
                computed: r = b (H / tensor) Q S, at most MOST_SCORES                                          (6)

with b clips per device, S tokens of a clip (of all its streams), Q of a block, L layers of width D, H heads and an MLP
of M, and c bytes of the compute dtype. ``context`` divides S in (3) and (4) and heads in (5) and (6). This is an
estimate, which tests hold against XLA's own of small models; ``train.py --dry_run`` has the compiler's for a config on
the devices at hand.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from causal_diffusion.config import load_config
from causal_diffusion.cost.peaks import PEAKS
from causal_diffusion.nn.attention_backends.blockwise import MOST_SCORES
from causal_diffusion.parallel.mesh import AXES
from causal_diffusion.parallel.rules import describe
from causal_diffusion.recipe import Recipe, build
from causal_diffusion.training.state import abstract_state

RESERVE = 0.1  # share of a device's memory that is left to fragmentation, collectives and the runtime

# Width, depth, heads, MLP of Wan 2.1 1.3B, Wan 2.2 5B and Wan 2.1 14B.
MODELS = {"1.3B": (1536, 30, 12, 8960), "5B": (3072, 30, 24, 14336), "14B": (5120, 40, 40, 13824)}

# Name, devices, which one. A v5p-64 has 64 cores: 32 chips.
MACHINES = (
    ("1 A100 or H100", 1, "NVIDIA H100 80GB HBM3"),
    ("8 A100 or H100", 8, "NVIDIA H100 80GB HBM3"),
    ("64 A100 or H100", 64, "NVIDIA H100 80GB HBM3"),
    ("8 H200", 8, "NVIDIA H200"),
    ("TPU v5e-8", 8, "TPU v5e"),
    ("TPU v5e-64", 64, "TPU v5e"),
    ("TPU v6e-8", 8, "TPU v6e"),
    ("TPU v6e-64", 64, "TPU v6e"),
    ("TPU v5p-64, 32 chips", 32, "TPU v5p"),
)

CLIP = dict(frames=21, height=32, width=32)  # latents; 81 frames of 256 x 256 pixels with Wan's autoencoder


class Need(NamedTuple):
    """Bytes per device: what is exact, and the estimate of what comes on top."""

    state: int
    temporary: int

    @property
    def total(self) -> int:
        return self.state + self.temporary


def need(recipe: Recipe, mesh, dtype="bfloat16") -> Need:
    """Equations (1) to (6) and the state, of a recipe's batch on a mesh with the axes of ``parallel.mesh``."""
    model, train = recipe.model.config, recipe.config.train
    shapes, shardings = abstract_state(recipe, mesh)
    state = sum(row.bytes_per_device for row in describe(shapes, shardings))
    rows = describe(shapes.params, shardings.params)
    own = sum(row.bytes_per_device for row in rows)
    layer = sum(math.prod(row.shape) for row in rows if "block" in row.path)
    fsdp, context, tensor = (mesh.shape[axis] for axis in ("fsdp", "context", "tensor"))
    c = jnp.dtype(dtype).itemsize
    b = train.batch / train.accumulate / (mesh.shape["data"] * fsdp)
    tokens = math.prod(size // part for size, part in zip((recipe.frames, *recipe.frame_shape[:-1]), model.patch,
                                                          strict=True))  # fmt: skip
    streams = 1 + (recipe.layout.kind == "teacher_forcing")  # a clean copy beside the noisy stream
    S, D = streams * tokens, model.width
    copies = (4 if fsdp > 1 else 0) + (c if c < 4 else 0)
    temporary = own + 2 * copies * layer / model.depth / tensor
    temporary += b * S / context * c * (model.depth * D + 16 * D + 4 * model.mlp / tensor)
    heads = math.ceil(model.heads / tensor / context)
    temporary += b * S * heads * (D // model.heads) * (8 + 4 * c)
    block = S // streams // recipe.frames * recipe.layout.block
    temporary += min(b * heads * block * S, MOST_SCORES) * (12 + 2 * c)
    return Need(state, math.ceil(temporary))


def recipe_of(sizes, batch: int, **overrides) -> Recipe:
    """A block-causal text-to-video transformer of these sizes on clips of ``CLIP``."""
    model = dict(zip(("width", "depth", "heads", "mlp"), sizes, strict=True))
    keys = {f"model.{key}": value for key, value in model.items()} | {f"data.{key}": CLIP[key] for key in CLIP}
    return build(load_config("causvid", keys | {"train.batch": batch} | overrides))


def smallest(sizes, devices: int, memory: float, **overrides) -> tuple[Need, int]:
    """(what the step needs, size of the tensor axis): the smallest tensor axis with which it fits, or needs least."""
    found = []
    for tensor in (1, 2, 4, 8):
        if devices % tensor or sizes[2] % tensor:
            continue
        mesh = AbstractMesh((1, devices // tensor, 1, tensor), AXES, axis_types=(AxisType.Auto,) * len(AXES))
        found.append((need(recipe_of(sizes, devices // tensor, **overrides), mesh), tensor))
        if found[-1][0].total <= (1 - RESERVE) * memory:
            return found[-1]
    return min(found, key=lambda each: each[0].total)


def cell(sizes, devices: int, memory: float, **overrides) -> str:
    """What ``smallest`` found, in GB per device."""
    wants, tensor = smallest(sizes, devices, memory, **overrides)
    found = f"{wants.state / 1e9:.1f} + {wants.temporary / 1e9:.1f}" + (f", tensor {tensor}" if tensor > 1 else "")
    return found if wants.total <= (1 - RESERVE) * memory else f"no: {found}"


def table(**overrides) -> str:
    """Markdown: a row per machine, a column per model."""
    lines = ["| devices | " + " | ".join(MODELS) + " |", "|---|" + "---|" * len(MODELS)]
    for name, devices, kind in MACHINES:
        memory = PEAKS[kind].memory
        cells = [cell(sizes, devices, memory, **overrides) for sizes in MODELS.values()]
        lines.append(f"| {name}, {memory / 1e9:.0f} GB each | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    for optimizer in ("adamw", "adafactor"):
        print(f"With `train.optimizer = '{optimizer}'`:\n\n{table(**{'train.optimizer': optimizer})}\n")
