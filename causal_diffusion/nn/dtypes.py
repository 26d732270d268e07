"""In which dtype a network multiplies."""

import jax
import jax.numpy as jnp


def compute_dtype(name: str):
    """'float32' or 'bfloat16'; 'auto' is float32 on CPU, where bfloat16 is slower, and bfloat16 elsewhere."""
    if name == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(name)
