"""Times that are compared: who runs when, and what is made of the times."""

import numpy as np
import pytest

from benchmarks import paired


class Clock:
    """Stands still but for what sides add to it."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def __call__(self):
        return self.now

    def side(self, name, seconds):
        def run():
            self.now += seconds
            self.order.append(name)

        return run


@pytest.mark.parametrize("lead_in", [0, 1, 2])
def test_sides_take_turns_in_an_order_that_turns_round(lead_in):
    clock = Clock()
    sides = {"a": clock.side("a", 1.0), "b": clock.side("b", 2.0), "c": clock.side("c", 4.0)}
    seconds = paired.interleave(sides, 3, lead_in, clock, rest=0.0)
    each = lead_in + 1
    assert "".join(clock.order) == "".join(name * each for name in "abccbaabc")
    assert {name: list(times) for name, times in seconds.items()} == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [4.0] * 3}
    assert paired.ratio(seconds, "c", "b") == (2.0, 2.0, 2.0, 3)


def test_a_side_that_fails_leaves_the_collector_on():
    import gc

    def fails():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        paired.interleave({"a": fails}, 1, rest=0.0)
    assert gc.isenabled()


def test_the_median_of_times_has_an_interval_inside_their_range():
    value, low, high = paired.median([3.0, 1.0, 2.0, 10.0, 2.5])
    assert value == 2.5 and 1.0 <= low <= value <= high <= 10.0


def test_outputs_that_differ_are_not_timed():
    a = np.array([1.0, -4.0])
    assert paired.difference(a, a + [0.0, 2e-4], "x") == pytest.approx(5e-5, rel=1e-3)
    for other in (a + [0.0, 1e-2], a[:1], np.array([np.nan, -4.0])):
        with pytest.raises(paired.Unequal, match="^x:"):
            paired.difference(a, other, "x")
