"""Which processes make up a run: read from the command line and from what launchers put into the environment.

    kind         found by
    by hand      --coordinator, --processes, --process, or CD_COORDINATOR, CD_PROCESSES, CD_PROCESS; in an indexed
                 Kubernetes Job, JOB_COMPLETION_INDEX stands in for the last
    slurm        SLURM_JOB_ID and SLURM_NTASKS > 1, and what else srun sets
    tpu          TPU_WORKER_HOSTNAMES of several hosts or MEGASCALE_NUM_SLICES > 1 (Kubernetes Engine)
    kubernetes   JOB_COMPLETION_INDEX

What is set by half is refused: a process that took itself for the only one would write where the others write.
``cluster`` names one kind to look for, 'none', or 'auto' for the first that is found. Where it is 'tpu' or
'kubernetes' and the environment does not tell, JAX's own detection asks the metadata or the API server.
"""

import dataclasses
import os
import re
from collections.abc import Mapping

from causal_diffusion.errors import UserError

KINDS = ("auto", "none", "slurm", "tpu", "kubernetes")
PORT = 8476  # of the coordinator, in examples
TPU_PORT = 8482  # the one that JAX takes on TPUs


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """What the command line says. None: not given, the environment is asked."""

    cluster: str = "auto"
    coordinator: str | None = None  # host:port of process 0
    processes: int | None = None
    process: int | None = None
    timeout: float = 300.0  # seconds in which all processes must have come


@dataclasses.dataclass(frozen=True)
class Cluster:
    """This process among the others. local_devices: ordinals of the devices that are its own, None: all it sees."""

    coordinator: str
    processes: int
    process: int
    local_devices: tuple[int, ...] | None = None


def find(config: ClusterConfig, environ: Mapping[str, str] = os.environ) -> Cluster | None:
    """The cluster that this process belongs to; None: it is alone.

    Raises:
        UserError: a kind that does not exist or is not there, or variables that are half set or contradict.
    """
    if config.cluster not in KINDS:
        raise UserError(f"--cluster is {config.cluster!r}; it is one of {', '.join(KINDS)}")
    found = _by_hand(config, environ)
    if found is not None or config.cluster == "none":
        return found and _alone_or(found)
    kinds = {"slurm": _slurm, "tpu": _tpu, "kubernetes": _kubernetes}
    if config.cluster != "auto":
        return _alone_or(kinds[config.cluster](environ, True) or _ask_jax(config))
    return _alone_or(next((found for look in kinds.values() if (found := look(environ, False))), None))


def _alone_or(cluster: Cluster | None) -> Cluster | None:
    return None if cluster is None or cluster.processes == 1 else cluster


def _by_hand(config, environ) -> Cluster | None:
    values, names = {}, {}
    for key in ("coordinator", "processes", "process"):
        given, name = getattr(config, key), f"CD_{key.upper()}"
        values[key] = environ.get(name) if given is None else given
        names[key] = name if given is None else f"--{key}"
    if config.cluster == "none" or all(value is None for value in values.values()):
        return None
    if values["process"] is None and "JOB_COMPLETION_INDEX" in environ:
        values["process"], names["process"] = environ["JOB_COMPLETION_INDEX"], "JOB_COMPLETION_INDEX"
    if values["processes"] is not None and _number(values, names, "processes") == 1:
        values = {"coordinator": f"localhost:{PORT}", "process": 0} | {k: v for k, v in values.items() if v is not None}
    _refuse_halves({names[key]: value for key, value in values.items()}, "set all three or none; for two processes "
                   f"--coordinator=localhost:{PORT} --processes=2 --process=0 and --process=1 would do")
    address = str(values["coordinator"])
    if not re.fullmatch(r"[^:\s]+:\d+|\[[^\]\s]+\]:\d+", address):
        host = address.partition(":")[0] or "localhost"
        raise UserError(f"{names['coordinator']} is {address!r}: it is host:port, {host}:{PORT} would do")
    processes, process = _number(values, names, "processes"), _number(values, names, "process")
    return _checked(Cluster(address, processes, process), names["processes"], names["process"])


