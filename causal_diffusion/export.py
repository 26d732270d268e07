"""What other programs read of a run: its averaged parameters in one .safetensors file, or its stream in a folder.

    python -m causal_diffusion.export --checkpoint=runs/quickstart --out=quickstart.safetensors [--step=1000]
    python -m causal_diffusion.export --checkpoint=runs/quickstart --stream --out=quickstart_stream --platforms=cpu,cuda

The folder is streamed from without the code of the model, see ``causal_diffusion.exported``. It takes the extra
``export``; elastic keys of the config can be changed as --config.schedule.steps=4.

In the file, arrays have the names they have in a checkpoint, ``block_0/attention/query/kernel``, one per layer however
the layers were trained. The metadata hold ``config``, as JSON; ``step``; and ``meta``, what else the checkpoint knew,
as JSON::

    params, config, meta = read_export("quickstart.safetensors")
    pipe = Pipeline(config, params)
"""

import json
import os
from typing import Any

import flax.traverse_util

from causal_diffusion.checkpoint import folder_of
from causal_diffusion.checkpoint.manager import Checkpoints
from causal_diffusion.checkpoint.weights_file import read_weights, write_weights
from causal_diffusion.cli import Parser, parse_options, run
from causal_diffusion.config import Config, freeze
from causal_diffusion.errors import CheckpointError, UserError

FORMAT = "causal_diffusion 1"


def export(checkpoint: str | os.PathLike, out: str | os.PathLike, step: int | None = None) -> str:
    """Writes the averaged parameters of the newest intact checkpoint of a run, and says what it wrote.

    Args:
        checkpoint: the run's workdir, or its folder of checkpoints; a local path or any that etils.epath understands.
        out: the file, NAME.safetensors, on this machine.
        step: a certain checkpoint instead of the newest.

    Raises:
        CheckpointError: nothing intact is there, or the file cannot be written.
    """
    if not os.fspath(out).endswith(".safetensors"):
        raise UserError(f"--out is {out}: it ends in .safetensors, model.safetensors would do")
    found = Checkpoints(folder_of(checkpoint), alone=True).restore({"ema": None}, step=step)
    meta = dict(found.meta)
    config = meta.pop("config")
    texts = {"format": FORMAT, "step": str(found.step), "config": json.dumps(config), "meta": json.dumps(meta)}
    write_weights(out, found.ema, texts)
    lines = [f"checkpoint {skipped} is damaged ({reason}): using {found.step}" for skipped, reason in found.skipped]
    numbers = sum(leaf.size for leaf in found.ema.values())
    lines.append(f"{out}: {len(found.ema)} arrays, {numbers:,} parameters of step {found.step:,}")
    return "\n".join(lines)


def read_export(path: str | os.PathLike) -> tuple[dict[str, Any], Config, dict]:
    """Reads (parameters, the config they belong to, {'step': ..., and what else the checkpoint knew}), verified.

    Parameters are nested dicts of numpy arrays, bit for bit those of the checkpoint.

    Raises:
        CheckpointError: the file is missing or damaged, or not one of :func:`export`.
    """
    arrays, texts = read_weights(path)
    if texts.get("format") != FORMAT:
        other = texts.get("format", "of no format")
        raise CheckpointError(f"{path} is {other!r}, not {FORMAT!r}: export the run again")
    params = flax.traverse_util.unflatten_dict(arrays, sep="/")
    return params, freeze(json.loads(texts["config"])), json.loads(texts["meta"]) | {"step": int(texts["step"])}


def main(arguments=None) -> None:
    parser = Parser(prog="python -m causal_diffusion.export", description="A run for other programs.")
    parser.add_argument("--checkpoint", required=True, help="a run's workdir, or its folder of checkpoints")
    parser.add_argument("--out", required=True, help="the file to write, NAME.safetensors; with --stream a folder")
    parser.add_argument("--step", type=int, help="a certain checkpoint instead of the newest")
    parser.add_argument("--stream", action="store_true", help="the compiled stream instead of the parameters alone")
    parser.add_argument("--batch", type=int, default=1, help="of the stream: samples side by side")
    parser.add_argument("--context", type=int, default=0, help="of the stream: frames that it begins with")
    parser.add_argument("--tokens", type=int, default=0, help="of the stream: condition tokens of a prompt")
    parser.add_argument("--platforms", default="", help="of the stream: cpu, cuda, rocm, tpu or several, as cpu,cuda")
    options, overrides = parse_options(parser, arguments)
    if not options.stream:
        if overrides:
            raise UserError(f"--config.{overrides[0]} changes a stream, and --stream is not given: leave it out")
        return print(export(options.checkpoint, options.out, options.step))
    from causal_diffusion.exported import check_flatbuffers

    check_flatbuffers()  # before the seconds of imports
    from causal_diffusion.streaming.exporting import export_stream
    from causal_diffusion.streaming.pipeline import Pipeline

    pipeline = Pipeline.from_checkpoint(options.checkpoint, step=options.step, overrides=overrides)
    platforms = tuple(filter(None, options.platforms.split(",")))
    sizes = dict(batch=options.batch, context=options.context, tokens=options.tokens)
    print(export_stream(pipeline, options.out, platforms=platforms, **sizes))


if __name__ == "__main__":
    run(main)
