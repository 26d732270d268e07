"""Weights of other programs: every form of the same network is read alike, and what cannot be is refused by name."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from causal_diffusion.checkpoint.foreign import named_arrays, open_weights
from causal_diffusion.errors import UserError
from causal_diffusion.nn.perceptual import lpips_weights
from causal_diffusion.nn.text import weights as text_weights

RNG = np.random.default_rng(0)
NET = {
    "encoder.in.weight": RNG.standard_normal((3, 4)).astype(np.float32),
    "encoder.in.bias": RNG.standard_normal(3).astype(np.float32),
    "out.weight": RNG.standard_normal((2, 3)).astype(np.float32),
}
ANCHOR = "encoder.in.weight"


def raw(path, arrays, dtype, **header):
    """A .safetensors file whose arrays have a dtype that NumPy lacks a name for."""
    at, parts, entries = 0, [], {}
    for name, array in arrays.items():
        parts.append(array.tobytes())
        entries[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(entries | header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
    return path


def as_type(dtype):
    return {name: array.astype(dtype) for name, array in NET.items()}


def same(weights, wanted=NET):
    assert weights.shapes.keys() == wanted.keys()
    for name, array in wanted.items():
        assert weights[name].dtype == np.float32
        np.testing.assert_array_equal(weights[name], np.asarray(array, np.float32))


def shard(folder, stem, variant=""):
    """As diffusers and transformers name shards, with and without a variant."""
    where = {name: f"{stem}{variant}-0000{i + 1}-of-00003.safetensors" for i, name in enumerate(NET)}
    for name, file in where.items():
        save_file({name: NET[name]}, folder / file)
    index = folder / f"{stem}.safetensors.index{variant}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


FORMS = {
    "one file": lambda f: save_file(NET, f / "model.safetensors"),
    "variant": lambda f: save_file(NET, f / "model.fp16.safetensors"),
    "other variant": lambda f: save_file(NET, f / "model.bf16.safetensors"),
    "shards": lambda f: shard(f, "model"),
    "shards of a variant": lambda f: shard(f, "model", ".fp16"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_folder_is_read(tmp_path, form):
    FORMS[form](tmp_path)
    same(open_weights(tmp_path).within(ANCHOR))


PREFIXES = ["", "module.", "vae.", "first_stage_model.", "model.diffusion_model.", "_orig_mod."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_stands_before_every_name_is_left_out(tmp_path, prefix):
    other = {"cond_stage_model.x": np.ones(2, np.float32)} if prefix else {}
    save_file({prefix + name: array for name, array in NET.items()} | other, tmp_path / "a.safetensors")
    same(open_weights(tmp_path / "a.safetensors").within("not.there", ANCHOR))


def test_two_networks_in_one_file_are_named(tmp_path):
    save_file({p + name: array for p in ("net.", "ema.") for name, array in NET.items()}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="several networks, named ema., net.: try"):
        open_weights(tmp_path / "a.safetensors").within(ANCHOR)


@pytest.mark.parametrize(("dtype", "name"), [
    (np.float16, "F16"), (ml_dtypes.bfloat16, "BF16"), (np.float64, "F64"), (ml_dtypes.float8_e4m3fn, "F8_E4M3"),
    (ml_dtypes.float8_e5m2, "F8_E5M2"),
])  # fmt: skip
def test_floats_of_every_width_become_float32(tmp_path, dtype, name):
    same(open_weights(raw(tmp_path / "a.safetensors", as_type(dtype), name)), as_type(dtype))


@pytest.mark.parametrize(("dtype", "name", "said"), [
    (np.int8, "I8", "int8"), (np.uint8, "U8", "uint8"), (np.int64, "I64", "int64"), (np.bool_, "BOOL", "bool"),
    (np.uint8, "F8_E8M0", "F8_E8M0"),
])  # fmt: skip
def test_what_is_no_number_of_a_network_is_refused_by_name(tmp_path, dtype, name, said):
    weights = open_weights(raw(tmp_path / "a.safetensors", as_type(dtype), name))
    with pytest.raises(UserError, match=f"out.weight is {said}, and parameters are floating-point .*: try"):
        weights["out.weight"]


@pytest.mark.parametrize("scale", ["out.scale_weight", "out.weight_scale", "out.weight_scale_inv", "scaled_fp8"])
def test_float8_with_scales_is_refused(tmp_path, scale):
    arrays = as_type(ml_dtypes.float8_e4m3fn) | {scale: np.ones(1, ml_dtypes.float8_e4m3fn)}
    with pytest.raises(UserError, match=rf"a.safetensors: .* is float8_e4m3fn with scales beside it \({scale}\)"):
        open_weights(raw(tmp_path / "a.safetensors", arrays, "F8_E4M3"))


@pytest.mark.parametrize(("value", "dtype"), [
    (np.nan, np.float32), (np.inf, np.float16), (-np.inf, np.float32), (1e300, np.float64),
])  # fmt: skip
def test_values_that_are_not_finite_are_refused_by_name_and_place(tmp_path, value, dtype):
    changed = as_type(dtype)
    changed["out.weight"][1, 2] = value
    save_file(changed, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"out.weight\[1, 2\] is -?(nan|inf), which is not finite"):
        open_weights(tmp_path / "a.safetensors")["out.weight"]


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 507591892\n"
NOT_WEIGHTS = {
    "git-lfs": (LFS, "is a git-lfs pointer to a file of 507,591,892 bytes, .*try `git lfs pull`"),
    "empty": (b"", "it is empty"),
    "a web page": (b"\n<!DOCTYPE html><html>", "is a web page"),
    "text": (b"not tensors", "does not begin as"),
    "a pickle": (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.", "it is a pickle; try naming it .pth"),
    "zeros": (bytes(4096), "its header is damaged"),
    "nested": (struct.pack("<Q", 100_000) + b"[" * 100_000, r"its header is damaged \(it is nested too deeply\)"),
}


@pytest.mark.parametrize("kind", NOT_WEIGHTS)
@pytest.mark.parametrize("reader", ["folder", "file", "lpips", "text"])
def test_what_is_no_file_of_weights_is_told_apart_in_every_importer(tmp_path, kind, reader):
    content, words = NOT_WEIGHTS[kind]
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    read = {"folder": open_weights, "file": open_weights, "lpips": lpips_weights, "text": text_weights.open_weights}
    with pytest.raises(UserError, match=words) as refused:
        read[reader](tmp_path if reader in ("folder", "text") else file)
    assert "\n" not in str(refused.value)


def test_every_cut_of_a_file_is_found(tmp_path):
    save_file(NET, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    for length in range(len(content)):
        (tmp_path / "a.safetensors").write_bytes(content[:length])
        with pytest.raises(UserError, match="cut off|is empty|damaged"):
            open_weights(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(content + b"x")
    with pytest.raises(UserError, match="bytes, and .* by its header"):
        open_weights(tmp_path / "a.safetensors")


def test_flips_in_a_header_are_refused_in_one_line_or_change_no_value(tmp_path):
    save_file(NET, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    known = {array.tobytes() for array in NET.values()}
    for place in range(8 + struct.unpack("<Q", content[:8])[0]):
        (tmp_path / "a.safetensors").write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            weights = open_weights(tmp_path / "a.safetensors")
            found = {weights[name].tobytes() for name in weights.shapes if name in NET}
        except UserError as refused:
            assert "\n" not in str(refused)
        else:
            assert found <= known


@pytest.mark.parametrize(("change", "words"), [
    (lambda f: (f / "model-00002-of-00003.safetensors").unlink(), "lists model-00002-of-00003.safetensors, which is n"),
    (lambda f: (f / "model-00002-of-00003.safetensors").write_bytes(LFS), "00002-of-00003.safetensors is a git-lfs"),
    (lambda f: save_file({"x": NET[ANCHOR]}, f / "model-00002-of-00003.safetensors"), "which does not have it"),
    (lambda f: save_file(NET, f / "model-00002-of-00003.safetensors"), "hold the same tensor"),
    (lambda f: (f / "model.safetensors.index.json").write_bytes(LFS), "index.json is a git-lfs"),
    (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {}}'), "names no files"),
    (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'), "names no files"),
])  # fmt: skip
def test_damaged_sets_of_shards_are_refused(tmp_path, change, words):
    change(shard(tmp_path, "model"))
    with pytest.raises(UserError, match=words):
        open_weights(tmp_path)


def test_wrong_paths_say_what_is_there(tmp_path):
    with pytest.raises(UserError, match=f"there is no .*absent.safetensors: {tmp_path} holds nothing"):
        open_weights(tmp_path / "absent.safetensors")
    for name in ("model.fp16.safetensors", "model.bf16.safetensors"):
        save_file(NET, tmp_path / name)
    with pytest.raises(UserError, match="2 variants, model.bf16.safetensors, model.fp16.safetensors: try"):
        open_weights(tmp_path)
    with pytest.raises(UserError, match="has no other.safetensors, it holds model.bf16"):
        open_weights(tmp_path, stem="other")
    (tmp_path / "other.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="has other.bin, a pickle, and no other.safetensors: convert it"):
        open_weights(tmp_path, stem="other", convert="convert it")
    same(open_weights(tmp_path, stem="other", read_pickle=lambda path: NET))
    with pytest.raises(UserError, match="neither .safetensors nor .npz"):
        open_weights(__file__)


def test_a_flipped_archive_of_arrays_is_found(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **NET)
    same(open_weights(path))
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            same(open_weights(path))
        except UserError as refused:
            assert "a.npz" in str(refused)


@pytest.mark.parametrize("key", ["state_dict", "model", "ema", "params"])
def test_networks_inside_a_dict_are_found(key):
    def arrays(content):
        return named_arrays("a.pth", content, lambda value: isinstance(value, np.ndarray), (ANCHOR,))

    assert arrays(NET) == NET
    assert arrays({key: NET, "step": 3, "optimizer": {"state": {}}}) == NET
    assert arrays({key: NET, "disc": {"d.weight": NET["out.weight"]}}) == NET
    with pytest.raises(UserError, match=f"several networks, named {key}, other"):
        arrays({key: NET, "other": NET})
    with pytest.raises(UserError, match="step is a int; tensors by name"):
        arrays({"step": 3})
    with pytest.raises(UserError, match="y is a list; tensors by name"):
        arrays(NET | {"y": []})
