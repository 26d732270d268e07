"""Text to motion, scored: does a motion fit its caption, by a network and by geometry, and how sure is the number?

A network that embeds motions and captions into one space comes in as an ``embed`` function, or what it said comes in as
arrays: captions' embeddings t [N, E] and those m [N, E] of the motions made for them, in the same order. Distances are
Euclidean. The metrics are those of Guo et al., "Generating diverse and natural 3D human motions from text", CVPR 2022,
section 5.1:

* `r_precision`: in a pool of 32 pairs, how often a caption's own motion is among its nearest 1, 2, 3;
* `matching_distance` (MM-Dist): mean |t_i - m_i|;
* FID, KID, diversity and multimodality are in ``distributions``, jerk, foot skating and drift in ``motion_smoothness``.

A long motion under prompts that change is a *composition* (Barquero et al., "Seamless human motion composition with
blended positional encodings", CVPR 2024): it is cut at the boundaries of its prompts into sub-sequences, and a window
of frames around each boundary is a transition. Both are then measured as clips are (`composition`).

`higher_wrist` and `speed` need no network: they ask a motion's geometry whether a label was obeyed.

A number belongs to a `Protocol`, which says what it was measured with and prints itself beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from causal_diffusion.evaluation import motion_smoothness
from causal_diffusion.evaluation.distributions import frechet_distance

POOL = 32  # pairs that a caption is told apart from, its own included
CONFIDENCE = 1.96  # deviations on each side of the mean that hold 95 % of a normal distribution


class Interval(NamedTuple):
    """A mean and half the width of its 95 % confidence interval; floats, or arrays of one shape."""

    mean: Any
    half: Any

    def __str__(self):
        mean, half = np.atleast_1d(self.mean), np.atleast_1d(self.half)
        return " ".join(f"{m:.4g} ± {h:.2g}" for m, h in zip(mean.ravel(), half.ravel(), strict=True))


@dataclass(frozen=True)
class Protocol:
    """What a number was measured with; two numbers compare only where this is the same.

    evaluator: the network, its input and what it was trained on, in words.
    clips: how many motions were scored. repeats: evaluations, each with draws of its own, that the mean is over.
    pool: of R-precision; different: whether its captions all differ. pairs: of diversity. seed: of the first repeat.
    """

    evaluator: str
    clips: int
    repeats: int = 20
    pool: int = POOL
    different: bool = False
    pairs: int = 300
    seed: int = 0

    def __post_init__(self):
        for name, least in (("clips", 1), ("repeats", 1), ("pool", 2), ("pairs", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least {least}")

    def __str__(self):
        return (
            f"evaluator {self.evaluator}, {self.clips} clips, pools of {self.pool}"
            f"{' different captions' if self.different else ''}, {self.pairs} pairs, mean and 95 % interval of "
            f"{self.repeats} repeats from seed {self.seed}"
        )

    def repeat(self, measure: Callable[[int], Any]):
        """`repeat` as often, and from the seed, as the protocol says."""
        return repeat(measure, self.repeats, self.seed)

    def report(self, results: dict[str, Any]) -> str:
        """One line of numbers by name, and one of the protocol."""
        numbers = ", ".join(f"{name} {value}" for name, value in results.items())
        return f"{numbers}\n({self})"


def repeat(measure: Callable[[int], Any], repeats: int, seed: int = 0):
    """Mean and 1.96 std / sqrt(repeats) of ``measure(seed), measure(seed + 1), ...``.

    ``measure`` returns a number, an array, or a dict of them; the answer is an Interval, or a dict of them. The
    deviation is that of the repeats themselves (divided by their number, as the published code does). It tells how far
    the draws of the protocol move the number, and nothing of the choice of the clips.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; it is at least 1")
    results = [measure(seed + i) for i in range(repeats)]
    if isinstance(results[0], dict):
        return {name: _interval([result[name] for result in results]) for name in results[0]}
    return _interval(results)


def _interval(values):
    values = np.asarray(values, np.float64)
    mean, half = values.mean(axis=0), CONFIDENCE * values.std(axis=0) / np.sqrt(len(values))
    return Interval(mean, half) if values.ndim > 1 else Interval(float(mean), float(half))


