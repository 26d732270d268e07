import numpy as np
import pytest

from causal_diffusion.render import style
from causal_diffusion.render.matrix import RAMPS, SIGNS, Panel, matrix_plot, matrix_sheet

SEEN, HIDDEN = RAMPS["mask"][2], RAMPS["mask"][0]
BARE = [""] * 4  # no labels
BELOW = 50  # the legend is above this row


def area(picture, colour):
    """Pixels of exactly that colour below the legend."""
    return int(np.all(picture[BELOW:] == colour, axis=-1).sum())


def box(picture, colour):
    """(first row, first column, last row, last column) of the pixels below the legend of exactly that colour."""
    at = np.argwhere(np.all(picture[BELOW:] == colour, axis=-1))
    return (*at.min(axis=0), *at.max(axis=0))


def test_every_cell_has_the_colour_of_its_value():
    mask = np.tril(np.ones((4, 4), bool))
    picture = matrix_plot(Panel(mask, "mask", rows=BARE, columns=BARE), size=(80, 80))
    assert picture.dtype == np.uint8 and picture.shape[-1] == 3
    assert area(picture, SEEN) == 10 * 19 * 19  # cells of 20 pixels, one of them gap
    assert area(picture, HIDDEN) == 6 * 19 * 19
    top, left, bottom, right = box(picture, SEEN)
    assert (bottom - top, right - left) == (78, 78)
    corner = picture[BELOW + top + 3, left + 60 + 3]  # row 0, column 3
    assert tuple(corner) == HIDDEN


def test_levels_run_from_clean_to_noise_and_a_gap_stays_empty():
    values = np.array([[0.0, 0.25, 0.5, 1.0, np.nan]])
    picture = matrix_plot(Panel(values, rows=[""], columns=[""] * 5), size=(100, 20))
    clean, _, noise, _, _ = RAMPS["level"]
    for value in values[0, :4]:
        assert area(picture, style.mix(noise, clean, value)) == 19 * 19
    assert area(picture, clean) == 19 * 19


def test_breaks_part_the_cells():
    mask = np.ones((4, 4), bool)
    whole = box(matrix_plot(Panel(mask, "mask", rows=BARE, columns=BARE), size=(80, 80)), SEEN)
    parted = matrix_plot(Panel(mask, "mask", rows=BARE, columns=BARE, column_breaks=(1, 3)), size=(92, 80))
    assert box(parted, SEEN)[3] - whole[3] == 12
    assert area(parted, SEEN) == 16 * 19 * 19


@pytest.mark.parametrize("count", [1, 7, 41, 121, 240, 700])
def test_many_rows_fill_the_height_and_are_all_there(count):
    values = np.arange(count)[:, None] % 2 == 0
    picture = matrix_plot(Panel(values, "mask", rows=[""] * count, columns=[""]), size=(40, 240))
    top, left, bottom, _ = box(picture, SEEN)
    column = np.all(picture[BELOW + top : BELOW + bottom + 1, left] == SEEN, axis=-1)
    runs = np.sum(np.diff(column.astype(int), prepend=0) == 1)
    assert runs == (count + 1) // 2
    assert bottom - top + 1 <= max(240, count)
    if count > 40:
        assert bottom - top + 1 > 0.95 * max(240, count) - 240 / count


def test_marks_are_drawn_in_their_cells_alone():
    where = np.zeros((4, 4), bool)
    where[1, 2] = True
    for sign, colour in SIGNS.items():
        panel = Panel(np.ones((4, 4), bool), "mask", rows=BARE, columns=BARE, marks={"here": (sign, where)})
        picture = matrix_plot(panel, size=(80, 80))
        top, left, _, _ = box(picture, SEEN)
        near = np.abs(picture[BELOW:].astype(int) - colour).sum(axis=-1) < 60
        at = np.argwhere(near[top:, left:])
        assert len(at) >= 4, sign
        assert np.all(at // 20 == [1, 2]), sign


def test_labels_are_thinned_until_they_do_not_touch():
    """Rows of 3 pixels cannot all be numbered; those of 26 can."""
    def inked_rows(count):
        panel = Panel(np.zeros((count, 1)), columns=[""])
        picture = matrix_plot(panel, size=(40, 240))
        left = box(picture, RAMPS["level"][0])[1]
        ink = np.any(picture[BELOW:, 24 : left - 4] != style.BACKGROUND, axis=(1, 2))
        return np.sum(np.diff(ink.astype(int), prepend=0) == 1)

    assert inked_rows(8) == 8
    assert inked_rows(80) == 16  # every fifth


def test_a_sheet_lines_its_panels_up():
    panel = Panel(np.ones((4, 4), bool), "mask", "caption", rows=BARE, columns=BARE)
    small = Panel(np.ones((2, 2), bool), "mask", rows=["a long label", ""], columns=["", ""])
    rows = {"one\nfacts": [panel, small], "two": [small, panel]}
    picture = matrix_sheet(rows, headings=["left\nmore", "right"], title="title", size=(80, 80))
    seen = np.all(picture[90:] == SEEN, axis=-1)
    starts = np.flatnonzero(np.diff(np.any(seen, axis=0).astype(int), prepend=0) == 1)
    heights = np.flatnonzero(np.diff(np.any(seen, axis=1).astype(int), prepend=0) == 1)
    top, second = heights[0], heights[len(heights) // 2]
    assert seen[top, starts[0]] and seen[top].sum() == seen[second].sum() == 4 * 19 + 2 * 25  # both panels begin there
    assert np.argmax(seen[top]) == np.argmax(seen[second]) == starts[0]
    assert matrix_sheet(list(rows.items()), ["left\nmore", "right"], "title", (80, 80)).tobytes() == picture.tobytes()


@pytest.mark.parametrize("call, words", [
    (lambda: Panel(np.zeros(3)), "rows, columns"),
    (lambda: Panel(np.zeros((0, 3))), "rows, columns"),
    (lambda: Panel(np.full((2, 2), 1.5)), r"\[0, 1\]"),
    (lambda: Panel(np.zeros((2, 2)), "grey"), "level, mask"),
    (lambda: Panel(np.zeros((2, 2)), rows=["a"]), "rows has 1 labels"),
    (lambda: Panel(np.zeros((2, 2)), marks={"m": ("star", np.ones((2, 2)))}), "mark 'm'"),
    (lambda: Panel(np.zeros((2, 2)), marks={"m": ("disc", np.ones((2, 3)))}), "mark 'm'"),
    (lambda: matrix_sheet([]), "equally many"),
    (lambda: matrix_sheet({"a": [Panel(np.zeros((1, 1)))], "b": []}), "equally many"),
    (lambda: matrix_sheet({"a": [Panel(np.zeros((1, 1)))]}, headings=["x", "y"]), "headings"),
])
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
