"""Which collectives a compiled program runs, and how much they move: read from its optimised HLO.

An instruction counts as often as it runs: what stands in a loop as many times as the loop has turns where XLA knows
that number (of scans it does), else once; of the branches of a conditional each counts. Bytes are those of results on
one device: of an all-gather the whole array, of a reduce-scatter the part. An asynchronous pair counts once.

XLA's CPU backend has no reduce-scatter: there gradients are reduced whole and cut, on accelerators they are not.
"""

import math
import re
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
         "collective-broadcast")  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(rf"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Traffic(NamedTuple):
    """Of one kind of collective, per run of the program: how many, and bytes of their results on one device."""

    count: int
    bytes: int


def collectives(hlo: str) -> dict[str, Traffic]:
    """The text of a compiled program (``compiled.as_text()``) -> kind -> Traffic, those that occur, in KINDS' order."""
    own, called, entry, here = {}, {}, None, None
    for line in hlo.splitlines():
        if (start := _COMPUTATION.match(line)) and not line.startswith("HloModule"):
            here = start[2]
            own[here], called[here] = [], []
            entry = here if start[1] else entry
        elif here is not None:
            if found := _INSTRUCTION.match(line):
                own[here].append((found[2], _bytes(found[1], found[2], bool(found[3]))))
            turns = int(turns[1]) if (turns := _TURNS.search(line)) else 1
            for role, name in _CALLED.findall(line):
                called[here].append((name, turns if role in ("body", "condition") else 1))
            for names in _BRANCHES.findall(line):
                called[here] += [(name.strip().lstrip("%"), 1) for name in names.split(",")]
    total = dict.fromkeys(KINDS, Traffic(0, 0))

    def add(name, times):
        for kind, size in own[name]:
            total[kind] = Traffic(total[kind].count + times, total[kind].bytes + times * size)
        for callee, turns in called[name]:
            if callee in own:
                add(callee, times * turns)

    if entry is not None:
        add(entry, 1)
    return {kind: traffic for kind, traffic in total.items() if traffic.count}


def _bytes(result, kind, starts):
    """Bytes of a result as HLO writes its type; what starts a gather or a permutation results in its operands, too."""
    sizes = [math.prod(int(n) for n in shape.split(",") if n) * _width(dtype) // 8
             for dtype, shape in _ARRAY.findall(result) if not (starts and dtype == "u32" and not shape)]  # fmt: skip
    return sum(sizes[len(sizes) // 2 :] if starts and kind in ("all-gather", "collective-permute") else sizes)


def _width(dtype):
    """Bits: f32 -> 32, f8e4m3fn -> 8, pred -> 8."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8
