"""The cases: one table, of a name, what is measured, what it needs and where its function is.

A function takes (pairs, size) and returns a dict with ``figures`` and whatever else ``rows.row`` takes. ``size`` is
'full' or 'tiny'; tiny ones show that a case runs, on any machine, and their figures mean nothing.
"""

import difflib
import importlib
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import jax

from benchmarks.rows import row
from causal_diffusion.errors import UserError


class Case(NamedTuple):
    """``where``: 'module:function' in this package; ``needs``: keys of NEEDS; ``pairs``: unless told otherwise."""

    what: str
    where: str
    needs: tuple[str, ...]
    pairs: int

    @property
    def function(self) -> Callable[[int, str], dict]:
        """Imported where it is used: torch is not always there."""
        module, _, name = self.where.partition(":")
        return getattr(importlib.import_module(f"benchmarks.{module}"), name)


CASES = {
    "cpu_stream_small": Case(
        "streaming frames of 64 tokens against PyTorch, ring cache in place and concatenating", "cpu.streaming:small",
        ("torch",), 40,
    ),
    "cpu_stream_motion": Case(
        "streaming frames of 4 tokens against PyTorch, 4 + 1 and 1 + 1 passes", "cpu.streaming:motion", ("torch",), 60
    ),
    "cpu_tf_attention": Case(
        "teacher forcing's attention, value and gradient, against our dense one and PyTorch's", "cpu.attention:run",
        ("torch",), 12,
    ),
    "cpu_attention_rule": Case(
        "what model.backend = 'auto' chooses around the sizes at which it changes its mind", "cpu.attention:rule", (), 8
    ),
    "cpu_train_step": Case(
        "a training step of teacher forcing against PyTorch with a dense mask and our dense one", "cpu.training:run",
        ("torch",), 12,
    ),
    "cpu_cache_vs_recompute": Case(
        "a cache against recomputing 16, 32, 64 frames, ours and diffusers' Wan; time per frame in a long stream",
        "cpu.recompute:run", ("torch", "diffusers"), 7,
    ),
    "cpu_compile_budget": Case(
        "compilations over 100 blocks; the quickstart's compile time, and that of its second start", "cpu.compile:run",
        (), 1,
    ),
    "gpu_wan_chunk": Case(
        "a chunk of a Wan-1.3B-shaped stream, 21 frames of context, 4 + 1 passes", "gpu.wan:chunk", ("gpu",), 20
    ),
    "gpu_wan_e2e": Case("clips of 7 chunks with the Wan VAE: FPS, first chunk, p99", "gpu.wan:end_to_end", ("gpu",), 5),
    "gpu_wan_framewise": Case("the same stream frame by frame, without VAE", "gpu.wan:framewise", ("gpu",), 20),
    "gpu_nfd310": Case("an NFD-310M-shaped stream, 336 tokens a frame, 16 frames seen", "gpu.nfd:run", ("gpu",), 100),
    "gpu_tf_attention": Case(
        "teacher forcing's attention, value and gradient, against dense cuDNN", "gpu.attention:run", ("gpu",), 10
    ),
    "gpu_train_mfu": Case(
        "training an NFD-310M-shaped system: share of the peak in visible FLOPs", "gpu.training:run", ("gpu",), 10
    ),
}  # fmt: skip

SCRIPTS = {  # benchmarks that are command lines of their own
    "streaming.py": "a long stream of every config: compilations, memory, time per block",
    "policies.py": "one model under several cache policies, ten training clips long",
    "family.py": "every system of the family on the same data for the same budget",
    "vae.py": "Wan 2.1's VAE against diffusers'",
    "autoencoders.py": "the tiny autoencoders on real clips",
    "checkpoint.py": "for how long a save holds training up",
    "motion.py": "text-to-motion systems on held-out motion capture",
    "motion_stream.py": "a stream of motion for ten minutes under changing prompts",
}


def _installed(module):
    return lambda: "" if importlib.util.find_spec(module) else f"{module} is not installed; pip install -e .[bench]"


def _gpu():
    return "" if jax.default_backend() == "gpu" else f"it needs a GPU, and JAX's backend is {jax.default_backend()!r}"


NEEDS = {"torch": _installed("torch"), "diffusers": _installed("diffusers"), "gpu": _gpu}  # each: '' or what is lacking


def find(name: str) -> Case:
    """A case by name. UserError names the nearest."""
    if name not in CASES:
        near = difflib.get_close_matches(name, CASES, n=1, cutoff=0.0)[0]
        raise UserError(f"there is no benchmark {name!r}; the nearest is {near!r}")
    return CASES[name]


def lacking(case: Case, size: str) -> str:
    """Why a case cannot run here; '' where it can. A tiny one needs no accelerator."""
    needs = [need for need in case.needs if need != "gpu" or size == "full"]
    return "; ".join(filter(None, (NEEDS[need]() for need in needs)))


def run(name: str, pairs: int | None = None, size: str = "full") -> dict:
    """Runs a case, or says why not: its row."""
    case = find(name)
    if reason := lacking(case, size):
        return row(name, case.what, size=size, not_run=reason)
    return row(name, case.what, size=size, **case.function(pairs or case.pairs, size))


def listing() -> str:
    """A line a case, and a line a script."""
    wide = max(map(len, CASES))
    needs = {name: ", ".join(case.needs) or "nothing" for name, case in CASES.items()}
    lines = [f"{name:<{wide}}  {case.what} (needs {needs[name]})" for name, case in CASES.items()]
    return "\n".join([*lines, *(f"python benchmarks/{name}: {what}" for name, what in SCRIPTS.items())])
