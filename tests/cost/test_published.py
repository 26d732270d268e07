"""Figures worked out by hand for published systems (see the arithmetic beside each)."""

import dataclasses

import numpy as np
import pytest

from causal_diffusion.config import load_config
from causal_diffusion.cost import step_cost
from causal_diffusion.cost.network import Pass, forward
from causal_diffusion.cost.peaks import rates
from causal_diffusion.cost.stream import calls
from causal_diffusion.layout import CLEAN, NOISY, Ids, Layout, concatenate
from causal_diffusion.nn.config import TransformerConfig
from causal_diffusion.recipe import build

WAN = {"1.3B": (1536, 30, 12, 8960), "14B": (5120, 40, 40, 13824)}
LATENT = (60, 104, 16)  # 480 x 832 pixels: 1560 tokens


def wan(sizes, **overrides):
    """Self Forcing of these sizes: chunks of 3 latent frames, 512 words, a context of 21 frames with the chunk."""
    model = {f"model.{key}": value for key, value in zip(("width", "depth", "heads", "mlp"), sizes, strict=True)}
    return build(load_config("self_forcing", model | {"text.tokens": 512, "model.dtype": "bfloat16"} | overrides))


def one_pass(recipe):
    call = next(calls(recipe))
    return forward(recipe.model.config, recipe.frame_shape, call.run, 1)


def test_a_chunk_of_wan():
    """Linear 83.4e6 x 30 x 4680 = 11.70, attention 4 x 4680 x 32760 x 1536 x 30 = 28.26, text 0.44: 40.41 TFLOP."""
    recipe = wan(WAN["1.3B"])
    cost = one_pass(recipe)
    assert cost.linear == pytest.approx(11.70e12, rel=2e-3)
    assert cost.attention == 4 * 4680 * 32760 * 1536 * 30 == pytest.approx(28.26e12, rel=1e-3)
    assert cost.cross_attention == 4 * 4680 * 512 * 1536 * 30 == pytest.approx(0.44e12, rel=0.01)
    assert cost.flops == pytest.approx(40.41e12, rel=1e-3)
    step = step_cost(recipe)
    assert step.flops == pytest.approx(202.0e12, rel=1e-3)  # 4 + 1 passes
    assert step.weights / 5 == pytest.approx(2.50e9, rel=0.03)  # and the shared projection, in float32
    kept = 18 / 21 * 6.04e9 + 2 * 30 * 512 * 1536 * 2  # of 21 frames 3 are the chunk's own; and the words
    assert step.read / 5 == pytest.approx(kept, rel=1e-3)
    assert step.seconds(rates("NVIDIA H200", "bfloat16", reached=True)) == pytest.approx(0.256, rel=5e-3)
    shorter = [one_pass(wan(WAN["1.3B"], **{"layout.window": window})).flops for window in (9, 0)]
    assert shorter[0] == pytest.approx(28.29e12, rel=1e-3)


def test_a_chunk_of_the_large_one():
    for context, figure in ((6, 150e12), (9, 168e12), (21, 239e12)):
        recipe = wan(WAN["14B"], **{"layout.window": context - 3})
        assert one_pass(recipe).flops == pytest.approx(figure, rel=5e-3)


def test_a_frame_of_nfd():
    """310 M: linear 24 d^2 L x 336 = 135 GFLOP, attention 4 x 336 x 5376 d L = 118; five passes 1.27 TFLOP."""
    model = {"model.action": 0, "data.action_dim": 0, "model.dtype": "bfloat16", "schedule.steps": 4}
    recipe = build(load_config("nfd", model | {"data.frames": 16, "evaluate.clips": 0}))
    cost = one_pass(recipe)
    assert cost.linear == pytest.approx(135e9, rel=0.01)
    assert cost.attention == pytest.approx(118e9, rel=5e-3)
    step = step_cost(recipe)
    assert step.flops == pytest.approx(1.27e12, rel=5e-3)
    single = 6 * 1024**2 * 16 * 2  # modulation multiplies in float32, for which the figure of 0.60 GB has 2 bytes
    assert step.weights / 5 == pytest.approx(0.60e9 + single, rel=0.03)
    assert step.read / 5 == pytest.approx(15 / 16 * 0.35e9, rel=0.02)  # a frame of 16 is its own


def teacher_forcing(sizes, frame_shape, frames, block=1, text=0, **config):
    """(dense, visible) forward pass over a clean and a noisy copy of a whole clip, the last clean block included."""
    D, L, H, M = sizes
    c = TransformerConfig(width=D, depth=L, heads=H, mlp=M, text=text, channels=frame_shape[-1], **config)
    at = np.arange(frames)
    ids, layout = concatenate(Ids.of(CLEAN, at), Ids.of(NOISY, at)), Layout(block=block)
    run = Pass(np.asarray(layout.visible(ids, ids)) * 1.0, fine=2 * frames, head=2 * frames, text=512 * bool(text))
    return [forward(c, frame_shape, run, visible=visible) for visible in (False, True)]


@pytest.mark.parametrize("n", [1, 2, 4, 7, 16, 21, 64])
def test_live_fractions(n):
    """(n + 1) / 4n of teacher forcing, or n^2 blocks without the last clean one; (n + 1) / 2n of a causal stream."""
    dense, visible = teacher_forcing((64, 1, 1, 64), (2, 2, 1), 3 * n, block=3, patch=(1, 1, 1))
    assert visible.attention / dense.attention == pytest.approx((n + 1) / (4 * n))
    ids = Layout("block_causal", block=3).training_mask(3 * n)
    assert ids.mean() == pytest.approx((n + 1) / (2 * n))
    assert Layout("teacher_forcing", block=3).training_mask(3 * n).sum() == 9 * n**2


def test_ideal_speed_ups_of_a_whole_step():
    """Dense over visible: Wan 1.3B 2.43 by chunks, 2.55 by frames, NFD 310M 1.88."""
    wide = dict(patch=(1, 2, 2), text=4096, modulation="table", head="table", text_layers=2)
    dense, visible = teacher_forcing(WAN["1.3B"], LATENT, 21, block=3, **wide)
    assert dense.linear == pytest.approx(164e12, rel=5e-3)
    assert (dense.attention, visible.attention) == pytest.approx((791e12, 226e12), rel=5e-3)
    assert dense.flops / visible.flops == pytest.approx(2.43, abs=0.01)
    dense, visible = teacher_forcing(WAN["1.3B"], LATENT, 21, **wide)
    assert dense.flops / visible.flops == pytest.approx(2.55, abs=0.015)
    dense, visible = teacher_forcing((1024, 16, 16, 4096), (14, 24, 16), 16, patch=(1, 1, 1))
    assert dense.flops / visible.flops == pytest.approx(1.88, abs=0.015)


def test_a_window_of_a_long_clip():
    """n = 40 blocks, 4 seen with the own: W = 4 x 40 - 6 = 154 of n^2, in teacher forcing 154 of 2 n^2."""
    mask = dataclasses.replace(Layout("block_causal"), window=3).training_mask(40)
    assert mask.mean() == pytest.approx(154 / 1600)
