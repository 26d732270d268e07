"""One trained model streamed under several cache policies, ten times as far as it was trained: who holds the digit?

    python benchmarks/policies.py --workdir=runs/policies            # ten minutes to train, then a minute per policy
    python benchmarks/policies.py --workdir=runs/policies --only="window;adjacent, noised" --clips=64
    python benchmarks/policies.py --workdir=runs/policies_causal --model=causal

Trains one of MODELS once (clips of 12 frames), then streams the same held-out clips for 120 frames from four given
ones under each of POLICIES, and prints two tables:

    digit recognised   share of frames in which a classifier of real digits still recognises the given one, with its
                       standard error over clips; "held" is the share over all frames past the training length, and
                       "gain" its difference to the plain window on the same clips, with that difference's error
    PSNR               against the true future; and "motion": how far the digit moves within four frames past the
                       training length, as a share of how far the true one does, since a digit that stands still is
                       easily recognised

``policies.json`` and ``drift.png`` in the workdir hold the curves.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from causal_diffusion.checkpoint.paths import as_path
from causal_diffusion.config import freeze, load_config, override
from causal_diffusion.data.moving_digits import digit_images
from causal_diffusion.evaluation.digits import DigitRecogniser
from causal_diffusion.evaluation.video import psnr
from causal_diffusion.render.files import write_png
from causal_diffusion.render.plot import line_plot
from causal_diffusion.streaming.pipeline import Pipeline
from causal_diffusion.training.evaluate import held_out, stream_held_out
from causal_diffusion.training.loop import train

FRAMES = 120  # streamed: ten training clips
PLAIN = "window"
LAG = 4  # frames over which motion is measured: few enough not to bounce often, more than jitter
DIM = 0.15  # of a brightness of 0 .. 1, what does not count as a digit
MODELS = {  # changes of the quickstart
    "quickstart": {},
    # One causal stream whose frames have levels of their own: any past is noised, and several blocks may be in flight.
    "causal": {
        "layout.kind": "block_causal", "levels.context": 0.0, "levels.clean": 0.25, "train.steps": 4000,
    },
    "no_sinks": {"layout.sinks": 0, "layout.gap": 0},
}  # fmt: skip
# Eight frames of the past each. 'window' is the plain one: finished frames enter it as they are. What is called noised
# shows them with the noise that the quickstart was made for. Gaps are for training alone.
WINDOW = {"layout.sinks": 0, "layout.gap": 0, "layout.window": 8}
SINKS = {"layout.sinks": 4, "layout.gap": 0, "layout.window": 4}
CLEAN, NOISED = {"cache.commit_level": 0.0}, {"cache.commit_level": 0.2}
ADJACENT = {"cache.positions": "adjacent"}
POLICIES = {
    PLAIN: WINDOW | CLEAN,
    "window, noised": WINDOW | NOISED,
    "window of 4": WINDOW | CLEAN | {"layout.window": 4},
    "window of 4, noised": WINDOW | NOISED | {"layout.window": 4},
    "sinks": SINKS | CLEAN,
    "sinks, noised": SINKS | NOISED,
    "slot, noised": SINKS | NOISED | {"cache.positions": "slot"},
    "adjacent": SINKS | CLEAN | ADJACENT,
    "adjacent, noised": SINKS | NOISED | ADJACENT,
    "compressed, noised": SINKS | NOISED | ADJACENT | {"layout.window": 8, "cache.budget": 8, "cache.recent": 2},
    "sinks, noised, int8": SINKS | NOISED | {"cache.dtype": "int8"},
}
ROLLING = {"schedule.offset": "rolling", "schedule.in_flight": 2}  # for networks that may see noisy frames
SHOWN = (1, 4, 12, 24, 48, 72, 96, 120)  # streamed frames
DRAWN = (PLAIN, "sinks", "window, noised", "sinks, noised", "adjacent, noised", "compressed, noised")


def model(name: str, workdir: Path, overrides: dict):
    """The config and the averaged parameters of a finished run in ``workdir``, trained first if there is none."""
    config = load_config("quickstart", MODELS[name] | {"evaluate.clips": 0, "log.evaluate": 0} | overrides)
    pipe = train(config, workdir)
    return freeze(config), pipe.params


def policies(name: str) -> dict:
    """The policies under which a model is streamed."""
    rolling = {"adjacent, noised, rolling": POLICIES["adjacent, noised"] | ROLLING} if name == "causal" else {}
    return POLICIES | rolling


def measure(config, params, changes: dict, clips, recogniser) -> dict:
    """Streams the clips under a policy: 'recognised' bool [B, T], 'psnr' [B, T], 'motion' [B, T - LAG] and its kind."""
    pipe = Pipeline(override(config, changes), params)
    video = stream_held_out(pipe, clips)
    labels = recogniser.predict(video.reshape(-1, *video.shape[2:])).reshape(video.shape[:2])
    return {
        "kind": pipe.recipe.kind,
        "recognised": labels == clips.condition["label"][:, None],
        "psnr": psnr(video, clips.future),
        "motion": motion(video),
        "true_motion": motion(clips.future),
    }


def motion(video) -> np.ndarray:
    """How far the centre of what is bright moves within LAG frames, in pixels: [B, T, H, W, 1] -> [B, T - LAG]."""
    ink = np.maximum((np.asarray(video, np.float64)[..., 0] + 1) / 2 - DIM, 0)
    mass = np.maximum(ink.sum(axis=(2, 3)), 1e-9)
    y = ink.sum(axis=3) @ np.arange(ink.shape[2]) / mass
    x = ink.sum(axis=2) @ np.arange(ink.shape[3]) / mass
    return np.hypot(y[:, LAG:] - y[:, :-LAG], x[:, LAG:] - x[:, :-LAG])


def share(values) -> tuple[float, float]:
    """Mean of [B] and its standard error."""
    values = np.asarray(values, np.float64)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def summary(results: dict, length: int) -> dict:
    """Per policy: curves and their standard errors, what is held past ``length`` frames, and the gain on PLAIN."""
    out = {}
    for name, result in results.items():
        held = result["recognised"][:, length:].mean(axis=1)
        curve = [share(column) for column in result["recognised"].T]
        out[name] = {
            "kind": result["kind"],
            "recognised": [round(mean, 4) for mean, _ in curve],
            "recognised_error": [round(error, 4) for _, error in curve],
            "psnr": [round(float(x), 3) for x in result["psnr"].mean(axis=0)],
            "held": share(held),
            "motion": float(result["motion"][:, length:].mean() / result["true_motion"][:, length:].mean()),
        }
        if PLAIN in results:
            out[name]["gain"] = share(held - results[PLAIN]["recognised"][:, length:].mean(axis=1))
    return out


def table(summed: dict) -> str:
    """Both tables in Markdown."""
    head = "".join(f" {frame} |" for frame in SHOWN)
    lines = ["digit recognised:", "", f"| policy |{head} held | gain |", "|---" * (len(SHOWN) + 3) + "|"]
    for name, result in summed.items():
        cells = [
            f"{result['recognised'][f - 1]:.2f} ± {result['recognised_error'][f - 1]:.2f}" for f in SHOWN
        ] + ["{:.3f} ± {:.3f}".format(*result["held"])]
        cells.append("{:+.3f} ± {:.3f}".format(*result["gain"]) if "gain" in result and name != PLAIN else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "PSNR (dB):", "", f"| policy |{head} motion |", "|---" * (len(SHOWN) + 2) + "|"]
    for name, result in summed.items():
        cells = [f"{result['psnr'][f - 1]:.1f}" for f in SHOWN] + [f"{result['motion']:.2f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(summed: dict, length: int) -> np.ndarray:
    """The recogniser's curves of the policies in DRAWN, each the mean of five neighbouring frames."""
    ends, curves = 2, {}
    for name in DRAWN:
        if name in summed:
            padded = np.pad(summed[name]["recognised"], ends, mode="edge")
            curves[name] = np.convolve(padded, np.full(2 * ends + 1, 1 / (2 * ends + 1)), mode="valid")
    return line_plot(
        curves, title="Frames in which the given digit is recognised", xlabel="streamed frame", ylabel="share",
        x_start=1, y_range=(0.0, 1.0), marks={"training length": length}, size=(860, 440),
    )


def main(arguments=None):
    """Trains, streams, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=as_path, default=Path("runs/policies"))
    parser.add_argument("--model", choices=MODELS, default="quickstart")
    parser.add_argument("--only", default="", help="policies, separated by semicolons")
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--steps", type=int, default=0, help="training steps instead of the shipped ones")
    args = parser.parse_args(arguments)
    config, params = model(args.model, args.workdir, {"train.steps": args.steps} if args.steps else {})
    clips = held_out(override(config, {"evaluate.clips": args.clips, "evaluate.frames": FRAMES}))
    recogniser = DigitRecogniser.fit(*digit_images("train", config.data.holdout))
    length, results = config.data.frames - clips.context, {}
    for name, changes in policies(args.model).items():
        if args.only and name not in args.only.split(";"):
            continue
        results[name] = measure(config, params, changes, clips, recogniser)
        print(name, "{:.3f} ± {:.3f}".format(*share(results[name]["recognised"][:, length:].mean(axis=1))), flush=True)
        summed = summary(results, length)
        (args.workdir / "policies.json").write_text(json.dumps(summed, indent=1) + "\n")
    print(table(summed))
    write_png(args.workdir / "drift.png", picture(summed, length))


if __name__ == "__main__":
    main()
