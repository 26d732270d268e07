"""A stream of human motion for ten minutes, its prompt changing every ten seconds: is it fast, does it drift?

    python benchmarks/motion_stream.py --run=runs/cmdm --data=motion --out=runs/motion_stream
        --overrides schedule.steps=12,schedule.stride=4

Prints, and writes to ``stream.json`` beside a curve ``drift.png``:

    frames a second, the wall time from asking for a stream to its first frames once everything is compiled, and after
    start-up of the process; resident memory after the first minute and at the end; compiled programs likewise
    root height and joint speeds of every window of ten seconds against the 99.9th percentile of the data
    how soon a new prompt shows: frames until the joints of a twin that got it are 5 cm from the stream that did not
"""

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np

BEGAN = time.perf_counter()
WINDOW = 10.0  # seconds of a prompt and of a window
APART = 0.05  # metres


def resident() -> float:
    """MiB of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Positions:
    """The blocks of a session as joints in the world, where the body goes on from block to block."""

    def __init__(self, pipe, session):
        self.pipe, self.session, self.at = pipe, session, None

    def next(self) -> np.ndarray:
        """[T, J, 3] metres."""
        joints, self.at = self.pipe.body.positions(self.session.next(), self.at)
        return np.asarray(joints[0], np.float64)

    def fork(self) -> "Positions":
        """A twin that goes on by itself."""
        twin = Positions(self.pipe, self.session.fork())
        twin.at = self.at
        return twin


def reaction(stream: Positions, prompt: str, longest: float = 6.0) -> float:
    """Seconds of motion until a new prompt shows; inf if it does not within ``longest``."""
    twin, fps, made = stream.fork(), stream.pipe.body.fps, 0
    stream = stream.fork()
    twin.session.update({"text": prompt})
    while made < longest * fps:
        a, b = stream.next(), twin.next()
        far = np.linalg.norm(a - b, axis=-1).max(axis=-1) > APART
        if far.any():
            return float((made + np.argmax(far) + 1) / fps)
        made += len(a)
    return float("inf")


def curves(found, usual):
    """Picture of what drifts: heights of the root above, speeds of the joints below, each in the data's range."""
    from causal_diffusion.render.plot import line_plot

    def flat(value):
        return np.full(len(found.height), value)

    title = f"{len(found.height) * WINDOW / 60:g} minutes of motion, a new prompt every {WINDOW:g} s"
    rare = 100 - usual.percentile
    heights = {"lowest": found.lowest, "mean": found.height, "highest": found.highest,
               f"{rare:.1g} % of the data are below {usual.low:.2f} m": flat(usual.low),
               f"{rare:.1g} % above {usual.high:.2f} m": flat(usual.high)}  # fmt: skip
    speeds = {"mean": found.speed, "fastest": found.fastest,
              f"{usual.percentile:g}th percentile of the data, {usual.speed:.2f} m/s": flat(usual.speed)}  # fmt: skip
    shown = (usual.low - 0.2, usual.high + 0.2)
    return np.concatenate([
        line_plot(heights, title=title, xlabel="", ylabel="root height, m", x_start=1, y_range=shown),
        line_plot(speeds, title="", xlabel="window of ten seconds", ylabel="joint speed, m/s", x_start=1),
    ])  # fmt: skip


def _path(text: str) -> Path:
    return Path(text).expanduser()


def main():
    """Streams, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=_path, required=True)
    parser.add_argument("--data", type=_path, required=True, help="motion clips")
    parser.add_argument("--out", type=_path, default=Path("runs/motion_stream"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--overrides", default="", help="key=value,...")
    args = parser.parse_args()

    from causal_diffusion.data.motion_clips import MotionClips
    from causal_diffusion.evaluation.motion_smoothness import Range, drift
    from causal_diffusion.render.files import write_png
    from causal_diffusion.streaming.pipeline import Pipeline

    pipe = Pipeline.from_checkpoint(args.run, overrides=[o for o in args.overrides.split(",") if o])
    fps = pipe.body.fps
    first = Positions(pipe, pipe.stream(seed=0, cond={"text": "a person walks forward"})).next()
    out = {"from the start of the process to the first frames, s": time.perf_counter() - BEGAN}
    begun = time.perf_counter()
    Positions(pipe, pipe.stream(seed=1, cond={"text": "a person runs"})).next()
    out["first frames of a stream, s"] = time.perf_counter() - begun

    data = dataclasses.replace(pipe.config.data, path=str(args.data), mirror=False)
    source = MotionClips(data, "test")
    usual = Range.of((np.asarray(pipe.body.positions(source.clip(i))[0]) for i in range(source.clips)
                      if len(source.clip(i)) > 1), fps)  # fmt: skip
    prompts = sorted(set(source.clip_captions))
    rng = np.random.default_rng(0)
    stream = Positions(pipe, pipe.stream(seed=2, cond={"text": "a person walks forward"}))
    windows, reactions, memory, busy = [], [], [], 0.0
    for window in range(round(args.minutes * 60 / WINDOW)):
        prompt = prompts[rng.integers(len(prompts))]
        if window in (3, 7, 11, 15, 19):  # outside the clock
            reactions.append(reaction(stream, prompt))
        begun, parts = time.perf_counter(), []
        if window:
            stream.session.update({"text": prompt})
        while sum(map(len, parts)) < WINDOW * fps:
            parts.append(stream.next())
        busy += time.perf_counter() - begun
        windows.append(np.concatenate(parts))
        memory.append(resident())
    frames = sum(map(len, windows))
    found = drift(windows, usual, fps)
    minute = min(len(memory) - 1, round(60 / WINDOW))
    out |= {
        "frames": frames, "frames a second": frames / busy, "joints": first.shape[1],
        "memory after a minute, MiB": memory[minute], "memory at the end, MiB": memory[-1],
        "windows": len(windows), "windows within range": int(found.within(usual).sum()),
        "root height, m": [float(found.lowest.min()), float(found.highest.max())],
        "usual root height, m": [usual.low, usual.high],
        "share of frames with the root out of range": float(found.height_outside.mean()),
        "fastest joint, m/s": float(found.fastest.max()), "usual fastest, m/s": usual.speed,
        "share of joints too fast": float(found.speed_outside.mean()),
        "a new prompt shows after, s": reactions,
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "stream.json").write_text(json.dumps(out, indent=1) + "\n")
    write_png(args.out / "drift.png", curves(found, usual))
    print(json.dumps(out, indent=1))
    print(found)


if __name__ == "__main__":
    main()
