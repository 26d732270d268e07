"""Text-to-motion systems on held-out motion capture: do motions fit their captions, and how well do they move?

    python benchmarks/motion.py --data=motion --judge=runs/motion_text --out=runs/motion --system cmdm=runs/cmdm
        --system "cmdm, K 12 U 4=runs/cmdm:schedule.steps=12,schedule.stride=4" --system flooddiffusion=runs/flood

The judge (configs/motion_text.py) is trained on the training files; what it scores are motions for the captions of
the held-out files, and the held-out clips themselves beside them. Every system makes one motion per held-out clip, of
its caption and length, and prints

    R-precision   top 1, 2, 3 in pools of 32 different captions: of all, and of those whose pair of content and style
                  the system was not trained on (in the same pools: they are too few to fill pools of their own)
    FID, KID      of the judge's 64 numbers per clip; progress: 0 at the ceiling (a Gaussian fitted to training clips
                  of 64 frames, whole), 1 at the floor (training clips against held-out ones)
    diversity, multimodality   mean distances of motions of all captions, and of 16 motions each of twelve captions
    hands         'raises the left / right hand' obeyed: which wrist rises higher (evaluation.motion.higher_wrist)
    speed         mean ground speed of walks and runs over that of as many real ones, of the same captions and lengths
    jerk          peak jerk around changes of the prompt over that of as many windows of real clips
    skating, bones   share of frames in which a planted foot slides; standard deviation of bone lengths
    latency       look-ahead, wall time to the first block and frames a second of a stream of one

``motion.json`` in --out holds the numbers; strips of generated motions lie beside it.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np

from causal_diffusion.checkpoint.paths import as_path
from causal_diffusion.data.motion_clips import MotionClips
from causal_diffusion.evaluation import distributions
from causal_diffusion.evaluation import motion as metrics
from causal_diffusion.evaluation.motion_smoothness import foot_skating
from causal_diffusion.motion_text import load_motion_text
from causal_diffusion.render.files import write_png
from causal_diffusion.render.motion import sheet
from causal_diffusion.streaming.pipeline import Pipeline

BATCH = 64  # motions made at once
FRAMES = 128  # of the longest
WINDOW = 64  # frames of the clips that the Gaussian is fitted to
JOIN = 40  # frames around a change of the prompt
HANDS = {"left": "raise-up-left-hand", "right": "raise-up-right-hand"}
MOVES = ("walk", "run")


class HeldOut:
    """The clips that are scored, and what of them does not depend on a system."""

    def __init__(self, judge, folder, data):
        data = dataclasses.replace(data, path=str(folder), mirror=False)
        train, test = MotionClips(data, "train"), MotionClips(data, "test")
        self.judge, self.body, self.unseen = judge, test.body, set(train.unseen)
        chosen = [i for i in range(test.clips) if len(test.clip(i)) >= data.shortest]
        self.clips = [test.clip(i)[: min(FRAMES, len(test.clip(i)) // 4 * 4)] for i in chosen]
        self.captions = [test.clip_captions[i] for i in chosen]
        self.kinds = [test.clip_kinds[i] for i in chosen]
        self.text = judge.embed_captions(self.captions)
        self.real = judge.embed_motions(self.clips, self.body)
        windows = [train.clip(i)[:WINDOW] for i in range(train.clips) if len(train.clip(i)) >= WINDOW]
        every = [train.clip(i)[:FRAMES] for i in range(train.clips) if len(train.clip(i)) >= data.shortest]
        self.train = judge.embed_motions(every, self.body)
        fitted = distributions.gaussian_fit(np.stack(windows), len(self.clips))
        self.ceiling = distributions.frechet_distance(judge.embed_motions(list(fitted), self.body), self.real)
        self.floor = distributions.fid_floor(self.train, self.real)
        self.sources = (train, test)

    def world(self, clip):
        """Joints of a clip, [T, J, 3] metres."""
        return np.asarray(self.body.positions(np.asarray(clip))[0], np.float64)

    def examples(self, content, count=48, shortest=24):
        """``count`` real clips of a content, by lot: their captions, and they themselves as long as they are made."""
        chosen = [
            (source.clip_captions[i], source.clip(i)[: min(FRAMES, len(source.clip(i)) // 4 * 4)])
            for source in self.sources for i in range(source.clips)
            if source.clip_kinds[i].split(", ")[0] == content and len(source.clip(i)) >= shortest
        ]  # fmt: skip
        return list(zip(*(chosen[i] for i in np.random.default_rng(0).permutation(len(chosen))[:count]), strict=True))

    def speed(self, clip):
        """Mean ground speed of one clip, m/s."""
        return metrics.speed(self.world(clip)[:, 0], self.body.fps)

    def quality(self, clips):
        """Skating and bones of clips."""
        skeleton, ratios, bones = self.body.skeleton, [], []
        toes = [skeleton.roles["left_toe"], skeleton.roles["right_toe"]]
        for clip in clips:
            world = self.world(clip)
            ratios.append(foot_skating(world, toes, self.body.fps).ratio)
            lengths = np.asarray(skeleton.bone_lengths(world))
            bones.append(lengths.std(axis=0) / lengths.mean(axis=0))
        return {"skating": float(np.mean(ratios)), "bones": float(np.mean(bones))}


def precision(held_out, motions, repeats=10):
    """R-precision in pools of 32 different captions, mean and interval over how the pools are dealt: all, unseen."""
    new = np.array([kind in held_out.unseen for kind in held_out.kinds])
    return {
        name: metrics.repeat(lambda seed, counted=counted: metrics.r_precision(
            held_out.text, motions, captions=held_out.captions, seed=seed, counted=counted), repeats)
        for name, counted in (("R-precision", None), ("R-precision, unseen", new), ("R-precision, seen", ~new))
    }  # fmt: skip


def make(pipe, captions, lengths, seed):
    """A motion for each caption, [T_i, C] frames."""
    out = []
    for at in range(0, len(captions), BATCH):
        part = list(captions[at : at + BATCH])
        filled = part + [part[0]] * (BATCH - len(part))
        clips = pipe.generate(seed + at, FRAMES, BATCH, {"text": filled})
        out += [np.asarray(clip[:n]) for clip, n in zip(clips, lengths[at : at + BATCH], strict=False)]
    return out


def of_content(held_out, content, count):
    """``count`` captions of a content, in all its styles."""
    captions = sorted({c for c, kind in zip(held_out.captions, held_out.kinds, strict=True)
                       if kind.split(", ")[0] == content})  # fmt: skip
    return [captions[i % len(captions)] for i in range(count)]


def score(pipe, held_out, seed=0, joins=32):
    """All numbers of one system but the latency."""
    lengths = [len(clip) for clip in held_out.clips]
    clips = make(pipe, held_out.captions, lengths, seed)
    made = held_out.judge.embed_motions(clips, pipe.body)
    out = precision(held_out, made)
    out["unseen pairs"] = sum(kind in held_out.unseen for kind in held_out.kinds)
    out["MM-Dist"] = metrics.matching_distance(held_out.text, made)
    out["FID"] = distributions.frechet_distance(made, held_out.real)
    out["KID"] = distributions.kernel_distance(made, held_out.real)
    out["progress"] = distributions.fid_progress(out["FID"], held_out.floor, held_out.ceiling)
    out["diversity"] = distributions.diversity(made, min(300, len(made)))
    asked = np.random.default_rng(seed).choice(sorted(set(held_out.captions)), 12, replace=False).tolist()
    repeated = make(pipe, asked * 16, [FRAMES] * len(asked) * 16, seed + 3000)
    embedded = held_out.judge.embed_motions(repeated, pipe.body).reshape(16, len(asked), -1).swapaxes(0, 1)
    out["multimodality"] = distributions.multimodality(embedded)
    out |= held_out.quality(clips)
    obeyed = {}
    for side, content in HANDS.items():
        hands = make(pipe, of_content(held_out, content, 48), [FRAMES] * 48, seed + 1000)
        sides = [metrics.higher_wrist(held_out.world(clip), held_out.body.skeleton) for clip in hands]
        obeyed[side] = float(np.mean([found == side for found in sides]))
    out["hands"] = obeyed
    out["speed"] = {}
    for move in MOVES:
        captions, real = held_out.examples(move)
        moves = make(pipe, captions, [len(clip) for clip in real], seed + 2000)
        mean, data = (float(np.mean([held_out.speed(clip) for clip in clips_])) for clips_ in (moves, real))
        out["speed"][move] = {"made": mean, "data": data, "ratio": mean / data}
    out["joins"] = compositions(pipe, held_out, joins, seed)
    return out, clips


def compositions(pipe, held_out, count, seed, segment=80, prompts=4):
    """Long motions whose prompts change: transitions and sub-sequences."""
    rng, captions = np.random.default_rng(seed), sorted(set(held_out.captions))
    time_, waiting = pipe.codec.geometry.time, pipe.rollout.waiting
    first = max(segment, waiting * time_ + segment // 2)  # what a stream begins with has the first prompt
    motions, boundaries, said = [], [], []
    for i in range(count // prompts):
        chosen = [captions[j] for j in rng.choice(len(captions), prompts, replace=False)]
        frames = [first, *[segment] * (prompts - 1)]
        clip = pipe.compose(list(zip(chosen, frames, strict=True)), seed + i)[0]
        motions.append(clip)
        boundaries.append(np.cumsum(frames)[:-1].tolist())
        said += chosen
    found = metrics.composition(
        motions, boundaries, lambda clips: held_out.judge.embed_motions(clips, pipe.body), held_out.world,
        [clip for clip in held_out.clips if len(clip) >= JOIN], JOIN,
    )  # fmt: skip
    found["peak jerk ratio"] = found["transition peak jerk"] / found["real peak jerk"]
    return {name: float(value) for name, value in found.items()}


def latency(pipe, blocks=100):
    """Of a stream of one sample that is compiled: time to its first block, frames a second, frames of look-ahead."""
    def begin():
        start = time.perf_counter()
        stream = pipe.stream(seed=0, cond={"text": "a person walks forward"})
        stream.next()
        return stream, time.perf_counter() - start

    begin()
    stream, first = begin()
    start = time.perf_counter()
    frames = sum(stream.next().shape[1] for _ in range(blocks))
    ahead = pipe.rollout.waiting * pipe.codec.geometry.time
    return {"first block, s": first, "frames a second": frames / (time.perf_counter() - start),
            "prompt shows after, s": ahead / pipe.body.fps}  # fmt: skip


def real_numbers(held_out):
    """What the held-out clips themselves score."""
    out = precision(held_out, held_out.real)
    out["MM-Dist"] = metrics.matching_distance(held_out.text, held_out.real)
    out["diversity"] = distributions.diversity(held_out.real, min(300, len(held_out.real)))
    out["FID floor"], out["FID ceiling"] = held_out.floor, held_out.ceiling
    return out | held_out.quality(held_out.clips)


def plain(value):
    """For JSON: intervals and arrays as lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, metrics.Interval):
        return {"mean": plain(value.mean), "half": plain(value.half)}
    return np.asarray(value).tolist()


