"""How tests compile: for the shortest time from source to result, since most programs run once or twice.

    tests.compiling.use_quick_flags()          before JAX's backend starts, also for child processes
    tests.compiling.share_contexts()           in this process
    jax.jit(f, compiler_options=AS_SHIPPED)    one program as users compile it
    @kept                                      what a function makes is made once for all tests, while memory lasts

Numbers are those of other options up to rounding. Where two different programs must agree to the bit, both are
compiled ``AS_SHIPPED``.

LLVM's optimisations cost more than they save in programs of this size: half of the time of compiling convolutions. On
jax 0.10 the newer way to emit fused operations takes three times as long as the older one; jax 0.12 has only the newer.
"""

import functools
import os
import threading

import jax
from jax._src.interpreters import mlir

QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,  # one thread a program: the cores are busy with two processes
}
AS_SHIPPED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
if jax.__version_info__ < (0, 11):
    QUICK |= {"xla_cpu_use_fusion_emitters": False}
    AS_SHIPPED |= {"xla_cpu_use_fusion_emitters": True}


def use_quick_flags() -> None:
    """Adds QUICK to XLA_FLAGS; what is set already stays."""
    given = os.environ.get("XLA_FLAGS", "")
    wanted = (f"--{name}={str(value).lower()}" for name, value in QUICK.items() if name not in given)
    os.environ["XLA_FLAGS"] = " ".join([*given.split(), *wanted])


def share_contexts() -> None:
    """Lets all programs that a thread lowers share one MLIR context.

    jax 0.10 makes one per program and keeps it: 1.1 MB and a third of the time of a program of one operation, of which
    tests compile ten thousand. Later versions keep little.
    """
    if jax.__version_info__ < (0, 11):
        make = mlir.make_ir_context
        of_thread = functools.lru_cache(maxsize=16)(lambda thread: make())
        mlir.make_ir_context = lambda: of_thread(threading.get_ident())


_KEPT = []


def kept(function):
    """Like ``functools.cache``, for what holds compiled programs: ``drop_kept`` lets go of it."""
    cached = functools.cache(function)
    _KEPT.append(cached)
    return cached


def drop_kept() -> None:
    """Forgets what the functions decorated with ``kept`` have made."""
    for cached in _KEPT:
        cached.cache_clear()
