"""Roll call: all processes of a run are there, or all learn who is not.

JAX's own start has a time-out, too, but it ends in an abort that names nobody. So before it, process 0 listens at the
coordinator's address, everyone else reports there,

    process p -> 0    causal_diffusion <processes> <p> <host name>
    0 -> process p    ok, once all have come; or what is wrong

and then the port is free again for JAX.
"""

import contextlib
import selectors
import socket
import time

from causal_diffusion.errors import UserError

GREETING = "causal_diffusion"
PAUSE = 0.2  # seconds between two attempts to reach process 0
GRACE = 5.0  # seconds by which process 0 may have begun later than another
SETTLE = 0.1  # seconds after the last report in which nobody may hang up


def call_roll(coordinator: str, processes: int, process: int, timeout: float) -> None:
    """Returns when all `processes` have called it; `coordinator`: host:port of process 0, `timeout` in seconds.

    Raises:
        UserError: some did not come in time (they are named), one came twice, one counts other than process 0 does, or
            process 0 cannot be reached.
    """
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + timeout
    if process == 0:
        _hear(coordinator, int(port), processes, timeout, deadline)
    else:
        _report(coordinator, host.strip("[]"), int(port), processes, process, timeout, deadline)


def numbers(missing) -> str:
    """[1, 2, 3, 7] -> '1-3, 7'."""
    runs: list[list[int]] = []
    for n in sorted(missing):
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def never_came(missing, processes: int, where: str, timeout: float) -> str:
    """The line for processes that did not come."""
    who = "process" if len(missing) == 1 else "processes"
    return f"{who} {numbers(missing)} of {processes} (numbered from 0) never came to {where} within {timeout:g} s"


def _hear(coordinator, port, processes, timeout, deadline) -> None:
    try:
        server = _listen(port)
    except OSError as error:
        raise UserError(f"process 0 cannot listen at {coordinator}: {error.strerror}; another port would do") from None
    came: dict[int, str] = {0: socket.gethostname()}
    reports: dict[socket.socket, int | None] = {}  # who is at the other end, once it has said so
    problem = ""
    with contextlib.ExitStack() as closing, selectors.DefaultSelector() as selector:
        with server:
            selector.register(server, selectors.EVENT_READ)
            while not problem:
                complete = len(came) == processes
                ready = selector.select(SETTLE if complete else max(deadline - time.monotonic(), 0))
                if complete and not ready:
                    break
                if not ready:
                    missing = set(range(processes)) - set(came)
                    problem = never_came(missing, processes, coordinator, timeout) + ": see their output"
                for key, _ in ready:
                    if key.fileobj is server:
                        connection = closing.enter_context(server.accept()[0])
                        connection.settimeout(5)
                        selector.register(connection, selectors.EVENT_READ)
                        reports[connection] = None
                    else:
                        problem = problem or _receive(key.fileobj, selector, reports, came, processes)
        waiting = [connection for connection, process in reports.items() if process is not None]
        for connection in waiting:
            with contextlib.suppress(OSError):
                connection.sendall(f"{problem or 'ok'}\n".encode())
        for connection in waiting:  # the other side hangs up first, so that the port is free at once
            with contextlib.suppress(OSError):
                connection.recv(1)
    if problem:
        raise UserError(problem)


def _receive(connection, selector, reports, came, processes) -> str:
    """Takes a report, or the news that who reported is gone; '' or what is wrong."""
    try:
        line = connection.recv(1024)
    except OSError:
        line = b""
    if not line:
        selector.unregister(connection)
        came.pop(reports.pop(connection), None)  # it may come again
        return ""
    words = line.decode(errors="replace").split()
    report = len(words) == 4 and words[0] == GREETING and words[1].isdigit() and words[2].isdigit()
    if reports[connection] is not None or not report:
        return ""  # whatever it is, it is none of ours
    count, process, host = int(words[1]), int(words[2]), words[3]
    reports[connection] = process
    if count != processes:
        return (f"process {process} on {host} was started as one of {count}, process 0 as one of {processes}: start "
                f"all with the same number, {processes} would do")  # fmt: skip
    if process in came:
        return (f"process {process} of {processes} came twice, from {came[process]} and from {host}: each number from "
                f"0 to {processes - 1} belongs to one process")  # fmt: skip
    came[process] = host
    return ""


def _report(coordinator, host, port, processes, process, timeout, deadline) -> None:
    answer = ""
    while not answer and (left := deadline + GRACE - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=min(left, 5)) as connection:
                connection.sendall(f"{GREETING} {processes} {process} {socket.gethostname()}\n".encode())
                connection.settimeout(left)
                with connection.makefile() as file:
                    answer = file.readline().strip()
        except (OSError, UnicodeDecodeError):
            time.sleep(PAUSE)
    if not answer:
        raise UserError(f"process 0 of {processes} never came to {coordinator} within {timeout:g} s: process {process} "
                        "waited for it")  # fmt: skip
    if answer != "ok":
        raise UserError(answer)


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    return socket.create_server(("", port), backlog=4096)
