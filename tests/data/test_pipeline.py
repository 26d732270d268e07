import itertools
import threading
import time

import numpy as np
import pytest

from causal_diffusion.data.array_source import ArraySource
from causal_diffusion.data.config import DataConfig
from causal_diffusion.data.pipeline import (
    INDEX_PERIOD,
    Loader,
    batch_spec,
    horizontal_flip,
    in_turn,
    random_crop,
)
from causal_diffusion.data.sources import element_spec, make_source
from causal_diffusion.errors import UserError

N = 23


@pytest.fixture
def source():
    """Clip i is recognised by its label i."""
    video = np.random.default_rng(0).integers(0, 256, (N, 2, 4, 4, 1), np.uint8)
    return ArraySource(video, label=np.arange(N))


def take(loader, count):
    with loader:
        return list(itertools.islice(loader, count))


def assert_same(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert set(a) == set(b)
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], strict=True)


def noise(element, rng):
    return element | {"noise": rng.random(3)}


def test_every_epoch_is_another_permutation_and_batches_span_epochs(source):
    batches = take(Loader(source, batch=4), 3 * N)  # 12 epochs exactly
    epochs = np.concatenate([b["label"] for b in batches]).reshape(12, N)
    assert (np.sort(epochs) == np.arange(N)).all()
    assert len({tuple(e) for e in epochs}) == 12
    index = np.concatenate([b["index"] for b in batches])
    np.testing.assert_array_equal(index, np.arange(12 * N, dtype=np.int32), strict=True)


def test_without_shuffle_the_order_is_that_of_the_source(source):
    labels = np.concatenate([b["label"] for b in take(Loader(source, batch=5, shuffle=False), 10)])
    np.testing.assert_array_equal(labels, np.arange(50) % N)


def test_seed_decides_order_and_augmentation(source):
    one, same, other = (take(Loader(source, batch=5, seed=s, augment=noise), 6) for s in (1, 1, 2))
    assert_same(one, same)
    assert not np.array_equal(one[0]["label"], other[0]["label"])
    assert not np.array_equal(one[0]["noise"], other[0]["noise"])


def test_augmentation_differs_between_epochs_and_rows(source):
    draws = np.concatenate([b["noise"] for b in take(Loader(source, batch=N, augment=noise), 3)])
    assert len(np.unique(draws)) == draws.size


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_processes_share_each_batch_in_contiguous_rows(source, processes):
    whole = take(Loader(source, batch=6, augment=noise), 9)
    parts = [take(Loader(source, batch=6, augment=noise, process_index=p, process_count=processes), 9)
             for p in range(processes)]
    joined = [{key: np.concatenate([part[key] for part in at_m]) for key in at_m[0]}
              for at_m in zip(*parts, strict=True)]
    assert_same(whole, joined)


@pytest.mark.parametrize("threads, prefetch", [(0, 0), (0, 4), (1, 1), (3, 7), (5, 2)])
def test_threads_change_nothing(source, threads, prefetch):
    assert_same(take(Loader(source, batch=4, augment=noise, threads=0), 12),
                take(Loader(source, batch=4, augment=noise, threads=threads, prefetch=prefetch), 12))


@pytest.mark.parametrize("stop", [0, 1, 5, 17])
def test_seek_continues_bit_for_bit(source, stop):
    whole = take(Loader(source, batch=4, augment=noise), 25)
    first = Loader(source, batch=4, augment=noise)
    list(itertools.islice(first, stop))
    assert first.position == stop  # whatever was loaded ahead
    second = Loader(source, batch=4, augment=noise)
    second.seek(first.position)
    first.close()
    assert_same(take(second, 25 - stop), whole[stop:])
    assert second.position == 25


def test_seek_works_backwards_and_far_ahead(source):
    loader = Loader(source, batch=4)
    first = next(loader)
    loader.seek(10**12)
    late = next(loader)
    assert loader.position == 10**12 + 1
    assert late["index"][0] == 4 * 10**12 % INDEX_PERIOD and (late["index"] >= 0).all()
    loader.seek(0)
    assert_same([next(loader)], [first])
    loader.close()


