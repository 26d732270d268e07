import json

import numpy as np
import pytest

from causal_diffusion.data.clip_list import CLIP_LIST, Clip, read_actions, read_clip_list
from causal_diffusion.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "sub/b.mp4"):
        (tmp_path / name).touch()
    return tmp_path


def test_every_key(folder):
    lines = [{"file": "a.mp4"}, None,
             {"file": "./sub/../sub/b.mp4", "start": 1, "end": 2.5, "label": 3, "caption": "Tür \u2028 auf",
              "actions": "b.npy"}]
    text = "\n".join("" if line is None else json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / CLIP_LIST).write_text(text, encoding="utf-8")
    one, two = read_clip_list(folder, classes=0, action_dim=0)
    assert one == Clip("a.mp4", "clips.jsonl line 1")
    assert two == Clip("sub/b.mp4", "clips.jsonl line 3", "Tür \u2028 auf", 3, "b.npy", 1, 2.5)


@pytest.mark.parametrize("line, message", [
    ('{"file": "a.mp4"', "line 2: not JSON: "),
    ('["a.mp4"]', 'line 2: must be an object such as {"file": "a.mp4"}, got list'),
    ('{"file": "a.mp4", "lable": 1}', "line 2: unknown key 'lable': the keys are file, caption, label"),
    ('{"caption": "x"}', 'line 2: "file" is missing'),
    ('{"file": 7}', "line 2: file must be a string, got 7"),
    ('{"file": "c.mp4"}', "line 2: there is no file 'c.mp4' in the folder"),
    ('{"file": "a.mp4", "label": "dog"}', "line 2: label must be an integer from 0, got 'dog'"),
    ('{"file": "a.mp4", "label": true}', "line 2: label must be an integer from 0, got True"),
    ('{"file": "a.mp4", "label": -1}', "line 2: label must be an integer from 0, got -1"),
    ('{"file": "a.mp4", "label": 4}', "line 2: label 4 must be below data.classes=4"),
    ('{"file": "a.mp4"}', "line 2: label is missing, and data.classes=4 asks for one"),
    ('{"file": "a.mp4", "label": 0}', "line 2: actions is missing, and data.action_dim=2 asks for it"),
    ('{"file": "a.mp4", "start": "1"}', "line 2: start must be a number of seconds from 0, got '1'"),
    ('{"file": "a.mp4", "actions_are": "often"}', "line 2: actions_are must be one of once, held, got 'often'"),
    ('{"file": "a.mp4", "end": NaN}', "line 2: end must be a number of seconds from 0, got nan"),
    ('{"file": "a.mp4", "start": 2, "end": 2}', "line 2: start 2 must be before end 2"),
])
def test_a_bad_line_is_named(folder, line, message):
    good = '{"file": "a.mp4", "label": 3, "actions": "a.npy"}'
    (folder / CLIP_LIST).write_text(f"{good}\n{line}\n")
    with pytest.raises(UserError) as error:
        read_clip_list(folder, classes=4, action_dim=2)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line, why", [
    (b'{"file": "a.mp4"', "line 2: not JSON"), (b'{"file": "gone.mp4"}', "line 2: there is no file 'gone.mp4'"),
    (b'{"file": "a.mp4", "caption": "T\xfcr"}', "line 2 has the byte 0xFC"), (b"[" * 100_000, "nested too deeply"),
])  # fmt: skip
def test_one_damaged_line_of_many_is_left_out(folder, caplog, line, why):
    good = b'{"file": "a.mp4"}'
    (folder / CLIP_LIST).write_bytes(b"\n".join([good, line, good, good]))
    assert [clip.where for clip in read_clip_list(folder, 0, 0)] == [f"{CLIP_LIST} line {i}" for i in (1, 3, 4)]
    (said,) = caplog.messages
    assert said.startswith(f"left out 1 of 4 lines of {CLIP_LIST}: ") and why in said
    (folder / CLIP_LIST).write_bytes(b"\n".join([good, line]))
    with pytest.raises(UserError, match="1 of 2 lines of .* cannot be used, more than 33%; the first: clips"):
        read_clip_list(folder, 0, 0)


def test_one_label_of_no_class_is_refused_among_many(folder):
    lines = ['{"file": "a.mp4", "label": 0}'] * 4 + ['{"file": "a.mp4", "label": 4}']
    (folder / CLIP_LIST).write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 5: label 4 must be below data.classes=4"):
        read_clip_list(folder, 4, 0)


def test_an_empty_list(folder):
    (folder / CLIP_LIST).write_text("\n \n")
    with pytest.raises(UserError, match="lists no clip"):
        read_clip_list(folder, 0, 0)


def test_a_list_that_is_no_text(folder):
    (folder / CLIP_LIST).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_clip_list(folder, 0, 0)


def test_actions_from_npy_and_csv_are_equal(folder):
    table = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    np.save(folder / "a.npy", table)
    (folder / "a.csv").write_text("\n".join(",".join(repr(float(x)) for x in row) for row in table) + "\n")
    for name in ("a.npy", "a.csv"):
        actions = read_actions(folder, Clip("a.mp4", "line 1", actions=name), frames=7, action_dim=2)
        np.testing.assert_array_equal(actions, table, strict=True)


@pytest.mark.parametrize("name, content, message", [
    ("a.npy", np.zeros((6, 2)), "has shape (6, 2), but a.mp4 has 7 frames and data.action_dim=2: "
                                "it must be (7, 2)"),
    ("a.npy", np.zeros((7, 3)), "has shape (7, 3)"),
    ("a.npy", np.full((7, 2), np.inf), "row 0 is not finite"),
    ("a.npy", np.full((7, 2), "x"), "is not a table of numbers: its dtype is <U1"),
    ("a.npy", b"not numpy's", "is not a table of numbers: "),
    ("a.npy", b"", "is not a table of numbers: "),
    ("a.csv", b"", "has shape (0,)"),
    ("a.csv", b"dx,dy\n1,2\n", "is not a table of numbers: could not convert string to float: 'dx'"),
    ("a.csv", b"1,2\n1\n", "is not a table of numbers: "),
    ("a.txt", b"1 2\n", "actions must be a .npy or .csv file, got 'a.txt'"),
    ("a.csv", None, "there is no action file 'a.csv' in the folder"),
])
def test_bad_action_files(folder, name, content, message):
    if isinstance(content, np.ndarray):
        np.save(folder / name, content)
    elif content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_actions(folder, Clip("a.mp4", "clips.jsonl line 1", actions=name), frames=7, action_dim=2)
    assert str(error.value).startswith("clips.jsonl line 1: ") and message in str(error.value)
    assert "\n" not in str(error.value)
