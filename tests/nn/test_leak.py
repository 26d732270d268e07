"""No leak: an output depends on an input exactly where the layout lets it, to the last bit, per attention backend."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.layout import Layout
from causal_diffusion.nn.attention import BACKENDS

LAYOUTS = [
    pytest.param(Layout("frame_causal", block=1), marks=pytest.mark.full),
    Layout("frame_causal", block=2, window=2, sinks=2),
    Layout("teacher_forcing", block=1, window=1, sinks=1),
    Layout("teacher_forcing", block=3, window=3),
    pytest.param(Layout("frame_causal", block=3, window=6, sinks=3), marks=pytest.mark.full),
    pytest.param(Layout("teacher_forcing", block=2), marks=pytest.mark.full),
]
BLOCKS = 4


def influence(system, table):
    """Whether the gradient of each block's output in each block's x, t and action is anything but zero.

    Returns:
        {input name: bool [blocks, blocks]} over the blocks of all streams, one after the other.
    """
    names, blocks = list(system.streams), len(table)
    rng = np.random.default_rng(0)
    weight = {name: rng.normal(size=s.x.shape).astype(np.float32) for name, s in system.streams.items()}
    frames = sum(s.t.shape[1] for s in system.streams.values())
    block = frames // blocks

    def each_block(inputs):
        streams = {n: dataclasses.replace(system.streams[n], **inputs[n]) for n in names}
        out = system.apply(streams=streams)
        by_frame = [jnp.sum(out[n] * weight[n], axis=(0, 2, 3)) for n in names]
        return jnp.concatenate(by_frame).reshape(blocks, block).sum(axis=1)

    inputs = {n: {"x": s.x, "t": s.t, "action": s.action} for n, s in system.streams.items()}
    jacobian = jax.jit(jax.jacrev(each_block))(inputs)

    def by_block(name):
        parts = [np.abs(jacobian[n][name]).reshape(blocks, inputs[n]["t"].shape[1], -1) for n in names]
        return np.concatenate(parts, axis=1).reshape(blocks, blocks, -1).max(axis=-1) > 0

    return {name: by_block(name) for name in ("x", "t", "action")}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda a: f"{a.kind}-{a.block}-{a.window}-{a.sinks}")
def test_blocks_depend_on_what_the_layout_lets_them_see_and_on_nothing_else(tiny, layout, backend):
    """Both ways: exactly zero for every block out of reach, and not zero for every one within.

    Two layers reach what is seen by what is seen.
    """
    frames = BLOCKS * layout.block
    system = tiny(layout, frames=frames, space=(2,), patch=(1, 2), batch=1, backend=backend)
    table = layout.block_table(frames)
    reach = table @ table
    for name, touched in influence(system, table).items():
        np.testing.assert_array_equal(touched, reach, err_msg=name)
    # In words: no later block, and no clean copy of the block itself.
    past = reach[-BLOCKS:, :-BLOCKS] if layout.separate_clean else reach
    assert not np.triu(past, 1 - layout.separate_clean).any()
