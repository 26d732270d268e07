"""The tiny autoencoders, trained on real clips one after the other, and what came of them.

    python benchmarks/autoencoders.py --videos=DIR --motion=DIR --workdir=runs/autoencoders
    python benchmarks/autoencoders.py --videos=DIR --workdir=runs/autoencoders video_vae fast     # some of them

``fast`` distils the decoder of ``video_vae`` and needs its run. A run that is complete is not repeated. One line is
printed per system: minutes of training, parameters, floating-point operations of encoding and of decoding a training
clip (counted by XLA), and the held-out numbers of ``training.evaluate_vae``. ``--json FILE`` keeps them, an object per
line.
"""

import argparse
import json
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import causal_diffusion as cd
from causal_diffusion.checkpoint.paths import as_path
from causal_diffusion.data.sources import make_source
from causal_diffusion.nn.vae import VAE
from causal_diffusion.recipe import parameter_count
from causal_diffusion.render.files import write_png
from causal_diffusion.render.sheet import contact_sheet
from causal_diffusion.training.evaluate_vae import patch_means

SYSTEMS = ("video_vae", "fast", "frame_vae", "phenaki_tokenizer", "cdt", "motion_vae")


def config_of(name: str, videos: str, motion: str, workdir: Path):
    """The config of a system's tiny variant, on the given data."""
    if name == "fast":
        teacher = str(workdir / "video_vae")
        return cd.load_config("video_vae:fast", {"data.path": videos, "reconstruction.teacher": teacher})
    return cd.load_config(f"{name}:tiny", {"data.path": motion if name == "motion_vae" else videos})


def flops(vae: VAE, params, shape: tuple[int, ...]) -> dict[str, float]:
    """Floating-point operations of encoding a clip of ``shape`` [T, *space, C] and of decoding its latents."""
    g, network = vae.geometry, vae.network
    clip = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    latents = jax.ShapeDtypeStruct((1, *g.latent_shape(shape)), jnp.float32)

    def count(method, x):
        def f(params, x):
            return network.apply({"params": params}, x, method=method)[0]

        return float(jax.jit(f).lower(params, x).cost_analysis()["flops"])

    return {"encode": count("encode", clip), "decode": count("decode", latents)}


def measure(name: str, config, workdir: Path) -> dict:
    """Trains one system, or goes on where it stands: its figures."""
    frozen, start = cd.freeze(config), time.perf_counter()
    vae, params = cd.train(config, workdir=workdir / name)
    minutes = (time.perf_counter() - start) / 60
    shape = (frozen.data.frames, *frozen.data.frame_shape)
    held_out = json.loads((workdir / name / "samples/evaluation.json").read_text())
    return {
        "system": name, "minutes": minutes, "steps": frozen.train.steps, "parameters": parameter_count(params),
        "flops": flops(vae, params, shape), "held_out": held_out,
    }  # fmt: skip


def line(row: dict) -> str:
    """A row, ready to print."""
    numbers = ", ".join(f"{k} {v:.3g}" if v < 1 else f"{k} {v:.2f}" for k, v in row["held_out"].items())
    return (
        f"{row['system']:18} {row['minutes']:5.1f} min {row['parameters'] / 1e6:6.2f} M  "
        f"encode {row['flops']['encode'] / 1e9:6.2f} decode {row['flops']['decode'] / 1e9:6.2f} GFLOP  {numbers}"
    )


def side_by_side(systems, videos: str, workdir: Path) -> np.ndarray:
    """Two held-out clips and what each autoencoder of video makes of them, uint8 [H, W, 3]."""
    config = cd.freeze(config_of("video_vae", videos, "", workdir))
    source = make_source(config.data, "test")
    clips = np.stack([source[i]["video"] for i in (0, len(source) - 1)])
    made = {}
    for name in systems:
        vae, params = cd.load_vae(workdir / name)
        made[name] = np.asarray(vae.decode(params, vae.encode(params, clips)))
    made["means of patches"] = patch_means(clips, config.vae.geometry)
    rows = []
    for i, clip in enumerate(clips):
        rows += [("held out", clip), *((name, video[i]) for name, video in made.items())]
    return contact_sheet(rows, group=1 + len(made), cell=80)


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("systems", nargs="*", choices=(*SYSTEMS, []), help="which; all of them if none is named")
    parser.add_argument("--videos", type=os.path.expanduser, default="videos", help="folder of video files")
    parser.add_argument("--motion", type=os.path.expanduser, default="motion", help="folder of motion files")
    parser.add_argument("--workdir", type=as_path, default=Path("runs/autoencoders"))
    parser.add_argument("--json", type=as_path)
    parser.add_argument("--sheet", type=as_path, help="picture of held-out clips and what is made of them")
    options = parser.parse_args(arguments)
    rows = []
    for name in options.systems or SYSTEMS:
        config = config_of(name, options.videos, options.motion, options.workdir)
        rows.append(measure(name, config, options.workdir))
        print(line(rows[-1]), flush=True)
        if options.json:
            options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if options.sheet:
        shown = [row["system"] for row in rows if row["system"] != "motion_vae"]
        write_png(options.sheet, side_by_side(shown, options.videos, options.workdir))


if __name__ == "__main__":
    main()
