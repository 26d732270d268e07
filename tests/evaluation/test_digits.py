import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_digits

from causal_diffusion.evaluation.digits import NOTHING, DigitRecogniser


@pytest.fixture(scope="module")
def split():
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    images, labels = data.images[order] / 16.0, data.target[order]
    return (images[:1400], labels[:1400]), (images[1400:], labels[1400:])


@pytest.fixture(scope="module")
def recogniser(split):
    return DigitRecogniser.fit(*split[0], seed=0)


def moving(images, frames, size, seed):
    """Digits drifting by sub-pixel steps, drawn independently of the code under test: [B, T, H, W, 1]."""
    rng = np.random.default_rng(seed)
    height, width = size
    start = rng.uniform(0, [height - 8, width - 8], (len(images), 2))
    stop = rng.uniform(0, [height - 8, width - 8], (len(images), 2))
    out = np.zeros((len(images), frames, height, width, 1), np.float32)
    for i, image in enumerate(images):
        canvas = np.zeros((height, width))
        canvas[:8, :8] = image
        for t in range(frames):
            place = start[i] + (stop[i] - start[i]) * t / max(frames - 1, 1)
            out[i, t, :, :, 0] = ndimage.shift(canvas, place, order=1)
    return 2 * out - 1


@pytest.mark.parametrize("size", [(16, 16), (12, 12), (24, 32)])
def test_held_out_digits_in_sub_pixel_motion(recogniser, split, size):
    images, labels = split[1]
    curve = recogniser.score(moving(images, 3, size, seed=1), labels)
    assert curve.shape == (3,)
    assert np.all(curve >= 0.95), curve


@pytest.mark.parametrize("spoil", ["noise", "blur", "pale", "raised background"])
def test_frames_of_a_generative_model_are_still_read(recogniser, split, spoil):
    images, labels = split[1]
    frames = moving(images, 1, (16, 16), seed=2)
    frames = {
        "noise": frames + 0.15 * np.random.default_rng(3).standard_normal(frames.shape),
        "blur": ndimage.gaussian_filter(frames, (0, 0, 0.7, 0.7, 0), mode="nearest"),
        "pale": (frames + 1) * 0.5 - 1,
        "raised background": (frames + 1) * 0.85 - 0.7,
    }[spoil]
    assert recogniser.score(frames, labels)[0] >= 0.93


def test_a_second_dimmer_blob_does_not_distract(recogniser, split):
    images, labels = split[1]
    frames = np.full((len(images), 1, 32, 32, 1), -1.0, np.float32)
    frames[:, 0, 3:11, 4:12, 0] = 2 * images - 1
    frames[:, 0, 24:27, 22:25, 0] = 0.0
    assert recogniser.score(frames, labels)[0] >= 0.95


def test_noise_is_read_at_about_chance(recogniser):
    rng = np.random.default_rng(5)
    frames = rng.standard_normal((300, 2, 16, 16, 1))
    assert np.all(recogniser.score(frames, rng.integers(0, 10, 300)) < 0.2)


def test_the_wrong_digit_is_not_recognised(recogniser, split):
    images, labels = split[1]
    assert recogniser.score(moving(images, 1, (16, 16), seed=6), (labels + 1) % 10)[0] < 0.05


def test_blank_and_broken_frames_hold_nothing(recogniser, split):
    frames = np.full((4, 16, 16, 1), -1.0)
    frames[1] = 0.3
    frames[2, 4, 4] = np.nan
    frames[3, 4:12, 4:12, 0] = 2 * split[1][0][0] - 1
    labels = recogniser.predict(frames)
    assert labels.tolist() == [NOTHING, NOTHING, NOTHING, split[1][1][0]]


def test_equal_seeds_make_equal_recognisers(split):
    (images, labels), (others, _) = split
    frames = moving(others, 1, (16, 16), seed=7)[:, 0]
    noisy = frames + 0.5 * np.random.default_rng(8).standard_normal(frames.shape)
    twins = [DigitRecogniser.fit(images[:300], labels[:300], seed=s).predict(noisy) for s in (1, 1, 2)]
    assert np.array_equal(twins[0], twins[1])
    assert not np.array_equal(twins[0], twins[2])


def test_bad_input_is_named(recogniser, split):
    images, labels = split[0]
    with pytest.raises(ValueError, match="0..1"):
        DigitRecogniser.fit(images * 16, labels)
    with pytest.raises(ValueError, match=r"\[N, S, S\]"):
        DigitRecogniser.fit(images.reshape(-1, 64), labels)
    with pytest.raises(ValueError, match="whole numbers"):
        DigitRecogniser.fit(images, labels - 1)
    with pytest.raises(ValueError, match=r"\[N, H, W, 1\]"):
        recogniser.predict(np.zeros((2, 16, 16, 3)))
    with pytest.raises(ValueError, match="cannot hold"):
        recogniser.predict(np.zeros((2, 6, 16, 1)))
    with pytest.raises(ValueError, match=r"labels \[B\]"):
        recogniser.score(np.zeros((2, 3, 16, 16, 1)), np.zeros(3))
