"""Set-up that must come before the first use of JAX: eight CPU devices, unless JAX_PLATFORMS says otherwise.

Whatever is not sharded runs on the first of them. There is no persistent compilation cache: JAX does not
write its entries atomically, and the tests that kill a process in mid-run would leave broken ones behind.
"""

import os

import jax
import pytest
from absl import flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # for processes that tests start
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_num_cpu_devices", 8)
flags.FLAGS.mark_as_parsed()  # grain reads an absl flag in its workers, which only absl.app.run would parse


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
