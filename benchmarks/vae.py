"""Wan 2.1's VAE here and in diffusers, the same weights on the same CPU: how fast, in how much memory?

    python benchmarks/vae.py                                         # three sizes, 15 pairs of passes each
    python benchmarks/vae.py 96x5x64 --pairs=31                      # base width 96, 5 frames of 64 x 64
    python benchmarks/vae.py --piece=0 --json runs/vae.json          # ours takes clips whole; one JSON object per line

Needs the interop extra. Both sides are float32, hold the same random weights of Wan 2.1's form, and have a process and
all processors of this machine to themselves in turn: one works while the other waits. First the outputs are compared,
and nothing is timed unless latents and videos are equal to 1e-4 of the largest value. Then passes are timed in pairs,
one of each side right after the other, the order changing from pair to pair. diffusers encodes four frames and decodes
one latent at a time, and so does ours; ``--piece`` gives it more, or with 0 the whole clip in one program, which is
slower where a clip outgrows the processor's caches.

Clips come in twos: for a single small one torch leaves oneDNN's convolutions for a plain loop, 20 times slower, and a
comparison with that says little (``--batch=1`` makes it). The machine must be quiet: torch's threads wait for each
other by spinning, and lose far more to other work than ours; with ``OMP_WAIT_POLICY=PASSIVE`` they sleep instead, and
the ratio of processor time can be read on a busy machine too.

One line is printed per size and direction:

    frames/s    of theirs and of ours: the frames of all clips by the median time of a pass
    ratio       of their time and ours in the same pair, the median of all pairs: above 1, ours is faster. Its interval
                (95 %) is a bootstrap over pairs
    processor   the same of processor time
    MiB         the most memory that each process ever held, weights and compilation and both directions included, and
                how far that is above what it held before its first pass
    difference  of the outputs, as a share of the largest value
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np

SIZES = ("32x17x64", "32x17x128", "96x5x64")
TOLERANCE = 1e-4
RESAMPLES = 2000
MIB = 2**20


def parsed(size: str) -> tuple[int, int, int]:
    """'96x5x64' -> (base width, frames, pixels along either side)."""
    base, frames, side = map(int, size.split("x"))
    return base, frames, side


def median_ratio(theirs, ours, seed: int = 0) -> tuple[float, float, float]:
    """Median of theirs [n] / ours [n], pair by pair, and the ends of its 95 % interval by a bootstrap over pairs."""
    ratios = np.asarray(theirs, np.float64) / np.asarray(ours, np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def high_water() -> int:
    """The most bytes that this process ever held, from Linux's /proc: ru_maxrss would count its parent's as well."""
    kilobytes = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(kilobytes.split()[1]) * 1024


class Theirs:
    """diffusers' AutoencoderKLWan; arrays come and go channel-last."""

    def __init__(self, folder, piece):
        import diffusers
        import torch

        del piece
        diffusers.utils.logging.set_verbosity_error()
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.torch, self.model = torch, diffusers.AutoencoderKLWan.from_pretrained(folder).eval()

    def load(self, x):
        """Puts an input in place."""
        return self.torch.from_numpy(x.transpose(0, 4, 1, 2, 3).copy())

    def run(self, direction, x):
        """One pass."""
        with self.torch.no_grad():
            return self.model.encode(x).latent_dist.mode() if direction == "encode" else self.model.decode(x).sample

    def array(self, y):
        """The output of a pass, channel-last."""
        return y.numpy().transpose(0, 2, 3, 4, 1)


class Ours:
    """The same in this library."""

    def __init__(self, folder, piece):
        import jax

        from causal_diffusion.interop.wan_vae import load

        jax.config.update("jax_platforms", "cpu")
        self.jax, self.piece = jax, piece
        self.vae, self.params = load(folder)

    def load(self, x):
        """Puts an input in place."""
        return self.jax.numpy.asarray(x)

    def run(self, direction, x):
        """One pass."""
        pass_of = self.vae.encode if direction == "encode" else self.vae.decode
        return self.jax.block_until_ready(pass_of(self.params, x, self.piece))

    def array(self, y):
        """The output of a pass."""
        return np.asarray(y)


def serve(side, folder, piece, pipe):
    """A process of one side: answers (direction, input or None for the last one) with (output or None, times)."""
    subject, inputs = side(folder, piece), {}
    pipe.send(high_water())
    while True:
        direction, x = pipe.recv()
        if direction == "stop":
            pipe.send(high_water())
            return
        if x is not None:
            inputs[direction] = subject.load(x)
        begun, worked = time.perf_counter(), time.process_time()
        y = subject.run(direction, inputs[direction])
        times = time.perf_counter() - begun, time.process_time() - worked
        pipe.send((None if x is None else subject.array(y), times))


