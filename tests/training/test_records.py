"""Records of a run: cut back to a checkpoint; damage costs the damaged lines alone."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_diffusion.errors import UserError
from causal_diffusion.training.records import cut_back, read_records

GARBAGE = st.sampled_from([b"\0\0\0\n", b"\xff\xfe{\n", b"null\n", b'{"loss": 1.0}\n', b'{"step": "3"}\n', b"{\n",
                           b"\n", b'{"step": 1.5}\n', b"[1, 2]\n"])  # fmt: skip


def line(step):
    return json.dumps({"step": step, "loss": 0.5}).encode() + b"\n"


@settings(deadline=None, max_examples=25)
@given(good=st.lists(st.integers(0, 9), max_size=8).map(sorted), cut=st.integers(0, 9),
       garbage=st.lists(st.tuples(st.integers(0, 8), GARBAGE), max_size=3),
       end=st.sampled_from([b"", b'{"step": 4, "lo', b"\0\0", b"\xff"]))  # fmt: skip
def test_intact_lines_up_to_the_step_stay_whatever_lies_between_them(tmp_path_factory, good, cut, garbage, end):
    path = tmp_path_factory.mktemp("record") / "metrics.jsonl"
    lines = [line(step) for step in good]
    for at, damage in garbage:
        lines.insert(at, damage)
    path.write_bytes(b"".join(lines) + end)
    cut_back(path, cut)
    kept = [step for step in good if step <= cut]
    assert [record["step"] for record in read_records(path)] == kept
    with path.open("ab") as file:  # what is appended is a line of its own
        file.write(line(cut + 1))
    assert [record["step"] for record in read_records(path)] == [*kept, cut + 1]


def test_an_intact_record_is_not_rewritten(tmp_path):
    """Cut in place: whoever follows the file goes on following it."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + b"\xff\n" + line(2) + line(3) + b'{"st')
    inode = path.stat().st_ino
    assert cut_back(path, 2) == 1
    assert path.read_bytes() == line(1) + b"\xff\n" + line(2) and path.stat().st_ino == inode


@pytest.mark.parametrize("content", [b"", None])
def test_nothing_is_cut_from_nothing(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert cut_back(path, 3) == 0 and read_records(path) == []


@pytest.mark.parametrize("step", [3, 1])
def test_a_link_is_replaced_and_what_it_leads_to_is_left_as_it_is(tmp_path, step):
    lines = [f'{{"step": {s}}}\n' for s in (1, 2, 3)]
    other, path = tmp_path / "other.jsonl", tmp_path / "metrics.jsonl"
    other.write_text("".join(lines))
    path.symlink_to(other)
    cut_back(path, step)
    assert path.read_text() == "".join(lines[:step]) and other.read_text() == "".join(lines)
    assert path.is_symlink() == (step == 3)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_in_one_line(tmp_path, make):
    make(tmp_path / "metrics.jsonl")
    for read in (read_records, lambda path: cut_back(path, 3)):
        with pytest.raises(UserError, match="metrics.jsonl: it is a .*, not a file; move it away"):
            read(tmp_path / "metrics.jsonl")
