"""A long stream of every config: how often is something compiled, does memory or time per block grow?

    python benchmarks/streaming.py                                   # every config's tiny variant, 2,000 blocks each
    python benchmarks/streaming.py nfd far:tiny --blocks=500         # some of them
    python benchmarks/streaming.py --json runs/streaming.json        # one JSON object per line as well

Each config streams alone in a fresh process, one sample on one device, with fresh parameters, for nothing that is
measured here depends on their values. One line is printed per config:

    programs    compiled for the stream: its beginning (``init_state``), its blocks while its ring of slots fills and
                once that is full, then how many compilations of anything came after the first block
    memory      slope of the process's resident memory in bytes per block, over the stream without its first tenth, and
                by how many bytes the arrays that are alive on the device grew over the same part
    ms/block    median time per block, then its slope over the same part of the stream as a share of it: how many
                percent slower per 1,000 blocks; and the same of processor time, in which other work on a busy machine
                does not count
    passes      of the network per block, and the guidance branches that each of them runs in one batch
    look-ahead  frames that are under way when a block is emitted: how late an action or a prompt that enters now shows
    cache       bytes of keys and values, and of the whole state of the stream

A slope is fitted by least squares. Its interval (95 %) is a bootstrap of residuals in runs, a tenth of the stream long
(Künsch 1989), since neighbouring times and sizes are not independent: a pause of the machine lasts for many blocks.
"""

import argparse
import contextlib
import json
import multiprocessing
import time
from pathlib import Path

import jax
import numpy as np

from causal_diffusion.checkpoint.paths import as_path
from causal_diffusion.config import config_folder, load_config
from causal_diffusion.diffusion.schedule import transitions
from causal_diffusion.recipe import build
from causal_diffusion.streaming.pipeline import Pipeline

COMPILED = "/jax/core/compile/backend_compile_duration"  # the event of one compilation
PROGRAMS = ("init_state", "filling", "full")
WARM = 0.1  # share of the stream that slopes leave out: pools of memory fill
FEWEST = 8  # calls that are timed at least, of ``stream.capacity`` steps each
RESAMPLES = 500


