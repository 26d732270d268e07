"""One forward pass of the transformer: its matrices, how many rows each multiplies, and who looks at whom.

With D the width, a token costs 2 D^2 per projection and layer, and a pair of tokens that see each other 4 D per layer,
over all heads: 2 D for its score, 2 D for its value. A pass (``Pass``) says how many frames run, and by frame which
keys each of them sees. Attention can be counted in two ways:

    visible   pairs that the mask shows: what the mathematics asks for
    dense     all pairs of queries and keys: what a backend computes that masks afterwards

Entries of a mask may be probabilities, where a draw decides; then visible pairs are those expected.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from causal_diffusion.cost.count import Cost
from causal_diffusion.nn.config import TransformerConfig

Array = Any


class Matrix(NamedTuple):
    """A Linear layer with bias. rows: the kinds of rows, see ``Pass.rows``, that it multiplies; count: how many there
    are alike; single: whether it multiplies in float32, whatever the others do."""

    inputs: int
    outputs: int
    rows: tuple[str, ...]
    count: int = 1
    single: bool = False

    @property
    def numbers(self) -> int:
        """Of kernels and biases."""
        return self.count * (self.inputs + 1) * self.outputs


@dataclasses.dataclass(frozen=True)
class Pass:
    """What one sample brings to a pass. T rows of the mask: coarse frames, then fine ones.

    mask: [T, S], S = fine slots + coarse slots + T; in [0, 1]. None: nothing runs but the diffusion head.
    coarse, fine: frames that run. slots, coarse_slots: frames whose keys and values are kept.
    prefix: [T, S] or None, as mask, for the prefix attention; a row adds up to at least 1, a frame without a prefix
        seeing itself.
    registers: sets of register tokens, one for each condition.
    text: condition tokens that a frame sees; captions: how many such sets stand beside each other.
    encode: whether keys and values of the text are made here. Else they are kept.
    head: fine frames that go through the head.
    """

    mask: Array | None
    fine: int = 0
    coarse: int = 0
    slots: int = 0
    coarse_slots: int = 0
    prefix: Array | None = None
    registers: int = 0
    text: int = 0
    captions: int = 1
    encode: bool = False
    head: int = 0

    def rows(self, config: TransformerConfig, frame_shape: tuple[int, ...]) -> dict[str, int]:
        """How many rows there are of each kind."""
        fine, coarse = tokens(config, frame_shape)
        text = self.captions * self.text if self.encode else 0
        return {
            "fine": self.fine * fine,
            "coarse": self.coarse * coarse,
            "registers": self.registers * config.registers,
            "frames": self.fine + self.coarse,
            "text": text,
            "head": self.head * fine,
            "head frames": self.head,
        }


def tokens(config: TransformerConfig, frame_shape: tuple[int, ...]) -> tuple[int, int]:
    """Tokens of a fine frame [*space, C] and of a coarse one; 0 of that where there are none."""
    grid = [size // part for size, part in zip(frame_shape[:-1], config.patch[1:], strict=True)]
    coarse = math.prod(size // config.coarse for size in grid) if config.coarse else 0
    return math.prod(grid), coarse


def layers_in_time(config: TransformerConfig) -> int:
    """Layers whose attention sees other frames."""
    return config.depth // config.time_every


def matrices(c: TransformerConfig) -> list[Matrix]:
    """All of them. A transformer without text, actions, ... has none that multiplies those."""
    D, L, P, seeing = c.width, c.depth, math.prod(c.patch) * c.channels, layers_in_time(c)
    fine, coarse, every = ("fine",), ("coarse",), ("fine", "coarse", "registers")
    found = [
        Matrix(P, D, fine),
        Matrix(c.frequencies, D, ("frames",), single=True),
        Matrix(D, D, ("frames",), single=True),
        Matrix(D, D, ("fine", "registers"), 4 * L),  # q, k, v, o, in space where attention is factorised
        Matrix(D, c.mlp, every, L),
        Matrix(c.mlp, D, every, L),
    ]
    if c.coarse:
        found += [Matrix(P * c.coarse ** (len(c.patch) - 1), D, coarse), Matrix(D, D, coarse, 4 * L)]
    if c.attention == "factorised":
        found.append(Matrix(D, D, fine, 4 * (seeing + L * bool(c.prefix))))
        if c.axial_mlp:
            found += [Matrix(D, c.mlp, fine, seeing), Matrix(c.mlp, D, fine, seeing)]
        if c.mask_channel:
            found.append(Matrix(D + 1, D, fine))
    if c.modulation == "table":
        found.append(Matrix(D, c.modulations * D, ("frames",), single=True))
    else:
        found.append(Matrix(D, c.modulations * D, ("frames",), seeing, single=True))
        found.append(Matrix(D, 6 * D, ("frames",), L - seeing, single=True))
    if c.action:
        found += [Matrix(c.action, D, ("frames",), single=True), Matrix(D, D, ("frames",), single=True)]
    if c.text:
        found += [Matrix(D, D, ("fine", "coarse"), 2 * L), Matrix(D, D, ("text",), 2 * L), Matrix(c.text, D, ("text",))]
        found += [Matrix(D, D, ("text",))] * (c.text_layers - 1)
        if c.vocabulary:
            found.append(Matrix(c.text, c.text, ("text",), 4, single=True))
    outputs = P * c.outputs
    if c.head == "diffusion":
        return found + _diffusion_head(c, P, outputs)
    if c.head == "linear":
        found.append(Matrix(D, 2 * D, ("head frames",), single=True))
    return [*found, Matrix(D, outputs, ("head",), single=True)]


def _diffusion_head(c, inputs, outputs):
    W, head, frames = c.head_width, ("head",), ("head frames",)
    return [
        Matrix(c.frequencies, W, frames, single=True),
        Matrix(W, W, frames, single=True),
        Matrix(c.width, W, head),
        Matrix(inputs, W, head),
        Matrix(W, 3 * W, head, c.head_depth),
        Matrix(W, W, head, 2 * c.head_depth),
        Matrix(W, 2 * W, head),
        Matrix(W, outputs, head, single=True),
    ]


def forward(c: TransformerConfig, frame_shape, run: Pass, batch: int = 1, visible: bool = True) -> Cost:
    """The operations of a pass of ``batch`` samples, and the bytes of the weights that it reads.

    visible: whether attention is counted as the mask shows it; else densely.
    """
    rows, wide, linear, weights = run.rows(c, frame_shape), np.dtype(c.compute_dtype).itemsize, 0, 0
    for matrix in matrices(c):
        count = sum(rows[kind] for kind in matrix.rows)
        linear += 2 * count * matrix.count * matrix.inputs * matrix.outputs
        weights += matrix.numbers * (4 if matrix.single else wide) * bool(count)
    pairs = 0 if run.mask is None else _joint(c, frame_shape, run, visible)
    if c.attention == "factorised" and run.mask is not None:
        pairs = _factorised(c, frame_shape, run, visible)
    asking = rows["fine"] + rows["coarse"]
    seen = run.text * (1 if visible else run.captions) if c.text else 0
    own = 4 * c.text * run.captions * run.text**2 * bool(c.vocabulary and run.encode)
    return Cost(
        linear=batch * linear,
        attention=batch * 4 * c.width * pairs,
        cross_attention=batch * 4 * c.width * c.depth * asking * seen,
        other=batch * own,  # of the words of a caption with each other
        weights=weights,
    )


def _joint(c, frame_shape, run, visible):
    """Pairs over all layers."""
    fine, coarse = tokens(c, frame_shape)
    queries = np.repeat([coarse, fine], [run.coarse, run.fine])
    keys = np.concatenate([np.repeat([fine, coarse], [run.slots, run.coarse_slots]), queries])
    own = run.registers * c.registers
    if visible:
        pairs = float(queries @ run.mask @ keys)
        if own:
            pairs += int(queries.sum()) * c.registers + own * c.registers
    else:
        pairs = int(queries.sum()) * (int(keys.sum()) + own) + own**2
    return c.depth * pairs


def _factorised(c, frame_shape, run, visible):
    """Pairs in space, along every cell and with the prefix, over all layers."""
    N, S = tokens(c, frame_shape)[0], run.slots + run.fine
    time = float(np.sum(run.mask)) if visible else run.fine * S
    pairs = c.depth * run.fine * N**2 + layers_in_time(c) * N * time
    if not c.prefix:
        return pairs
    if not visible:
        shown = run.fine * S
    else:
        shown = run.fine if run.prefix is None else float(np.sum(run.prefix))
    return pairs + c.depth * N**2 * shown
