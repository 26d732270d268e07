"""Collectives are counted as often as they run, in bytes of one device."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from causal_diffusion.parallel.mesh import make_mesh
from causal_diffusion.training.collectives import Traffic, collectives

HEAD = "HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[]}\n\n"


def hlo(*lines, rest=""):
    """A program whose entry consists of these lines."""
    body = "\n".join(f"  {line}" for line in lines)
    return f"{HEAD}{rest}ENTRY %main.1_spmd (p.0: f32[8], p.1: f32[8]) -> f32[8] {{\n{body}\n}}\n"


@pytest.mark.parametrize(("line", "kind", "size"), [
    ("%a = f32[5120,1280]{1,0} all-gather(%x), channel_id=2, dimensions={0}", "all-gather", 4 * 5120 * 1280),
    ("ROOT %a = bf16[16]{0:T(256)(128)(2,1)} reduce-scatter(%x), to_apply=%add", "reduce-scatter", 32),
    ("%a = (f32[2,3]{1,0}, /*index=1*/bf16[4]{0}) all-reduce(%x, %y), to_apply=%add", "all-reduce", 24 + 8),
    ("%a = (f32[3]{0}, f32[3]{0}) all-to-all(%x, %y), replica_groups={{0,1}}", "all-to-all", 24),
    ("%a = pred[] all-reduce(%x), to_apply=%or", "all-reduce", 1),
    ("%a = (f32[4]{0}, f32[32]{0}) all-gather-start(%x), dimensions={0}", "all-gather", 128),
    ("%a = ((f32[4]{0}, s8[2]{0}), (f32[32]{0}, s8[16]{0})) all-gather-start(%x, %y)", "all-gather", 128 + 16),
    ("%a = (f8e4m3fn[64]{0}, f8e4m3fn[64]{0}, u32[], u32[]) collective-permute-start(%x)", "collective-permute", 64),
    ("%a = (f32[5]{0}, f32[5]{0}) all-reduce-start(%x, %y), to_apply=%add", "all-reduce", 40),
])
def test_one_instruction(line, kind, size):
    assert collectives(hlo(line)) == {kind: Traffic(1, size)}


def test_what_is_none_is_not_counted():
    assert collectives(hlo("%d = f32[32]{0} all-gather-done(%a)", "%e = f32[8]{0} add(%p.0, %all-reduce.3)",
                           '%f = f32[8]{0} fusion(%p.0), metadata={op_name="all-gather(x)"}')) == {}


def test_loops_turn_and_calls_call():
    """Ten turns, each of an inner loop of three turns, of a wrapped one, and of a loop whose turns are not known."""
    rest = "".join(
        f"%{name} (p.3: f32[8]) -> f32[8] {{\n  {line}\n}}\n\n"
        for name, line in {
            "inner": "ROOT %r = f32[8]{0} all-reduce(%p.3), to_apply=%add",
            "wrapped": "ROOT %r = f32[2]{0} reduce-scatter(%p.3), to_apply=%add",
            "outer": 'ROOT %w = f32[8]{0} while(%p.3), condition=%c, body=%inner, '
                     'backend_config={"known_trip_count":{"n":"3"}}\n'
                     "  %s = ((f32[8]{0}), f32[2]{0}) async-start(%p.3), calls=%wrapped\n"
                     "  %u = f32[8]{0} while(%p.3), condition=%c, body=%inner",
        }.items())  # fmt: skip
    outer = '%l = f32[8]{0} while(%p.0), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"10"}}'
    found = collectives(hlo(outer, "%q = f32[8]{0} conditional(%b), branch_computations={%inner, %wrapped}", rest=rest))
    assert found == {"all-reduce": Traffic(10 * (3 + 1) + 1, 41 * 32), "reduce-scatter": Traffic(11, 11 * 8)}


def test_of_a_real_program():
    """A scan of five turns that sums over eight devices, and a gather of its result."""
    mesh = make_mesh()

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=False)
    def f(x):
        def body(carry, _):
            return carry * jax.lax.psum(carry, "data"), None

        carry, _ = jax.lax.scan(body, x, None, length=5)
        return jax.lax.all_gather(carry, "data", tiled=True)

    found = collectives(f.lower(jnp.ones((64, 3))).compile().as_text())
    assert found == {"all-gather": Traffic(1, 64 * 3 * 4), "all-reduce": Traffic(5, 5 * 8 * 3 * 4)}
