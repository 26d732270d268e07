"""A mesh that does not go with a system: one line that names the numbers and a value that would do."""

import jax
import pytest

from causal_diffusion.autoencoder import build_autoencoder
from causal_diffusion.compatibility.mesh import note
from causal_diffusion.config import freeze, override
from causal_diffusion.errors import UserError
from causal_diffusion.parallel.activations import constrain, mesh_axis
from causal_diffusion.parallel.mesh import MeshConfig, make_mesh
from causal_diffusion.recipe import build
from causal_diffusion.training.step import compile_step

SYSTEM = freeze({
    "data": dict(source="own", frames=12, height=8, width=8, channels=1),
    "model": dict(width=24, depth=1, heads=6, mlp=36, patch=(1, 4, 4), channels=1),
    "layout": dict(kind="block_causal", block=2), "process": dict(predict="x0"), "train": dict(batch=8),
})  # fmt: skip
VAE = freeze({
    "trains": "vae", "data": dict(source="own", frames=8, height=0, width=0, channels=6), "train": dict(batch=8),
    "vae": dict(form="motion", motion=dict(channels=6, latent=3, width=8)),
})  # fmt: skip


@pytest.mark.parametrize(("changes", "sizes", "words"), [
    ({}, (2, 1, 1, 4), "model.heads is 6 and mesh.tensor is 4: each device has whole heads, mesh.tensor = 2 would do"),
    ({"model.heads": 4}, (1, 1, 1, 8), "model.heads is 4 and mesh.tensor is 8: each device has whole heads, "
                                       "mesh.tensor = 4 would do"),
    ({"model.mlp": 33}, (2, 2, 1, 2), "model.mlp is 33 and mesh.tensor is 2: each device has as much of the MLP, "
                                      "mesh.tensor = 1 would do"),
    ({}, (2, 1, 4, 1), "mesh.context is 4 and a clip of 12 frames has 6 blocks to share: each device has as many, "
                       "mesh.context = 2 would do"),
    ({"train.batch": 6}, (2, 2, 2, 1), "train.batch 6 cannot be split over 4 devices (data=2 x fsdp=2): it must be a "
                                       "multiple of 4, such as 8"),
])
def test_transformers(changes, sizes, words):
    with pytest.raises(UserError) as error:
        compile_step(build(override(SYSTEM, changes)), make_mesh(MeshConfig(*sizes)))
    assert str(error.value) == words


def test_autoencoders_have_no_frames_to_share():
    with pytest.raises(UserError) as error:
        compile_step(build_autoencoder(VAE), make_mesh(MeshConfig(4, 1, 2, 1)))
    assert str(error.value) == ("mesh.context is 2 and trains is 'vae': only a transformer's frames are split, "
                                "mesh.context = 1 would do")


def test_what_tensor_does_not_do_is_said():
    mesh = make_mesh(MeshConfig(2, 2, 1, 2))
    assert note(VAE, mesh) == ("tensor 2 only repeats an autoencoder, which is split over data and fsdp alone")
    assert note(SYSTEM, mesh) == note(VAE, make_mesh()) == ""


def test_without_a_mesh_or_on_one_device_nothing_is_constrained():
    def placed(x):
        return constrain(x, "batch", "frames") + mesh_axis("context")

    x = jax.ShapeDtypeStruct((8, 4), "float32")
    assert "sharding_constraint" not in str(jax.make_jaxpr(placed)(x))
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        assert "sharding_constraint" not in str(jax.make_jaxpr(placed)(x))
    with jax.set_mesh(make_mesh(MeshConfig(2, 1, 4, 1))):
        assert "sharding_constraint" in str(jax.make_jaxpr(placed)(x))
