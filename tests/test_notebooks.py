"""The notebooks: committed without outputs, and executed from top to bottom at tiny size."""

import ast
import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOTION = Path(os.environ.get("CD_SHARED_DATA", ROOT.parent / "shared" / "data")) / "motion"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHOWN = {  # clips that play inline, pictures, and words that are printed
    "family": (1, 4, ["look-ahead", "last frame copied", "real time, 4 in flight"]),
    "motion": (2, 6, ["67 of them essential", "K = 12, U = 4: 3 latents in flight, a look-ahead of 0.4 s", "--che"]),
    "quickstart": (3, 1, ["held-out next-frame PSNR"]),
    "streaming": (0, 6, ["digit recognised in frames", "look-ahead, four in flight", "rewound and resumed"]),
}
RUNS = {path.stem: path for path in NOTEBOOKS}
if MOTION.is_dir():
    RUNS["motion, of real clips"] = RUNS["motion"]  # else, and first, of the synthetic ones that it makes


def cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_there_are_some():
    assert [path.stem for path in NOTEBOOKS] == list(SHOWN)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_without_outputs_and_is_python(path):
    for cell in cells(path):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        ast.parse("".join(cell["source"]))
    metadata = json.loads(path.read_text())["metadata"]
    assert metadata["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_public_names_exist(path):
    """What it takes from the package is there, so that a renamed function is noticed in the first tier."""
    import importlib.util

    import causal_diffusion as cd

    def exists(module, name):
        return hasattr(module, name) or importlib.util.find_spec(f"{module.__name__}.{name}") is not None

    source = "\n".join("".join(cell["source"]) for cell in cells(path))
    assert set(re.findall(r"\bcd\.(\w+)", source)) <= set(cd.__all__)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("causal_diffusion"):
            module = importlib.import_module(node.module)
            assert all(exists(module, alias.name) for alias in node.names)


@pytest.mark.full
@pytest.mark.filterwarnings("default")  # Jupyter's own
@pytest.mark.parametrize("name", RUNS)
def test_it_runs(name, tmp_path, monkeypatch):
    import nbclient  # heavy, and needed here alone
    import nbformat

    monkeypatch.setenv("CD_NOTEBOOK_VARIANT", ":tiny")
    monkeypatch.setenv("CD_NOTEBOOK_WORKDIR", str(tmp_path / "run"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("CD_NOTEBOOK_MOTION", str(tmp_path / "motion"))
    if name.endswith("real clips"):
        (tmp_path / "motion").mkdir()
        for file in ("bandai_train_03-of-05.npz", "bandai_test.npz"):  # a fifth of the clips
            (tmp_path / "motion" / file).symlink_to(MOTION / file)
    path = RUNS[name]
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    shown = [kind for output in outputs for kind in output.get("data", {})]
    played = [output for output in outputs if "<video" in output.get("data", {}).get("text/html", "")]
    clips, pictures, words = SHOWN[path.stem]
    assert shown.count("image/gif") + len(played) == clips and shown.count("image/png") == pictures
    text = "".join(output.get("text", "") for output in outputs)
    assert all(word in text for word in words)
    assert list((tmp_path / "run").glob("**/checkpoints"))
