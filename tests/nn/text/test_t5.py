"""T5's buckets of distances, in closed form (the oracles compare with transformers)."""

import numpy as np
import pytest

from causal_diffusion.nn.text.t5 import buckets_of


@pytest.mark.parametrize("buckets, most", [(32, 128), (8, 20), (16, 100)])
def test_near_distances_have_a_bucket_each_and_the_sides_are_apart(buckets, most):
    half, single = buckets // 2, buckets // 4
    near = np.arange(single)
    np.testing.assert_array_equal(buckets_of(-near, buckets, most), near)  # behind the query, and the query itself
    np.testing.assert_array_equal(buckets_of(near[1:], buckets, most), half + near[1:])
    far = np.arange(single, 3 * most)
    for sign, first in ((-1, 0), (1, half)):
        found = buckets_of(sign * far, buckets, most)
        assert found[0] == first + single and (np.diff(found) >= 0).all()
        assert (found[far >= most] == first + half - 1).all()
