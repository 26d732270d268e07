"""One pipeline in several threads, and streams that wait for their own programs only."""

import sys
import threading

import jax
import numpy as np
import pytest

from causal_diffusion.recipe import build
from causal_diffusion.streaming import programs as module
from causal_diffusion.streaming.pipeline import Pipeline

BLOCKS = 8


def in_threads(*functions):
    """What each function returns, called in a thread of its own, all at once; the first exception is raised."""
    results, errors, barrier = [None] * len(functions), [], threading.Barrier(len(functions))

    def run(i):
        try:
            barrier.wait()
            results[i] = functions[i]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


@pytest.fixture
def fresh(systems, config, random_params):
    """A pipeline that has compiled nothing yet."""
    recipe = build(config(**systems["causal"]))
    return Pipeline(recipe.config, random_params(recipe))


@pytest.fixture
def often_switched():
    """Threads take turns every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_streams_of_several_threads_are_those_of_one(fresh, often_switched):
    """Of two batch sizes, each twice; every program is compiled once."""
    asked = [(1, 0), (2, 1), (1, 2), (2, 3)]

    def blocks(batch, seed):
        stream = fresh.stream(seed=seed, batch=batch)
        return np.concatenate([next(stream) for _ in range(BLOCKS)], axis=1)

    found = in_threads(*(lambda given=given: blocks(*given) for given in asked))
    assert fresh.programs.executables(fresh.programs.filling) == fresh.programs.executables(fresh.programs.full) == 2
    for given, clip in zip(asked, found, strict=True):
        np.testing.assert_array_equal(clip, blocks(*given))


def test_one_stream_in_several_threads_loses_no_block(pipeline, often_switched):
    pipe = pipeline("causal")
    wanted = pipe.stream(seed=1).take(3 * BLOCKS)
    stream = pipe.stream(seed=1)
    found = in_threads(*[lambda: [next(stream) for _ in range(BLOCKS)]] * 3)
    blocks = [block for each in found for block in each]
    order = [int(np.abs(wanted - block).reshape(3 * BLOCKS, -1).max(axis=1).argmin()) for block in blocks]
    assert sorted(order) == list(range(3 * BLOCKS))


def test_a_stream_does_not_wait_for_programs_of_another(pipeline, monkeypatch):
    pipe, release = pipeline("causal"), threading.Event()
    stream = pipe.stream(seed=0, batch=1)
    stream.take(BLOCKS)
    wanted = stream.fork().take(2)

    class Slow(module.Compiling):
        def result(self):
            assert release.wait(60)
            return super().result()

    monkeypatch.setattr(module, "Compiling", Slow)
    other = pipe.stream(seed=0, batch=7)  # of no other test
    later = threading.Thread(target=other.next)
    later.start()
    np.testing.assert_array_equal(stream.take(2), wanted)
    assert later.is_alive()
    release.set()
    later.join()
    assert not jax.config.jax_enable_x64
