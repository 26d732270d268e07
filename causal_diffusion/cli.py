"""What ``train.py`` and ``sample.py`` do with a command line.

A user's mistake ends in one line on stderr and exit code 2; a run that SIGTERM stopped in one line and exit code 75.
"""

import argparse
import atexit
import contextlib
import errno
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from causal_diffusion import compilation_cache
from causal_diffusion.config import freeze, load_config
from causal_diffusion.errors import UserError
from causal_diffusion.lasting_output import lasting_output, outlasting_the_terminal
from causal_diffusion.parallel import distributed
from causal_diffusion.parallel.cluster import KINDS, PORT, ClusterConfig
from causal_diffusion.ranges import POSITIVE, check_number

TEMPORARY = 75  # EX_TEMPFAIL, the exit code after SIGTERM: schedulers start the same command again
LAST_WORDS = 3.0  # seconds that process 0, which the others lean on, leaves them to say why they end


def run(main) -> None:
    """Calls ``main()``, with compiled programs kept on disk (``compilation_cache``).

    Turns a UserError, a disk that takes no more, or Ctrl-C into one line and an exit code.

    Of several processes one that fails leaves at once, since the others may wait for it where it never comes: they
    then end by themselves, or their launcher ends them.

    That nobody reads what is printed any more (a closed terminal, ``| head``) ends nothing.
    """
    with lasting_output():
        _run(main)


def _run(main):
    try:
        compilation_cache.switch_on()
        main()
    except UserError as error:
        code = getattr(error, "exit_code", None)  # all agreed to stop, and leave in good order
        if code is None:
            _leave(_fail(str(error)))
        sys.exit(_fail(str(error), code) if distributed.is_writer() else code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            _leave_if_many()
            raise
        where = f" at {error.filename}" if error.filename else ""
        _leave(_fail(f"cannot write{where}: {error.strerror}; the last checkpoint stands, make room and start again"))
    except KeyboardInterrupt:
        _leave(_fail("interrupted; the last checkpoint stands, and the same command goes on from there"))
    except BaseException:
        _leave_if_many()
        raise


def train_main(arguments=None) -> None:
    """``train.py``: see its docstring."""
    with _leaving_at_sigterm(), outlasting_the_terminal():
        _train_main(arguments)


def _train_main(arguments):
    config, options, cluster = train_options(arguments)
    distributed.initialise(cluster)  # of several processes JAX catches SIGTERM from here on
    if distributed.coordination_client() is not None:
        compilation_cache.only_if_shared()
    from causal_diffusion.training.loop import dry_run, train  # seconds of imports: a wrong key is told before them

    if options.dry_run:
        said = dry_run(config)
        if distributed.is_writer():
            print(said)
    else:
        train(config, options.workdir)
        distributed.barrier("the end of the run", timeout=distributed.DAY)  # process 0 may still be evaluating


def train_options(arguments=None):
    """The command line of ``train.py`` -> (config, options, where other processes are). Touches no device."""
    parser = Parser(prog="train.py", description="Trains a system from its config.")
    parser.add_argument("--config", required=True, help="configs/NAME.py, or NAME, with :variant if wanted")
    parser.add_argument("--workdir", help="folder of the run; needed unless --dry_run")
    parser.add_argument("--dry_run", action="store_true", help="print sizes, FLOPs and memory, and stop")
    parser.add_argument("--cluster", default="auto", help=f"where processes find each other: {', '.join(KINDS)}")
    parser.add_argument("--coordinator", help=f"host:port of process 0, as localhost:{PORT}; or CD_COORDINATOR")
    parser.add_argument("--processes", type=int, help="how many there are; or CD_PROCESSES")
    parser.add_argument("--process", type=int, help="which of them this is, from 0; or CD_PROCESS")
    parser.add_argument("--start_timeout", type=float, default=300.0, help="seconds in which all of them have to come")
    options, overrides = parse_options(parser, arguments)
    config = freeze(load_config(options.config, overrides))
    options.workdir = options.workdir and os.path.expanduser(options.workdir)
    if not options.dry_run and not options.workdir:
        raise UserError("--workdir is missing: name the folder of the run, --workdir=runs/" + config.name)
    check_number("--start_timeout", options.start_timeout, POSITIVE, default=300.0, kind=float, error=UserError)
    cluster = ClusterConfig(
        options.cluster, options.coordinator, options.processes, options.process, options.start_timeout
    )
    return config, options, cluster


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

    options.out = os.path.expanduser(options.out)
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


@contextlib.contextmanager
def _leaving_at_sigterm():
    """SIGTERM before the first step and after the last ends the process with the same code as between steps."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number, frame):
        sys.exit(_fail("preempted; the same command goes on from the last checkpoint", TEMPORARY))

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except BaseException as error:
        if TEMPORARY in (getattr(error, "exit_code", None), getattr(error, "code", None)):
            # Another one does not change the exit code any more, to the very end of the process. Of the two ways to
            # ignore it, processes that are started in between inherit the second one.
            signal.signal(signal.SIGTERM, lambda number, frame: None)
            atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)
        else:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        raise
    else:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _fail(message, code=2) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _leave(code) -> None:
    """Ends this process; one of several without waiting for the others, as its regular end would for minutes."""
    if distributed.coordination_client() is None:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    if distributed.is_writer():
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(LAST_WORDS)
    os._exit(code)


def _leave_if_many() -> None:
    """The same after a bug, whose traceback is printed here. Alone: does nothing."""
    if distributed.coordination_client() is not None:
        traceback.print_exc()
        _leave(1)