def tables(results) -> str:
    """The numbers of all systems in Markdown: how motions fit their captions, and how they move."""
    fits = [("system", "R@1", "R@2", "R@3", "R@3, unseen pairs", "FID", "progress", "MM-Dist", "diversity",
             "multimodality")]  # fmt: skip
    moves = [("system", "left / right hand", "walk / run speed", "jerk at joins", "skating", "bones",
              "prompt shows after", "first block", "frames/s")]  # fmt: skip
    for name, r in results.items():
        made = "FID" in r
        fits.append((
            name, *(f"{x:.3f}" for x in r["R-precision"]["mean"]), f"{r['R-precision, unseen']['mean'][2]:.3f}",
            f"{r['FID']:.4f}" if made else f"{r['FID floor']:.4f} to {r['FID ceiling']:.4f}",
            f"{r['progress']:.3f}" if made else "", f"{r['MM-Dist']:.3f}", f"{r['diversity']:.2f}",
            f"{r['multimodality']:.2f}" if made else "",
        ))  # fmt: skip
        moves.append((
            name, " / ".join(f"{x:.0%}" for x in r["hands"].values()) if made else "",
            " / ".join(f"{m['ratio']:.2f}" for m in r["speed"].values()) if made else "1 / 1",
            f"{r['joins']['peak jerk ratio']:.2f}" if made else "1", f"{r['skating']:.3f}", f"{r['bones']:.3f}",
            *((f"{r['prompt shows after, s']:.1f} s", f"{r['first block, s']:.2f} s", f"{r['frames a second']:.0f}")
              if made else ("", "", "")),
        ))  # fmt: skip
    return "\n\n".join(_markdown(rows) for rows in (fits, moves))


