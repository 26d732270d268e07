"""Parameters in one file: bit for bit those of the checkpoint, whole or refused, readable by others."""

import json
import os
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from causal_diffusion.checkpoint import Checkpoints
from causal_diffusion.checkpoint.weights_file import read_weights, write_weights
from causal_diffusion.config import freeze, load_config, to_json
from causal_diffusion.errors import CheckpointError, UserError
from causal_diffusion.export import export, main, read_export
from causal_diffusion.exported import read_stream
from causal_diffusion.recipe import build
from causal_diffusion.streaming.pipeline import Pipeline

CONFIG = freeze(load_config("quickstart:tiny", {"model.width": 12, "model.heads": 2, "model.mlp": 16,
                                                 "model.depth": 2, "train.steps": 7}))  # fmt: skip


def random_params(seed):
    tree = jax.eval_shape(build(CONFIG).streaming().init_params, jax.random.key(0))
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(structure, [rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with steps 3 and 7; the parameters of either."""
    workdir, params = tmp_path_factory.mktemp("run"), {3: random_params(3), 7: random_params(7)}
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        for step, ema in params.items():
            meta = {"config": json.loads(to_json(CONFIG)), "body": None, "note": "ä"}
            checkpoints.save(step, ema=ema, train={"key": jax.random.key(0)}, meta=meta)
    return workdir, params


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize(("step", "which"), [(None, 7), (3, 3)])
def test_round_trip(run, tmp_path, step, which):
    workdir, params = run
    said = export(workdir, tmp_path / "new" / "a.safetensors", step)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(params[which]))
    arrays = len(jax.tree.leaves(params[7]))
    assert said.endswith(f"a.safetensors: {arrays} arrays, {numbers:,} parameters of step {which}")
    found, config, meta = read_export(tmp_path / "new" / "a.safetensors")
    assert_same(found, params[which])
    assert config == CONFIG
    assert meta == {"step": which, "body": None, "note": "ä"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"]


def test_anybody_can_read_it(run, tmp_path):
    workdir, params = run
    export(workdir / "checkpoints", tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        names = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
                 for path, leaf in jax.tree_util.tree_leaves_with_path(params[7])}  # fmt: skip
        assert set(file.keys()) == set(names)
        for name in file.keys():
            np.testing.assert_array_equal(file.get_tensor(name), names[name])
        assert json.loads(file.metadata()["config"]) == json.loads(to_json(CONFIG))


def test_the_command(run, tmp_path, capsys):
    main([f"--checkpoint={run[0]}", f"--out={tmp_path / 'a.safetensors'}", "--step=3"])
    assert "parameters of step 3" in capsys.readouterr().out
    assert_same(read_export(tmp_path / "a.safetensors")[0], run[1][3])
    with pytest.raises(UserError, match="--out is a.bin: it ends in .safetensors"):
        main([f"--checkpoint={run[0]}", "--out=a.bin"])
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        main([f"--checkpoint={tmp_path / 'none'}", f"--out={tmp_path / 'b.safetensors'}"])
    assert not (tmp_path / "b.safetensors").exists()


def test_a_damaged_checkpoint_is_passed_over_and_named(run, tmp_path):
    workdir, params = tmp_path / "run", run[1]
    store = Checkpoints(workdir, asynchronous=False)
    for step in (3, 7):
        store.save(step, ema=params[step], meta={"config": json.loads(to_json(CONFIG))})
    data = max((workdir / "7" / "ema").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    said = export(workdir, tmp_path / "a.safetensors")
    assert "checkpoint 7 is damaged (" in said and "does not match its checksum): using 3" in said
    assert_same(read_export(tmp_path / "a.safetensors")[0], params[3])


ARRAYS = {"half": jnp.asarray([1 / 3, jnp.nan, jnp.inf, -0.0], jnp.bfloat16), "scalar": np.float32(0.1),
          "none": np.zeros((0, 3), np.float32), "ints": np.arange(6, dtype=np.int32).reshape(2, 3).T,
          "bytes": np.uint8([7]), "bool": np.array([[True], [False]]), "float16": np.float16([[0.1]])}  # fmt: skip


def test_every_dtype_comes_back_bit_for_bit(tmp_path):
    write_weights(tmp_path / "a.safetensors", ARRAYS, {"note": "ä"})
    found, metadata = read_weights(tmp_path / "a.safetensors")
    assert metadata == {"note": "ä"}
    assert_same(found, {name: np.asarray(array) for name, array in ARRAYS.items()})


def test_one_flipped_byte_is_found_or_harmless(tmp_path):
    """Every byte of a small file in turn. Flipped spaces of the header's padding change nothing that is read."""
    path = tmp_path / "a.safetensors"
    write_weights(path, ARRAYS, {"note": "x"})
    intact, found = path.read_bytes(), 0
    wanted = {name: np.asarray(array) for name, array in ARRAYS.items()}
    size = struct.unpack("<Q", intact[:8])[0] + 8
    for position in [*range(0, size, 3), *range(size, len(intact))]:
        content = bytearray(intact)
        content[position] ^= 4
        path.write_bytes(content)
        try:
            again, _ = read_weights(path)
        except CheckpointError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            found += 1
        else:
            assert position < size
            assert_same(again, wanted)
    assert found > len(intact) - size


@pytest.mark.parametrize("content", [b"", b"not such a file", None, "cut"])
def test_what_is_no_export(tmp_path, content):
    path = tmp_path / "a.safetensors"
    if content == "cut":
        write_weights(path, ARRAYS, {})
        os.truncate(path, path.stat().st_size - 3)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"cannot read {path}"):
        read_export(path)


def test_files_of_others_are_refused(tmp_path):
    save_file({"a": np.ones(3)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="has no checksum: another program wrote it"):
        read_export(tmp_path / "a.safetensors")
    write_weights(tmp_path / "b.safetensors", {"a": np.ones(3)}, {"format": "causal_diffusion 9"})
    with pytest.raises(CheckpointError, match="is 'causal_diffusion 9', not 'causal_diffusion 1'"):
        read_export(tmp_path / "b.safetensors")


def test_a_full_disk_leaves_the_old_one(run, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    export(run[0], path, 3)

    def fail(descriptor):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(CheckpointError, match=f"cannot write {path}: No space left on device"):
            export(run[0], path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]
    assert_same(read_export(path)[0], run[1][3])


# The stream of a run; its bits and what it refuses are in streaming/test_exporting.py.


@pytest.mark.full
def test_the_command_writes_a_stream(run, tmp_path, capsys):
    out, elastic = tmp_path / "stream", "--config.schedule.steps=1"
    arguments = ["--stream", "--step=3", "--batch=2", "--platforms=cpu,tpu", elastic]
    main([f"--checkpoint={run[0]}", f"--out={out}", *arguments])
    said = capsys.readouterr().out
    assert str(out) in said and "for cpu, tpu, batch 2, 0 frames of context" in said
    programs = read_stream(out)
    assert programs.meta["config"]["schedule"]["steps"] == 1 and programs.meta["jax"] == jax.__version__
    pipeline = Pipeline.from_checkpoint(run[0], step=3, overrides={"schedule.steps": 1})
    wanted = pipeline.stream(seed=2, batch=2, cond={"label": 4}).next()
    np.testing.assert_array_equal(programs.start(2, label=4).next(), wanted)


@pytest.mark.parametrize(("arguments", "words"), [
    (["--config.schedule.steps=1", "--out=a.safetensors"], "schedule.steps=1 changes a stream, and --stream is not"),
    (["--stream", "--out=a", "--config.model.width=16"], "model.width is 12 in this checkpoint and cannot become 16"),
    (["--stream", "--out=a", "--platforms=cpu,gpu"], "platforms has 'gpu'"),
    (["--out=a", "--steam"], "unknown argument '--steam'"),
])
def test_mistakes_of_the_command(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        main([f"--checkpoint={run[0]}", *arguments])
    assert not list(tmp_path.iterdir())
