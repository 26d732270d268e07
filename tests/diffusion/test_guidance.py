"""Guidance: weights, the branches they belong to, calls per step, and that every prediction space mixes alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_diffusion.diffusion.guidance import CONDITIONS, KINDS, Branch, Guidance, mix
from causal_diffusion.diffusion.process import SPACES, Process

rng = np.random.default_rng(0)
LEVELS = np.array([[0.1, 0.5, 0.9]] * 2, np.float32)


def make(kind, scale, **more):
    if kind == "history_temporal":
        more = {"lengths": (2, 5), "scales": (scale, 0.5)} | more
    return Guidance(kind, scale, **more)


def outputs(branches):
    return rng.normal(size=(2, len(branches), 3, 4, 5)).astype(np.float32)


@given(kind=st.sampled_from(sorted(KINDS)), scale=st.floats(-2.0, 12.0), p=st.floats(0.0, 3.0))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_weights_sum_to_one_inside_and_outside_the_interval(kind, scale, p):
    branches = make(kind, scale, history_scale=p).branches()
    assert sum(branch.weight for branch in branches) == pytest.approx(1.0)
    halves = make(kind, scale, history_scale=p, interval=(0.2, 0.8)).branches()
    assert sum(branch.outside for branch in halves) == pytest.approx(1.0)
    assert len({branch[:1] + branch[2:4] for branch in branches}) == len(branches)  # no two alike


def test_weights_and_calls_are_those_of_the_table():
    conditions, drop = (), ("label", "text")
    assert Guidance("cfg", 3.0).branches() == (Branch(conditions, 3.0, outside=1.0), Branch(drop, -2.0))
    assert Guidance("cfg_added", 3.0).branches() == (Branch(conditions, 4.0, outside=1.0), Branch(drop, -3.0))
    assert Guidance("history", 1.5).branches() == (Branch((), 1.5, outside=1.0), Branch((), -0.5, past=0))
    fractional = Guidance("history_fractional", 1.5, level=0.8).branches()
    assert fractional == (Branch((), 1.0, outside=1.0), Branch((), 0.5, level=0.8), Branch((), -0.5, past=0))
    temporal = Guidance("history_temporal", lengths=(2, 8), scales=(0.5, 1.0)).branches()
    assert [(b.past, b.weight, b.outside) for b in temporal] == [(2, 0.5, 0.0), (8, 1.0, 1.0), (0, -0.5, 0.0)]
    magi = Guidance("three_way", 7.5, history_scale=1.5).branches()
    assert [(b.drop, b.past, b.weight, b.outside) for b in magi] == [
        ((), -1, 7.5, 0.0), (drop, -1, -6.0, 1.0), (drop, 0, -0.5, 0.0)
    ]  # fmt: skip
    dropped = Guidance("history", 1.5, ("action",), history_drop=True).branches()
    assert dropped[1] == Branch(("action",), -0.5, past=0)


@pytest.mark.parametrize("kind", ["none", "cfg", "history", "history_fractional"])
def test_weight_one_is_no_guidance(kind):
    """History guidance with weight 1 is the conditional prediction, and costs one call."""
    assert make(kind, 1.0).branches() == (Branch((), 1.0, outside=1.0),)
    out = outputs([0])
    np.testing.assert_array_equal(mix(out, make(kind, 1.0), LEVELS), out[:, 0])


def test_cfg_is_equation_1_and_what_is_added_counts_one_more():
    out = outputs([0, 0])
    cond, uncond = out[:, 0], out[:, 1]
    assert Guidance("cfg", 0.0).branches() == (Branch(("label", "text"), 1.0),)
    for scale in (0.5, 3.0):
        mixed = mix(out, Guidance("cfg", scale), LEVELS)
        np.testing.assert_allclose(mixed, uncond + scale * (cond - uncond), atol=1e-5)
        added = mix(out, Guidance("cfg_added", scale), LEVELS)
        np.testing.assert_allclose(added, mix(out, Guidance("cfg", scale + 1), LEVELS), atol=1e-5)
        assert np.asarray(mixed).dtype == np.float32


@pytest.mark.parametrize("kind", ["cfg", "history_fractional", "three_way"])
def test_outside_its_interval_there_is_none(kind):
    guidance = make(kind, 4.0, interval=(0.3, 0.7))
    branches = guidance.branches()
    out = outputs(branches)
    mixed = np.asarray(mix(out, guidance, LEVELS))
    whole = np.asarray(mix(out, make(kind, 4.0), LEVELS))
    plain = out[:, [b.outside for b in branches].index(1.0)]
    np.testing.assert_allclose(mixed[:, [0, 2]], plain[:, [0, 2]], atol=1e-5)
    np.testing.assert_allclose(mixed[:, 1], whole[:, 1], atol=1e-5)


def test_rescaling_keeps_the_spread_of_what_knows_everything():
    out = outputs([0, 0])
    for share in (0.0, 0.7, 1.0):
        plain, mixed = (np.asarray(mix(out, Guidance("cfg", 5.0, rescale=f), LEVELS)) for f in (0.0, share))
        wanted = share * out[:, 0].std(axis=(2, 3)) + (1 - share) * plain.std(axis=(2, 3))
        np.testing.assert_allclose(mixed.std(axis=(2, 3)), wanted, rtol=1e-5)


@pytest.mark.parametrize("predict", SPACES)
@pytest.mark.parametrize("kind", ["cfg", "history_fractional"])
def test_every_space_mixes_alike(predict, kind):
    """Mixing what is predicted, then converting, is converting every branch, then mixing."""
    process, guidance = Process(predict=predict), make(kind, 4.0)
    out, x = outputs(guidance.branches()), rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    for convert in (process.to_x0, process.to_noise, process.to_velocity):
        each = np.stack([convert(out[:, g], x, LEVELS) for g in range(out.shape[1])], axis=1)
        np.testing.assert_allclose(
            convert(mix(out, guidance, LEVELS), x, LEVELS), mix(each, guidance, LEVELS), rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize(("wrong", "message"), [
    (dict(kind="apg"), "guidance.kind is 'apg'; it is one of none, cfg"),
    (dict(kind="cfg", drop=("prompt",)), f"guidance.drop has 'prompt'; conditions are {', '.join(CONDITIONS)}"),
    (dict(interval=(0.5, 0.5)), "guidance.interval is"),
    (dict(rescale=1.5), "guidance.rescale is 1.5"),
    (dict(kind="history_temporal"), "guidance.lengths = .1,. with guidance.scales = .1.0,. would do"),
    (dict(kind="cfg", lengths=(2,), scales=(1.0,)), "guidance.lengths = .. with guidance.scales = .. would do"),
    (dict(kind="history_temporal", lengths=(2, 3), scales=(1.0,)), "guidance.scales = .1.0, 1.0. would do"),
    (dict(observe="mean"), "guidance.observe is 'mean'; it is one of none, square, quantile, gaussian"),
    (dict(observe="square", observe_scale=-1.0), "guidance.observe_scale is -1.0; it is at least 0"),
    (dict(observe="gaussian", observe_std=float("inf")), "guidance.observe_std is inf; it is at most"),
    (dict(observe="quantile", observe_levels=(0.5, 1.0)), "guidance.observe_levels is .0.5, 1.0.: each lies in .0, 1."),
    (dict(observe="square", observe_std=0.1), "guidance.observe is 'square'.*guidance.observe_std = 0.0 would do"),
    (dict(observe_levels=(0.5,)), "guidance.observe is 'none'.*guidance.observe_levels = .. would do"),
])
def test_unknown_choices_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**wrong)