def _slurm(environ, asked: bool) -> Cluster | None:
    if not asked and ("SLURM_JOB_ID" not in environ or environ.get("SLURM_NTASKS", "1") == "1"):
        return None
    needed = ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST",
              "SLURM_STEP_NUM_NODES")  # fmt: skip
    values = {name: environ.get(name) for name in needed}
    _refuse_halves(values, "start the processes with srun, which sets them all, or say --cluster=none for one process")
    job, processes, process, local, _, nodes = (_number(values, None, n) if n != needed[4] else 0 for n in needed)
    host = re.match(r"([^,\[]*)(?:\[([^,\-\]]+)[^\]]*\]([^,\[]*))?", values["SLURM_STEP_NODELIST"])
    port = environ.get("JAX_COORDINATOR_PORT") or 2**16 - 2**12 + job % 2**12
    # Several processes on a node share its devices, one each, unless each sees but its own. One alone has them all.
    own = None if processes == nodes or len(environ.get("CUDA_VISIBLE_DEVICES", ",").split(",")) == 1 else (local,)
    cluster = Cluster(f"{''.join(part or '' for part in host.groups())}:{port}", processes, process, own)
    return _checked(cluster, "SLURM_NTASKS", "SLURM_PROCID")


def _tpu(environ, asked: bool) -> Cluster | None:
    hosts = [host for host in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    slices = {name: environ.get(name) for name in ("MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID",
                                                   "MEGASCALE_COORDINATOR_ADDRESS")}  # fmt: skip
    many = any(slices.values())
    worker = environ.get("TPU_WORKER_ID")
    if not many and len(hosts) < 2 and (worker is None or worker == "0" or asked):
        return None
    hint = "Kubernetes Engine sets them all; elsewhere --cluster=tpu asks the metadata server"
    _refuse_halves({"TPU_WORKER_HOSTNAMES": ",".join(hosts) or None, "TPU_WORKER_ID": worker}, hint)
    if many:
        _refuse_halves(slices, hint)
    address = slices.pop("MEGASCALE_COORDINATOR_ADDRESS")
    values = {"TPU_WORKER_ID": worker} | (slices if many else dict(zip(slices, "10", strict=True)))
    worker, count, which = (_number(values, None, name) for name in values)
    host = address.partition(":")[0] if many else hosts[0]
    if not 0 <= worker < len(hosts):
        raise UserError(f"TPU_WORKER_ID is {worker} and TPU_WORKER_HOSTNAMES has {len(hosts)} hosts: workers are "
                        f"numbered from 0, 0 .. {len(hosts) - 1} would do")  # fmt: skip
    address = f"{host}:{TPU_PORT}"
    _checked(Cluster(address, count, which), "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID")
    return Cluster(address, len(hosts) * count, which * len(hosts) + worker)


def _kubernetes(environ, asked: bool) -> Cluster | None:
    index = environ.get("JOB_COMPLETION_INDEX")
    if asked or index is None:
        return None
    raise UserError(
        f"JOB_COMPLETION_INDEX is {index!r}, and CD_COORDINATOR and CD_PROCESSES are not set: set both (CD_PROCESSES=1 "
        "for a job of one pod), or say --cluster=kubernetes to ask the API server, --cluster=none for one process"
    )


def _ask_jax(config: ClusterConfig) -> Cluster:
    """What JAX's own detection finds (metadata server of Cloud TPU, API server of Kubernetes)."""
    from jax._src.clusters import ClusterEnv  # jax.distributed.initialize calls it, but would not say who is missing

    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, int(config.timeout))
    coordinator, processes, process, local = found
    if None in (coordinator, processes, process):
        raise UserError(f"--cluster is {config.cluster!r}, and JAX finds no such cluster here (for Kubernetes it needs "
                        "`pip install kubernetes`): --cluster=none would do for one process")  # fmt: skip
    return Cluster(coordinator, processes, process, None if local is None else tuple(local))


def _refuse_halves(values: dict[str, str | None], hint: str) -> None:
    missing = [name for name, value in values.items() if value is None]
    if missing:
        given = " and ".join(f"{name} is {value!r}" for name, value in values.items() if value is not None)
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{given + ', and ' if given else ''}{' and '.join(missing)} {verb} not set: {hint}")


def _number(values, names, key) -> int:
    name = key if names is None else names[key]
    try:
        return int(values[key])
    except ValueError:
        raise UserError(f"{name} is {values[key]!r}: it is a whole number, 1 would do") from None


def _checked(cluster: Cluster, processes: str, process: str) -> Cluster:
    if cluster.processes < 1 or not 0 <= cluster.process < cluster.processes:
        raise UserError(f"{process} is {cluster.process} and {processes} is {cluster.processes}: processes are "
                        f"numbered from 0, 0 .. {max(cluster.processes, 1) - 1} would do")  # fmt: skip
    return cluster