def r_precision(text, motion, pool: int = POOL, top: int = 3, captions: Sequence | None = None, seed: int = 0,
                counted=None):  # fmt: skip
    """Share of captions whose own motion is among the nearest 1 ... ``top`` of its pool: float64 [top].

    Pairs [N, E] are shuffled and dealt into pools of ``pool``; what does not fill the last pool is dropped. Ties go to
    whoever stands first in the pool, so embeddings that are all equal score as a guess does, k / pool.

    captions: [N], anything that compares equal for equal captions. Then no two captions of a pool are equal, where the
    published protocol counts the motion of an equal caption as a miss. As long as ``pool`` captions have pairs left, a
    pool takes one pair each of those with the most left, ties by lot; what is left over is dropped.
    counted: bool [N]: the share is of these pairs only, such as those of a kind too rare to fill pools; pools are dealt
    from all pairs as ever, so the numbers compare. Default: all.

    Raises:
        ValueError: the shapes differ, or there are fewer pairs, or fewer different captions, than a pool takes, or no
            pair in the pools is counted.
    """
    text, motion = _pairs(text, motion)
    rng = np.random.default_rng(seed)
    if captions is None:
        order = rng.permutation(len(text))
        pools = [order[i : i + pool] for i in range(0, len(order) - pool + 1, pool)]
    else:
        pools = _different(captions, len(text), pool, rng)
    if not pools or not 1 <= top <= pool:
        raise ValueError(f"pool is {pool} and top {top}, and there are {len(text)} pairs: pool={len(text)} and a top "
                         f"of 1 to {len(text)} would do")  # fmt: skip
    counted = np.ones(len(text), bool) if counted is None else np.asarray(counted, bool)
    if counted.shape != (len(text),) or not counted[np.concatenate(pools)].any():
        raise ValueError(f"counted has the shape {counted.shape} and names {counted.sum()} pairs: one bool for each of "
                         f"{len(text)} pairs, at least one of them true in a pool, would do")  # fmt: skip
    hits, asked = np.zeros(top), 0
    for chosen in pools:
        distance = np.linalg.norm(text[chosen][:, None] - motion[chosen][None], axis=-1)
        nearest = np.argsort(distance, axis=1, kind="stable")
        rank = np.argmax(nearest == np.arange(pool)[:, None], axis=1)
        rank = rank[counted[chosen]]
        hits += [(rank < k).sum() for k in range(1, top + 1)]
        asked += len(rank)
    return hits / asked


def _different(captions, pairs, pool, rng):
    """Pools of pairs whose captions all differ, see ``r_precision``."""
    _, group = np.unique(np.asarray(captions), return_inverse=True)
    if group.shape != (pairs,):
        raise ValueError(f"captions has the shape {np.shape(captions)}; one for each of {pairs} pairs would do")
    left = [list(rng.permutation(np.flatnonzero(group == g))) for g in range(group.max() + 1)]
    if len(left) < pool:
        raise ValueError(f"pool is {pool} and there are {len(left)} different captions: pool={len(left)} would do")
    pools = []
    while True:
        count = np.array([len(members) for members in left])
        chosen = np.lexsort((rng.random(len(left)), -count))[:pool]
        if count[chosen].min() == 0:
            return pools
        pools.append(rng.permutation([left[g].pop() for g in chosen]))


def matching_distance(text, motion) -> float:
    """MM-Dist: mean distance of embeddings [N, E] of captions from those of the motions made for them."""
    text, motion = _pairs(text, motion)
    return float(np.linalg.norm(text - motion, axis=-1).mean())


def _pairs(text, motion):
    text, motion = np.asarray(text, np.float64), np.asarray(motion, np.float64)
    if text.ndim != 2 or text.shape != motion.shape or 0 in text.shape:
        raise ValueError(f"captions and motions must be embedded as [N, E] each; got {text.shape} and {motion.shape}")
    if not (np.isfinite(text).all() and np.isfinite(motion).all()):
        raise ValueError("embeddings hold values that are not finite")
    return text, motion


def subsequences(motion, boundaries: Sequence[int]) -> list:
    """A long motion [T, ...] cut where its prompt changes: frame ``boundaries[i]`` is the first of prompt i + 1."""
    _check_boundaries(len(motion), boundaries)
    edges = [0, *boundaries, len(motion)]
    return [motion[a:b] for a, b in zip(edges, edges[1:], strict=False)]


def transitions(motion, boundaries: Sequence[int], frames: int) -> np.ndarray:
    """Windows of ``frames`` frames around each boundary, half of them before it: [T, ...] -> [boundaries, frames, ...].

    Published: 60 frames at 20 fps (HumanML3D), 30 at 30 fps (BABEL).
    """
    _check_boundaries(len(motion), boundaries)
    before = frames // 2
    for b in boundaries:
        if b < before or b - before + frames > len(motion):
            near = min(b, len(motion) - b)
            raise ValueError(f"frames is {frames}, and frame {b} is {near} frames from an end of the motion: "
                             f"frames={2 * near} would do")  # fmt: skip
    windows = [np.asarray(motion[b - before : b - before + frames]) for b in boundaries]
    return np.stack(windows) if windows else np.zeros((0, frames, *np.shape(motion)[1:]))


