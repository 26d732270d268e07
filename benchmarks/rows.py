"""What a case leaves behind: one JSON object on a line.

    name, what       of the case
    figures          a list of {name, value, unit, interval, pairs, asked, met, limit, share}; None: does not apply
    config, flops    hash of the config, and floating-point operations of what was timed
    device, backend, versions
    size             'full', or 'tiny' where the case ran only to see that it runs
    not_run          why there are no figures; "" where there are

A limit is what the hardware would do at best (``docs/performance.md``), in the figure's own unit, and ``share`` how
much of it was reached.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
from pathlib import Path

import jax

from benchmarks.paired import Ratio

WRITTEN = {"x": "{:.3g}x", "ms": "{:.4g} ms", "FPS": "{:.4g} FPS", "%": "{:.3g} %", "s": "{:.3g} s", "": "{:.4g}"}


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number. ``asked``: (what is compared, '>=' or '<=', bound), compared being 'value', 'low' or 'high'."""

    name: str
    value: float
    unit: str = "x"
    interval: tuple[float, float] | None = None
    pairs: int | None = None
    asked: tuple[str, str, float] | None = None
    limit: float | None = None
    share: float | None = None

    @classmethod
    def of(cls, name: str, ratio: Ratio, **more) -> "Figure":
        """A ratio of times."""
        return cls(name, ratio.value, "x", (ratio.low, ratio.high), ratio.pairs, **more)

    @property
    def met(self) -> bool | None:
        """Whether what was asked is reached; None where nothing was."""
        if self.asked is None:
            return None
        which, sign, bound = self.asked
        low, high = self.interval or (self.value, self.value)
        seen = {"value": self.value, "low": low, "high": high}[which]
        return bool(seen >= bound if sign == ">=" else seen <= bound)

    def text(self) -> str:
        """The number with all that is known of it."""
        words = [WRITTEN[self.unit].format(self.value)]
        if self.interval:
            words.append("[{:.3g}, {:.3g}]".format(*self.interval))
        if self.pairs:
            words.append(f"{self.pairs} pairs")
        if self.limit is not None:
            words.append(f"limit {WRITTEN[self.unit].format(self.limit)}, reached {self.share:.0%}")
        if self.asked:
            which, sign, bound = self.asked
            of = {"value": "", "low": "lower end ", "high": "upper end "}[which]
            words.append(f"asked {of}{sign} {bound:g}: {'met' if self.met else 'NOT met'}")
        return f"{self.name}: {', '.join(words)}"


def device() -> str:
    """The accelerator as JAX calls it, or the processor and how many cores of it this process may use."""
    if jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "processor")
    return f"{model} ({platform.machine()}), {len(os.sched_getaffinity(0))} cores"


def versions() -> dict[str, str]:
    """Of Python, jax, and torch where it is there."""
    found = {"python": platform.python_version(), "jax": jax.__version__}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["torch"] = importlib.metadata.version("torch")
    return found


def row(name: str, what: str, figures=(), *, config: str = "", flops=None, size="full", not_run: str = "", **more):
    """The object of a case; ``more``: what else its reader should know."""
    if size != "full":  # such figures are asked nothing
        figures = [dataclasses.replace(figure, asked=None) for figure in figures]
    said = [dataclasses.asdict(figure) | {"met": figure.met} for figure in figures]
    about = {"device": device(), "backend": jax.default_backend(), "versions": versions()}
    return {
        "name": name, "what": what, "size": size, "not_run": not_run, "figures": said, "config": config,
        "flops": flops, **more, **about,
    }  # fmt: skip


def text(row: dict) -> str:
    """A row for people: a line a figure."""
    if row["not_run"]:
        return f"{row['name']}: not run: {row['not_run']}"
    names = [field.name for field in dataclasses.fields(Figure)]
    figures = (Figure(**{name: figure[name] for name in names}) for figure in row["figures"])
    return "\n".join([f"{row['name']} ({row['device']})", *(f"  {figure.text()}" for figure in figures)])


def line(row: dict) -> str:
    """A row as JSON."""
    return json.dumps(row)
