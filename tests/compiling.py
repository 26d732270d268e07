"""How tests compile: for the shortest time from source to result, since most programs run once or twice.

    tests.compiling.use_quick_flags()          before JAX's backend starts, also for child processes
    jax.jit(f, compiler_options=AS_SHIPPED)    one program as users compile it

Numbers are those of other options up to rounding. Where two different programs must agree to the bit, both are
compiled ``AS_SHIPPED``.

LLVM's optimisations cost more than they save in programs of this size: half of the time of compiling convolutions. On
jax 0.10 the newer way to emit fused operations takes three times as long as the older one; jax 0.12 has only the newer.
"""

import os

import jax

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
