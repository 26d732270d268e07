"""The table of cases, their command line, and the rows that they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from benchmarks import __main__ as command
from benchmarks import cases, rows, tables
from benchmarks.paired import Ratio
from causal_diffusion.errors import UserError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"
KEYS = {"name", "what", "size", "not_run", "figures", "config", "flops", "device", "backend", "versions"}


def test_every_case_has_a_line_and_so_has_every_script(capsys):
    command.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: len(cases.CASES)]] == list(cases.CASES)
    scripts = {line.split()[1].rstrip(":") for line in lines[len(cases.CASES) :]}
    files = {f"benchmarks/{file.name}" for file in (ROOT / "benchmarks").glob("[a-z]*.py")}
    package = {f"benchmarks/{name}.py" for name in ("cases", "costs", "paired", "rows", "systems", "tables")}
    assert scripts == files - package


@pytest.mark.parametrize("name", [name for name in cases.CASES if "torch" not in cases.CASES[name].needs])
def test_every_case_has_a_function(name):
    assert callable(cases.find(name).function)


@pytest.mark.parametrize("wrong, near", [("cpu_stream_smal", "cpu_stream_small"), ("wan_chunk", "gpu_wan_chunk")])
def test_a_wrong_name_is_told_before_anything_runs(wrong, near, monkeypatch):
    monkeypatch.setattr(cases, "run", lambda *given: pytest.fail("it ran"))
    with pytest.raises(UserError, match=f"no benchmark '{wrong}'; the nearest is '{near}'") as told:
        command.main(["cpu_compile_budget", wrong])
    assert "\n" not in str(told.value)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="here GPU cases run")
def test_a_gpu_case_without_a_gpu_says_so_and_has_no_figures(tmp_path, capsys):
    file = tmp_path / "deep/rows.json"
    command.main(["gpu_nfd310", "gpu_train_mfu", "--json", str(file)])
    for row, name in zip(map(json.loads, file.read_text().splitlines()), ("gpu_nfd310", "gpu_train_mfu"), strict=True):
        assert row["name"] == name and row["figures"] == [] and "it needs a GPU" in row["not_run"]
        assert set(row) >= KEYS
    assert capsys.readouterr().out.count("not run: it needs a GPU") == 2


def test_a_case_without_torch_says_which_extra_has_it(monkeypatch):
    monkeypatch.setattr(cases.importlib.util, "find_spec", lambda name: None)
    row = cases.run("cpu_cache_vs_recompute")
    assert "[bench]" in row["not_run"] and "torch" in row["not_run"] and "diffusers" in row["not_run"]


@pytest.mark.full
def test_the_programs_of_a_stream_are_counted(monkeypatch):
    """With a window shorter than what is streamed both are: filling and full."""
    from benchmarks.cpu import compile

    monkeypatch.setattr(compile, "start", lambda *given: {"compile_seconds": 2.0, "seconds": 3.0})
    figures = {figure.name: figure.value for figure in compile.run(1, "tiny")["figures"]}
    assert figures["programs of a stream's step"] == 2 and figures["compilations in blocks 2 to 12"] == 0
    assert figures["training: second start, compiling / first"] == 100.0


def test_what_was_asked_is_compared_with_the_end_that_it_is_asked_of():
    ratio = Ratio(1.1, 0.9, 1.3, 30)
    asked = {("low", ">=", 1.0): False, ("value", ">=", 1.0): True}
    asked |= {("high", "<=", 1.2): False, ("low", "<=", 1.0): True}
    assert {each: rows.Figure.of("x", ratio, asked=each).met for each in asked} == asked
    assert rows.Figure("x", 2.0).met is None


def test_a_row_is_one_line_of_json_and_reads_back():
    figures = [rows.Figure.of("a", Ratio(1.1, 1.0, 1.2, 3), asked=("low", ">=", 1.0), limit=2.0, share=0.55)]
    row = rows.row("n", "w", figures, config="0123abcd", flops=1e9, difference=1e-6)
    line = rows.line(row)
    assert "\n" not in line and KEYS <= set(row) and rows.text(json.loads(line)) == rows.text(row)
    assert "reached 55%" in rows.text(row) and "asked lower end >= 1: met" in rows.text(row)
    assert row["versions"]["jax"] == jax.__version__ and row["difference"] == 1e-6
    (tiny,) = rows.row("n", "w", figures, size="tiny")["figures"]
    assert tiny["asked"] is None and tiny["met"] is None


@pytest.mark.parametrize("name", cases.CASES)
def test_every_case_has_a_committed_row(name):
    (row,) = map(json.loads, (RESULTS / f"{name}.json").read_text().splitlines())
    assert row["name"] == name and row["size"] == "full" and KEYS <= set(row)
    assert bool(row["figures"]) != bool(row["not_run"]) and row["device"] and row["versions"]["jax"]
    rows.text(row)


def test_the_page_shows_what_the_rows_say():
    """And names every case; ``python -m benchmarks.tables`` writes it."""
    text = tables.PAGE.read_text()
    assert text == tables.page(text, tables.table(tables.rows()))
    described = text.partition(tables.MARKS[0])[0]
    assert all(f"| `{name}` |" in described for name in cases.CASES)


@pytest.mark.full
def test_the_module_runs_from_the_command_line(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-m", "benchmarks"]
    wrong = subprocess.run([*run, "nothing"], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: there is no benchmark 'nothing'")
    file = tmp_path / "rows.json"
    done = subprocess.run(
        [*run, "gpu_nfd310", "--tiny", "--pairs=2", f"--json={file}"],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = json.loads(file.read_text())
    assert row["size"] == "tiny" and row["figures"][0]["unit"] == "FPS" and row["figures"][0]["value"] > 0
