import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from causal_diffusion.evaluation import motion, motion_smoothness
from causal_diffusion.evaluation.distributions import frechet_distance

SHARED = Path(os.environ.get("CD_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def embeddings(count, width=8, seed=0):
    return np.random.default_rng(seed).standard_normal((count, width))


def test_perfect_embeddings_are_always_found():
    x = embeddings(100)
    np.testing.assert_array_equal(motion.r_precision(x, x), 1.0)
    assert motion.matching_distance(x, x) == 0.0
    assert motion.matching_distance(x, x + [3, 4, 0, 0, 0, 0, 0, 0]) == pytest.approx(5.0)


@pytest.mark.parametrize("same", [False, True])
def test_a_guess_finds_one_in_thirty_two(same):
    """Random motions, and motions that are all the same, which know nothing either."""
    text, other = embeddings(3200), embeddings(3200, seed=1)
    got = motion.r_precision(text, other[:1].repeat(3200, 0) if same else other)
    np.testing.assert_allclose(got, np.arange(1, 4) / 32, atol=0 if same else 0.015)


def test_ranks_by_hand():
    """Four captions on a line; the motion of caption i lies at the place of caption i + shift."""
    text = np.arange(4.0)[:, None]
    for shift, expected in ((0.0, [4, 4, 4]), (1.2, [1, 2, 4])):
        order = np.argsort(np.abs(text - (text + shift).T), axis=1)
        rank = [list(order[i]).index(i) for i in range(4)]
        wanted = [sum(r < k for r in rank) for k in (1, 2, 3)]
        assert wanted == expected
        np.testing.assert_allclose(motion.r_precision(text, text + shift, pool=4), np.array(wanted) / 4)


def test_what_does_not_fill_a_pool_is_dropped():
    x = embeddings(47)
    x[::2] += 100  # which clips are dropped makes a difference, so they are drawn anew by the seed
    y = x + embeddings(47, seed=1)
    scores = {tuple(motion.r_precision(x, y, seed=seed)) for seed in range(8)}
    assert len(scores) > 1 and all((32 * score == round(32 * score)) for row in scores for score in row)
    assert motion.r_precision(x, y, seed=3).tolist() == motion.r_precision(x, y, seed=3).tolist()


def test_equal_captions_are_misses_unless_pools_hold_different_ones():
    """Sixteen captions of four clips each, told apart without error: the published pools still count misses."""
    captions = np.repeat([f"caption {i}" for i in range(16)], 4)
    text = np.repeat(embeddings(16), 4, axis=0)
    assert motion.r_precision(text, text, pool=16)[0] < 0.8
    np.testing.assert_array_equal(motion.r_precision(text, text, pool=16, captions=captions), 1.0)
    pools = motion._different(captions, 64, 16, np.random.default_rng(0))
    assert len(pools) == 4 and sorted(np.concatenate(pools)) == list(range(64))
    assert all(len(set(captions[pool])) == 16 for pool in pools)


def test_pools_of_different_captions_take_from_the_fullest_first():
    captions = np.array([0] * 6 + [1] * 3 + [2] * 2 + [3])
    pools = motion._different(captions, 12, 2, np.random.default_rng(0))
    assert len(pools) == 6 and sorted(np.concatenate(pools)) == list(range(12))
    assert all(captions[a] != captions[b] for a, b in pools)


def test_pairs_too_few_for_pools_are_counted_in_those_of_all():
    """Five motions that lie elsewhere: missed when they alone are counted, and the two shares make up the whole."""
    text = embeddings(64)
    moved = np.arange(64) < 5
    made = text + np.where(moved, 100.0, 0.0)[:, None]
    whole, new, rest = (motion.r_precision(text, made, counted=counted) for counted in (None, moved, ~moved))
    np.testing.assert_allclose(64 * whole, 5 * new + 59 * rest)
    assert new[0] < 0.5 and rest[0] == 1.0


def test_repeats_and_their_interval():
    seeds = []

    def measure(seed):
        seeds.append(seed)
        return {"a": float(seed), "b": np.array([seed, 2.0])}

    got = motion.repeat(measure, 4, seed=10)
    assert seeds == [10, 11, 12, 13]
    half = 1.96 * np.std([10, 11, 12, 13]) / 2
    assert got["a"] == pytest.approx((11.5, half))
    np.testing.assert_allclose(got["b"].mean, [11.5, 2.0])
    np.testing.assert_allclose(got["b"].half, [half, 0.0])
    assert str(got["b"]) == "11.5 ± 1.1 2 ± 0"
    assert motion.repeat(lambda seed: 3.0, 1) == (3.0, 0.0)


def test_a_protocol_prints_itself_beside_its_numbers():
    protocol = motion.Protocol("tmr of the training clips", clips=334, repeats=2, different=True, seed=7)
    score = protocol.repeat(lambda seed: float(seed))
    assert score == pytest.approx((7.5, 1.96 * 0.5 / 2**0.5))
    assert protocol.report({"FID": score}) == (
        "FID 7.5 ± 0.69\n(evaluator tmr of the training clips, 334 clips, pools of 32 different captions, 300 pairs, "
        "mean and 95 % interval of 2 repeats from seed 7)"
    )
    with pytest.raises(ValueError, match="repeats is 0"):
        motion.Protocol("x", 1, repeats=0)


def test_a_long_motion_in_pieces():
    x = np.arange(20)[:, None]
    parts = motion.subsequences(x, [5, 12])
    assert [part[:, 0].tolist() for part in parts] == [list(range(5)), list(range(5, 12)), list(range(12, 20))]
    assert motion.transitions(x, [5, 12], 4)[..., 0].tolist() == [[3, 4, 5, 6], [10, 11, 12, 13]]
    assert motion.transitions(x, [5], 5)[..., 0].tolist() == [[3, 4, 5, 6, 7]]
    assert motion.transitions(x, [], 4).shape == (0, 4, 1)


def test_a_composition_is_measured_like_clips():
    rng = np.random.default_rng(0)
    walks = [rng.standard_normal((30, 6)).cumsum(axis=0) for _ in range(3)]
    walks[1][15:] += 5.0  # a seam
    real = [rng.standard_normal((n, 6)).cumsum(axis=0) for n in (10, 11, 12, 6)]
    boundaries = [[10, 20], [15], []]

    def embed(clips):
        return np.array([[x.mean(), x.std()] for x in clips])

    def positions(x):
        return x.reshape(len(x), 2, 3)

    text = embeddings(6, 2)
    got = motion.composition(walks, boundaries, embed, positions, real, frames=8, text=text, pool=6)
    parts = [walks[0][:10], walks[0][10:20], walks[0][20:], walks[1][:15], walks[1][15:], walks[2]]
    joins = [walks[0][6:14], walks[0][16:24], walks[1][11:19]]
    windows = [real[0][1:9], real[1][1:9], real[2][2:10]]  # the fourth is too short
    assert got["subsequence FID"] == pytest.approx(frechet_distance(embed(real), embed(parts)))
    assert got["transition FID"] == pytest.approx(frechet_distance(embed(windows), embed(joins)))
    curve, curve_real = (motion_smoothness.jerk(np.stack([positions(x) for x in y])) for y in (joins, windows))
    assert got["transition peak jerk"] == pytest.approx(curve.mean(axis=0).max())
    assert got["real peak jerk"] == pytest.approx(curve_real.mean(axis=0).max())
    assert got["real peak jerk"] < got["transition peak jerk"]
    area = np.abs(curve.mean(axis=0) - curve_real.mean()).sum()
    assert got["transition area under jerk"] == pytest.approx(area)
    assert got["MM-Dist"] == motion.matching_distance(text, embed(parts)) and got["R-precision"].shape == (3,)


WRISTS = SimpleNamespace(roles={"left_wrist": 1, "right_wrist": 2})


def test_which_hand_is_raised():
    clip = np.zeros((10, 3, 3))
    clip[:, 1:, 1] = 0.8
    assert motion.higher_wrist(clip, WRISTS) == "both"
    clip[4, 1, 1] = 1.7
    assert motion.higher_wrist(clip, WRISTS) == "left" and motion.left_wrist_share(clip, WRISTS) == 0.1
    assert motion.higher_wrist(clip[:, [0, 2, 1]], WRISTS) == "right"
    clip[7:, 2, 1] = 1.65
    assert motion.higher_wrist(clip, WRISTS) == "both"
    assert motion.higher_wrist(clip, WRISTS, margin=0.01) == "left" and motion.left_wrist_share(clip, WRISTS) == 0.1


def test_ground_speed_of_a_circle_and_of_a_jump():
    angle = np.linspace(0, 2 * np.pi, 361)
    path = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    assert motion.speed(path, 20) == pytest.approx(2 * np.pi * 20 / 360, rel=1e-4)
    jump = np.stack([path[:, 0], 5 * np.abs(path[:, 1]), path[:, 1]], axis=-1)
    np.testing.assert_allclose(motion.speed(np.stack([jump, 2 * jump]), 20), motion.speed(path, 20) * np.array([1, 2]))


def test_labels_of_real_clips_by_geometry():
    """The rule knows left from right in real clips, and runs are faster than walks."""
    path = SHARED / "motion" / "bandai_test.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    data = np.load(path)
    names = data["joint_names"].tolist()
    skeleton = SimpleNamespace(roles={"left_wrist": names.index("Hand_L"), "right_wrist": names.index("Hand_R")})
    edges, content = data["clip_start"], data["content_names"][data["content"]]
    positions, root, fps = data["positions"], data["root_xz"], float(data["fps"])
    right = asked = 0
    for i in np.flatnonzero(np.isin(content, ["raise-up-left-hand", "raise-up-right-hand"])):
        got = motion.higher_wrist(positions[edges[i] : edges[i + 1]], skeleton)
        right, asked = right + (got == content[i].split("-")[2]), asked + 1
    assert asked == 95 and right == asked
    speeds = {name: [motion.speed(root[edges[i] : edges[i + 1]], fps) for i in np.flatnonzero(content == name)]
              for name in ("walk", "run")}  # fmt: skip
    assert 1.0 < np.mean(speeds["walk"]) < 1.4 < 2.2 < np.mean(speeds["run"]) < 3.2


@pytest.mark.parametrize("call, words", [
    (lambda x: motion.r_precision(x, x[:, :2]), "embedded as"),
    (lambda x: motion.r_precision(x * np.inf, x), "not finite"),
    (lambda x: motion.r_precision(x, x), "pool is 32 and top 3, and there are 10 pairs: pool=10"),
    (lambda x: motion.r_precision(x, x, pool=2), "pool is 2 and top 3"),
    (lambda x: motion.r_precision(x, x, captions=np.arange(10) % 7), "7 different captions: pool=7"),
    (lambda x: motion.r_precision(x, x, captions=[1]), "one for each of 10 pairs"),
    (lambda x: motion.r_precision(x, x, pool=5, counted=[True]), "one bool for each of 10 pairs"),
    (lambda x: motion.r_precision(x, x, pool=5, counted=np.zeros(10, bool)), "names 0 pairs"),
    (lambda x: motion.subsequences(x, [4, 4]), r"boundaries is \[4, 4\] and the motion has 10 frames"),
    (lambda x: motion.subsequences(x, [10]), "between 1 and 9"),
    (lambda x: motion.transitions(x, [8], 6), "frame 8 is 2 frames from an end of the motion: frames=4"),
    (lambda x: motion.composition([x], [[]], None, None, [x], 4), "boundaries are empty"),
    (lambda x: motion.composition([x], [[5]], None, None, [x], 12), "no real clip is as long: 10 would do"),
    (lambda x: motion.higher_wrist(x, WRISTS), r"\[frames, joints, 3\]"),
    (lambda x: motion.speed(x, 20), "a path is"),
    (lambda x: motion.repeat(None, 0), "repeats is 0"),
])  # fmt: skip
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(embeddings(10))
