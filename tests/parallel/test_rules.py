"""Where parameters lie: by rule, by size, and the same for the optimizer's moments."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from causal_diffusion.autoencoder import build_autoencoder
from causal_diffusion.config import freeze
from causal_diffusion.parallel.mesh import MeshConfig, make_mesh
from causal_diffusion.parallel.rules import describe, param_shardings
from causal_diffusion.recipe import build


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
    both = ("data", "fsdp") if mesh.shape["data"] > 1 else "fsdp"  # an axis of size 1 splits nothing
    assert found["attention"]["q"] == {"kernel": P("fsdp")}
    assert found["attention"]["o"] == {"kernel": P(None, both)}
    assert found["mlp"] == {"kernel": P()}
    # A pattern matches whole components of the path: this is not "attention/q/kernel".
    assert found["fake_attention"] == {"q": {"kernel": P(None, both)}}


def test_rules_are_aligned_to_the_last_dimensions(mesh):
    assert specs(abstract(kernel=(30, 64, 64)), mesh, rules=[("kernel", ("fsdp", None))]) == {
        "kernel": P(None, "fsdp")}


def test_tables_stay_whole(mesh):
    tree = {"class": abstract(embedding=(4096, 512)), "head": abstract(kernel=(4096, 512))}
    assert specs(tree, mesh) == {"class": {"embedding": P()}, "head": {"kernel": P("fsdp")}}


def test_a_name_takes_its_axis_and_fsdp_another_dimension():
    """First and second Linear: out and in are split over `tensor`, what is left by size over `fsdp`."""
    tree = {"block_0": {"attention": {name: abstract(kernel=(512, 512), bias=(512,)) for name in "qo"},
                        "mlp_in": abstract(kernel=(512, 2048)), "mlp_out": abstract(kernel=(2048, 512)),
                        "modulation": {"linear": abstract(kernel=(512, 3072))}},
            "blocks": {"cross_attention": {"k": abstract(kernel=(30, 512, 512))}},
            "encoder": {"attention": {"q": abstract(kernel=(512, 512))}}}
    assert specs(tree, make_mesh(MeshConfig(2, 2, 1, 2))) == {
        "block_0": {"attention": {"q": {"kernel": P("fsdp", "tensor"), "bias": P("tensor")},
                                  "o": {"kernel": P("tensor", "fsdp"), "bias": P()}},
                    "mlp_in": {"kernel": P("fsdp", "tensor")}, "mlp_out": {"kernel": P("tensor", "fsdp")},
                    "modulation": {"linear": {"kernel": P(None, "fsdp")}}},
        "blocks": {"cross_attention": {"k": {"kernel": P(None, "fsdp", "tensor")}}},
        "encoder": {"attention": {"q": {"kernel": P(None, "fsdp")}}}}  # an autoencoder's: by size alone


def test_small_leaves_are_split_over_tensor_alone():
    tree = {"block_3": {"time_mlp_in": abstract(kernel=(8, 16))}}
    mesh = make_mesh(MeshConfig(2, 2, 1, 2))
    assert specs(tree, mesh) == {"block_3": {"time_mlp_in": {"kernel": P(None, "tensor")}}}
    assert specs(tree, mesh, min_size=1) == {"block_3": {"time_mlp_in": {"kernel": P("fsdp", "tensor")}}}


def test_of_a_transformer_every_large_leaf_is_split_and_of_others_tensor_splits_none():
    """On an abstract mesh of 4,096 devices, without arrays."""
    mesh = jax.sharding.AbstractMesh((4, 64, 2, 8), ("data", "fsdp", "context", "tensor"))
    model = dict(width=1024, depth=2, heads=16, mlp=4096, patch=(1, 4, 4), channels=1, classes=9, text=512)
    data = dict(source="own", frames=8, height=32, width=32, channels=1, classes=9)
    tree = jax.eval_shape(build(freeze({"data": data, "model": model})).init_params, jax.random.key(0))
    for row in describe(tree, param_shardings(tree, mesh)):
        size = math.prod(row.shape)
        inner = "block" in row.path and re.search(r"/([qkvo]|mlp_in|mlp_out)/kernel$", row.path)
        assert (row.bytes_per_device == 4 * size // 512) == bool(inner), row
        assert row.bytes_per_device <= 4 * max(2**18, size // 64), row
    vae = {"trains": "vae", "data": dict(source="own", frames=8, height=0, width=0, channels=6),
           "vae": dict(form="motion", motion=dict(channels=6, latent=4, width=512))}
    tree = jax.eval_shape(build_autoencoder(freeze(vae)).init_params, jax.random.key(0))
    rows = describe(tree, param_shardings(tree, mesh))
    assert any("fsdp" in row.spec for row in rows) and not any("tensor" in row.spec for row in rows)


@pytest.mark.parametrize(("axes", "message"), [
    (("fsdp", "fsdp"), "each once"),
    ((("data", "fsdp"), "data"), "each once"),
    (("pipeline", None), "must name axes of .*, or heads, mlp"),
    (("heads", "mlp"), "each once"),
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
    assert found["params"]["block"]["attention"]["q"]["kernel"].spec == P("fsdp")
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
