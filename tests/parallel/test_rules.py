"""Where parameters lie: by rule, by size, and the same for the optimizer's moments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from causal_diffusion.parallel.mesh import MeshConfig, make_mesh
from causal_diffusion.parallel.rules import describe, param_shardings


def abstract(**leaves):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in leaves.items()}


def specs(tree, mesh, **options):
    return jax.tree.map(lambda sharding: sharding.spec, param_shardings(tree, mesh, **options))


@pytest.fixture(params=[MeshConfig(4, 2), MeshConfig(2, 4), MeshConfig(1, 8)], ids=str)
def mesh(request):
    return make_mesh(request.param)


def test_by_size(mesh):
    tree = abstract(up=(512, 2048), down=(2048, 512), square=(512, 512), stack=(30, 512, 512),
                    bias=(2048,), odd=(513, 515), wide_but_odd=(2047, 512), scalar=(), large=(2**18,))
    assert specs(tree, mesh) == {
        "up": P(None, "fsdp"), "down": P("fsdp"), "square": P(None, "fsdp"), "stack": P(None, None, "fsdp"),
        "bias": P(), "odd": P(), "wide_but_odd": P(None, "fsdp"), "scalar": P(), "large": P("fsdp")}


def test_min_size_is_where_splitting_starts(mesh):
    tree = abstract(kernel=(8, 16))
    assert specs(tree, mesh, min_size=128) == {"kernel": P(None, "fsdp")}
    assert specs(tree, mesh, min_size=129) == {"kernel": P()}


def test_one_fsdp_part_replicates_everything():
    tree = abstract(kernel=(512, 2048), embedding=(1000, 512))
    assert specs(tree, make_mesh(MeshConfig(8, 1))) == {"kernel": P(), "embedding": P()}


def test_first_matching_rule_wins_over_size(mesh):
    rules = [("attention/[qkv]/kernel", ("fsdp", None)), (r"(q|o)/kernel", (None, ("data", "fsdp"))),
             ("kernel", ())]
    tree = {"attention": {name: abstract(kernel=(512, 512)) for name in "qo"},
            "fake_attention": {"q": abstract(kernel=(512, 512))},
            "mlp": abstract(kernel=(512, 2048))}
    found = specs(tree, mesh, rules=rules)
    assert found["attention"]["q"] == {"kernel": P("fsdp", None)}
    assert found["attention"]["o"] == {"kernel": P(None, ("data", "fsdp"))}
    assert found["mlp"] == {"kernel": P()}
    # A pattern matches whole components of the path: this is not "attention/q/kernel".
    assert found["fake_attention"] == {"q": {"kernel": P(None, ("data", "fsdp"))}}


def test_rules_are_aligned_to_the_last_dimensions(mesh):
    assert specs(abstract(kernel=(30, 64, 64)), mesh, rules=[("kernel", ("fsdp", None))]) == {
        "kernel": P(None, "fsdp", None)}


def test_tables_stay_whole(mesh):
    tree = {"class": abstract(embedding=(4096, 512)), "head": abstract(kernel=(4096, 512))}
    assert specs(tree, mesh) == {"class": {"embedding": P()}, "head": {"kernel": P("fsdp")}}


@pytest.mark.parametrize(("axes", "message"), [
    (("fsdp", "fsdp"), "each once"),
    ((("data", "fsdp"), "data"), "each once"),
    (("tensor", None), "must name axes"),
    ((None, "fsdp"), r"splits 63 in"),
    ((None, None, "fsdp"), "more dimensions"),
])
def test_conflicts_name_the_leaf(mesh, axes, message):
    with pytest.raises(ValueError, match=rf"^params/mlp/up/kernel.*{message}"):
        tree = {"params": {"mlp": {"up": abstract(kernel=(64, 63))}}}
        param_shardings(tree, mesh, rules=[("up/kernel", axes)])


def test_moments_lie_like_their_parameters(mesh):
    params = {"block": {"mlp": {"up": abstract(kernel=(512, 2048), bias=(2048,))},
                        "attention": {"q": abstract(kernel=(512, 512))}}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    step = jax.ShapeDtypeStruct((), jnp.int32)
    state = {"params": params, "opt": jax.eval_shape(optimizer.init, params), "step": step}
    rules = [("q/kernel", ("fsdp", None))]
    found = param_shardings(state, mesh, rules=rules)
    _, (adam, *_) = found["opt"]
    assert adam.mu == adam.nu == found["params"]
    assert found["params"]["block"]["attention"]["q"]["kernel"].spec == P("fsdp", None)
    assert adam.count.spec == found["step"].spec == P()


def test_describe_counts_the_bytes_a_device_really_holds(mesh):
    tree = {"kernel": jnp.zeros((512, 2048)), "half": jnp.zeros((512, 512), jnp.bfloat16),
            "bias": jnp.zeros(7)}
    shardings = param_shardings(tree, mesh)
    rows = {row.path: row for row in describe(tree, shardings)}
    for path, array in jax.device_put(tree, shardings).items():
        assert rows[path].shape == array.shape
        assert rows[path].bytes_per_device == array.addressable_shards[0].data.nbytes
    assert rows["kernel"].spec == "(None, 'fsdp')"
    assert rows["bias"] == ("bias", (7,), "replicated", 28)


def test_split_parameters_compute_the_same(key, mesh):
    kernel = jax.random.normal(key, (64, 32))
    split = jax.device_put(kernel, param_shardings({"kernel": kernel}, mesh, min_size=1)["kernel"])
    assert not split.is_fully_replicated
    np.testing.assert_array_equal(split, kernel)
    np.testing.assert_allclose(jax.jit(jnp.sum)(split), jnp.sum(kernel), rtol=1e-5)
