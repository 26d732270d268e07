"""PyTorch's side of each comparison computes what ours does, and its cases run."""

import numpy as np
import pytest

pytestmark = pytest.mark.oracle

torch = pytest.importorskip("torch")

from benchmarks import cases, paired  # noqa: E402

CPU = [name for name, case in cases.CASES.items() if "torch" in case.needs]


@pytest.mark.parametrize("name", CPU)
@pytest.mark.filterwarnings("default")  # torch's and diffusers' own
def test_a_case_runs_and_finds_its_sides_equal(name):
    for need in cases.CASES[name].needs:
        pytest.importorskip(need)
    row = cases.run(name, 2, "tiny")
    assert not row["not_run"] and 0 <= row["difference"] <= 1e-4
    assert all(np.isfinite(figure["value"]) for figure in row["figures"])


def test_a_stream_with_another_weight_is_found_out():
    """The check that comes before timing sees a slip in a single layer."""
    import jax

    from benchmarks.cpu import streaming
    from benchmarks.peers.streaming import Stream
    from benchmarks.systems import random_params
    from causal_diffusion.nn.embedders import patchify
    from causal_diffusion.recipe import build

    recipe = build(streaming.SMALL["tiny"])
    params = random_params(recipe)
    wrong = jax.tree.map(np.array, params)
    wrong["block_1"]["attention"]["k_norm"]["scale"][0] *= 1.5
    shape = (1, 1, 4, 8)
    noise = np.random.default_rng(0).standard_normal((3, *shape), np.float32)
    right, other = (
        np.concatenate([stream.next(each) for each in noise], axis=1)
        for stream in (Stream(recipe, params, "ring") for params in (params, wrong))
    )
    assert right.shape == (1, 3, 4, 8) == patchify(np.zeros((1, 3, 4, 4, 2), np.float32), (1, 2, 2)).shape
    with pytest.raises(paired.Unequal):
        paired.difference(right, other, "a slip")


@pytest.mark.parametrize("window", [1, 2, 3])
def test_both_caches_hold_the_last_blocks_and_no_more(window):
    """Seven blocks, each of which asks once and is committed once: seen are the ``window`` before, and itself."""
    from benchmarks.peers.streaming import CACHES, attention

    rng = np.random.default_rng(0)
    q, k, v = torch.from_numpy(rng.standard_normal((3, 7, 1, 2, 2, 4)).astype(np.float32))
    for make in CACHES.values():
        cache = make(1, (1, 2, 2, 4), window)
        for i in range(7):
            out = cache.attend(0, q[i], k[i], v[i])
            seen = slice(max(0, i - window), i + 1)
            expected = attention(q[i], *(torch.cat(list(x[seen]), dim=1) for x in (k, v)))
            torch.testing.assert_close(out, expected)
            cache.commit()
