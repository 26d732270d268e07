"""Guidance: weights, the branches they belong to, and that every prediction space mixes alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_diffusion.diffusion.guidance import CONDITIONS, KINDS, Branch, Guidance, mix
from causal_diffusion.diffusion.process import SPACES, Process

rng = np.random.default_rng(0)


@given(kind=st.sampled_from(sorted(KINDS)), scale=st.floats(-2.0, 12.0))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_weights_sum_to_one_and_the_full_branch_comes_first(kind, scale):
    branches = Guidance(kind, scale).branches()
    assert sum(branch.weight for branch in branches) == pytest.approx(1.0)
    assert branches[0].drop == () and len({branch.drop for branch in branches}) == len(branches)


def test_cfg_is_equation_6():
    cond, uncond = rng.normal(size=(2, 3, 1, 4, 5)).astype(np.float32)
    out = np.concatenate([cond, uncond], axis=1)  # [B, G, ...]
    for scale in (0.0, 0.5, 3.0):
        branches = Guidance("cfg", scale).branches()
        mixed = mix(out, branches)
        np.testing.assert_allclose(mixed, (uncond + scale * (cond - uncond))[:, 0], atol=1e-5)
        assert mixed.shape == (3, 4, 5) and mixed.dtype == np.float32
    assert branches[1].drop == ("label", "text")
    assert Guidance("cfg", 2.0, ("action",)).branches() == (Branch((), 2.0), Branch(("action",), -1.0))


def test_cfg_of_scale_one_is_no_guidance():
    assert Guidance("cfg", 1.0).branches() == Guidance("none", 5.0).branches() == (Branch((), 1.0),)
    out = rng.normal(size=(3, 1, 4)).astype(np.float32)
    np.testing.assert_array_equal(mix(out, Guidance("none").branches()), out[:, 0])


@pytest.mark.parametrize("predict", SPACES)
@pytest.mark.parametrize("scale", [0.3, 4.0])
def test_every_space_mixes_alike(predict, scale):
    """Mixing what is predicted, then converting, is converting every branch, then mixing."""
    process, branches = Process(predict=predict), Guidance("cfg", scale).branches()
    out = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    x, t = rng.normal(size=(2, 3, 4)).astype(np.float32), np.array([[0.2, 0.5, 0.9]] * 2, np.float32)
    for convert in (process.to_x0, process.to_noise, process.to_velocity):
        each = np.stack([convert(out[:, g], x, t) for g in range(2)], axis=1)
        np.testing.assert_allclose(convert(mix(out, branches), x, t), mix(each, branches), rtol=1e-4, atol=1e-4)


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="guidance.kind is 'apg'; it is one of none, cfg"):
        Guidance("apg")
    with pytest.raises(ValueError, match=f"guidance.drop has 'prompt'; conditions are {', '.join(CONDITIONS)}"):
        Guidance("cfg", 2.0, ("prompt",))