def _markdown(rows):
    head, *rest = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *rest])


def opened(text):
    """'name=run:key=value,...' -> (name, pipeline)."""
    name, _, rest = text.partition("=")
    run, _, overrides = rest.partition(":")
    return name, Pipeline.from_checkpoint(run, overrides=[o for o in overrides.split(",") if o])


def main():
    """Scores each system and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=as_path, required=True, help="folder of motion clips")
    parser.add_argument("--judge", type=as_path, required=True, help="run of configs/motion_text.py")
    parser.add_argument("--system", action="append", required=True, help="name=run[:key=value,...]")
    parser.add_argument("--out", type=as_path, default=Path("runs/motion"))
    args = parser.parse_args()
    judge, file = load_motion_text(args.judge), args.out / "motion.json"
    args.out.mkdir(parents=True, exist_ok=True)
    results = json.loads(file.read_text()) if file.is_file() else {}
    held_out = None
    for text in args.system:
        name, pipe = opened(text)
        if held_out is None:
            held_out = HeldOut(judge, args.data, pipe.config.data)
            results["held-out clips"] = plain(real_numbers(held_out))
        numbers, clips = score(pipe, held_out)
        results[name] = plain(numbers | latency(pipe))
        file.write_text(json.dumps(results, indent=1) + "\n")
        shown = np.random.default_rng(0).permutation(len(clips))[:6]
        picture = sheet(
            [(held_out.captions[i], held_out.world(clips[i])) for i in shown], held_out.body.parents,
            names=held_out.body.names, fps=held_out.body.fps,
        )  # fmt: skip
        write_png(args.out / f"{''.join(c if c.isalnum() else '_' for c in name)}.png", picture)
        print(tables(results), flush=True)


if __name__ == "__main__":
    main()