@contextlib.contextmanager
def compilations():
    """Yields a list that receives the name of every program while it is compiled."""
    names = []

    def listen(event, seconds, **about):
        if event == COMPILED:
            names.append(about.get("fun_name", "").removeprefix("jit(").removesuffix(")"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def resident_bytes() -> int:
    """Resident set size of this process, from Linux's /proc."""
    kilobytes = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(kilobytes.split()[1]) * 1024


def slope(x, y, seed: int = 0) -> tuple[float, float, float]:
    """Least-squares slope of y [n] over x [n], and the ends of its 95 % interval by a moving-block bootstrap."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    centred = x - x.mean()
    fitted = centred @ y / (centred @ centred)
    residual = y - y.mean() - fitted * centred
    n, run = len(y), max(1, len(y) // 10)
    first = np.random.default_rng(seed).integers(0, n, (RESAMPLES, -(-n // run)))
    order = ((first[..., None] + np.arange(run)) % n).reshape(RESAMPLES, -1)[:, :n]  # runs go round the end
    low, high = np.quantile(residual[order] @ centred / (centred @ centred), (0.025, 0.975))
    return fitted, fitted + low, fitted + high


def _percent(blocks, seconds):
    """Slope and interval of the time per block, in percent of its median per 1,000 blocks."""
    return [1e5 * s / float(np.median(seconds)) for s in slope(blocks, seconds)]


def network_passes(pipe: Pipeline) -> float:
    """Passes of the network per emitted block once the stream runs, the ones that fill the cache included."""
    view, recipe = pipe.rollout.view, pipe.recipe
    denoising = len(transitions(view.step)[0]) * recipe.solver.evaluations / view.emit
    return denoising + (recipe.cache.kind != "none" and recipe.cache.commit == "separate")


def example_condition(pipe: Pipeline) -> dict:
    """One value of whatever the system can be told."""
    model, rng = pipe.recipe.model.config, np.random.default_rng(0)
    cond = {}
    if model.classes:
        cond["label"] = 0
    if model.text:
        cond["text"] = rng.standard_normal((4, model.text))
    if model.action:
        cond["action"] = np.zeros((1, model.action))
    if pipe.recipe.layout.reference:
        cond["reference"] = np.zeros(pipe.recipe.frame_shape)
    return cond


def measure(name: str, blocks: int, overrides=()) -> dict:
    """Streams ``blocks`` blocks of a config and reports what the module's docstring lists."""
    config = load_config(name, overrides)
    recipe = build(config).streaming()
    pipe = Pipeline(config, jax.jit(recipe.init_params)(jax.random.key(0)))
    capacity, at_once = recipe.config.stream.capacity, pipe.rollout.view.emit
    with compilations() as compiled:
        stream = pipe.stream(seed=0, cond=example_condition(pipe))
        stream.take(capacity)
        programs = {program: compiled.count(program) for program in PROGRAMS}
        first = len(compiled)
        # The samples' places are made before the stream, so that keeping them takes no memory along the way.
        calls = max(FEWEST, -(-blocks // (capacity * at_once)) - 1)
        seconds, processor, memory, live = np.zeros((4, calls))
        for call in range(calls):
            begun, worked = time.perf_counter(), time.process_time()
            stream.take(capacity)
            seconds[call] = (time.perf_counter() - begun) / (capacity * at_once)
            processor[call] = (time.process_time() - worked) / (capacity * at_once)
            memory[call], live[call] = resident_bytes(), nbytes(jax.live_arrays())
        later = compiled[first:]
    state, warm = stream.mark().state, int(calls * WARM)
    done = np.arange(2, calls + 2) * capacity * at_once
    layout, ahead = recipe.layout, pipe.rollout.look_ahead
    return {
        "config": name,
        "kind": recipe.kind,
        "blocks": int(done[-1]),
        "programs": programs,
        "compiled_later": later,
        "resident_mib": memory[-1] / 2**20,
        "bytes_per_block": slope(done[warm:], memory[warm:]),
        "live_bytes_grown": int(live[-1] - live[warm]),
        "ms_per_block": 1e3 * float(np.median(seconds[warm:])),
        "percent_per_1000_blocks": _percent(done[warm:], seconds[warm:]),
        "processor_percent_per_1000_blocks": _percent(done[warm:], processor[warm:]),
        "passes": network_passes(pipe),
        "branches": len(pipe.rollout.branches),
        "frames_per_block": layout.block,
        "in_flight": pipe.rollout.in_flight,
        "look_ahead": {"action": ahead.action, "prompt": ahead.prompt, "begun": ahead.begun},
        "cache_bytes": nbytes(state.caches),
        "state_bytes": nbytes(state),
    }


def nbytes(tree) -> int:
    """Bytes of a tree of arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _interval(values, form):
    """A slope and its interval as text."""
    return "{} ({} .. {})".format(*(format(value, form) for value in values))


COLUMNS = {  # title -> (width, how a result is written)
    "config": (-26, lambda r: r["config"]),
    "programs": (9, lambda r: "+".join(map(str, r["programs"].values()))),
    "later": (6, lambda r: len(r["compiled_later"])),
    "memory (bytes/block)": (24, lambda r: _interval(r["bytes_per_block"], ".0f")),
    "live": (5, lambda r: r["live_bytes_grown"]),
    "ms/block": (9, lambda r: f"{r['ms_per_block']:.2f}"),
    "% per 1,000 blocks": (28, lambda r: _interval(r["percent_per_1000_blocks"], "+.1f")),
    "of processor time": (24, lambda r: _interval(r["processor_percent_per_1000_blocks"], "+.1f")),
    "passes": (10, lambda r: f"{r['passes']:.3g}" + (f" x {r['branches']}" if r["branches"] > 1 else "")),
    "look-ahead": (11, lambda r: r["look_ahead"]["prompt"]),
    "cache": (11, lambda r: f"{r['cache_bytes']:,}"),
    "state": (11, lambda r: f"{r['state_bytes']:,}"),
}


def line(result: dict | None = None) -> str:
    """One line of the table; its head without a result."""
    cells = ((width, title if result is None else str(write(result))) for title, (width, write) in COLUMNS.items())
    return "".join(cell.rjust(width) if width > 0 else cell.ljust(-width) for width, cell in cells)


def main(arguments=None):
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", help="names, with a variant if wanted; all shipped ones as tiny if none")
    parser.add_argument("--blocks", type=int, default=2000)
    parser.add_argument("--json", type=as_path, help="file for one JSON object per config and line")
    args = parser.parse_args(arguments)
    shipped = sorted(f"{file.stem}:tiny" for file in config_folder().glob("*.py") if not file.stem.startswith("_"))
    print(line(), flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text("")
    for name in args.configs or shipped:
        # A process of its own: what the stream before this one left behind is no part of its memory.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            result = pool.apply(measure, (name, args.blocks))
        print(line(result), flush=True)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
