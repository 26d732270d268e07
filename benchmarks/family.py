"""Every system of the family on the same data for the same budget: how close is the next frame, how fast is the drift?

    python benchmarks/family.py --workdir=runs/family                  # two to four minutes each on two CPU cores
    python benchmarks/family.py --workdir=runs/family --only=far,acdit

Trains each config's ``tiny`` variant on moving digits as shipped, streams the same held-out clips from four given
frames under the system's own schedule, solver and cache, without guidance, and prints a table (also written to
``family.json`` in the workdir). Runs that are finished are not repeated.

CONTROLS are one system in which only what training shows of the past is changed: the same network, path, prediction,
density of levels, schedule and solver.
"""

import argparse
import json
import time
from pathlib import Path

from causal_diffusion.checkpoint.paths import as_path
from causal_diffusion.config import load_config
from causal_diffusion.recipe import parameter_count
from causal_diffusion.training.loop import train

SYSTEMS = {
    name: (name, {})
    for name in (
        "acdit", "far", "nfd", "diffusion_forcing", "skyreels_v2", "ar_diffusion", "dfot", "vid_gpt", "ca2_vdm",
        "streaming_tsdiff",
    )
}  # fmt: skip
SAME = {"process.predict": "x0", "levels.density": "uniform", "cache.commit_level": 0.0}
CONTROLS = {
    "clean copy": ("nfd", SAME | {"layout.kind": "teacher_forcing"}),
    "clean prefix": ("nfd", SAME | {"levels.kind": "prefix"}),
    "independent (half clean)": ("nfd", SAME | {"levels.clean": 0.5}),
    "independent": ("nfd", SAME),
    "never falling (FoPP)": ("nfd", SAME | {"levels.kind": "fopp"}),
}
SHOWN = (1, 2, 4, 8, 12, 24, 48)  # streamed frames


def measure(name: str, workdir: Path, overrides: dict) -> dict:
    """Trains one system, which ends with streaming the held-out clips, and reads what came of it."""
    base, changes = (SYSTEMS | CONTROLS)[name]
    config = load_config(f"{base}:tiny", {"guidance.kind": "none"} | changes | overrides)
    folder = workdir / "".join(c if c.isalnum() else "_" for c in name)
    begun = time.perf_counter()
    pipeline = train(config, folder)
    curves = json.loads((folder / "samples" / "evaluation.json").read_text())
    return curves | {"parameters": parameter_count(pipeline.params), "seconds": time.perf_counter() - begun}


def table(results: dict) -> str:
    """The results in Markdown: PSNR in dB and the share of frames with the digit recognised."""
    head = "| system | " + " | ".join(f"{frame}" for frame in SHOWN) + " |"
    lines = []
    for title, key in (("PSNR of streamed frame (dB)", "psnr"), ("digit recognised", "recognised")):
        lines += [f"{title}:", "", head, "|---" * (len(SHOWN) + 1) + "|"]
        ranked = sorted(results, key=lambda name: -results[name]["psnr"][0])
        for name in ranked:
            curve = results[name][key]
            shown = [f"{curve[f - 1]:.1f}" if key == "psnr" else f"{curve[f - 1]:.2f}" for f in SHOWN]
            lines.append(f"| {name} | " + " | ".join(shown) + " |")
        copy = results[ranked[0]]["psnr_copy" if key == "psnr" else "recognised_true"]
        title = "last frame copied" if key == "psnr" else "true frames"
        shown = [f"{copy[f - 1]:.1f}" if key == "psnr" else f"{copy[f - 1]:.2f}" for f in SHOWN]
        lines += [f"| {title} | " + " | ".join(shown) + " |", ""]
    return "\n".join(lines)


def main():
    """Trains, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=as_path, default=Path("runs/family"))
    parser.add_argument("--only", default="", help="comma-separated systems")
    parser.add_argument("--steps", type=int, default=0, help="training steps instead of the shipped ones")
    args = parser.parse_args()
    file = args.workdir / "family.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    chosen = [n for n in (*SYSTEMS, *CONTROLS) if not args.only or n in args.only.split(",")]
    for name in chosen:
        if name not in results:
            results[name] = measure(name, args.workdir, {"train.steps": args.steps} if args.steps else {})
            args.workdir.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(results, indent=1))
        print(name, [round(results[name]["psnr"][f - 1], 2) for f in SHOWN], flush=True)
    for group in (SYSTEMS, CONTROLS):
        shown = {name: results[name] for name in chosen if name in group}
        if shown:
            print(table(shown))


if __name__ == "__main__":
    main()
