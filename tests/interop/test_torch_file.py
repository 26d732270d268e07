"""Files of torch's: their checksums are compared before torch sees them, and their tensors are read alike."""

import sys
import types
import warnings
import zipfile

import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.interop import guo_evaluator, wan_vae
from causal_diffusion.interop.torch_file import read_torch, read_torch_arrays


def archive(path, crc=True):
    """A zip archive as torch lays one out."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in (("data.pkl", b"\x80\x02}."), ("data/0", bytes(range(200))), ("version", b"3\n")):
            file.writestr(f"archive/{name}", content)
        if not crc:
            for member in file.infolist():
                member.CRC = 0
    return path


@pytest.fixture
def loaded(monkeypatch):
    """The files that were handed to torch, which is not needed here."""
    files = []
    torch = types.ModuleType("torch")
    torch.load = lambda file, **options: files.append(file.name) or {}
    monkeypatch.setitem(sys.modules, "torch", torch)
    return files


def test_no_flip_in_a_tensor_reaches_torch(tmp_path, loaded):
    path = archive(tmp_path / "a.pth")
    content = path.read_bytes()
    read_torch(path)
    assert len(loaded) == 1
    first = content.index(bytes(range(200)))
    for place in range(first, first + 200):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(UserError, match="a.pth: its member archive/data/0 does not match its checksum.*download"):
            read_torch(path)
    for length in (5, 100, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cannot read .*a.pth: it is a damaged or cut-off archive"):
            read_torch(path)
    assert len(loaded) == 1


def test_files_without_checksums_are_read_with_a_warning(tmp_path, loaded, caplog):
    read_torch(archive(tmp_path / "a.pth", crc=False))
    assert "a.pth has no checksums" in caplog.text
    (tmp_path / "b.tar").write_bytes(b"\x80\x02")
    read_torch(tmp_path / "b.tar")
    assert "b.tar is of torch's format without checksums" in caplog.text and len(loaded) == 2


@pytest.mark.parametrize("reader", [wan_vae.load, guo_evaluator.load])
@pytest.mark.parametrize(("content", "words"), [
    (b"version https://git-lfs.github.com/spec/v1\nsize 5\n", "git-lfs pointer to a file of 5 bytes"),
    (b"<html>", "is a web page"), (b"", "it is empty"),
])  # fmt: skip
def test_what_is_no_file_of_weights_does_not_reach_torch(tmp_path, loaded, reader, content, words):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError, match=words):
        reader(tmp_path / "a.pth")
    assert not loaded


@pytest.mark.oracle
def test_flips_in_a_file_of_torch_are_found_or_harmless(tmp_path):
    torch = pytest.importorskip("torch")
    wanted, path = {"a": torch.arange(40.0), "b": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "a.pth"
    torch.save({"state_dict": wanted}, path)
    content, found = path.read_bytes(), 0
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            arrays = read_torch_arrays(path)
        except UserError as refused:
            assert "\n" not in str(refused)
            found += 1
        else:
            assert list(arrays) == ["a", "b"] and np.array_equal(arrays["a"], np.arange(40.0))
            assert np.array_equal(arrays["b"], np.ones(3))
    assert found > len(content) / 3 * 0.2


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["sparse", "quantised", "int8", "nan"])
def test_tensors_that_are_no_parameters_are_named(tmp_path, kind):
    torch = pytest.importorskip("torch")
    x = torch.ones(2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = {"sparse": x.to_sparse, "quantised": lambda: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
                 "int8": x.to(torch.int8).clone, "nan": (x * float("nan")).clone}[kind]()  # fmt: skip
        torch.save({"encoder.conv_in.weight": value}, tmp_path / "a.pth")
        with pytest.raises(UserError, match="encoder.conv_in.weight|cannot read|holds not only"):
            weights = wan_vae._open(tmp_path / "a.pth")
            weights["encoder.conv_in.weight"]
