"""Several processes as one run: they find each other, wait for each other, and one of them writes.

On a laptop nothing of this does anything: no socket is opened, and no device is touched.
"""

import itertools
import socket
from collections import defaultdict

import jax

from causal_diffusion.errors import UserError
from causal_diffusion.parallel.cluster import ClusterConfig, find
from causal_diffusion.parallel.roll_call import call_roll, never_came

DAY = 86_400.0
_rounds: dict[str, itertools.count] = defaultdict(itertools.count)


def initialise(config: ClusterConfig | None = None) -> None:
    """Joins the processes of a run, where there are several; before JAX touches a device. The second call does nothing.

    Raises:
        UserError: variables that are half set, or processes that did not come in time, by number.
    """
    if jax.distributed.is_initialized():
        return
    config = config or ClusterConfig()
    cluster = find(config)
    if cluster is None:
        return
    call_roll(cluster.coordinator, cluster.processes, cluster.process, config.timeout)
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.processes,
        cluster.process,
        cluster.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(max(config.timeout, 60)),
    )


def is_writer() -> bool:
    """Whether this process writes what all share: logs, files, and what is said. One of them does."""
    return jax.process_index() == 0


def barrier(name: str, timeout: float = 600.0) -> None:
    """Returns when all processes have called it with this name; on the host alone, devices go on. Alone: at once.

    Raises:
        UserError: some did not come within `timeout` seconds; they are named.
    """
    client = coordination_client()
    if client is None:
        return
    key = f"causal_diffusion/barrier/{name}/{next(_rounds[name])}"
    client.key_value_set(f"{key}/{jax.process_index()}", socket.gethostname())
    try:
        client.wait_at_barrier(key, int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        came = {int(path.rpartition("/")[2]) for path, _ in client.key_value_dir_get(key)}
        missing = set(range(jax.process_count())) - came
        if not missing:
            raise
        where = f"the barrier {name!r}"
        raise UserError(never_came(missing, jax.process_count(), where, timeout) + "; see their output") from error


def coordination_client():
    """The client of JAX's coordination service: keys and values that all processes see. None: this process is alone."""
    from jax._src import distributed  # there is no public way to it; orbax takes this one, too

    return distributed.global_state.client
