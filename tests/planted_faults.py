"""Plants the faults of `planted_fault_list.py` one at a time, and reports which test catches each.

    python -m tests.planted_faults record             # once per version: which tests touch which fault, and how long
    python -m tests.planted_faults run                # all faults, in two processes
    python -m tests.planted_faults run --only rope_sign ema_decay_squared
    python -m tests.planted_faults compare BEFORE.json AFTER.json

`record` runs tier 1 under coverage. `run` copies the tracked files of ``--tree`` for each job, and for each fault runs
in a copy, stopping at the first failure, cheap tests and modules that mirror the file first,

    round 1   the tests that touch the changed line
    round 2   the other tests of their modules, and of the modules that mirror the changed file
    round 3   the other tests of the changed file's room

until one fails. Tests of a round beyond CAP recorded seconds are left to the next one, where there is one. The test
that failed then runs by itself, without the fault, and after round 1 also with it: unless it passes without and fails
with the fault it has caught nothing, and the others go on.
A crash or a time-out counts as a failure of the test that ran, if it ends a process of its own.

`compare` shows two results side by side and ends with 1 if a fault escapes that was caught. Use it after tests were
removed or merged: record and run both versions (``--tree``, ``--map``, ``--out``), then compare. A new fault is a line
of the list; record again before it is run. Results lie in the ignored folder `.faults`.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.planted_fault_choice import CAP, Recorded, lines_of, planted
from tests.planted_fault_list import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "causal_diffusion"
PLUGIN = Path(__file__).with_name("planted_fault_plugin.py")
LIMIT = 300.0  # seconds of one process
WHERE = f"""
import subprocess, sys
import {PACKAGE}

def test_the_copy_is_imported():
    code = "import {PACKAGE}; print({PACKAGE}.__file__)"
    child = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    for file in ({PACKAGE}.__file__, child.stdout.strip()):
        assert file == {{file!r}}
"""


class Run(NamedTuple):
    """What a pytest process did. code: its exit code, None where it ran out of time; events: those of the plugin."""

    code: int | None
    events: list[dict]
    output: str

    @property
    def failed(self) -> list[str]:
        """Ids of the tests and modules that failed, first ones first."""
        return list(dict.fromkeys(event["id"] for event in self.events if event.get("outcome") == "failed"))

    @property
    def passed(self) -> set[str]:
        """Ids of the tests that ran to their end without a failure."""
        ended = {event["id"] for event in self.events if event.get("when") == "teardown"}
        return ended - set(self.failed)

    @property
    def ended_badly(self) -> bool:
        """Whether it ran out of time or crashed: pytest's own codes are 0 to 5."""
        return self.code is None or not 0 <= self.code <= 5

    @property
    def catcher(self) -> tuple[str, str] | None:
        """The first id that failed, or was running when the process ended badly; and how. None: nothing was caught."""
        if self.failed:
            return self.failed[0], "failed"
        started = [event["start"] for event in self.events if "start" in event]
        if started and self.ended_badly:
            return started[-1], "timed out" if self.code is None else f"crashed ({self.code})"
        return None

    def reason(self, test_id: str) -> str:
        """What pytest's summary says of a test that failed."""
        starts = f"FAILED {test_id} - ", f"ERROR {test_id} - "
        found = [line for line in self.output.splitlines() if line.startswith(starts)]
        return found[-1].partition(f"{test_id} - ")[2][:200] if found else ""


