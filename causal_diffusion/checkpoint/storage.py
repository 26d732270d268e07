"""Orbax, which writes and reads arrays under any sharding: what this package asks of it, and nothing else of it.

It is muted: orbax logs a traceback of all that it raises, and warns of folders that ``manager`` reports; and once it
has given up, each write of tensorstore that fails after the first tells the world that nobody listens any more.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

TREE, DOCUMENT = "tree", "document"
_SAVE = {TREE: ocp.args.StandardSave, DOCUMENT: ocp.args.JsonSave}
_RESTORE = {TREE: ocp.args.StandardRestore, DOCUMENT: ocp.args.JsonRestore}


class Writing:
    """One folder that is being written. Once this object is made the arrays may be overwritten or donated.

    Args:
        folder: becomes the folder, whole, when all of it is written.
        items: {name: (TREE, {path: array}) or (DOCUMENT, JSON)}.
        barrier: waits for the other processes, on a thread of this one; None: this process writes alone.
    """

    def __init__(self, folder, items: dict[str, tuple[str, Any]], barrier: Callable | None):
        self._mute = muted()
        self._mute.__enter__()
        logging.getLogger("asyncio").addFilter(_nothing_of_orbax)  # to stay: told when the garbage is collected
        self._checkpointer = None
        try:
            self._checkpointer = ocp.AsyncCheckpointer(
                _handler({name: kind for name, (kind, _) in items.items()}, alone=barrier is None),
                async_options=_in_background(barrier),
                multiprocessing_options=_processes(alone=barrier is None),
            )
            self._checkpointer.save(folder, args=ocp.args.Composite(
                **{name: _SAVE[kind](value) for name, (kind, value) in items.items()}))  # fmt: skip
        except BaseException:
            self._end(failed=True)
            raise

    def finish(self) -> None:
        """Returns when the folder is complete. Raises what orbax raised, when none of its threads writes any more."""
        try:
            self._checkpointer.wait_until_finished()
        except BaseException:
            self._end(failed=True)
            raise
        self._end()

    def _end(self, failed: bool = False):
        if failed:  # some threads write on, into a folder that is about to be removed
            _ignored.enter()  # to stay: told by writes of tensorstore, which cannot be waited for
            time.sleep(0.2)
            for thread in threading.enumerate():
                if type(thread).__module__.startswith("orbax."):
                    threading.Thread.join(thread, timeout=60)
        with contextlib.suppress(Exception):
            self._checkpointer.close()
        self._mute.__exit__(None, None, None)


def read(folder, items: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    """Reads items of a folder: {name: (TREE, {path: ShapeDtypeStruct with a sharding}) or (DOCUMENT, None)}.

    Every process reads its own shards and waits for nobody.
    """
    with muted(), ocp.Checkpointer(
            _handler({name: kind for name, (kind, _) in items.items()}, alone=True),
            multiprocessing_options=_processes(alone=True)) as checkpointer:  # fmt: skip
        found = checkpointer.restore(folder, args=ocp.args.Composite(
            **{name: _RESTORE[kind](wanted) if kind == TREE else _RESTORE[kind]()
               for name, (kind, wanted) in items.items()}))  # fmt: skip
    return {name: found[name] for name in items}


def _processes(alone: bool) -> ocp.options.MultiprocessingOptions:
    if not alone:
        return ocp.options.MultiprocessingOptions()
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})


def _in_background(barrier: Callable | None = None) -> ocp.AsyncOptions:
    # Folders made in the background would be announced under numbers that only agree where every process saves as
    # often as the others, which a process that writes alone does not.
    return ocp.AsyncOptions(timeout_secs=2**20, barrier_sync_fn=barrier, create_directories_asynchronously=False)


def _handler(kinds: dict[str, str], alone: bool) -> ocp.CompositeCheckpointHandler:
    processes = _processes(alone)
    make = {TREE: ocp.StandardCheckpointHandler, DOCUMENT: ocp.JsonCheckpointHandler}
    return ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=processes, async_options=_in_background()),
        **{name: make[kind](multiprocessing_options=processes) for name, kind in kinds.items()})  # fmt: skip


@contextlib.contextmanager
def muted():
    """No word of orbax meanwhile; everybody else's is heard. Several may be muted at a time, in any order."""
    logger = logging.getLogger("absl")

    def not_orbax(record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname

    logger.addFilter(not_orbax)
    _ignored.enter()
    try:
        yield
    finally:
        _ignored.exit()
        logger.removeFilter(not_orbax)


def _nothing_of_orbax(record: logging.LogRecord) -> bool:
    """Whether what asyncio says is not of orbax's tasks, nor of the futures of tensorstore that they waited for."""
    text = record.getMessage()
    unheard = text.partition("\n")[0].endswith("exception was never retrieved")  # Task, Future, _GatheringFuture
    return not (unheard and (f"{os.sep}orbax{os.sep}" in text or ".orbax-checkpoint-tmp" in text))


class _Ignored:
    """Swaps `sys.unraisablehook` for one that lets a closed event loop pass, while somebody is in here."""

    def __init__(self):
        self._lock, self._inside, self._before = threading.Lock(), 0, None

    def enter(self):
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before, sys.unraisablehook = sys.unraisablehook, self._hook

    def exit(self):
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and sys.unraisablehook == self._hook:  # else somebody came after us
                sys.unraisablehook = self._before

    def _hook(self, found):
        if str(found.exc_value) != "Event loop is closed":
            self._before(found)


_ignored = _Ignored()
