"""Two clips joined: what is whose, and that everything else stays as it is."""

import numpy as np
import pytest

from causal_diffusion.data.composed import composed

FRAMES, CHANNELS, TIME, BLEND = 24, 3, 4, 8


def element(i, length):
    video = np.zeros((FRAMES, CHANNELS), np.float32)
    video[:length] = 100 * i + np.arange(length)[:, None] + np.arange(CHANNELS) / 10
    words = np.array([i, i + 1, 0], np.int32)
    return {"video": video, "length": np.asarray(length, np.int32), "text": words, "text_mask": words > 0}


SOURCE = [element(1, 24), element(2, 16), element(3, 12), element(4, 4)]


def join(i, seed, share=1.0):
    return composed(SOURCE, share, BLEND, TIME)(SOURCE[i], np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("i", [0, 1])
def test_a_join_begins_as_one_clip_and_ends_as_another(i, seed):
    out = join(i, seed)
    assert {name: (x.shape, x.dtype) for name, x in out.items()} == {
        "video": ((FRAMES, CHANNELS), np.float32), "length": ((), np.int32), "text": ((2, 3), np.int32),
        "text_mask": ((2, 3), bool), "text_of": ((FRAMES // TIME,), np.int32),
    }  # fmt: skip
    np.testing.assert_array_equal(out["text"][0], SOURCE[i]["text"])
    if not out["text_of"].any():  # the other one was too short to fade into
        np.testing.assert_array_equal(out["video"], SOURCE[i]["video"])
        np.testing.assert_array_equal(out["text"][1], SOURCE[i]["text"])
        return
    begin = TIME * int(np.argmax(out["text_of"]))
    np.testing.assert_array_equal(out["text_of"], (np.arange(FRAMES // TIME) >= begin // TIME).astype(int))
    other = SOURCE[int(out["text"][1, 0]) - 1]
    np.testing.assert_array_equal(out["text_mask"][1], other["text_mask"])
    np.testing.assert_array_equal(out["video"][:begin], SOURCE[i]["video"][:begin])
    assert begin >= TIME and begin + BLEND <= int(SOURCE[i]["length"])
    length, rest = int(out["length"]), int(other["length"]) - BLEND
    assert length == min(FRAMES, begin + BLEND + rest)
    behind = other["video"][BLEND:][: length - begin - BLEND]
    np.testing.assert_array_equal(out["video"][begin + BLEND : length], behind)
    np.testing.assert_array_equal(out["video"][length:], 0.0)
    fade, a = (video[begin : begin + BLEND] for video in (out["video"], SOURCE[i]["video"]))
    weight = ((fade - a) / (other["video"][:BLEND] - a))[:, 0]
    assert (np.diff(weight) > 0).all() and weight[0] < 0.05 and weight[-1] > 0.95
    np.testing.assert_allclose(weight + weight[::-1], 1.0, atol=1e-5)


def test_joins_are_a_share_and_depend_on_the_generator_alone():
    same = [join(0, seed, 0.5) for seed in (3, 3)]
    for name in same[0]:
        np.testing.assert_array_equal(same[0][name], same[1][name])
    joined = [join(0, seed, 0.5)["text_of"].any() for seed in range(200)]
    assert 0.25 < np.mean(joined) < 0.5  # of a half, those whose other clip is long enough
    assert not any(join(0, seed, 0.0)["text_of"].any() for seed in range(20))
    assert not any(join(3, seed)["text_of"].any() for seed in range(20))  # four frames are too few to fade from