def test_close_ends_the_threads_and_seek_opens_again(source):
    others = set(threading.enumerate())

    def ours():
        return [t for t in threading.enumerate() if t not in others]

    loaders = [Loader(source, batch=4, threads=3) for _ in range(3)]
    for loader in loaders:
        next(loader)
    assert ours()
    for loader in loaders:
        loader.close()
    deadline = time.monotonic() + 10
    while ours() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not ours()
    with pytest.raises(ValueError, match="the loader is closed: call seek first"):
        next(loaders[0])
    loaders[0].seek(1)
    assert next(loaders[0])["index"][0] == 4
    loaders[0].close()


class Flaky:
    """Fails once, at element 9."""

    def __init__(self):
        self.failed = False

    def __len__(self):
        return 20

    def __getitem__(self, i):
        if i == 9 and not self.failed:
            self.failed = True
            raise UserError("element 9 is broken")
        return {"video": np.full((1, 1, 1, 1), i, np.float32)}


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_reaches_the_caller_and_loses_no_batch(threads):
    with Loader(Flaky(), batch=4, shuffle=False, threads=threads) as loader:
        seen = [next(loader), next(loader)]
        with pytest.raises(UserError, match="element 9 is broken"):
            next(loader)
        assert loader.position == 2
        seen.append(next(loader))
    np.testing.assert_array_equal(np.concatenate([b["video"].ravel() for b in seen]), np.arange(12))


def test_flip_mirrors_whole_clips_about_half_of_the_time(source):
    plain = take(Loader(source, batch=N), 8)
    flipped = take(Loader(source, batch=N, augment=horizontal_flip), 8)
    mirrored = []
    for a, b in zip(plain, flipped, strict=True):
        for x, y in zip(a["video"], b["video"], strict=True):
            same, mirror = np.array_equal(x, y), np.array_equal(x[:, :, ::-1], y)
            assert same != mirror
            mirrored.append(mirror)
    assert 0.35 < np.mean(mirrored) < 0.65


def test_flip_refuses_actions():
    element = {"video": np.zeros((2, 4, 4, 1), np.float32), "action": np.zeros((2, 1), np.float32)}
    with pytest.raises(UserError, match="would no longer fit its actions"):
        horizontal_flip(element, np.random.default_rng(0))


def test_batch_spec_matches_a_batch():
    config = DataConfig(frames=2)
    (batch,) = take(Loader(make_source(config, "train"), batch=3), 1)
    spec = batch_spec(element_spec(config), 3)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (s.shape, s.dtype) for k, s in spec.items()}


@pytest.mark.parametrize("arguments, message", [
    (dict(batch=6, process_count=4), "batch 6 cannot be shared by 4 processes: make it a multiple of 4"),
    (dict(batch=0), "batch 0 cannot be shared by 1 processes"),
    (dict(batch=N + 1), "the data has 23 clips, fewer than one batch of 24: set batch to at most 23"),
])
def test_impossible_batches(source, arguments, message):
    with pytest.raises(UserError, match=message):
        Loader(source, **arguments)


def test_programming_errors(source):
    with pytest.raises(ValueError, match="process_index 2"):
        Loader(source, batch=4, process_index=2, process_count=2)
    with pytest.raises(ValueError, match="position must be at least 0"):
        Loader(source, batch=4).seek(-1)


def test_a_crop_is_a_square_of_the_clip_and_every_place_is_drawn():
    video = np.arange(2 * 5 * 6 * 1, dtype=np.float32).reshape(2, 5, 6, 1)
    crop, places = random_crop(3), set()
    for seed in range(200):
        out = crop({"video": video, "label": 1}, np.random.default_rng(seed))
        y, x = np.argwhere(video[0, ..., 0] == out["video"][0, 0, 0, 0])[0]
        np.testing.assert_array_equal(out["video"], video[:, y : y + 3, x : x + 3])
        places.add((y, x))
    assert places == {(y, x) for y in range(3) for x in range(4)}


def test_augmentations_follow_each_other():
    element = {"video": np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)}
    both = in_turn(random_crop(2), None, horizontal_flip)
    out, rng = both(element, np.random.default_rng(5)), np.random.default_rng(5)
    np.testing.assert_array_equal(out["video"], horizontal_flip(random_crop(2)(element, rng), rng)["video"])
    assert in_turn(None, None) is None
