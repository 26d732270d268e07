"""Output that nobody reads any more ends nothing."""

import io
import os
import signal
import subprocess
import sys

import pytest
from tqdm.auto import tqdm

from causal_diffusion.lasting_output import Lasting, lasting_output, outlasting_the_terminal

SCRIPT = """
import sys
from tqdm import tqdm
from causal_diffusion.lasting_output import lasting_output
with lasting_output():
    for i in tqdm(range(2000), mininterval=0, file=sys.stderr):
        print("line", i, flush=True)
    open({out!r}, "w").write("the end")
"""


def broken():
    """A text file whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def closed():
    file = io.StringIO()
    file.close()
    return file


@pytest.mark.parametrize("make", [broken, closed, lambda: None])
def test_writes_never_fail(make):
    file = make()
    stream = Lasting(file)
    for _ in range(2):
        assert stream.write("a line\n") == 7
        stream.flush()
    with tqdm(total=3, file=stream, mininterval=0) as bar:
        bar.update(2)
        bar.write("a message", file=stream)
    if file is not None:
        file.close()


def test_what_is_read_is_written():
    text = io.StringIO()
    stream = Lasting(text)
    print("one", file=stream)
    assert text.getvalue() == "one\n" and not stream.isatty()


def test_streams_are_those_of_before_afterwards():
    before = sys.stdout, sys.stderr
    with lasting_output():
        assert isinstance(sys.stdout, Lasting)
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("end", ["| head -n 1", "2>&- | head -n 1", ">&- 2>&-"])
def test_a_process_goes_on_behind_a_closed_pipe(tmp_path, end):
    out, script = tmp_path / "out", tmp_path / "script.py"
    script.write_text(SCRIPT.format(out=str(out)))
    command = f"set -o pipefail; {sys.executable} {script} {end}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert out.read_text() == "the end"


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_terminal_that_closes_ends_nothing(before):
    old = signal.signal(signal.SIGHUP, before)
    try:
        with outlasting_the_terminal():
            os.kill(os.getpid(), signal.SIGHUP)
            assert (signal.getsignal(signal.SIGHUP) is signal.SIG_IGN) == (before is signal.SIG_IGN)
        assert signal.getsignal(signal.SIGHUP) is before
    finally:
        signal.signal(signal.SIGHUP, old)
