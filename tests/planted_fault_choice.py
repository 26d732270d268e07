"""Which tests are to run for a planted fault: those that touch its line first, then those near it.

Pure functions of paths, sources and what was recorded; see `planted_faults.py`.
"""

import ast
import collections
from pathlib import PurePosixPath
from typing import NamedTuple

from tests.planted_fault_list import Fault

CAP = 150.0  # recorded seconds of the tests of one round


class Recorded(NamedTuple):
    """What `record` knows of a version of the tests.

    touching: fault -> ids of the tests that touch its line.
    seconds: id -> seconds of its phases together, of the tests that pass.
    """

    touching: dict[str, list[str]]
    seconds: dict[str, float]

    def chosen(self, fault: Fault, ids, done) -> tuple[list[str], bool]:
        """Ids in the order in which they run, without those done; and whether some are beyond CAP.

        The cheapest ones are chosen. Of these, modules that mirror the file come first, then modules that take less.
        """
        known = sorted((i for i in set(ids) - done if i in self.seconds), key=lambda i: (self.seconds[i], i))
        some, total = [], 0.0
        for each in known:
            total += self.seconds[each]
            if total > CAP and some:
                break
            some.append(each)
        module_seconds = collections.Counter()
        for each in some:
            module_seconds[module_of(each)] += self.seconds[each]
        first = mirrors(fault.file, module_seconds)

        def place(test_id):  # sorting is stable: in a module cheap tests come first
            module = module_of(test_id)
            return module not in first, module_seconds[module], module

        return sorted(some, key=place), len(some) < len(known)

    def rounds(self, fault: Fault):
        """The ids of each round, which may overlap."""
        touching = self.touching.get(fault.name, [])
        modules = {module_of(each) for each in self.seconds}
        near = {module_of(each) for each in touching} | mirrors(fault.file, modules)
        room = {module for module in modules if of_room(fault.file, module)}
        for some in (None, near, near | room):
            yield touching if some is None else [each for each in self.seconds if module_of(each) in some]


def module_of(test_id: str) -> str:
    """The file of a test."""
    return test_id.partition("::")[0]


def mirrors(file: str, modules) -> set[str]:
    """Modules of tests named after a file of the package; where there are none, those of the same folder."""
    path = PurePosixPath(file)
    folders = {PurePosixPath("tests") / path.parent, PurePosixPath("tests")}
    named = {m for m in modules if PurePosixPath(m).parent in folders
             and PurePosixPath(m).stem.startswith(f"test_{path.stem}")}  # fmt: skip
    beside = {m for m in modules if PurePosixPath(m).parent == PurePosixPath("tests") / path.parent}
    return named or (beside if len(path.parts) > 1 else set())


def of_room(file: str, module: str) -> bool:
    """Whether a module of tests belongs to the room, a folder or a file at the top of the package, of a file."""
    room = PurePosixPath(file).parts[0].removesuffix(".py")
    parts = PurePosixPath(module).parts[1:]
    return parts[0] == room if len(parts) > 1 else parts[0].startswith(f"test_{room}")


def planted(source: str, fault: Fault) -> str:
    """A file with the fault in it; ValueError unless the line is there exactly once."""
    if (count := source.count(fault.old)) != 1:
        raise ValueError(f"{fault.file} has {fault.old!r} {count} times: name a part of one line that is there once")
    return source.replace(fault.old, fault.new)


def lines_of(source: str, fault: Fault) -> range:
    """Numbers of the lines of the innermost statement that is changed; of a compound one, those of its head."""
    line = source[: source.index(fault.old)].count("\n") + 1
    found = range(line, line + 1)
    for node in ast.walk(ast.parse(source)):  # outer statements come first
        if isinstance(node, ast.stmt) and node.lineno <= line <= node.end_lineno:
            body = getattr(node, "body", None)
            found = range(node.lineno, body[0].lineno if body else node.end_lineno + 1)
            if line not in found:  # a decorator, an else
                found = range(line, line + 1)
    return found
