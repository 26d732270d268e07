"""Two processes save together in the background while they train, fail together, and walk back together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from causal_diffusion.checkpoint import Checkpoints
from tests.parallel import processes

pytestmark = pytest.mark.full

SCRIPT = """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from causal_diffusion.checkpoint import Checkpoints, manager, manifest, read_ema
    from causal_diffusion.errors import CheckpointError
    from causal_diffusion.parallel.distributed import initialise

    initialise()
    me = jax.process_index()
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    specs = {"a": P("data", "fsdp"), "b": P("fsdp"), "c": P(), "key": P()}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}

    def fresh():
        return {"a": jnp.arange(64.0 * 1024).reshape(64, 1024), "b": jnp.arange(512.0), "c": jnp.float32(3.0),
                "key": jax.random.key(0)}

    def step(s):
        mean = s["a"].mean() * 0 + 1  # crosses processes
        return s | {"a": s["a"] + mean, "b": s["b"] + 2 * mean, "c": s["c"] + mean}

    state = jax.jit(fresh, out_shardings=shardings)()
    step = jax.jit(step, out_shardings=shardings, donate_argnums=0)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                        jax.eval_shape(fresh), shardings)
    store = Checkpoints(sys.argv[1], keep=2)

    def save(number):
        store.save(number, ema={"c": state["c"]}, train=state, data={"position": number}, meta={})

    def check(found, steps):
        local = lambda x: [np.asarray(shard.data) for shard in x.addressable_shards]
        wanted = jax.jit(lambda: fresh() | {"a": fresh()["a"] + steps}, out_shardings=shardings)()
        for x, y in zip(local(found.train["a"]), local(wanted["a"]), strict=True):
            np.testing.assert_array_equal(x, y)

    # 1. Collectives of the step all the while, in place.
    for number in range(1, 7):
        state = step(state)
        if number % 2 == 0:
            save(number)
    store.wait()
    assert store.steps() == [4, 6], store.steps()
    found = store.restore({"train": like})
    assert (found.step, found.data) == (6, {"position": 6})
    check(found, 6)

    # 2. One of them cannot write: all are told, and nothing is left.
    intact = manifest._size_and_sha256
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")
    if me == 1:
        manifest._size_and_sha256 = fail
    state = step(state)
    save(7)
    try:
        store.wait()
    except CheckpointError as error:
        print("told:", error)
    manifest._size_and_sha256 = intact
    assert store.steps() == [4, 6]

    # 3. One of them cannot even make room.
    room = Checkpoints._make_room
    Checkpoints._make_room = fail
    try:
        save(8)
    except CheckpointError as error:
        print("told:", error)
    Checkpoints._make_room = room
    save(8)
    store.wait()

    # 4. One of them reads damage: all of them walk back.
    verify = manager.verify
    def damaged_for_one(folder, *arguments, **options):
        verify(folder, *arguments, **options)
        if me == 1 and folder.name == "8":
            raise manager.Damage("a bad cable")
    manager.verify = damaged_for_one
    found = store.restore({"train": like})
    assert (found.step, found.skipped) == (6, ((8, "a bad cable"),)), found.skipped
    check(found, 6)
    manager.verify = verify

    # 5. One of them writes for itself, and then all save together.
    if me == 0:
        own = Checkpoints(sys.argv[1] + "/own", alone=True, asynchronous=False)
        own.save(0, ema={"x": np.ones(3, np.float32)}, meta={})
    save(9)
    store.wait()

    # 6. Each reads for itself.
    c = read_ema(sys.argv[1], lambda key: {"c": jnp.float32(0)})["c"]
    assert c == 3.0 + 7 and c.devices() == {jax.local_devices()[0]}
    print("steps:", store.steps(), len(store.stalls))
"""


def test_together(tmp_path):
    ended = processes.run(SCRIPT, 2, tmp_path, timeout=200)
    for each in ended:
        assert each.code == 0, each.err
    there = "the last complete one is step 6; make room there or choose another place, then start again"
    for each in ended:
        told = [line for line in each.out.splitlines() if line.startswith("told:")]
        assert len(told) == 2
        for line, step in zip(told, (7, 8), strict=True):
            assert line.startswith(f"told: cannot save step {step} to {tmp_path}: ") and line.endswith(there)
            assert "No space left on device" in line
        assert "steps: [6, 9] 5" in each.out
    assert "process 1: No space left on device" in ended[0].out

    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    target = NamedSharding(mesh, P("fsdp", "data"))
    like = {"a": jax.ShapeDtypeStruct((64, 1024), jnp.float32, sharding=target),
            "b": jax.ShapeDtypeStruct((512,), jnp.float32), "c": jax.ShapeDtypeStruct((), jnp.float32),
            "key": jax.eval_shape(lambda: jax.random.key(0))}  # fmt: skip
    found = Checkpoints(tmp_path).restore({"train": like})
    assert (found.step, found.skipped) == (9, ())
    assert found.train["a"].sharding == target
    np.testing.assert_array_equal(found.train["a"], np.arange(64.0 * 1024, dtype=np.float32).reshape(64, 1024) + 7)
    np.testing.assert_array_equal(found.train["b"], np.arange(512.0, dtype=np.float32) + 14)
    assert Checkpoints(tmp_path / "own").restore({"ema": {"x": jax.ShapeDtypeStruct((3,), jnp.float32)}}).step == 0
