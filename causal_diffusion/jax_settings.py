"""JAX settings of the library: results do not depend on the global settings of other libraries in the process.

JAX keeps settings for the whole process (``jax.config.update``) that change numbers: 64-bit types, the implementation
of random keys, the precision of matrix products, the default device, type promotion. Every function that a user calls
runs under the values below instead, for its own thread and its own duration. What is compiled or drawn inside is then
the same whatever the process is set to.

Keys are made with ``IMPL`` by name (``seeds.random_key``), so that a key keeps its implementation outside of these
functions too.
"""

import contextlib
import functools

import jax

IMPL = "threefry2x32"  # of every random key


@contextlib.contextmanager
def own_settings():
    """The library's settings, for this thread, inside a ``with`` statement. May be nested."""
    with contextlib.ExitStack() as stack:
        enter_own_settings(stack)
        yield


def enter_own_settings(stack: contextlib.ExitStack) -> None:
    """Enters the library's settings; closing ``stack`` restores those of before."""
    for setting in (
        jax.enable_x64(False),
        jax.default_prng_impl(IMPL),
        jax.threefry_partitionable(True),
        jax.default_matmul_precision("default"),
        jax.default_device(None),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        stack.enter_context(setting)


def under_own_settings(function):
    """Decorates a function or method that users call: its body runs under ``own_settings``."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with own_settings():
            return function(*args, **kwargs)

    return wrapped
