"""Set-up that must come before the first use of JAX: eight CPU devices, unless JAX_PLATFORMS says otherwise.

Whatever is not sharded runs on the first of them. Compiled programs are not kept on disk, here and in processes that
tests start, but where a test says so.
"""

import gc
import os
from pathlib import Path

import jax
import pytest
from absl import flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # for processes that tests start
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", None)
os.environ["JAX_COMPILATION_CACHE_DIR"] = ""
flags.FLAGS.mark_as_parsed()  # grain reads an absl flag in its workers, which only absl.app.run would parse

MAPS = Path("/proc/self/maps")  # Linux
MOST_MAPS = 30_000  # of the 65,530 that Linux grants a process (vm.max_map_count)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


class Compiled:
    """How many programs were compiled since maps were counted, which takes its time."""

    COUNT_AFTER = 50

    def __init__(self):
        self.programs = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event, seconds, **about):
        self.programs += event == "/jax/core/compile/backend_compile_duration"

    def many_maps(self) -> bool:
        """Whether they are to be forgotten."""
        if self.programs < self.COUNT_AFTER:
            return False
        self.programs = 0
        return MAPS.exists() and len(MAPS.read_bytes().splitlines()) > MOST_MAPS


compiled = Compiled()


@pytest.fixture(autouse=True)
def compiled_programs_are_forgotten():
    """XLA's CPU backend maps memory for every program it compiles, and at the limit of maps it crashes."""
    yield
    if compiled.many_maps():
        jax.clear_caches()
        gc.collect()
