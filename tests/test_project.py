"""The project around the code: floors, style, packaging, pinned versions, and the gate of the second tier."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import warnings
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sysconfig.get_path("scripts"))
TESTED_PYTHONS = ("3.11", "3.12")


def run(*command, cwd=ROOT, env=None):
    """Runs a command: its exit code, and its two outputs as one text."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def tracked_copy(destination):
    """A copy of what a distribution is made from, without caches and environments."""
    for name in ("causal_diffusion", "configs"):
        shutil.copytree(ROOT / name, destination / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, destination)
    return destination


@pytest.fixture
def setup_arguments(monkeypatch):
    """What setup.py hands to setuptools, which itself need not be installed."""
    caught = {}
    fake = SimpleNamespace(setup=caught.update, find_packages=lambda include: [])
    monkeypatch.setitem(sys.modules, "setuptools", fake)
    runpy.run_path(str(ROOT / "setup.py"))
    return caught


# The floors.


def lint_imports(cwd):
    return run(SCRIPTS / "lint-imports", "--no-cache", cwd=cwd)


def test_the_floors_hold():
    code, said = lint_imports(ROOT)
    assert code == 0, said


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("nn/bad.py", "from causal_diffusion.training import loop", "floors"),
        ("recipe_helper.py", "import numpy", "floors"),  # a new top-level module has to name its floor
        ("streaming/bad.py", "def later():\n    import causal_diffusion.interop", "floors"),
        ("data/bad.py", "import causal_diffusion.render", "floors"),
        ("diffusion/bad.py", "from causal_diffusion.layout import Layout", "floors"),
        ("diffusion/bad.py", "from causal_diffusion.errors import UserError", "pure"),
        ("diffusion/bad.py", "import flax.linen as nn", "pure"),
        ("streaming/bad.py", "import torch", "torch"),
        ("nn/bad.py", "from causal_diffusion import Pipeline", "face"),
    ],
)
def test_a_bad_import_breaks_the_floors(tmp_path, module, line, contract):
    copy = tracked_copy(tmp_path)
    (copy / "causal_diffusion/interop").mkdir(exist_ok=True)
    (copy / "causal_diffusion/interop/__init__.py").touch()
    (copy / "causal_diffusion" / module).write_text(line + "\n")
    code, said = lint_imports(copy)
    names = re.findall(r'id = "(\w+)"\nname = "(.+)"', (ROOT / "pyproject.toml").read_text())
    broken = {short for short, name in names if f"{name} BROKEN" in said}
    assert code == 1 and broken == {contract}, said


# Style and strictness.


def test_ruff_is_clean():
    code, said = run(SCRIPTS / "ruff", "check", "--no-cache", "--output-format=concise", ".")
    assert code == 0, said


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("import os\n", "F401"),
        ("x = " + "1 + " * 30 + "1\n", "E501"),
        ("def f(x=[]):\n    return x\n", "B006"),
        ("import sys\nimport os\nprint(os, sys)\n", "I001"),
        ("from typing import List\n\nx: List = []\n", "UP035"),
    ],
)
def test_ruff_refuses_bad_style(tmp_path, source, rule):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "bad.py").write_text(source)
    code, said = run(SCRIPTS / "ruff", "check", "--no-cache", "--output-format=concise", ".", cwd=tmp_path)
    assert code == 1 and rule in said, said


def test_warnings_are_errors():
    with pytest.raises(DeprecationWarning):
        warnings.warn("old", DeprecationWarning, stacklevel=1)


def test_a_test_that_uses_another_projects_network_is_marked_oracle():
    use = re.compile(r"^\s*(import|from) (torch|diffusers|transformers)\b|importorskip\(", re.M)
    files = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    unmarked = [
        str(path.relative_to(ROOT))
        for path in files
        if use.search(text := path.read_text()) and "mark.oracle" not in text
    ]
    assert files and not unmarked


# Versions and dependencies.


def test_the_version_is_the_same_everywhere(setup_arguments):
    version = setup_arguments["version"]
    assert f'__version__ = "{version}"' in (ROOT / "causal_diffusion/__init__.py").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def third_party_imports(*paths):
    """Top-level names that files or folders import from neither the standard library nor the project and its tests."""
    names = set()
    for path in paths:
        for file in path.rglob("*.py") if path.is_dir() else [path]:
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    names |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"causal_diffusion", "tests", "benchmarks"}


def test_every_import_is_declared(setup_arguments):
    extras = setup_arguments["extras_require"]
    declared = {Requirement(r).name for r in setup_arguments["install_requires"]}
    distributions = packages_distributions()

    def undeclared(paths, allowed):
        allowed = {canonicalize_name(name) for name in allowed}
        return {
            name
            for name in third_party_imports(*paths)
            if not allowed & {canonicalize_name(d) for d in distributions.get(name, [name])}
        }

    package = ROOT / "causal_diffusion"
    apart = ("interop", "live.py", "__pycache__", "py.typed")
    library = [path for path in package.iterdir() if path.name not in apart]
    assert "jax" in third_party_imports(*library)
    assert not undeclared([*library, ROOT / "configs", ROOT / "train.py", ROOT / "sample.py"], declared)
    interop = declared | {Requirement(r).name for r in extras["interop"]}
    assert not undeclared((package / "interop").rglob("*.py"), interop)
    assert not undeclared([package / "live.py"], declared | {Requirement(r).name for r in extras["live"]})
    assert not undeclared([ROOT / "benchmarks"], declared | {Requirement(r).name for r in extras["bench"]})
    assert not undeclared([ROOT / "tests"], interop | {Requirement(r).name for r in extras["test"]})


