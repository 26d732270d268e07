"""What ``train.py`` and ``sample.py`` do with a command line.

A user's mistake ends in one line on stderr and exit code 2.
"""

import argparse
import errno
import sys
from pathlib import Path

from causal_diffusion.config import freeze, load_config
from causal_diffusion.errors import UserError


def run(main) -> None:
    """Calls ``main()``; turns a UserError, a disk that takes no more, or Ctrl-C into one line and exit code 2."""
    try:
        main()
    except UserError as error:
        sys.exit(_fail(str(error)))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            raise
        where = f" at {error.filename}" if error.filename else ""
        sys.exit(_fail(f"cannot write{where}: {error.strerror}; the last checkpoint stands, make room and start again"))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted; the last checkpoint stands, and the same command goes on from there"))


def train_main(arguments=None) -> None:
    """``train.py``: see its docstring."""
    parser = Parser(prog="train.py", description="Trains a system from its config.")
    parser.add_argument("--config", required=True, help="configs/NAME.py, or NAME, with :variant if wanted")
    parser.add_argument("--workdir", help="folder of the run; needed unless --dry_run")
    parser.add_argument("--dry_run", action="store_true", help="print sizes, FLOPs and memory, and stop")
    options, overrides = parse_options(parser, arguments)
    config = freeze(load_config(options.config, overrides))
    if not options.dry_run and not options.workdir:
        raise UserError("--workdir is missing: name the folder of the run, --workdir=runs/" + config.name)
    from causal_diffusion.training.loop import dry_run, train  # seconds of imports: a wrong key is told before them

    if options.dry_run:
        print(dry_run(config))
    else:
        train(config, options.workdir)


def sample_main(arguments=None) -> None:
    """``sample.py``: see its docstring."""
    parser = Parser(prog="sample.py", description="Streams from a trained system.")
    parser.add_argument("--checkpoint", required=True, help="a run's workdir")
    parser.add_argument("--out", default="clip.mp4", help="video file to write: .mp4 or .gif")
    parser.add_argument("--frames", type=int, default=64, help="frames to stream")
    parser.add_argument("--batch", type=int, default=4, help="samples, shown side by side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label", type=int, nargs="+", help="class of all samples, or one each")
    parser.add_argument("--context", type=int, help="held-out frames to start from; 0: from nothing")
    parser.add_argument("--fps", type=float, help="of the file; default: that of the data")
    parser.add_argument("--step", type=int, help="a certain checkpoint instead of the newest")
    options, overrides = parse_options(parser, arguments)
    if Path(options.out).suffix not in (".mp4", ".gif"):
        raise UserError(f"--out is {options.out}: it ends in .mp4 or .gif")
    from causal_diffusion.streaming.pipeline import Pipeline
    from causal_diffusion.streaming.to_file import stream_to_file

    pipeline = Pipeline.from_checkpoint(options.checkpoint, step=options.step, overrides=overrides)
    stream_to_file(
        pipeline,
        options.out,
        seed=options.seed,
        frames=options.frames,
        batch=options.batch,
        label=options.label,
        context=options.context,
        fps=options.fps,
    )


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, without the usage that argparse would print before it."""

    def error(self, message):
        raise UserError(f"{message}; {self.prog} --help lists what there is")


def parse_options(parser, arguments):
    """Known options, and the rest as config overrides ('--config.a.b=c' -> 'a.b=c')."""
    options, rest = parser.parse_known_args(arguments)
    overrides = []
    for word in rest:
        if not word.startswith("--config.") or "=" not in word:
            known = ", ".join(action.option_strings[-1] for action in parser._actions)
            raise UserError(f"unknown argument {word!r}; there are {known}, and --config.section.key=value")
        overrides.append(word.removeprefix("--config."))
    return options, overrides


def _fail(message) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 2
