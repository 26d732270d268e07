"""One owner of a folder: refused while it lives, taken over when it does not, whichever host it is on."""

import errno
import json
import os
import subprocess
import sys

import pytest

from causal_diffusion import folder_lock
from causal_diffusion.errors import UserError
from causal_diffusion.folder_lock import FILE, own_folder


def own(folder):
    return own_folder(folder, "training", "--workdir")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.3)
    monkeypatch.setattr(folder_lock, "HEARTBEAT", 0.05)


@pytest.fixture
def no_flock(monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)


def left_behind(folder, **changes):
    """The lock file of an owner that is gone."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owner = dict(host=folder_lock.socket.gethostname(), process=ended.pid, doing="training", since="then", run="one")
    (folder / FILE).write_text(json.dumps(owner | changes))


def test_the_second_is_refused_in_one_line_that_names_the_first(tmp_path):
    folder = tmp_path / "runs/one"
    with own(folder):
        with pytest.raises(UserError) as refused, own(folder):
            pass
        said = str(refused.value)
        assert "\n" not in said and f"training by process {os.getpid()} on" in said and "--workdir" in said
    assert not list(tmp_path.iterdir())  # given back: what it made and left empty is gone
    folder.mkdir(parents=True)
    (folder / "file").touch()
    with own(folder):
        assert (folder / FILE).exists()
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_it_is_given_back_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), own(tmp_path):
        raise ZeroDivisionError
    with own(tmp_path):
        pass


@pytest.mark.parametrize("flock", [True, False])
def test_a_dead_owner_of_this_host_does_not_hold_it(tmp_path, request, flock):
    if not flock:
        request.getfixturevalue("no_flock")
    left_behind(tmp_path)
    with own(tmp_path):
        assert json.loads((tmp_path / FILE).read_text())["process"] == os.getpid()


def test_a_live_owner_holds_it_where_the_file_system_has_no_locks(tmp_path, no_flock):
    left_behind(tmp_path, process=os.getppid())
    with pytest.raises(UserError, match="in use: training by process"), own(tmp_path):
        pass


def test_an_owner_on_another_host_holds_it_as_long_as_it_touches_the_file(tmp_path, quick, no_flock, monkeypatch):
    with own(tmp_path):  # touches its file every twentieth of a second
        monkeypatch.setattr(folder_lock.socket, "gethostname", lambda: "other")
        with pytest.raises(UserError, match="in use"), own(tmp_path):
            pass
    left_behind(tmp_path, host="gone")
    with own(tmp_path):
        pass
    left_behind(tmp_path, host="gone")
    os.utime(tmp_path / FILE, (0, 0))
    monkeypatch.setattr(folder_lock, "PATIENCE", 1e9)  # not watched at all
    with own(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "null", '{"host": 1}', "\0\0"])
def test_a_damaged_lock_file_holds_nothing(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with own(tmp_path) as lock:
        lock.check()


def test_an_owner_that_was_replaced_is_told(tmp_path):
    with own(tmp_path) as lock:
        lock.check()
        left_behind(tmp_path, run="another")
        with pytest.raises(UserError, match="belongs to another process by now"):
            lock.check()
    assert json.loads((tmp_path / FILE).read_text())["run"] == "another"  # its lock is left alone


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--workdir: .* cannot be a folder"), own(tmp_path / "file"):
        pass


@pytest.mark.parametrize("name, reason", [
    ("a" * 300, "File name too long"), ("a\0b", "null"), ("lock", "directory"), ("/proc/nothing", ""),
])  # fmt: skip
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(tmp_path, name, reason):
    (tmp_path / "lock" / FILE).mkdir(parents=True)
    with pytest.raises(UserError, match=f"^--workdir: .* cannot be used .*{reason}") as refused, own(tmp_path / name):
        raise AssertionError
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_disk_that_takes_no_lock_is_told(tmp_path, monkeypatch, code):
    def fail(path):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(folder_lock, "create", fail)
    with pytest.raises(UserError, match=os.strerror(code)), own(tmp_path / "run"):
        raise AssertionError


def test_what_a_link_leads_to_is_left_as_it_is(tmp_path):
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f"{FILE}.partial").symlink_to(other)
    with own(tmp_path / "run"):
        assert other.read_text() == "mine"
