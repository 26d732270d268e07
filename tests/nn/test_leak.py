"""No leak: an output depends on an input exactly where the layout lets it, to the last bit, per attention backend."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.layout import Layout
from causal_diffusion.nn.attention_backends import BACKENDS, LIMITED

LAYOUTS = [
    pytest.param(Layout("block_causal", block=1), marks=pytest.mark.full),
    Layout("block_causal", block=2, window=2, sinks=2),
    Layout("teacher_forcing", block=1, window=1, sinks=1),
    pytest.param(Layout("teacher_forcing", block=3, window=3), marks=pytest.mark.full),
    pytest.param(Layout("block_causal", block=3, window=6, sinks=3), marks=pytest.mark.full),
    pytest.param(Layout("teacher_forcing", block=2), marks=pytest.mark.full),
]
BLOCKS = 4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda a: f"{a.kind}-{a.block}-{a.window}-{a.sinks}")
def test_blocks_depend_on_what_the_layout_lets_them_see_and_on_nothing_else(tiny, influence, layout, backend):
    """Both ways: exactly zero for every block out of reach, and not zero for every one within.

    Two layers reach what is seen by what is seen.
    """
    if (why := LIMITED.get(backend, lambda *_: None)(jax.default_backend(), jnp.float32, 8)):
        pytest.skip(f"{backend}: {why}")
    frames = BLOCKS * layout.block
    system = tiny(layout, frames=frames, space=(2,), patch=(1, 2), batch=1, backend=backend)
    table = layout.block_table(frames)
    reach = table @ table
    for name, touched in influence(system).items():
        blocks = touched.reshape(len(table), layout.block, len(table), layout.block).any(axis=(1, 3))
        np.testing.assert_array_equal(blocks, reach, err_msg=name)
    # In words: no later block, and no clean copy of the block itself.
    past = reach[-BLOCKS:, :-BLOCKS] if layout.separate_clean else reach
    assert not np.triu(past, 1 - layout.separate_clean).any()