def copied(tree: Path, target: Path) -> Path:
    """The tracked files of a tree as they are now, copied."""
    listed = subprocess.run(["git", "-C", tree, "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (tree / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, target / name, follow_symlinks=False)
    return target


def run_pytest(copy: Path, arguments, limit: float | None = None, **environ) -> Run:
    """Runs pytest in a copy, with the plugin. Whatever processes are left at its end are ended too."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(PLUGIN, folder)
        log, out = Path(folder) / "log", Path(folder) / "out"
        log.touch()
        environ |= {"PYTHONPATH": f"{copy}{os.pathsep}{folder}", "PYTHONDONTWRITEBYTECODE": "1"}
        environ |= {"PLANTED_FAULTS_LOG": str(log), "COLUMNS": "400"}  # so that summaries are not cut
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", PLUGIN.stem, *arguments]
        with open(out, "wb") as file:
            process = subprocess.Popen(command, cwd=copy, env=os.environ | environ, stdin=subprocess.DEVNULL,
                                       stdout=file, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
            deadline, ended = time.monotonic() + (limit or float("inf")), None
            try:  # the process is waited for without being reaped: its group cannot become another's
                while ended is None and time.monotonic() < deadline:
                    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                    time.sleep(0.1)
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                code = process.wait()
        events = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
        return Run(None if ended is None else code, events, out.read_text(errors="replace"))


def run_ids(copy: Path, ids, *options) -> Run:
    """Runs tests by their ids, LIMIT seconds at a time.

    Where a process runs out of time or crashes after some tests have passed, another one runs the rest, so that only
    a test that ends a process of its own counts as ending it.
    """
    left, events = list(ids), []
    while True:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("".join(f"{each}\n" for each in left))
            file.flush()
            run = run_pytest(copy, [*options, f"@{file.name}"], LIMIT)
        events += run.events
        left = [each for each in left if each not in run.passed]
        if run.failed or not run.ended_badly or not run.passed or not left:
            return run._replace(events=events)


def check_copy(copy: Path) -> None:
    """Refuses a copy whose tests, or the processes that they start, import the package from elsewhere."""
    test = copy / "tests/test_where_planted_faults_run.py"
    test.write_text(WHERE.format(file=str(copy / PACKAGE / "__init__.py")))
    try:
        run = run_pytest(copy, [str(test.relative_to(copy))], LIMIT)
    finally:
        test.unlink()
    if run.code != 0 or len(run.passed) != 1:
        raise SystemExit(f"{PACKAGE} is not imported from the copy in {copy}:\n{run.output[-2000:]}")


# record


def record(tree: Path, processes: int) -> tuple[dict, Run]:
    """Runs tier 1 of a tree under coverage: what `Recorded` holds, as JSON, and the run."""
    import coverage

    with tempfile.TemporaryDirectory() as folder:
        copy, data = copied(tree, Path(folder).resolve() / "copy"), Path(folder) / "coverage"
        check_copy(copy)
        run = run_pytest(
            copy,
            [f"-n{processes}", "--dist=worksteal", f"--cov={copy / PACKAGE}", "--cov-context=test", "--cov-report="],
            PLANTED_FAULTS_RECORD="1", COVERAGE_FILE=str(data), COVERAGE_CORE="ctrace",
        )  # fmt: skip
        if not data.exists():
            raise SystemExit(f"nothing was recorded:\n{run.output[-5000:]}")
        covered = coverage.CoverageData(str(data))
        covered.read()
        seconds, touching = collections.Counter(), {}
        for event in run.events:
            seconds[event.get("id")] += event.get("seconds", 0.0)
        for fault in FAULTS:
            file = copy / PACKAGE / fault.file
            lines, by_line = lines_of(file.read_text(), fault), covered.contexts_by_lineno(str(file))
            contexts = {context for line in lines for context in by_line.get(line, ())}
            touching[fault.name] = sorted({context.rpartition("|")[0] for context in contexts} & run.passed)
    return {"touching": touching, "seconds": {each: round(seconds[each], 3) for each in sorted(run.passed)}}, run


# run


def attempt(copy: Path, fault: Fault, tests: Recorded) -> dict:
    """Plants a fault in a copy and runs tests until one fails; the copy is as before afterwards.

    Returns status ('caught', 'escaped', 'not planted' or 'error'), tests (number run), capped (whether the last round
    was), seconds, unreliable (tests that fail without the fault too, or not again with it), and of a fault that is
    caught test, how (it 'failed', 'timed out' or 'crashed'), why, and round.
    """
    began, file, done, found = time.monotonic(), copy / PACKAGE / fault.file, set(), {"status": "escaped"}
    source, unreliable, capped = file.read_text(), [], False
    try:
        faulty = planted(source, fault)
    except ValueError as error:
        return {"status": "not planted", "why": str(error), "tests": 0, "capped": False, "seconds": 0.0}

    def with_fault(ids) -> Run:
        file.write_text(faulty)
        try:
            return run_ids(copy, ids, "-x")
        finally:
            file.write_text(source)

    for number, ids in enumerate(tests.rounds(fault), 1):
        left, capped = tests.chosen(fault, ids, done)
        while left and found["status"] == "escaped":
            run = with_fault(left)
            if run.catcher is None:
                if run.code != 0:
                    found = {"status": "error", "why": f"pytest ended with {run.code}: {run.output[-1000:]}"}
                done |= set(left)
                break
            test, how = run.catcher
            if clean(copy, test) and (number == 1 or with_fault([test]).catcher):
                found = {"status": "caught", "test": test, "how": how, "why": run.reason(test), "round": number}
            else:
                unreliable.append(test)
            done |= {each for each in left if each in run.passed} | {test}
            left = [each for each in left if each not in done]
        if found["status"] != "escaped":
            break
    spent = round(time.monotonic() - began, 1)
    return found | {"tests": len(done), "capped": capped, "seconds": spent, "unreliable": unreliable}


def clean(copy: Path, test: str) -> bool:
    """Whether a test passes by itself in a copy without a fault."""
    if "::" not in test:  # a module that could not be imported
        return run_pytest(copy, ["--collect-only", test], LIMIT).code == 0
    return test in run_ids(copy, [test], "-x").passed


def run_faults(tree: Path, faults, tests: Recorded, jobs: int, keep) -> dict[str, dict]:
    """Attempts each fault, several at a time, each job in a copy of its own: the results by name.

    ``keep`` is called with those that there are after every fault, so that a run that is stopped leaves them.
    """
    results, copies = {}, queue.Queue()

    def in_a_copy(fault):
        copy = copies.get()
        try:
            return attempt(copy, fault, tests)
        finally:
            copies.put(copy)

    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for job in range(jobs):
            copy = copied(tree, Path(folder).resolve() / str(job))
            check_copy(copy)
            copies.put(copy)
        futures = {pool.submit(in_a_copy, fault): fault for fault in faults}
        try:
            for future in concurrent.futures.as_completed(futures):
                name = futures[future].name
                results[name] = future.result()
                print(line_of(name, results[name]), flush=True)
                keep(results)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {fault.name: results[fault.name] for fault in faults}


def line_of(name: str, result: dict) -> str:
    """A result in one line."""
    what = result.get("test") or result.get("why") or f"none of {result['tests']} tests fails"
    if result.get("how", "failed") != "failed":
        what += f" {result['how']}"
    if result["capped"] and result["status"] == "escaped":
        what += f", of the last round those of {CAP:g} s"
    if result.get("unreliable"):
        what += f"; unreliable: {', '.join(result['unreliable'])}"
    return f"{result['status']:8} {result['seconds']:6.1f} s  {name}: {what}"


# compare


def compare(before: dict, after: dict) -> tuple[str, int]:
    """Two results of `run` as a table, and how many faults escape that were caught."""
    rows, lost = ["| fault | before | after |", "|---|---|---|"], 0
    for name in dict.fromkeys((*before["faults"], *after["faults"])):
        was, now = (result["faults"].get(name, {"status": "not planted"}) for result in (before, after))
        escapes = was["status"] == "caught" != now["status"]
        lost += escapes
        cells = [each.get("test", each["status"]) for each in (was, now)]
        rows.append(f"| {name}{' (escapes)' if escapes else ''} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows), lost


# The command.


def selected(names) -> list[Fault]:
    """Faults by their names; all where none is named."""
    by_name = {fault.name: fault for fault in FAULTS}
    if unknown := set(names or ()) - set(by_name):
        raise SystemExit(f"no fault is named {min(unknown)!r}: try one of {', '.join(by_name)}")
    return [by_name[name] for name in names or by_name]


def write_json(path: Path, value) -> None:
    """Writes a file, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def main(arguments=None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.planted_faults", description="Does a test catch each fault?")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("record", "run"):
        command = commands.add_parser(name)
        command.add_argument("--tree", type=Path, default=ROOT, help="checkout whose tests run; default: this one")
        command.add_argument("--map", type=Path, default=ROOT / ".faults/map.json", help="file of what is recorded")
        command.add_argument("--jobs", type=int, default=2, help="processes side by side")
    command.add_argument("--only", nargs="+", metavar="NAME", help="these faults")
    command.add_argument("--out", type=Path, default=ROOT / ".faults/run.json", help="file of the results")
    command = commands.add_parser("compare")
    command.add_argument("before", type=Path)
    command.add_argument("after", type=Path)
    options, began = parser.parse_args(arguments), time.monotonic()
    if options.command == "compare":
        table, lost = compare(*(json.loads(path.read_text()) for path in (options.before, options.after)))
        print(table)
        return int(lost > 0)
    if options.command == "record":
        found, run = record(options.tree.resolve(), options.jobs)
        write_json(options.map, found)
        print(f"{len(run.passed)} tests passed, {len(run.failed)} failed in {time.monotonic() - began:.0f} s, "
              f"{sum(not ids for ids in found['touching'].values())} faults touched by none")  # fmt: skip
        print(*run.failed, sep="\n")
        return int(bool(run.failed))
    recorded = Recorded(**json.loads(options.map.read_text()))

    def keep(results):
        write_json(options.out, {"seconds": round(time.monotonic() - began), "faults": results})

    results = run_faults(options.tree.resolve(), selected(options.only), recorded, options.jobs, keep)
    keep(results)
    spent = round(time.monotonic() - began)
    missed = [line_of(name, result) for name, result in results.items() if result["status"] != "caught"]
    print(f"\n{len(results) - len(missed)} of {len(results)} faults are caught, in {spent} s", *missed, sep="\n")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
