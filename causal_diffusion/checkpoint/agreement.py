"""How the processes of a job keep in step while a checkpoint is written or read.

All of it goes through the coordination service that ``jax.distributed`` runs, never through the devices: a save goes on
in the background, on a thread of each process, and a collective there would meet the collectives of the training step
in another order on every process. A process that fails tells the others at the next point where all of them wait, so
that a save fails on all of them or on none, and nobody waits for somebody who has given up.
"""

import json
from collections.abc import Callable
from typing import Any

import jax

from causal_diffusion.errors import CheckpointError

TIMEOUT = 3600.0  # seconds; that a process died is found earlier, by the heartbeats of the coordination service


class Elsewhere(CheckpointError):
    """Another process has failed, and why."""


class Agreement:
    """One operation that all processes go through together, point by point. In a single process nothing is waited for.

    Args:
        name: of the operation; the same on all processes, and never used again.
        client: of the coordination service; None: that of ``jax.distributed``.
        alone: this process acts for itself, and the others know nothing of it.
    """

    def __init__(self, name: str, *, alone: bool = False, client=None, timeout: float = TIMEOUT):
        self.index, self.count = (0, 1) if alone else (jax.process_index(), jax.process_count())
        self._name, self._timeout, self._point, self._over = f"causal_diffusion/{name}", timeout, 0, False
        self._client = client
        if client is None and self.count > 1:
            from jax._src import distributed  # nothing public tells processes anything without their devices

            self._client = distributed.global_state.client

    def wait(self, key: str | None = None, timeout_ms: int | None = None) -> None:
        """Until all are here; the arguments are what orbax hands to a barrier.

        Raises:
            Elsewhere: a process failed on its way here.
        """
        self.gather(None)

    def gather(self, value: Any) -> list[Any]:
        """What each process has to say here, in JSON, in the order of their indices.

        Raises:
            Elsewhere: a process failed on its way here.
        """
        if self.count == 1:
            return [json.loads(json.dumps(value))]
        return self._meet({"value": value})

    def first(self, work: Callable[[], Any]) -> Any:
        """Process 0 works; every process gets the result, in JSON, or the failure."""
        return self.gather(work() if self.index == 0 else None)[0]

    def fail(self, reason: str, patience: float | None = None) -> None:
        """Tells the others, once, at the next point where they wait, that this process has given up.

        It waits for them there, for ``patience`` seconds at most (None: as long as anywhere).
        """
        if self.count > 1 and not self._over:
            try:
                self._meet({"failure": reason}, patience)
            except CheckpointError:
                pass

    def forget(self) -> None:
        """Frees what the service keeps of an operation that is over everywhere."""
        if self.count > 1 and self.index == 0:
            self._client.key_value_delete(f"{self._name}/")

    def _meet(self, message: dict, patience: float | None = None) -> list[Any]:
        here, self._point = f"{self._name}/{self._point}", self._point + 1
        try:
            self._client.key_value_set(f"{here}/{self.index}", json.dumps(message))
            self._client.wait_at_barrier(f"{here}/all", int(1000 * (patience or self._timeout)))
            said = {int(key.rsplit("/", 1)[1]): json.loads(text)
                    for key, text in self._client.key_value_dir_get(f"{here}/")}  # fmt: skip
        except Exception as error:  # the service is gone, or somebody never came
            self._over = True
            raise Elsewhere(f"the other processes are out of reach ({str(error).splitlines()[0]})") from error
        failures = {index: each["failure"] for index, each in sorted(said.items()) if "failure" in each}
        if failures:
            self._over = True
            raise Elsewhere("; ".join(f"process {index}: {reason}" for index, reason in failures.items()))
        return [said[index]["value"] for index in range(self.count)]
