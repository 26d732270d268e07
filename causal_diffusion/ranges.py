"""Ranges of numbers: which values a field of a config, or an argument of a call, may have.

Each section of a config states the ranges of its numbers once, where it is checked::

    check_numbers(self, "train", lr=POSITIVE, drop=Range(0, 1, open_high=True), steps=COUNT)

Every int and float of the dataclass needs a range, also inside tuples, so that no number stays unchecked. Ranges are
finite: NaN and infinity lie in none. The bounds of integers are what 32-bit indices, or the memory of a machine, can
mean; they are far from every published system, and keep a slip such as 1e9 from exhausting memory.
"""

import dataclasses
import functools
import numbers
import operator
from typing import Any, NamedTuple, get_args, get_origin


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``, both included unless they are open."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def holds(self, value) -> bool:
        """Whether a number lies in the range. NaN does not."""
        above = self.low < value if self.open_low else self.low <= value
        return bool(above and (value < self.high if self.open_high else value <= self.high))

    def law(self, value=None) -> str:
        """What the range asks for, as a clause; of a value below or above it the bound that it misses."""
        if self.high >= 1_000:  # a bound that few will meet is named to those alone
            if value is not None and value >= self.high:
                return f"it is at most {_plain(self.high)}"
            if self.low > -1_000:
                return "it is positive" if (self.low, self.open_low) == (0, True) else f"it is at least {self.low}"
        ends = "[("[self.open_low], "])"[self.open_high]
        return f"it lies in {ends[0]}{_plain(self.low)}, {_plain(self.high)}{ends[1]}"

    def nearest(self, value, default):
        """The bound that a value misses, if it is in the range and worth proposing; else the default."""
        if value <= self.low and not self.open_low:
            return self.low
        if value >= self.high and not self.open_high and self.high < 1_000:
            return self.high
        return default


INDICES = 2**31 - 1  # the largest 32-bit index
COUNT = Range(1, INDICES)
COUNT_OR_NONE = Range(0, INDICES)  # 0 switches something off
SIZE = Range(1, 2**20)  # of an axis of an array: frames, a batch
SIZE_OR_NONE = Range(0, 2**20)
WIDTH = Range(1, 2**16)  # of a layer, or the channels of data
WIDTH_OR_NONE = Range(0, 2**16)
DEPTH = Range(1, 1_000)  # layers, which are Python objects
SHARE = Range(0, 1)
BELOW_ONE = Range(0, 1, open_high=True)
FRACTION = Range(0, 1, open_low=True)
INSIDE = Range(0, 1, open_low=True, open_high=True)
POSITIVE = Range(0, 1e6, open_low=True)
WEIGHT = Range(0, 1e6)  # of a loss, or a bound whose 0 is none
SEED = Range(0, 2**64 - 1)


def check_numbers(section, name: str, error: type[ValueError] = ValueError, /, **ranges: Range) -> None:
    """Checks every number of a dataclass, those in tuples one by one.

    Args:
        section: an instance.
        name: of the section, as a user writes it in front of its keys.
        error: the class of what is raised.
        ranges: of each field that holds an int, a float or tuples of them.

    Raises:
        ValueError: (as ``error``) a value outside its range, or no number where one belongs; the message names the key
            and a value that can be used.
        TypeError: a number without a range, or a range without a number.
    """
    kinds = _kinds(type(section))
    if kinds.keys() != ranges.keys():
        odd = ", ".join(sorted(kinds.keys() ^ ranges.keys()))
        raise TypeError(f"section {name!r}: every number has one range and nothing else does; see {odd}")
    for field, (kind, default) in kinds.items():
        value = getattr(section, field)
        if isinstance(value, (tuple, list)):
            for entry in _entries(value):
                _check_entry(f"{name}.{field}", value, entry, ranges[field], kind, default, error)
        else:
            _check(f"{name}.{field}", value, ranges[field], kind, default, error)


def check_number(name: str, value, allowed: Range, *, default=None, kind: type = int, error=ValueError):
    """An argument as a Python number; ``error`` where it is none, or outside its range.

    ``name``: as the caller writes it; ``default``: what the message proposes where no bound of the range fits.
    """
    default = allowed.low if default is None else default
    _check(name, value, allowed, kind, default, error)
    return kind(value)


def is_number(value, kind: type) -> bool:
    """Whether a value is an integer (``kind`` int) or a real number (float), of Python or NumPy. A bool is neither."""
    if isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, numbers.Real)
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _check(name, value, allowed, kind, default, error):
    if not is_number(value, kind):
        what = "an integer" if kind is int else "a number"
        raise error(f"{name} is {_shown(value)}; it is {what}, try {name} = {default!r}")
    value = operator.index(value) if kind is int else value  # JAX compares its own integers in 32 bits
    if not allowed.holds(value):
        proposed = allowed.nearest(value, default)
        proposed = kind(proposed) if is_number(proposed, float) else proposed
        raise error(f"{name} is {_shown(value)}; {allowed.law(value)}, try {name} = {proposed!r}")


def _check_entry(name, given, value, allowed, kind, default, error):
    if not is_number(value, kind) or not allowed.holds(operator.index(value) if kind is int else value):
        law = allowed.law(value).replace("it is", "each is").replace("it lies", "each lies")
        law = law if is_number(value, kind) else f"each is {'an integer' if kind is int else 'a number'}"
        fits = all(is_number(entry, kind) for entry in _entries(given))
        proposed = _moved(given, allowed, kind) if fits else None
        raise error(f"{name} is {_shown(given)}: {law}, try {name} = {default if proposed is None else proposed!r}")


def _moved(entries, allowed, kind):
    """A tuple whose entries outside the range are at the bounds that they miss; None where one has no such bound."""
    moved = []
    for entry in entries:
        if isinstance(entry, (tuple, list)):
            new = _moved(entry, allowed, kind)
        else:
            new = entry if allowed.holds(entry) else allowed.nearest(entry, None)
            new = None if new is None else kind(new)
        if new is None:
            return None
        moved.append(new)
    return tuple(moved)


def _shown(value):
    return repr(value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value)[:60]


def _plain(bound):
    return f"{bound:,}" if isinstance(bound, int) and bound >= 1_000 else f"{bound:g}"


def _entries(value):
    for entry in value:
        if isinstance(entry, (tuple, list)):
            yield from _entries(entry)
        else:
            yield entry


@functools.cache
def _kinds(cls) -> dict[str, tuple[type, Any]]:
    """{field: (int or float, its default)} of the fields that hold numbers."""
    kinds = ((field, _number_in(field.type)) for field in dataclasses.fields(cls))
    return {field.name: (kind, field.default) for field, kind in kinds if kind is not None}


def _number_in(kind):
    while get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    return kind if kind in (int, float) else None
