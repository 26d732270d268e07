"""Which models fit: the state is exact, the estimate near XLA's, and the tables of the docs are the function's."""

from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from causal_diffusion.cost.peaks import PEAKS
from causal_diffusion.nn.attention_backends.blockwise import MOST_SCORES
from causal_diffusion.parallel.mesh import AXES, make_mesh
from causal_diffusion.recipe import parameter_count
from causal_diffusion.training import fits
from causal_diffusion.training.state import abstract_state
from causal_diffusion.training.step import compile_step

DOC = (Path(__file__).parents[2] / "docs/pods.md").read_text()
SMALL = (512, 4, 8, 2048)


def mesh(data=1, fsdp=1, context=1, tensor=1):
    return AbstractMesh((data, fsdp, context, tensor), AXES, axis_types=(AxisType.Auto,) * 4)


def need(fsdp=1, batch=None, **axes):
    return fits.need(fits.recipe_of(SMALL, batch or fsdp), mesh(fsdp=fsdp, **axes))


def test_the_state_is_that_of_its_leaves():
    recipe = fits.recipe_of(SMALL, 1)
    count = parameter_count(abstract_state(recipe, mesh())[0].params)
    assert need().state == pytest.approx(4 * 4 * count, rel=1e-5)
    assert need(fsdp=8).state == pytest.approx(4 * 4 * count / 8, rel=0.1)  # norms and the like are everywhere
    assert fits.need(fits.recipe_of(SMALL, 1, **{"train.optimizer": "adafactor"}), mesh()).state < 2.1 * 4 * count


def test_what_axes_divide():
    """A second clip costs what the first does; tensor and context divide scores."""
    one, two = need(fsdp=8), need(fsdp=8, batch=16)
    scores = 8 * (3 * 16 * 16) * (21 * 16 * 16) * (12 + 2 * 2)
    per_clip = two.temporary - one.temporary
    assert scores < per_clip < 1.6 * scores and two.state == one.state
    for axis in ("tensor", "context"):
        assert 0.7 * scores < one.temporary - need(fsdp=8, **{axis: 4}).temporary < 1.2 * scores
    many = need(fsdp=8, batch=80)  # of which not all scores exist at once
    assert many.temporary - one.temporary < 9 * (per_clip - scores) + 2 * MOST_SCORES * (12 + 2 * 2)
    assert need(fsdp=8, data=2, batch=16) == one
    assert need(fsdp=8, batch=16, data=1).temporary > fits.need(
        fits.recipe_of(SMALL, 16, **{"train.accumulate": 2}), mesh(fsdp=8)).temporary  # fmt: skip


def test_the_smallest_tensor_axis_that_does():
    roomy, one = fits.smallest(SMALL, 8, 80e9)
    tight, more = fits.smallest(SMALL, 8, 0.9 * roomy.total)
    assert one == 1 and more > 1 and tight.total <= (1 - fits.RESERVE) * 0.9 * roomy.total
    assert fits.cell(SMALL, 8, 80e9) == f"{roomy.state / 1e9:.1f} + {roomy.temporary / 1e9:.1f}"
    assert fits.cell(SMALL, 1, 1e8).startswith("no: ")


@pytest.mark.parametrize(("name", "devices", "kind"), [fits.MACHINES[0], fits.MACHINES[4]])
def test_the_docs_have_its_figures(name, devices, kind):
    memory, (model, sizes) = PEAKS[kind].memory, next(iter(fits.MODELS.items()))
    assert f"| {name}, {memory / 1e9:.0f} GB each | {fits.cell(sizes, devices, memory)} |" in DOC
    assert f"| devices | {model} |" in DOC


@pytest.mark.full
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_the_docs_have_the_whole_table(optimizer):
    assert f"`train.optimizer = '{optimizer}'`:\n\n{fits.table(**{'train.optimizer': optimizer})}\n" in DOC


@pytest.mark.full
@pytest.mark.parametrize(("sizes", "space", "batch"), [
    ((256, 4, 4, 1024), 16, 2), ((512, 2, 4, 2048), 8, 8),
])
def test_the_estimate_is_near_what_xla_says(monkeypatch, sizes, space, batch):
    """On one device and in float32, as the CPU backend multiplies."""
    for key in ("height", "width"):
        monkeypatch.setitem(fits.CLIP, key, space)
    recipe, one = fits.recipe_of(sizes, batch, **{"model.dtype": "float32"}), make_mesh(devices=jax.devices()[:1])
    stats = compile_step(recipe, one).memory_analysis()
    wants = fits.need(recipe, one, "float32")
    assert wants.temporary == pytest.approx(stats.temp_size_in_bytes, rel=1 / 3)
    assert wants.state == pytest.approx(stats.argument_size_in_bytes, rel=0.1)