def write_random_weights(folder, base, shape):
    """A folder of diffusers' layout with weights of Wan 2.1's form, and random clips."""
    import jax

    from causal_diffusion.interop.wan_vae import save
    from causal_diffusion.nn.vae import VAE, VAEConfig
    from causal_diffusion.nn.video_vae import VideoVAEConfig

    jax.config.update("jax_platforms", "cpu")
    vae, rng = VAE(VAEConfig("video", video=VideoVAEConfig(base=base))), np.random.default_rng(0)

    def fill(leaf):
        value = rng.standard_normal(leaf.shape, np.float32)
        return value / np.sqrt(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 1 + 0.1 * value

    save(folder, vae, jax.tree.map(fill, jax.eval_shape(vae.init, jax.random.key(0))))
    return rng.uniform(-1, 1, shape).astype(np.float32)


def measure(size: str, pairs: int, batch: int = 2, piece: int = 1) -> list[dict]:
    """Encodes and decodes clips ``pairs`` times on either side and reports what the module's docstring lists."""
    base, frames, side = parsed(size)
    context, results = multiprocessing.get_context("spawn"), []
    with tempfile.TemporaryDirectory() as folder:
        given = write_random_weights(folder, base, (batch, frames, side, side, 3))
        workers, before = {}, {}
        for name, subject in (("theirs", Theirs), ("ours", Ours)):
            pipe, end = context.Pipe()
            process = context.Process(target=serve, args=(subject, folder, piece, end), daemon=True)
            process.start()
            end.close()  # so that a process that dies is noticed
            workers[name], before[name] = (process, pipe), pipe.recv()

        def ask(name, direction, x=None):
            workers[name][1].send((direction, x))
            return workers[name][1].recv()

        for direction in ("encode", "decode"):
            outputs = {name: ask(name, direction, given)[0] for name in workers}
            largest = np.abs(outputs["theirs"]).max()
            difference = float(np.abs(outputs["ours"] - outputs["theirs"]).max() / largest)
            if not difference < TOLERANCE:
                raise SystemExit(f"{size}: the outputs of {direction} differ by {difference:.1e} of the largest value")
            times = {name: [] for name in workers}
            for pair in range(pairs):
                for name in sorted(workers, reverse=pair % 2):
                    times[name].append(ask(name, direction)[1])
            theirs, ours = (np.asarray(times[name]).T for name in ("theirs", "ours"))
            results.append({
                "size": size, "direction": direction, "frames": frames, "batch": batch, "piece": piece, "pairs": pairs,
                "theirs_seconds": theirs[0].tolist(), "ours_seconds": ours[0].tolist(),
                "theirs_processor_seconds": theirs[1].tolist(), "ours_processor_seconds": ours[1].tolist(),
                "theirs_frames_per_second": batch * frames / float(np.median(theirs[0])),
                "ours_frames_per_second": batch * frames / float(np.median(ours[0])),
                "ratio": median_ratio(theirs[0], ours[0]), "processor_ratio": median_ratio(theirs[1], ours[1]),
                "difference": difference,
            })  # fmt: skip
            given = outputs["theirs"]
        for name, (process, _) in workers.items():
            peak = ask(name, "stop")
            process.join()
            for result in results:
                result[f"{name}_peak_bytes"], result[f"{name}_rise_bytes"] = peak, peak - before[name]
    return results


def _interval(values):
    """A ratio and its interval as text."""
    return "{:.2f} ({:.2f} .. {:.2f})".format(*values)


def _memory(side):
    return lambda r: f"{r[f'{side}_peak_bytes'] / MIB:.0f} (+{r[f'{side}_rise_bytes'] / MIB:.0f})"


COLUMNS = {  # title -> (width, how a result is written)
    "size": (-11, lambda r: r["size"]),
    "direction": (-10, lambda r: r["direction"]),
    "theirs frames/s": (15, lambda r: f"{r['theirs_frames_per_second']:.2f}"),
    "ours": (9, lambda r: f"{r['ours_frames_per_second']:.2f}"),
    "ratio": (23, lambda r: _interval(r["ratio"])),
    "processor": (23, lambda r: _interval(r["processor_ratio"])),
    "theirs MiB": (14, _memory("theirs")),
    "ours MiB": (14, _memory("ours")),
    "difference": (12, lambda r: f"{r['difference']:.1e}"),
}


def line(result: dict | None = None) -> str:
    """One line of the table; its head without a result."""
    cells = ((width, title if result is None else write(result)) for title, (width, write) in COLUMNS.items())
    return "".join(cell.rjust(width) if width > 0 else cell.ljust(-width) for width, cell in cells)


def main(arguments=None):
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", default=SIZES, help="base width x frames x pixels, such as 96x5x64")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=2, help="clips at a time")
    parser.add_argument("--piece", type=int, default=1, help="latents that ours takes at a time; 0: all")
    parser.add_argument("--json", type=lambda path: Path(path).expanduser(), help="one JSON object per line")
    args = parser.parse_args(arguments)
    print(line(), flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text("")
    for size in args.sizes:
        for result in measure(size, args.pairs, args.batch, args.piece):
            print(line(result), flush=True)
            if args.json:
                with args.json.open("a") as file:
                    file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