def _check_boundaries(length, boundaries):
    edges = [0, *boundaries, length]
    if any(b <= a for a, b in zip(edges, edges[1:], strict=False)):
        raise ValueError(f"boundaries is {list(boundaries)} and the motion has {length} frames: numbers that rise "
                         f"between 1 and {length - 1} would do")  # fmt: skip


def composition(
    motions: Sequence, boundaries: Sequence[Sequence[int]], embed: Callable, positions: Callable, real: Sequence,
    frames: int, jerk: float | np.ndarray | None = None, text=None, pool: int = POOL, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Sub-sequences and transitions of long motions against real clips.

    Args:
        motions: [T, C] each, under prompts that change at the frames of ``boundaries``, one list per motion.
        embed: list of clips [T_i, C] -> [N, E].
        positions: clip [T, C] -> world positions [T, J, 3] in metres.
        real: clips [T_i, C]; a transition is compared with ``frames`` frames of each, cut from its middle, where it has
            as many.
        frames: of a transition.
        jerk: J_gt of the area under the jerk, a number or a curve [frames - 3]; None: the mean over the real windows.
        text: embeddings [sub-sequences, E] of the prompts, for R-precision; None without.

    Returns:
        'subsequence FID', 'transition FID', 'transition peak jerk', 'transition area under jerk', 'real peak jerk' (of
        as many real windows as there are transitions, because the mean of fewer curves has higher peaks); with
        ``text`` 'R-precision' [3] and 'MM-Dist' of the sub-sequences.
    """
    windows = [clip[(len(clip) - frames) // 2 :][:frames] for clip in real if len(clip) >= frames]
    if not windows:
        raise ValueError(f"frames is {frames} and no real clip is as long: {max(map(len, real))} would do")
    parts = [part for x, b in zip(motions, boundaries, strict=True) for part in subsequences(x, b)]
    joins = [join for x, b in zip(motions, boundaries, strict=True) for join in transitions(x, b, frames)]
    if not joins:
        raise ValueError("boundaries are empty: a motion with one prompt has no transition; one boundary would do")
    features = np.asarray(embed(parts))
    curve = motion_smoothness.jerk(np.stack([positions(join) for join in joins]))
    curve_real = motion_smoothness.jerk(np.stack([positions(window) for window in windows]))
    chosen = np.random.default_rng(seed).permutation(len(curve_real))[: len(curve)]
    out = {
        "subsequence FID": frechet_distance(np.asarray(embed(list(real))), features),
        "transition FID": frechet_distance(np.asarray(embed(windows)), np.asarray(embed(joins))),
        "transition peak jerk": motion_smoothness.peak_jerk(curve),
        "transition area under jerk": motion_smoothness.area_under_jerk(
            curve, curve_real.mean() if jerk is None else jerk
        ),
        "real peak jerk": motion_smoothness.peak_jerk(curve_real[chosen]),
    }
    if text is not None:
        out["R-precision"] = r_precision(text, features, pool, seed=seed)
        out["MM-Dist"] = matching_distance(text, features)
    return out


def higher_wrist(positions, skeleton, margin: float = 0.1) -> str:
    """Which hand a clip [T, J, 3] in metres, y up, raises: 'left', 'right' or 'both'.

    Of each wrist the greatest height over the clip counts. They are 'both' up where the two differ by less than
    ``margin`` metres, whether they hang or are raised. ``skeleton.roles`` says which joints the wrists are.
    """
    left, right = (height.max() for height in _wrists(positions, skeleton))
    if abs(left - right) < margin:
        return "both"
    return "left" if left > right else "right"


def left_wrist_share(positions, skeleton) -> float:
    """Share of the frames of a clip [T, J, 3] in which the left wrist is above the right one."""
    left, right = _wrists(positions, skeleton)
    return float((left > right).mean())


def _wrists(positions, skeleton):
    positions = np.asarray(positions, np.float64)
    if positions.ndim != 3 or positions.shape[-1] != 3 or not len(positions):
        raise ValueError(f"positions are {positions.shape}; a clip [frames, joints, 3] would do")
    return [positions[:, skeleton.roles[f"{side}_wrist"], 1] for side in ("left", "right")]


def speed(path, fps: float) -> np.ndarray:
    """Mean ground speed in m/s: the length of the root's path over the time it takes; [..., T, 2 or 3] -> [...].

    path: metres, (x, z) or (x, y, z) with y up, which does not count.
    """
    path = np.asarray(path, np.float64)
    if path.ndim < 2 or path.shape[-1] not in (2, 3) or path.shape[-2] < 2:
        raise ValueError(f"a path is {path.shape}; [..., frames, 2 or 3] of at least 2 frames would do")
    ground = path[..., [0, -1]]
    return np.linalg.norm(np.diff(ground, axis=-2), axis=-1).mean(axis=-1) * fps
