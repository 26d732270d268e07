"""The list of planted faults fits the package: each can be planted, and every room has one."""

import ast
from pathlib import Path

import pytest

from tests.planted_fault_choice import Recorded, lines_of, mirrors, of_room, planted
from tests.planted_fault_list import FAULTS, Fault
from tests.planted_faults import PACKAGE, ROOT, compare

NO_ROOMS = {"__init__", "errors", "tiny"}  # modules that compute nothing


def test_every_fault_is_one_changed_line_that_python_can_read():
    for file in {fault.file for fault in FAULTS}:
        faults = [fault for fault in FAULTS if fault.file == file]
        before = after = (ROOT / PACKAGE / file).read_text()
        for fault in faults:
            after = planted(after, fault)
        pairs = zip(before.splitlines(), after.splitlines(), strict=True)
        assert sum(old != new for old, new in pairs) == len(faults), file
        ast.parse(after)


def test_there_are_faults_enough_in_every_room():
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names) >= 40
    package = ROOT / PACKAGE
    rooms = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms - NO_ROOMS == {Path(fault.file).parts[0].removesuffix(".py") for fault in FAULTS}


@pytest.mark.parametrize("old", ["absent", "return"])
def test_a_line_that_is_not_there_once_is_refused(old):
    with pytest.raises(ValueError, match="there once"):
        planted("def f():\n    return 1\n\ndef g():\n    return 2\n", Fault("it", "a.py", old, "new"))


def test_the_lines_of_a_statement_are_those_that_coverage_may_name():
    source = "def f(\n    a,\n):\n    if a:\n        return g(\n            b,\n            1)\n"
    source += "    else:\n        b = 2\n"
    lines = {old: list(lines_of(source, Fault("it", "a.py", old, ""))) for old in ("    a,\n)", "if a", "1)", "b = 2")}
    assert lines == {"    a,\n)": [1, 2, 3], "if a": [4], "1)": [5, 6, 7], "b = 2": [9]}


def test_rounds_widen_from_the_line_to_the_room():
    ids = ["tests/nn/test_rope.py::a", "tests/nn/test_rope.py::b", "tests/nn/test_block.py::c",
           "tests/nn/text/test_t5.py::d", "tests/test_cli.py::e", "tests/streaming/test_session.py::f"]  # fmt: skip
    rope = Fault("it", "nn/rope.py", "", "")
    tests = Recorded({"it": ids[:1] + ids[-1:]}, {each: 60.0 - i for i, each in enumerate(ids)})
    rounds = [set(each) for each in tests.rounds(rope)]
    assert rounds == [{ids[0], ids[5]}, {ids[0], ids[1], ids[5]}, {*ids[:4], ids[5]}]
    # The cheapest ones up to the cap, of which those that mirror the file come first.
    assert tests.chosen(rope, ids, set()) == ([ids[5], ids[4]], True)
    assert tests.chosen(rope, [ids[0], ids[5]], set()) == ([ids[0], ids[5]], False)
    assert tests.chosen(rope, ids[:2], {ids[1]}) == ([ids[0]], False)
    modules = {each.partition("::")[0] for each in ids}
    assert mirrors("cli.py", modules) == {"tests/test_cli.py"} and not mirrors("config.py", modules)
    assert mirrors("nn/text/words.py", modules) == {"tests/nn/text/test_t5.py"}
    assert of_room("cli.py", "tests/test_cli.py") and not of_room("nn/rope.py", "tests/test_cli.py")


def test_a_fault_that_escapes_now_is_counted():
    caught, escaped = {"status": "caught", "test": "tests/test_a.py::b"}, {"status": "escaped"}
    before = {"faults": {"one": caught, "two": caught, "three": escaped}}
    after = {"faults": {"one": caught, "two": escaped, "three": caught}}
    table, lost = compare(before, after)
    assert lost == 1 and "two (escapes) | tests/test_a.py::b | escaped |" in table
    assert compare(after, before)[1] == 1 and compare(before, before)[1] == 0
