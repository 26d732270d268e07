import numpy as np
import pytest
from PIL import Image

from causal_diffusion.errors import UserError
from causal_diffusion.render import files, style
from causal_diffusion.render.sheet import contact_sheet


def flat(frames, height=16, width=16, first=0):
    """Frame t has the grey level first + 10 t everywhere: it can be found again on the sheet."""
    levels = (first + 10 * np.arange(frames, dtype=np.uint8))[:, None, None, None]
    return np.broadcast_to(levels, (frames, height, width, 1))


def centres(picture, levels, cell):
    """Where are the squares of these grey levels? {level: (y, x)} of the middle, checked for size."""
    found = {}
    for level in levels:
        inside = np.all(picture == level, axis=-1)
        ys, xs = (np.flatnonzero(inside.sum(axis=axis) > cell // 2) for axis in (1, 0))
        if len(ys):
            assert (np.ptp(ys), np.ptp(xs)) == (cell - 1, cell - 1)
            found[level] = (ys.mean(), xs.mean())
    return found


def columns_of(picture, colour):
    """Upright lines of a colour: the columns in which it fills a good part of the height."""
    return np.flatnonzero(np.all(picture == colour, axis=-1).mean(axis=0) > 0.3)


def test_every_frame_has_its_place():
    sheet = contact_sheet({"one": flat(6, first=60), "two\nsecond line": flat(4, first=160)}, cell=24)
    assert sheet.dtype == np.uint8 and sheet.ndim == 3 and sheet.shape[-1] == 3
    assert tuple(sheet[0, 0]) == style.BACKGROUND and tuple(sheet[-1, -1]) == style.BACKGROUND
    upper = centres(sheet, range(60, 120, 10), 24)
    lower = centres(sheet, range(160, 200, 10), 24)
    assert len(upper) == 6 and len(lower) == 4
    assert len({y for y, _ in upper.values()}) == 1 and len({y for y, _ in lower.values()}) == 1
    assert lower[160][0] - upper[60][0] >= 24
    steps = np.diff([x for _, x in upper.values()])
    assert np.all(steps == steps[0]) and steps[0] > 24
    assert [x for _, x in lower.values()] == [x for _, x in upper.values()][:4]     # below each other
    title = sheet[:, :int(upper[60][1]) - 13]
    assert np.any(np.all(title == style.TEXT, axis=-1)) and np.any(np.all(title == style.DIM_TEXT, axis=-1))


def test_every_shows_also_the_first_of_each_phase():
    rows = [("", flat(12, first=60))]
    shown = centres(contact_sheet(rows, every=5, context=2, train_length=6, cell=24), range(60, 180, 10), 24)
    assert [(level - 60) // 10 for level in shown] == [0, 2, 5, 6, 10]
    shown = centres(contact_sheet(rows, max_columns=4, context=2, cell=24), range(60, 180, 10), 24)
    assert [(level - 60) // 10 for level in shown] == [0, 2, 4, 8]


def test_lines_stand_at_the_end_of_the_context_and_of_the_training_length():
    sheet = contact_sheet({"clip": flat(9, first=60)}, context=3, train_length=7, cell=40)
    at = centres(sheet, range(60, 150, 10), 40)
    for colour, after in ((style.TRAINED, 3), (style.BEYOND, 7)):
        line = columns_of(sheet, colour).mean()
        assert at[60 + 10 * (after - 1)][1] + 20 < line < at[60 + 10 * after][1] - 20
    assert not len(columns_of(sheet, style.CONTEXT))
    for colour in (style.CONTEXT, style.TRAINED, style.BEYOND):
        assert np.any(np.all(sheet == colour, axis=-1))          # the bar above the frames


def test_without_phases_nothing_is_marked():
    sheet = contact_sheet({"clip": flat(5, first=60)})
    for colour in (style.CONTEXT, style.TRAINED, style.BEYOND):
        assert not np.any(np.all(sheet == colour, axis=-1))
    same = contact_sheet({"clip": flat(5, first=60)}, context=0, train_length=5)
    assert np.array_equal(sheet, same)


def test_groups_stand_apart():
    rows = [(str(r), flat(1, first=60 + 20 * r)) for r in range(4)]
    ys = [y for y, _ in centres(contact_sheet(rows, cell=20, group=2), range(60, 140, 20), 20).values()]
    inner, outer, last = np.diff(ys)
    assert inner == last and outer > inner


def test_pixels_are_smoothed_or_repeated():
    clip = np.tile(np.array([0, 255], np.uint8).reshape(1, 1, 2, 1), (1, 8, 4, 1))
    crisp, smooth = (contact_sheet({"": clip}, cell=48, smooth=s) for s in (False, True))
    middle = np.s_[crisp.shape[0] - 52, 40:60]
    assert set(crisp[middle][:, 0].tolist()) == {0, 255}
    assert len(set(smooth[middle][:, 0].tolist())) > 4


def test_wide_frames_and_colour():
    clip = np.full((2, 10, 20, 3), [1.0, -1.0, 0.0], np.float32)
    sheet = contact_sheet([("wide", clip)], cell=30)
    assert np.all(sheet == [255, 0, 128], axis=-1).sum() > 2 * 30 * 60 - 100         # less the round corners


def test_write_png_is_lossless(tmp_path):
    sheet = contact_sheet({"clip": flat(3)})
    with Image.open(files.write_png(tmp_path / "a" / "sheet.png", sheet)) as picture:
        assert np.array_equal(np.asarray(picture), sheet)
    with pytest.raises(UserError, match="cannot write"):
        files.write_png(tmp_path / "a" / "sheet.png" / "b.png", sheet)


def test_signs_missing_from_the_face_are_written_with_others():
    face = style.font(20)
    unknown = bytes(face.getmask("\uffff"))
    for sign in "\u2013\u2014\u2212\u00d7\u2192\u2264\u2265":
        assert all(bytes(face.getmask(c)) != unknown for c in style.plain(sign))


@pytest.mark.parametrize("call, words", [
    (lambda: contact_sheet({}), "at least one row"),
    (lambda: contact_sheet({"a": np.zeros((4, 8, 8))}), "row 'a'"),
    (lambda: contact_sheet({"a": np.zeros((4, 8, 8, 2))}), "1 or 3 channels"),
    (lambda: contact_sheet({"a": flat(4)}, every=0), "every"),
    (lambda: contact_sheet({"a": flat(4)}, context=1, max_columns=1), "max_columns"),
    (lambda: contact_sheet({"a": flat(4)}, context=-1), "negative"),
])
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
