"""Which environments are a cluster, which are one process, and which are refused."""



import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.parallel.cluster import Cluster, ClusterConfig, find

SRUN = {"SLURM_JOB_ID": "4242", "SLURM_NTASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "node[003-004]", "SLURM_STEP_NUM_NODES": "2"}  # fmt: skip
HAND = {"CD_COORDINATOR": "node0:8476", "CD_PROCESSES": "4", "CD_PROCESS": "3"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"}
GKE = {"TPU_WORKER_HOSTNAMES": "a,b,c", "TPU_WORKER_ID": "2"}
SLICES = GKE | {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "z:8080"}
SLURM_PORT = 61440 + 4242 % 4096


@pytest.mark.parametrize("environ", [
    {},
    {"SLURM_JOB_ID": "1"},  # a shell on a login node
    {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
    {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
    {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},  # a notebook in a pod
    {"CD_PROCESSES": "1"},
    POD | {"JOB_COMPLETION_INDEX": "0", "CD_PROCESSES": "1"},
])  # fmt: skip
def test_alone(environ):
    assert find(ClusterConfig(), environ) is None


@pytest.mark.parametrize("environ", [SRUN, HAND, POD, SLICES, {"CD_PROCESS": "3"}])
def test_none_is_alone_whatever_is_set(environ):
    assert find(ClusterConfig("none"), environ) is None


def test_by_hand():
    flags = ClusterConfig(coordinator="[::1]:8476", processes=2, process=1)
    assert find(flags, {}) == Cluster("[::1]:8476", 2, 1)
    assert find(ClusterConfig(), HAND) == Cluster("node0:8476", 4, 3)
    assert find(ClusterConfig(process=0), HAND) == Cluster("node0:8476", 4, 0)  # the command line comes first
    assert find(ClusterConfig(), SRUN | HAND) == Cluster("node0:8476", 4, 3)


def test_in_an_indexed_job_the_pod_has_its_number():
    given = {"CD_COORDINATOR": "set-workers-0-0.set:8476", "CD_PROCESSES": "4"}
    assert find(ClusterConfig(), POD | given) == Cluster("set-workers-0-0.set:8476", 4, 2)


@pytest.mark.parametrize(("nodes", "host"), [
    ("node1", "node1"), ("node1,other2", "node1"), ("node[003-004]", "node003"), ("node[7,9-12],x", "node7"),
    ("n-1[2-3]-ib", "n-12-ib"), ("10.0.0.[1-4]", "10.0.0.1"),
])  # fmt: skip
def test_slurm_is_led_by_its_first_node(nodes, host):
    assert find(ClusterConfig(), SRUN | {"SLURM_STEP_NODELIST": nodes}).coordinator == f"{host}:{SLURM_PORT}"


def test_processes_of_slurm_share_the_devices_of_a_node():
    assert find(ClusterConfig(), SRUN) == Cluster(f"node003:{SLURM_PORT}", 16, 9, (1,))
    one_per_node = SRUN | {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    assert find(ClusterConfig(), one_per_node).local_devices is None  # all of the node's
    assert find(ClusterConfig(), SRUN | {"CUDA_VISIBLE_DEVICES": "1"}).local_devices is None  # --gpus-per-task=1
    assert find(ClusterConfig(), SRUN | {"CUDA_VISIBLE_DEVICES": "0,1"}).local_devices == (1,)
    assert find(ClusterConfig(), SRUN | {"JAX_COORDINATOR_PORT": "99"}).coordinator == "node003:99"


def test_tpu_hosts_and_slices():
    assert find(ClusterConfig(), GKE) == find(ClusterConfig("tpu"), GKE) == Cluster("a:8482", 3, 2)
    assert find(ClusterConfig(), SLICES) == Cluster("z:8482", 6, 5)
    second = SLICES | {"TPU_WORKER_ID": "1", "MEGASCALE_SLICE_ID": "0"}
    assert find(ClusterConfig(), second) == Cluster("z:8482", 6, 1)  # the processes of a slice are neighbours


@pytest.mark.parametrize(("config", "environ", "words"), [
    (ClusterConfig("slrum"), {}, ["--cluster", "one of auto, none, slurm, tpu, kubernetes"]),
    (ClusterConfig(processes=2), {}, ["--processes is 2, and CD_COORDINATOR and CD_PROCESS are not set"]),
    (ClusterConfig(), {"CD_PROCESS": "1"}, ["CD_PROCESS is '1', and CD_COORDINATOR and CD_PROCESSES are not set"]),
    (ClusterConfig(), HAND | {"CD_PROCESS": "4"}, ["CD_PROCESS is 4 and CD_PROCESSES is 4", "0 .. 3 would do"]),
    (ClusterConfig(process=-1), HAND, ["--process is -1 and CD_PROCESSES is 4"]),
    (ClusterConfig(), HAND | {"CD_PROCESSES": "four"}, ["CD_PROCESSES is 'four'", "whole number"]),
    (ClusterConfig(), HAND | {"CD_PROCESSES": "0"}, ["CD_PROCESSES is 0"]),
    (ClusterConfig(), HAND | {"CD_COORDINATOR": "node0"}, ["CD_COORDINATOR is 'node0'", "node0:8476 would do"]),
    (ClusterConfig(processes=1, process=1), {}, ["--process is 1 and --processes is 1"]),
    (ClusterConfig("slurm"), {}, ["SLURM_JOB_ID and SLURM_NTASKS and", "are not set", "srun"]),
    (ClusterConfig(), SRUN | {"SLURM_PROCID": "16"}, ["SLURM_PROCID is 16 and SLURM_NTASKS is 16"]),
    (ClusterConfig(), POD, ["JOB_COMPLETION_INDEX is '2', and CD_COORDINATOR and CD_PROCESSES are not set"]),
    (ClusterConfig(), POD | {"CD_PROCESSES": "4"}, ["CD_PROCESSES is '4' and JOB_COMPLETION_INDEX is '2', and "
                                                    "CD_COORDINATOR is not set"]),
    (ClusterConfig(), GKE | {"TPU_WORKER_ID": "3"}, ["TPU_WORKER_ID is 3", "3 hosts", "0 .. 2 would do"]),
    (ClusterConfig(), {"TPU_WORKER_ID": "2"}, ["TPU_WORKER_ID is '2', and TPU_WORKER_HOSTNAMES is not set"]),
    (ClusterConfig(), SLICES | {"MEGASCALE_SLICE_ID": "2"}, ["MEGASCALE_SLICE_ID is 2 and MEGASCALE_NUM_SLICES is 2"]),
])  # fmt: skip
def test_refused(config, environ, words):
    refused(config, environ, words)


@pytest.mark.parametrize("whole", [SRUN, HAND, GKE, SLICES], ids=["slurm", "by hand", "tpu", "slices"])
def test_every_half_is_refused_by_name(whole):
    """Whichever variable is left out, as long as what is left says that there are several processes."""
    for left_out in whole:
        environ = {name: value for name, value in whole.items() if name != left_out}
        if left_out in ("SLURM_JOB_ID", "SLURM_NTASKS") or (whole is GKE and left_out == "TPU_WORKER_ID"):
            continue
        refused(ClusterConfig(), environ, [f"{left_out} is not set"])
    refused(ClusterConfig(), {name: value for name, value in GKE.items() if name != "TPU_WORKER_ID"},
            ["TPU_WORKER_HOSTNAMES is 'a,b,c', and TPU_WORKER_ID is not set"])  # fmt: skip


def refused(config, environ, words):
    with pytest.raises(UserError) as caught:
        find(config, environ)
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in words), line


@pytest.mark.parametrize("kind", ["tpu", "kubernetes"])
def test_what_jax_does_not_find_either(kind):
    refused(ClusterConfig(kind, timeout=1), {}, [f"--cluster is {kind!r}", "JAX finds no such cluster"])


def test_what_jax_finds(monkeypatch):
    from jax._src.clusters import ClusterEnv

    def found(*arguments):
        assert arguments == (None,) * 5 + (7,)
        return "head:1234", 3, 1, [0]

    monkeypatch.setattr(ClusterEnv, "auto_detect_unset_distributed_params", found)
    assert find(ClusterConfig("kubernetes", timeout=7.0), POD) == Cluster("head:1234", 3, 1, (0,))


