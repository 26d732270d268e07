import numpy as np
import pytest

from causal_diffusion.render import style
from causal_diffusion.render.plot import _flags, _labels, _ticks, line_plot


def curve_pixels(picture, colour, tolerance=40):
    """(y, x) of pixels near a colour."""
    return np.argwhere(np.abs(picture.astype(int) - colour).sum(axis=-1) < tolerance)


def test_a_curve_goes_where_its_values_are():
    """A level line at 0.5 of 0..1 lies midway between the level lines at 0 and 1."""
    picture = line_plot({"a": np.zeros(9), "b": np.full(9, 0.5), "c": np.ones(9)}, title="t", y_range=(0, 1))
    assert picture.shape == (380, 760, 3) and picture.dtype == np.uint8
    heights = []
    for colour in style.SERIES[:3]:
        rows = np.bincount(curve_pixels(picture, colour)[:, 0], minlength=380)
        heights.append(np.average(np.arange(380), weights=np.where(rows > 300, rows, 0)))
    bottom, middle, top = heights
    assert bottom > middle > top
    assert middle == pytest.approx((bottom + top) / 2, abs=0.6)


def test_a_rising_curve_rises_and_a_gap_stays_empty():
    y = np.linspace(0, 1, 90)
    y[30:60] = np.nan
    at = curve_pixels(line_plot({"a": y}, title="t", size=(600, 300)), style.SERIES[0])
    xs = np.unique(at[:, 1])
    assert np.max(np.diff(xs)) > 150                        # the gap is a third of the axis
    left, right = at[at[:, 1] < 200], at[at[:, 1] > 400]
    assert left[:, 0].mean() > right[:, 0].mean() + 80      # pixel rows count downwards
    assert np.polyfit(left[:, 1], left[:, 0], 1)[0] < -0.2


@pytest.mark.parametrize("start", [0, 4])
def test_values_without_an_x_begin_at_the_start(start):
    y = np.array([0.0, 2.0, 1.0])
    given = line_plot({"a": (start + np.arange(3.0), y)}, x_start=start)
    np.testing.assert_array_equal(line_plot({"a": y}, x_start=start), given)


def test_infinite_values_and_level_curves_are_drawn_without_fuss():
    assert line_plot({"inf": np.full(4, np.inf), "x": np.ones(4)}).shape == (380, 760, 3)
    assert line_plot({"none": np.full(3, np.nan)}).shape == (380, 760, 3)
    assert line_plot({"point": [2.0]}, marks={"here": 0}).shape == (380, 760, 3)
    assert line_plot({"zero": np.zeros(3)}, ylabel="y", xlabel="").shape == (380, 760, 3)
    curve = (np.array([0.5, 7.25]), np.array([1e-9, 2e9]))
    assert line_plot({"given x": curve}, size=(400, 300)).shape == (300, 400, 3)


@pytest.mark.parametrize("low, high, labels", [
    (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
    (15.6, 24.2, ["14", "16", "18", "20", "22", "24", "26"]),
    (-0.3, 0.2, ["-0.3", "-0.2", "-0.1", "0.0", "0.1", "0.2"]),
    (0.001, 0.00123, ["0.00100", "0.00105", "0.00110", "0.00115", "0.00120", "0.00125"]),
])
def test_ticks_are_round_and_cover_the_range(low, high, labels):
    ticks = _ticks(low, high, 5)
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9
    assert [text.replace("-0.0", "0.0") for text in _labels(ticks)] == labels
    assert np.all(np.mod(_ticks(low, high + 3, 10, whole=True), 1) == 0)


def test_no_mark_runs_through_a_name():
    face = style.font(36)
    places = {"context ends": 300, "training length": 340, "a third": 380, "far away": 1500, "the end": 2000}
    flags = _flags(places, face, 200, 2000)
    spans = {text: (x, x + face.getlength(text)) if anchor == "lm" else (x - face.getlength(text), x)
             for text, x, anchor, _ in flags}
    levels = {text: level for text, *_, level in flags}
    for text, (start, stop) in spans.items():
        assert 200 <= start and stop <= 2000
        for other, x in places.items():
            if levels[other] <= levels[text] and other != text:       # its line passes this name's height
                assert not start <= x <= stop, (text, other)


@pytest.mark.parametrize("call, words", [
    (lambda: line_plot({}), "at least one curve"),
    (lambda: line_plot({"a": np.zeros((2, 3))}), "curve 'a'"),
    (lambda: line_plot({"a": (np.zeros(2), np.zeros(3))}), "curve 'a'"),
    (lambda: line_plot({"a": np.zeros(3)}, y_range=(1, 1)), "y_range"),
    (lambda: line_plot({"a": np.zeros(3)}, size=(60, 60)), "size"),
])
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
