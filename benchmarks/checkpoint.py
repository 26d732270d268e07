"""For how long does an asynchronous save hold training up?

    python benchmarks/checkpoint.py                                  # 1 GB, one process and two
    python benchmarks/checkpoint.py --megabytes=200 --saves=15 --folder=/somewhere/else

A train state of float32 arrays is saved between two steps that overwrite it in place (it is donated), and each save is
left to end before the next. One line is printed for one process, and one for two that share the state and the folder:

    stall     seconds for which ``save`` held its caller up, the median of all saves
    save      seconds until the checkpoint was complete: written, checksummed, flushed to disk
    share     of the stall in the save; asked in one process: below 5 %
    step      seconds by which the step after a save was longer than the others: the CPU backend copies what it would
              have overwritten, on an accelerator that copy is part of the stall
    with step the share with these seconds counted as stall

The machine must be quiet, and the folder should lie on the disk that checkpoints go to.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time

TENSORS = 24


def measure(folder: str, megabytes: int, saves: int) -> dict[str, float]:
    """Medians over saves, of this process: seconds 'stall', 'save', 'step'."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    from causal_diffusion.checkpoint import Checkpoints
    from causal_diffusion.parallel.distributed import initialise

    initialise()
    mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=(AxisType.Auto,))
    rows = megabytes * 2**20 // TENSORS // 4 // 1024 // jax.device_count() * jax.device_count()
    one, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("fsdp"))
    shardings = {"step": one} | {f"kernel_{i}": split for i in range(TENSORS)}

    def fresh():
        key = jax.random.key(0)
        kernels = {f"kernel_{i}": jax.random.normal(jax.random.fold_in(key, i), (rows, 1024)) for i in range(TENSORS)}
        return {"step": jnp.int32(0)} | kernels

    state = jax.jit(fresh, out_shardings=shardings)()
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + x.dtype.type(1), s), out_shardings=shardings, donate_argnums=0)

    def timed(state):
        began = time.perf_counter()
        state = jax.block_until_ready(step(state))
        return state, time.perf_counter() - began

    usual, after = [], []
    with Checkpoints(folder, keep=1) as checkpoints:
        for number in range(saves + 1):  # the first is not counted: it imports, and makes threads
            for _ in range(4):
                state, seconds = timed(state)
                usual.append(seconds)
            checkpoints.save(number, ema={"step": state["step"]}, train=state, meta={})
            state, seconds = timed(state)
            after.append(seconds)
            checkpoints.wait()
        stalls = checkpoints.stalls[1:]
    return {
        "stall": statistics.median(blocked for blocked, _ in stalls),
        "save": statistics.median(took for _, took in stalls),
        "share": statistics.median(blocked / took for blocked, took in stalls),
        "step": max(0.0, statistics.median(after[1:]) - statistics.median(usual[4:])),
    }


def start(count: int, options) -> dict[str, float]:
    """Measures in `count` fresh processes; what the slowest says."""
    with socket.create_server(("", 0)) as server:
        coordinator = f"localhost:{server.getsockname()[1]}"
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        running = []
        for index in range(count):
            own = {"CD_COORDINATOR": coordinator, "CD_PROCESSES": str(count), "CD_PROCESS": str(index)}
            command = [sys.executable, __file__, f"--megabytes={options.megabytes}", f"--saves={options.saves}",
                       f"--worker={folder}"]  # fmt: skip
            environment = {"JAX_PLATFORMS": "cpu"} | os.environ | (own if count > 1 else {})
            running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        try:
            said = [process.communicate(timeout=1800)[0] for process in running]
        finally:
            for process in running:
                process.kill()
    if any(process.returncode for process in running):
        raise SystemExit("a process failed: see above")
    return max((json.loads(text.splitlines()[-1]) for text in said), key=lambda each: each["share"])


def line(count: int, megabytes: int, found: dict[str, float]) -> str:
    with_step = (found["stall"] + found["step"]) / (found["save"] + found["step"])
    return (
        f"{count} process{'es' if count > 1 else ''}, {megabytes} MB: stall {found['stall']:.4f} s, "
        f"save {found['save']:.3f} s, share {found['share']:.2%}, step {found['step']:.4f} s, with step {with_step:.2%}"
    )


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000, help="of the train state, all processes together")
    parser.add_argument("--saves", type=int, default=9)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=os.path.expanduser, help="where to write; default: that of the system")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(measure(options.worker, options.megabytes, options.saves)), flush=True)
        return
    for count in options.processes:
        print(line(count, options.megabytes, start(count, options)), flush=True)


if __name__ == "__main__":
    main()
