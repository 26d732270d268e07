"""Processes that keep in step: threads stand for them, and a dictionary for the coordination service."""

import concurrent.futures
import threading
import time

import pytest

from causal_diffusion.checkpoint.agreement import Agreement, Elsewhere


class Service:
    """What JAX's client does, for `count` threads."""

    def __init__(self, count):
        self._barrier, self.values, self._lock = threading.Barrier(count), {}, threading.Lock()

    def key_value_set(self, key, value):
        with self._lock:
            assert key not in self.values
            self.values[key] = value

    def wait_at_barrier(self, key, timeout_ms):
        try:
            self._barrier.wait(timeout_ms / 1000)
        except threading.BrokenBarrierError:
            raise RuntimeError("DEADLINE_EXCEEDED: not all came\nmore") from None

    def key_value_dir_get(self, key):
        with self._lock:
            return [(name, value) for name, value in self.values.items() if name.startswith(key)]

    def key_value_delete(self, key):
        with self._lock:
            for name in [name for name in self.values if name.startswith(key)]:
                del self.values[name]


def together(count, work, timeout=20.0):
    """What work(agreement) returned or raised, of every process."""
    service = Service(count)

    def one(index):
        agreement = Agreement("test", client=service, timeout=timeout)
        agreement.index, agreement.count = index, count
        try:
            return work(agreement)
        except Exception as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count))), service


@pytest.mark.parametrize("count", [2, 5])
def test_all_hear_all(count):
    def work(agreement):
        first = agreement.gather({"from": agreement.index})
        agreement.wait(key="anything", timeout_ms=1)
        return first, agreement.gather(agreement.index**2), agreement.first(lambda: [agreement.index, "x"])

    found, service = together(count, work)
    one = [{"from": i} for i in range(count)], [i**2 for i in range(count)], [0, "x"]
    assert found == [one] * count
    assert service.values
    last = Agreement("test", client=service)
    last.count = 2
    last.forget()
    assert not service.values


@pytest.mark.parametrize("points", [0, 1, 2])
def test_one_that_fails_tells_all_at_the_next_point(points):
    def work(agreement):
        for _ in range(points):
            agreement.wait()
        if agreement.index == 1:
            agreement.fail("no room")
            agreement.fail("again")  # nobody listens any more
            return "failed"
        for _ in range(5):
            agreement.wait()
        return "went on"

    found, _ = together(3, work)
    assert found[1] == "failed"
    for index in (0, 2):
        assert isinstance(found[index], Elsewhere) and str(found[index]) == "process 1: no room"


def test_several_that_fail_are_all_named():
    def work(agreement):
        agreement.fail(f"reason {agreement.index}") if agreement.index else agreement.wait()

    found, _ = together(3, work)
    assert str(found[0]) == "process 1: reason 1; process 2: reason 2" and found[1:] == [None, None]


def test_the_first_that_fails_at_its_work_fails_for_all():
    def work(agreement):
        try:
            agreement.first(lambda: 1 / 0)
        except ZeroDivisionError as error:
            agreement.fail(str(error))
            raise

    found, _ = together(2, work)
    assert isinstance(found[0], ZeroDivisionError)
    assert str(found[1]) == "process 0: division by zero"


def test_one_that_never_comes():
    def work(agreement):
        if agreement.index == 0:
            agreement.wait()

    found, _ = together(2, work, timeout=0.2)
    assert str(found[0]) == "the other processes are out of reach (DEADLINE_EXCEEDED: not all came)"


def test_one_that_fails_waits_for_the_others_as_long_as_it_is_told():
    """They may be where only devices meet."""
    def work(agreement):
        if agreement.index == 0:
            agreement.fail("no room", patience=0.2)
            return "gave up"

    began = time.perf_counter()
    assert together(2, work)[0] == ["gave up", None]
    assert 0.1 < time.perf_counter() - began < 10


@pytest.mark.parametrize("alone", [True, False])
def test_a_single_process_waits_for_nobody(alone):
    agreement = Agreement("test", alone=alone)
    agreement.wait()
    agreement.fail("nobody hears it")
    agreement.forget()
    assert agreement.gather((1, 2)) == [[1, 2]]
    assert agreement.first(lambda: {1: 2}) == {"1": 2}  # JSON, as with several
