"""Set-up that must come before the first use of JAX: eight CPU devices, unless JAX_PLATFORMS says otherwise, and
compiler flags that make compiling fast (``tests/compiling.py``).

Whatever is not sharded runs on the first of them. Compiled programs are not kept on disk, here and in processes that
tests start, but where a test says so.
"""

import contextlib
import ctypes
import gc
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags

from tests.compiling import drop_kept, share_contexts, use_quick_flags

use_quick_flags()
share_contexts()
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # for processes that tests start
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", None)
os.environ["JAX_COMPILATION_CACHE_DIR"] = ""
flags.FLAGS.mark_as_parsed()  # grain reads an absl flag in its workers, which only absl.app.run would parse

MAPS = Path("/proc/self/maps")  # Linux
MOST_MAPS = 30_000  # of the 65,530 that Linux grants a process (vm.max_map_count)
MEMORY = Path("/proc/self/statm")  # Linux, in pages
MOST_MEMORY = 1_600 * 2**20  # bytes resident; a test takes a few hundred MiB more


def pytest_collection_finish(session):
    """What is there by now stays: the garbage collector need not look at it after every few thousand objects that
    tracing makes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def disk(monkeypatch):
    """See ``fake_disk.failing_disk``."""
    from tests.fake_disk import failing_disk  # what it imports of the package is not needed by all tests

    return failing_disk(monkeypatch)


@pytest.fixture(autouse=True)
def generators_start_anew(request):
    """What a test draws from a generator of its module does not depend on the tests that ran before it."""
    for value in vars(request.module).values():
        if isinstance(value, np.random.Generator):
            value.bit_generator.state = np.random.default_rng(0).bit_generator.state


class Compiled:
    """How many programs were compiled since memory was looked at, which takes its time."""

    LOOK_AFTER = 50

    def __init__(self):
        self.programs = 0
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event, seconds, **about):
        self.programs += event == "/jax/core/compile/backend_compile_duration"

    def too_many(self) -> bool:
        """Whether compiled programs should be dropped."""
        if self.programs < self.LOOK_AFTER:
            return False
        self.programs = 0
        if not MAPS.exists():
            return False
        resident = int(MEMORY.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return resident > MOST_MEMORY or len(MAPS.read_bytes().splitlines()) > MOST_MAPS


compiled = Compiled()


@pytest.fixture(autouse=True)
def compiled_programs_are_dropped():
    """XLA's CPU backend maps memory for every program it compiles, and at the limit of maps it crashes."""
    yield
    if compiled.too_many():
        drop_kept()
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # glibc: freed memory goes back to the system
            ctypes.CDLL("libc.so.6").malloc_trim(0)