@pytest.mark.parametrize("python", TESTED_PYTHONS)
def test_the_tested_versions_satisfy_what_setup_asks_for(setup_arguments, python):
    environment = {"python_version": python}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {}
    for pin in map(Requirement, lines):
        if pin.marker is None or pin.marker.evaluate(environment):
            assert canonicalize_name(pin.name) not in pins, f"{pin.name} is pinned twice for Python {python}"
            pins[canonicalize_name(pin.name)] = pin.specifier
    extras = setup_arguments["extras_require"]
    asked = setup_arguments["install_requires"].copy()
    asked += [wanted for name in ("test", "interop", "live", "bench") for wanted in extras[name]]
    for wanted in map(Requirement, asked):
        (pin,) = pins[canonicalize_name(wanted.name)]
        assert pin.operator == "==" and wanted.specifier.contains(Version(pin.version)), wanted


# What is shipped.


@pytest.mark.full
def test_a_wheel_holds_the_whole_package_and_the_configs(tmp_path):
    (tmp_path / "source").mkdir()
    source = tracked_copy(tmp_path / "source")
    code, said = run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, source)
    assert code == 0, said
    (wheel,) = tmp_path.glob("causal_diffusion-*.whl")
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for path in source.glob("causal_diffusion/**/*") if path.is_file()]
    package = {path.relative_to(source).as_posix() for path in files if "__pycache__" not in path.parts}
    configs = {f"causal_diffusion/configs/{path.name}" for path in source.glob("configs/*.py")}
    assert {"causal_diffusion/py.typed", "causal_diffusion/render/live/index.html"} < package
    assert configs and shipped == package | configs


# The README's test line and the gate of the second tier.


def test_the_readme_has_one_test_line():
    fenced = re.findall(r"^```.*?\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    lines = [line for block in fenced for line in block.splitlines()]
    (line,) = [line for line in lines if "-m venv" in line and "pytest" in line]
    assert line.startswith("python3 -m venv .venv") and "-c constraints.txt" in line
    assert line.endswith(".venv/bin/pytest -q -n 2 --dist worksteal")


def second_tier(folder, source, gate=("-p", "oracle_gate"), processes=()):
    """Runs the second tier over a project of one test file, as `.ci/run` does."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "tests").mkdir(exist_ok=True)
    (folder / "tests/test_it.py").write_text("import pytest\n" + source)
    command = (sys.executable, "-m", "pytest", "-q", *processes, *gate, "-m", "full or oracle")
    return run(*command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT / ".ci")})


GOOD_ORACLE = "@pytest.mark.oracle\ndef test_good():\n    pass\n"


BAD_ORACLE = GOOD_ORACLE + "@pytest.mark.oracle\ndef test_skips():\n    pytest.skip('no footage')"
TWO = ("-n", "2", "--dist", "worksteal")


@pytest.mark.parametrize(
    ("source", "passes", "processes"),
    [
        (GOOD_ORACLE, True, ()),
        pytest.param(GOOD_ORACLE, True, TWO, marks=pytest.mark.full),
        (BAD_ORACLE, False, ()),
        pytest.param(BAD_ORACLE, False, TWO, marks=pytest.mark.full),
        (GOOD_ORACLE + "@pytest.mark.oracle\n@pytest.mark.skip\ndef test_skips():\n    pass", False, ()),
        (GOOD_ORACLE + "@pytest.mark.full\ndef test_skips():\n    pytest.importorskip('no_such')", False, ()),
        pytest.param("pytest.importorskip('no_such', reason='no')\n" + GOOD_ORACLE, False, TWO, marks=pytest.mark.full),
        ("@pytest.mark.full\ndef test_not_an_oracle():\n    pass", False, ()),
        pytest.param("@pytest.mark.full\ndef test_not_an_oracle():\n    pass", False, TWO, marks=pytest.mark.full),
    ],
    ids=["runs", "runs, two", "skips", "skips, two", "skip mark", "import skip", "module skips", "none", "none, two"],
)
def test_a_missing_oracle_fails_the_second_tier(tmp_path, source, passes, processes):
    code, said = second_tier(tmp_path, source, processes=processes)
    assert (code == 0) is passes, said


def test_without_the_gate_a_missing_oracle_would_pass(tmp_path):
    source = GOOD_ORACLE + "@pytest.mark.oracle\n@pytest.mark.skip\ndef test_skips():\n    pass"
    assert second_tier(tmp_path, source, gate=())[0] == 0
