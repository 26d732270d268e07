"""Roll call, by threads: all go on together, or all hear the same about who is missing."""

import socket
import threading
import time

import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.parallel import roll_call
from causal_diffusion.parallel.roll_call import GREETING, call_roll, numbers
from tests.parallel.processes import free_port


def call(processes, coming, timeout, strangers=()):
    """What each of `coming` heard: 'ok' or its error. Each is (process, processes as it knows them, delay)."""
    coordinator, heard = f"localhost:{free_port()}", {}

    def work(i, process, processes, delay):
        time.sleep(delay)
        try:
            call_roll(coordinator, processes, process, timeout)
            heard[i] = "ok"
        except UserError as error:
            heard[i] = str(error)

    threads = [threading.Thread(target=work, args=(i, *one)) for i, one in enumerate(coming)]
    for thread in threads:
        thread.start()
    for words in strangers:
        time.sleep(0.1)
        with socket.create_connection(("localhost", int(coordinator.rpartition(":")[2])), timeout=5) as connection:
            connection.sendall(words)
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    return coordinator, [heard[i] for i in range(len(coming))]


def test_all_come_and_the_port_is_free_at_once():
    coordinator, heard = call(5, [(p, 5, 0.1 * (p % 3)) for p in range(5)], 10)
    assert heard == ["ok"] * 5
    with socket.create_server(("", int(coordinator.rpartition(":")[2]))):
        pass


def test_all_hear_who_is_missing():
    coordinator, heard = call(8, [(p, 8, 0) for p in (0, 3, 7)], 0.6)
    line = f"processes 1-2, 4-6 of 8 (numbered from 0) never came to {coordinator} within 0.6 s: see their output"
    assert heard == [line] * 3


def test_without_process_0_nobody_waits_longer(monkeypatch):
    monkeypatch.setattr(roll_call, "GRACE", 0.2)
    coordinator, (line,) = call(2, [(1, 2, 0)], 0.1)
    assert line == f"process 0 of 2 never came to {coordinator} within 0.1 s: process 1 waited for it"


def test_a_number_that_comes_twice():
    _, heard = call(4, [(0, 4, 0), (2, 4, 0), (2, 4, 0.2)], 5)
    assert len(set(heard)) == 1 and heard[0].startswith("process 2 of 4 came twice, from ")


def test_who_counts_otherwise():
    _, heard = call(2, [(0, 2, 0), (1, 3, 0)], 5)
    assert len(set(heard)) == 1
    assert heard[0].startswith("process 1 on ") and "as one of 3, process 0 as one of 2" in heard[0]


def test_strangers_and_processes_that_start_again():
    """A port is open to all; and a process that reported and died may come a second time."""
    report = f"{GREETING} 3 2 somewhere\n".encode()
    strangers = [b"GET / HTTP/1.1\r\n\r\n", b"\xff\x00", b"", f"{GREETING} x y z\n".encode(), report]
    _, heard = call(3, [(0, 3, 0), (1, 3, 0.2), (2, 3, 1.0)], 10, strangers)
    assert heard == ["ok"] * 3


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"process 0 cannot listen at localhost:{port}: .*another port would do"):
            call_roll(f"localhost:{port}", 2, 0, 5)


@pytest.mark.parametrize(("missing", "text"), [
    ([3], "3"), ([1, 2, 3, 7], "1-3, 7"), ([5, 1], "1, 5"), ([], ""), (range(1, 4096), "1-4095"),
])  # fmt: skip
def test_many_numbers_are_short(missing, text):
    assert numbers(missing) == text
