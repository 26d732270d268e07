"""A stream on eight devices is the stream on one."""

import json
import logging

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from causal_diffusion.checkpoint import Checkpoints
from causal_diffusion.config import to_json
from causal_diffusion.errors import UserError
from causal_diffusion.parallel.mesh import MeshConfig, make_mesh
from causal_diffusion.streaming.pipeline import Pipeline

BLOCKS, CONTEXT = 4, 4


def on_mesh(pipe, sizes):
    return Pipeline(pipe.config, jax.device_get(pipe.params), mesh=make_mesh(MeshConfig(*sizes)))


def close(found, wanted):
    assert np.max(np.abs(found - wanted)) <= 1e-5 * np.max(np.abs(wanted))


def compiled(caplog):
    """The programs of a pipeline that were compiled while ``jax.log_compiles`` was on."""
    programs = ("filling", "full", "init_state", "recache", "encode_condition")
    said = [record.getMessage() for record in caplog.records]
    return [name for line in said for name in programs if f"Compiling jit({name})" in line]


def used(leaf):
    return {axis for axes in leaf.sharding.spec for axis in ([axes] if isinstance(axes, str) else axes or ())}


@pytest.mark.parametrize(("name", "sizes"), [
    ("causal", (2, 2, 1, 2)),
    pytest.param("teacher", (2, 2, 1, 2), marks=pytest.mark.full),
    pytest.param("teacher", (8, 1, 1, 1), marks=pytest.mark.full),
    pytest.param("teacher", (1, 4, 1, 2), marks=pytest.mark.full),
    pytest.param("rolling", (2, 2, 1, 2), marks=pytest.mark.full),
    pytest.param("prefix", (4, 1, 1, 2), marks=pytest.mark.full),
    pytest.param("two_level", (4, 1, 1, 2), marks=pytest.mark.full),
    pytest.param("deep", (2, 2, 1, 2), marks=pytest.mark.full),
    pytest.param("int8", (2, 2, 1, 2), marks=pytest.mark.full),
    pytest.param("fused_rolling", (2, 2, 1, 2), marks=pytest.mark.full),
    pytest.param("per_token", (2, 1, 2, 2), marks=pytest.mark.full),
    pytest.param("window", (2, 1, 2, 2), marks=pytest.mark.full),
    pytest.param("registers", (2, 2, 2, 1), marks=pytest.mark.full),
])  # fmt: skip
def test_eight_devices_stream_what_one_does(pipeline, inputs, caplog, name, sizes):
    alone = pipeline(name)
    pipe, layout = on_mesh(alone, sizes), alone.recipe.layout
    context = layout.whole(CONTEXT)
    given = inputs(alone, 8, context, BLOCKS * layout.block + alone.rollout.waiting)
    wanted, stream = alone.stream(seed=3, **given), pipe.stream(seed=3, **given)
    wanted = [next(wanted) for _ in range(BLOCKS)]
    close(next(stream), wanted[0])
    with jax.log_compiles():
        for block in wanted[1:]:
            close(next(stream), block)
    assert compiled(caplog) == []  # what makes later blocks was compiled before the first one was shown
    state, parts = stream._mark.state, sizes[0] * sizes[1]
    assert all("data" in used(a) or "fsdp" in used(a) for a in jax.tree.leaves(state) if a.ndim and parts > 1)
    heads = [a for a in jax.tree.leaves(state.caches) if a.ndim == 5]
    assert all(("tensor" in used(a)) == (sizes[3] > 1) for a in heads)
    assert heads or alone.config.cache.kind == "none"


@pytest.mark.full
def test_a_session_does_there_all_that_it_does_elsewhere(pipeline, inputs, caplog, tmp_path):
    """Marked, rewound, started again, steered, saved and gone on with: each as on one device, by the same programs."""
    alone = pipeline("teacher")
    pipe = on_mesh(alone, (2, 2, 1, 2))
    given, said = inputs(alone, 8, CONTEXT, 16), []
    for each in (alone, pipe):
        stream, out = each.stream(seed=3, **given), []
        mark = stream.mark()
        out.append(next(stream))
        stream.rewind(mark)
        out.append(next(stream))
        stream.update({"label": 1}, recache=True)
        out.append(next(stream))
        stream.reset(5, context=given["context"][0])
        with jax.log_compiles(each is pipe):
            out.append(next(stream))
            stream.save(tmp_path / "stream")
            out += [next(each.resume(tmp_path / "stream")), next(stream)]
        said.append(out)
    for found, wanted in zip(said[1], said[0], strict=True):
        close(found, wanted)
    np.testing.assert_array_equal(said[1][0], said[1][1])
    np.testing.assert_array_equal(said[1][4], said[1][5])
    assert compiled(caplog) == []


@pytest.mark.full
def test_a_small_batch_is_whole_on_each_device_and_that_is_said(pipeline, inputs, caplog):
    alone = pipeline("causal")
    pipe, given = on_mesh(alone, (8, 1, 1, 1)), inputs(alone, 3, CONTEXT, 8)
    with caplog.at_level(logging.WARNING):
        stream = pipe.stream(seed=3, **given)
    assert "a batch of 3 does not divide over data 8 x fsdp 1 devices" in caplog.text
    assert "a multiple of 8 would be split" in caplog.text
    close(stream.take(2), alone.stream(seed=3, **given).take(2))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(stream._mark.state))
    caplog.clear()
    pipe.stream(seed=3, **inputs(alone, 8, 0, 0))
    assert not caplog.text


def test_parameters_lie_as_in_training(pipeline, tmp_path):
    """Read from a checkpoint, each device reads its part."""
    alone = pipeline("causal")
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, ema=alone.params, meta={"config": json.loads(to_json(alone.config))})
    params = Pipeline.from_checkpoint(tmp_path, mesh=MeshConfig(2, 2, 1, 2)).params
    jax.tree.map(np.testing.assert_array_equal, params, alone.params)
    assert params["block_0"]["attention"]["q"]["kernel"].sharding.spec == P(None, "tensor")
    assert params["block_0"]["mlp_out"]["kernel"].sharding.spec == P("tensor")
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(params))


def test_heads_that_do_not_divide_are_refused(pipeline):
    alone = pipeline("causal")
    with pytest.raises(UserError) as error:
        Pipeline(alone.config, alone.params, mesh=MeshConfig(2, 1, 1, 4))
    assert str(error.value) == ("model.heads is 2 and mesh.tensor is 4: each device has whole heads, "
                                "mesh.tensor = 2 would do")
