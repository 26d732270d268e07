"""Every policy gives the gradients of keeping everything, computes again what its name says, and needs less memory."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.layout import Layout
from causal_diffusion.nn.layers import stack_layers
from causal_diffusion.nn.remat import POLICIES, check_memories
from causal_diffusion.nn.transformer import Transformer, TransformerConfig
from causal_diffusion.parallel.mesh import make_mesh
from tests.compiling import AS_SHIPPED

LADDER = ["none", "dots", "dots_no_batch", "attention_mlp", "attention", "mlp", "full"]  # keep less and less
OFFLOADED = ["offload_attention_mlp", "offload_attention", "offload_mlp"]
UNOPTIMISED = {"xla_llvm_disable_expensive_passes": True, "xla_backend_optimization_level": 0}


class Forms:
    """Gradients of a tiny transformer's outputs squared, under each policy, each made once."""

    def __init__(self, system, layers):
        self._system, self._layers, self._traced, self._made = system, layers, {}, {}
        self._params = stack_layers(system.params) if layers == "scan" else system.params

    def _grad(self, remat):
        s = self._system
        model = Transformer(dataclasses.replace(s.model.config, layers=self._layers, remat=remat))

        def loss(params):
            out, _ = model.apply({"params": params}, s.streams, s.condition, s.mask)
            return sum(jnp.sum(x**2) for x in out.values())

        return jax.grad(loss)

    def jaxpr(self, remat):
        if remat not in self._traced:
            self._traced[remat] = str(jax.make_jaxpr(self._grad(remat))(self._params))
        return self._traced[remat]

    def products(self, remat):
        """How many matrix products a gradient takes."""
        return self.jaxpr(remat).count("dot_general[")

    def compiled(self, remat):
        """(gradients, temporary bytes)."""
        if remat not in self._made:
            lowered = jax.jit(self._grad(remat), compiler_options=AS_SHIPPED | UNOPTIMISED).lower(self._params)
            compiled = lowered.compile()
            self._made[remat] = compiled(self._params), compiled.memory_analysis().temp_size_in_bytes
        return self._made[remat]


@pytest.fixture(scope="module")
def scanned(tiny):
    return Forms(acting(tiny(Layout("teacher_forcing"), frames=3, space=(8, 8), depth=3)), "scan")


@pytest.fixture(scope="module")
def factorised(tiny):
    return Forms(acting(tiny(Layout("teacher_forcing"), attention="factorised", axial_mlp=True, prefix=1)), "unrolled")


def acting(system):
    """With an action that is not known, so that the vector which stands for it takes part."""
    streams = {name: dataclasses.replace(s, action_given=s.frame != 1) for name, s in system.streams.items()}
    return system._replace(streams=streams)


def assert_same_gradients(found, wanted):
    """Per leaf: |d| <= 1e-5 (|g_leaf| + 1e-3 |g_all|)."""
    whole = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(wanted)))

    def check(path, a, b):
        allowed = 1e-5 * (np.linalg.norm(b) + 1e-3 * whole)
        assert np.linalg.norm(a - b) <= allowed, jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(check, found, wanted)


@pytest.mark.full
def test_matrix_products_that_are_done_again(scanned):
    """In one block of the scan: what 'full' does again, less what a policy keeps."""
    more = {name: scanned.products(name) - scanned.products("none") for name in LADDER}
    kept = {"mlp": 2, "attention": 4, "attention_mlp": 6}  # two of the MLP; v's sum and o, twice
    assert more["dots"] == 0
    assert more["full"] == more["mlp"] + kept["mlp"] == more["attention"] + kept["attention"]
    assert more["full"] == more["attention_mlp"] + kept["attention_mlp"]
    assert more["dots_no_batch"] == 4 < more["attention_mlp"]  # scores and their sums, in self- and cross-attention


@pytest.mark.parametrize(
    "name", [OFFLOADED[0], *(pytest.param(name, marks=pytest.mark.full) for name in OFFLOADED[1:])]
)
def test_offloaded_kinds_are_those_that_would_be_kept(scanned, name):
    kept = name.removeprefix("offload_")
    assert scanned.products(name) == scanned.products(kept)
    moved = {text: scanned.jaxpr(text).count("device_put[") for text in (name, kept)}
    assert moved[kept] == 0 and moved[name] >= 4  # there and back


@pytest.mark.full
@pytest.mark.parametrize("name", [*LADDER[1:], "offload_attention_mlp"])
def test_policies_change_memory_and_no_gradient(scanned, name):
    (wanted, everything), (found, memory) = scanned.compiled("none"), scanned.compiled(name)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(wanted))
    assert_same_gradients(found, wanted)
    assert memory < (0.7 if name == "dots" else 0.5) * everything


@pytest.mark.full
def test_who_keeps_less_needs_less(scanned):
    sizes = [scanned.compiled(name)[1] for name in LADDER]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    # The host's memory is the device's own on CPU.
    assert scanned.compiled("offload_attention_mlp")[1] == scanned.compiled("attention_mlp")[1]


def test_factorised_blocks_mark_all_their_parts(factorised):
    """In each of two blocks: four attentions and two MLPs, two products each."""
    assert factorised.products("full") - factorised.products("attention_mlp") == 2 * 2 * (4 + 2)


@pytest.mark.full
@pytest.mark.parametrize("name", ["attention_mlp", "attention", "mlp", "full", *OFFLOADED])
def test_factorised_blocks(factorised, name):
    assert_same_gradients(factorised.compiled(name)[0], factorised.compiled("none")[0])


@pytest.mark.parametrize("name", ["everything_saveable", "nothing_saveable", "dots_saveable", "checkpoint_dots",
                                  "dots_with_no_batch_dims_saveable", "checkpoint_dots_with_no_batch_dims"])
def test_names_of_jax_stay(name):
    assert POLICIES[TransformerConfig(remat=name).remat] is getattr(jax.checkpoint_policies, name)


@pytest.mark.parametrize("name", ["some", "save_only_these_names", "offload_dots", "Full", ""])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError) as error:
        TransformerConfig(remat=name)
    assert str(error.value) == f"model.remat is {name!r}; it is one of {', '.join(POLICIES)}"


def test_a_backend_without_host_memory_is_refused_by_name():
    memories = [types.SimpleNamespace(kind="device"), types.SimpleNamespace(kind="unpinned_host")]
    device = types.SimpleNamespace(addressable_memories=lambda: memories, device_kind="TPU v0")
    without = types.SimpleNamespace(local_devices=[device])
    check_memories("attention", without)
    with pytest.raises(UserError) as error:
        check_memories("offload_attention", without)
    assert str(error.value) == (
        "model.remat is 'offload_attention' and TPU v0 has no memory of kind 'pinned_host', only device, "
        "unpinned_host: model.remat = 'attention' would do"
    )
    check_memories("offload_attention", make_mesh())  # here it has
    check_memories("offload_attention", make_mesh().abstract_mesh)
