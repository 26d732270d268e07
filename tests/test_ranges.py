"""Ranges of numbers: what lies in them, what is said of the rest, and that no number of a section goes without."""

import dataclasses
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_diffusion.ranges import SEED, SIZE, Range, check_number, check_numbers, is_number

NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=True, allow_infinity=True))


@dataclasses.dataclass(frozen=True)
class Section:
    name: str = "x"
    count: int = 3
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    parts: tuple[tuple[float, ...], ...] = ()
    on: bool = True

    RANGES = dict(count=Range(1, 2**31 - 1), rate=Range(0, 1, open_high=True), sizes=Range(1, 8), parts=Range(0, 1))

    def __post_init__(self):
        check_numbers(self, "section", **self.RANGES)


@settings(deadline=None, max_examples=40)
@given(value=NUMBERS, low=st.integers(-5, 5), width=st.integers(1, 5), ends=st.tuples(st.booleans(), st.booleans()))
def test_a_range_holds_what_lies_between_its_ends(value, low, width, ends):
    allowed = Range(low, low + width, *ends)
    inside = low < value < low + width or value == low and not ends[0] or value == low + width and not ends[1]
    assert allowed.holds(value) == inside
    assert not allowed.holds(math.nan) and not allowed.holds(math.inf) and not allowed.holds(-math.inf)


@settings(deadline=None, max_examples=40)
@given(value=NUMBERS)
def test_what_is_refused_names_a_value_that_is_not(value):
    """Whatever the number: it is taken, or one line says which key, which value, and what to set instead."""
    for field in ("count", "rate"):
        allowed = Section.RANGES[field]
        whole = is_number(value, int if field == "count" else float)
        if whole and allowed.holds(value):
            Section(**{field: value})
            continue
        with pytest.raises(ValueError) as error:
            Section(**{field: value})
        said = str(error.value)
        assert said.startswith(f"section.{field} is ") and "\n" not in said and len(said) < 160
        proposed = re.search(rf", try section\.{field} = (\S+)$", said)[1]
        Section(**{field: type(getattr(Section(), field))(proposed)})


@pytest.mark.parametrize(("wrong", "said"), [
    (dict(count=0), "section.count is 0; it is at least 1, try section.count = 1"),
    (dict(count=2**31), "section.count is 2147483648; it is at most 2,147,483,647, try section.count = 3"),
    (dict(count=2.0), "section.count is 2.0; it is an integer, try section.count = 3"),
    (dict(count=True), "section.count is True; it is an integer, try section.count = 3"),
    (dict(rate=math.nan), "section.rate is nan; it lies in [0, 1), try section.rate = 0.5"),
    (dict(rate="1"), "section.rate is '1'; it is a number, try section.rate = 0.5"),
    (dict(rate=-1), "section.rate is -1; it lies in [0, 1), try section.rate = 0.0"),
    (dict(sizes=(3, 0)), "section.sizes is (3, 0): each lies in [1, 8], try section.sizes = (3, 1)"),
    (dict(sizes=(3, 1.5)), "section.sizes is (3, 1.5): each is an integer, try section.sizes = (1, 2)"),
    (dict(parts=((0.5,), (0.0, math.inf))), "section.parts is ((0.5,), (0.0, inf)): each lies in [0, 1]"),
])  # fmt: skip
def test_messages(wrong, said):
    with pytest.raises(ValueError) as error:
        Section(**wrong)
    assert str(error.value).startswith(said)


def test_no_number_goes_without_a_range():
    with pytest.raises(TypeError, match="'section': every number has one range .* see parts, rate"):
        check_numbers(Section(), "section", count=SIZE, sizes=SIZE)
    with pytest.raises(TypeError, match="see name"):
        check_numbers(Section(), "section", **Section.RANGES, name=SIZE)


def test_numbers_of_numpy_are_numbers():
    Section(count=np.int64(4), rate=np.float32(0.25), sizes=(np.uint8(3),))
    assert check_number("n", np.asarray(7), SIZE) == 7
    assert type(check_number("n", np.int32(7), SIZE)) is int
    for no in (np.float32(3.0), np.asarray([3]), "3", None, np.bool_(True)):
        with pytest.raises(ValueError, match="^n is .*; it is an integer, try n = 1$"):
            check_number("n", no, SIZE)
    with pytest.raises(ValueError, match="seed is -1; it is at least 0, try seed = 0"):
        check_number("seed", -1, SEED)


def test_open_bounds_lie_outside():
    low, high = Range(0, 1, open_low=True), Range(0, 1, open_high=True)
    assert [low.holds(0), low.holds(1), high.holds(0), high.holds(1)] == [False, True, True, False]
