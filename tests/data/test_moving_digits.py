import dataclasses
import importlib.util

import numpy as np
import pytest

from causal_diffusion.data import moving_digits
from causal_diffusion.data.config import DataConfig
from causal_diffusion.data.moving_digits import DIGIT_SIZE, MovingDigits, digit_images
from causal_diffusion.errors import UserError

CONFIG = DataConfig(frames=24)


def ink(video):
    """Intensity in [0, 1], [T, H, W]."""
    return (video[..., 0].astype(np.float64) + 1) / 2


def centre_of_mass(video):
    """(x, y) of each frame, [T, 2]."""
    mass = ink(video)
    y, x = np.mgrid[:mass.shape[1], :mass.shape[2]]
    total = mass.sum(axis=(1, 2))
    return np.stack([(mass * x).sum(axis=(1, 2)) / total, (mass * y).sum(axis=(1, 2)) / total], axis=-1)


def test_element_is_a_function_of_seed_split_and_index():
    one, two = MovingDigits(CONFIG, "train"), MovingDigits(CONFIG, "train")
    other_seed = MovingDigits(dataclasses.replace(CONFIG, seed=1), "train")
    for i in (0, 7, 12345678, len(one) - 1):
        a, b, c = one[i], two[i], other_seed[i]
        assert all(np.array_equal(a[key], b[key]) for key in ("video", "label", "action"))
        assert not np.array_equal(a["action"], c["action"])
    assert repr(one) == repr(two) != repr(other_seed)
    assert not np.array_equal(one[0]["action"], one[1]["action"])


@pytest.mark.parametrize("digits", [1, 3])
def test_longer_clip_begins_with_the_shorter_one(digits):
    short = MovingDigits(dataclasses.replace(CONFIG, frames=5, digits=digits), "test")
    long = MovingDigits(dataclasses.replace(CONFIG, frames=60, digits=digits), "test")
    for i in range(20):
        a, b = short[i], long[i]
        np.testing.assert_array_equal(a["video"], b["video"][:5])
        np.testing.assert_array_equal(a["action"], b["action"][:5])
        assert a["label"] == b["label"]


def test_action_moves_the_centre_of_mass():
    source = MovingDigits(CONFIG, "train")
    moved = bounced = 0
    for i in range(60):
        clip = source[i]
        action = clip["action"].astype(np.float64)
        step = np.diff(centre_of_mass(clip["video"]), axis=0)        # into frames 1 .. T-1
        free = action[1:-1] == action[2:]                            # no bounce on the way into 1 .. T-2
        np.testing.assert_allclose(step[:-1][free], CONFIG.speed * action[1:-1][free], atol=2e-5)
        turned = action[1:-1] == -action[2:]
        assert (free | turned).all()
        # A bounce eats up part of the way, and only a bounce does.
        assert (np.abs(step[:-1][turned]) < CONFIG.speed * np.abs(action[1:-1][turned])).all()
        moved, bounced = moved + free.sum(), bounced + turned.sum()
    assert moved > 10 * bounced > 0


def test_position_follows_the_law_of_elastic_reflection():
    source = MovingDigits(dataclasses.replace(CONFIG, height=20, frames=50), "train")
    room = np.array([16 - DIGIT_SIZE, 20 - DIGIT_SIZE])
    clip = source[3]
    digit = source._images_NKL[3]
    y, x = np.mgrid[:DIGIT_SIZE, :DIGIT_SIZE]
    offset = np.array([(digit * x).sum(), (digit * y).sum()]) / digit.sum()
    corner = centre_of_mass(clip["video"]) - offset
    assert (corner > -1e-4).all() and (corner < room + 1e-4).all()
    onward = np.abs(corner[:-1] + source._config.speed * clip["action"][1:])
    np.testing.assert_allclose(corner[1:], room - np.abs(room - onward), atol=1e-4)


def test_motion_keeps_mass_and_whole_pixel_positions_show_the_digit_itself():
    source = MovingDigits(CONFIG, "train")
    for i in range(10):
        mass = ink(source[i]["video"]).sum(axis=(1, 2))
        np.testing.assert_allclose(mass, mass[0], rtol=1e-5)
    still = MovingDigits(dataclasses.replace(CONFIG, height=8, width=8), "train")  # no room: it stays put
    shown, digit = ink(still[4]["video"]), still._images_NKL[4]
    np.testing.assert_allclose(shown, np.broadcast_to(digit, shown.shape), atol=1e-7)


def test_speed_and_range():
    source = MovingDigits(dataclasses.replace(CONFIG, digits=2, channels=3), "train")
    clips = [source[i] for i in range(50)]
    pace = np.array([np.linalg.norm(c["action"], axis=-1) for c in clips])
    assert pace.min() >= 0.5 - 1e-6 and pace.max() <= 1 + 1e-6
    video = np.stack([c["video"] for c in clips])
    assert video.shape == (50, 24, 16, 16, 3) and video.dtype == np.float32
    assert video.min() == -1 and 0.9 < video.max() <= 1
    assert (video == video[..., :1]).all()


def test_further_digits_are_added_by_the_maximum():
    """A maximum keeps the ink of the digit that gives the label, and never adds more than the other's."""
    source = MovingDigits(dataclasses.replace(CONFIG, digits=2), "train")
    for i in range(5):
        clip = source[i]
        assert clip["label"] == source._labels_N[i]
        both = ink(clip["video"]).sum(axis=(1, 2))
        first = source._images_NKL[i].sum()
        most = source._images_NKL.sum(axis=(1, 2)).max()
        assert (both >= first - 1e-3).all() and (both <= first + most + 1e-3).all()
        assert both.max() > 1.2 * first


def test_splits_are_disjoint_stratified_and_complete():
    train, train_labels = digit_images("train", 0.1)
    test, test_labels = digit_images("test", 0.1)
    assert len(train) + len(test) == 1797
    assert train.shape[1:] == (8, 8) and train.min() == 0 and train.max() == 1
    seen = {image.tobytes() for image in train}
    assert not any(image.tobytes() in seen for image in test)
    share = np.bincount(test_labels) / (np.bincount(test_labels) + np.bincount(train_labels))
    np.testing.assert_allclose(share, 0.1, atol=0.005)


def test_the_scans_are_those_of_scikit_learn(monkeypatch):
    """Read without its imports, or with them where its file lies elsewhere."""
    from sklearn.datasets import load_digits

    wanted = load_digits()
    for package in (importlib.util.find_spec("sklearn"), None):
        monkeypatch.setattr(moving_digits.importlib.util, "find_spec", lambda name, package=package: package)
        images, labels = moving_digits._scans()
        np.testing.assert_array_equal(images, wanted.images)
        np.testing.assert_array_equal(labels, wanted.target)
        monkeypatch.undo()


def test_a_run_of_elements_shows_every_digit_once():
    source = MovingDigits(CONFIG, "test")
    n = len(source._labels_N)
    assert sorted(int(source[i]["label"]) for i in range(5, 5 + n)) == sorted(source._labels_N)


def test_canvas_smaller_than_a_digit():
    with pytest.raises(UserError, match="at least 8x8, got data.height=16, data.width=7"):
        MovingDigits(dataclasses.replace(CONFIG, width=7), "train")
