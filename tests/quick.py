"""Compiler options for programs that are compiled to be run once or twice: what makes them fast would not pay.

    @functools.partial(jax.jit, compiler_options=QUICK)

Numbers are those of other options up to rounding. What is said of bits is tested as it is compiled for users.
"""

import functools

import jax

QUICK = {"xla_llvm_disable_expensive_passes": True, "xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):  # the newer way to compile fused operations takes three times as long there
    QUICK["xla_cpu_use_fusion_emitters"] = False

quick = functools.partial(jax.jit, compiler_options=QUICK)
