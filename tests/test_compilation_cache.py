"""The compilation cache: where it is, what a kill leaves of it, and that a program from it computes the same bits."""

import contextlib
import json
import os
import re
import shutil
import time
import zlib

import jax
import pytest

from causal_diffusion import cli
from causal_diffusion import compilation_cache as cache
from tests.parallel import processes

SETTINGS = ("jax_compilation_cache_dir", *cache.EAGER)


@pytest.fixture(autouse=True)
def settings_stay():
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def folder_in_use():
    return jax.config.jax_compilation_cache_dir


# Where it is.


@pytest.mark.parametrize("name", cache.OFF)
def test_it_can_be_switched_off(monkeypatch, name):
    monkeypatch.setenv(cache.VARIABLE, name)
    jax.config.update("jax_compilation_cache_dir", name)  # as JAX has read the variable
    cache.switch_on()
    assert folder_in_use() is None


def test_the_variable_names_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "a/b"))
    cache.switch_on()
    assert folder_in_use() == str(tmp_path / "a/b") and (tmp_path / "a/b").is_dir()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
    cache.only_if_shared()
    assert folder_in_use() == str(tmp_path / "a/b")


def test_a_bucket_is_left_to_jax(monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, "gs://bucket/programs")
    cache.switch_on()
    assert folder_in_use() == "gs://bucket/programs"


@pytest.mark.parametrize("base", ["", "relative", "absolute"])
def test_else_it_is_the_users(monkeypatch, tmp_path, base):
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept") if base == "absolute" else base)
    cache.switch_on()
    (folder,) = (tmp_path / ("kept" if base == "absolute" else ".cache") / "causal_diffusion").iterdir()
    assert folder_in_use() == str(folder) and re.fullmatch(rf"xla-{re.escape(jax.__version__)}-\w{{12}}", folder.name)
    assert folder.stat().st_mode & 0o077 == 0
    cache.only_if_shared()
    assert folder_in_use() is None


def test_each_kind_of_processor_has_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = cache._own_folder()
    monkeypatch.setattr(cache, "_processor", lambda: "flags: of another one")
    assert cache._own_folder() != here and cache._own_folder().parent == here.parent


def test_where_nothing_can_be_written_nothing_is_kept(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file/folder"))
    cache.switch_on()
    assert folder_in_use() is None
    (line,) = caplog.messages
    assert str(tmp_path / "file") in line and cache.VARIABLE in line


def test_thresholds_of_ones_own_hold(monkeypatch, tmp_path):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    cache.switch_on()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 7
    assert jax.config.jax_persistent_cache_min_entry_size_bytes == -1


# What a kill leaves.


def entry(folder, name, size=1000, used=0.0):
    """An entry as JAX writes it, used so many seconds ago."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{cache.SUFFIX}"
    path.write_bytes(zlib.compress(os.urandom(size)))
    os.utime(path, times=(time.time() - used,) * 2)
    return path


def broken(path, how):
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[: {"empty": 0, "cut": len(data) // 2, "nearly whole": len(data) - 1}.get(how)])
    return path


@pytest.mark.parametrize("seen", [False, True], ids=["new", "found whole before"])
@pytest.mark.parametrize("how", ["empty", "cut", "nearly whole", "flipped"])
def test_what_is_not_whole_goes(tmp_path, how, seen):
    good, bad = entry(tmp_path, "good", used=10.0), entry(tmp_path, "bad", used=10.0)
    if seen:
        cache.tidy(tmp_path)
    broken(bad, how)
    cache.tidy(tmp_path)
    assert good.exists() and not bad.exists()
    assert set(json.loads((tmp_path / cache.CHECKED).read_bytes())) == {good.name}


def test_what_was_found_whole_is_not_read_again(tmp_path, monkeypatch):
    entry(tmp_path, "one")
    cache.tidy(tmp_path)
    read = []
    monkeypatch.setattr(cache, "_whole", lambda path: read.append(path.name) or True)
    two = entry(tmp_path, "two")
    cache.tidy(tmp_path)
    cache.tidy(tmp_path)
    assert read == [two.name]


@pytest.mark.parametrize("record", ["", "{", "[]"])
def test_a_broken_record_is_no_record(tmp_path, record):
    good, bad = entry(tmp_path, "good"), broken(entry(tmp_path, "bad"), "cut")
    (tmp_path / cache.CHECKED).write_text(record)
    cache.tidy(tmp_path)
    assert good.exists() and not bad.exists()


def test_other_files_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    cache.tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_longest_unused_goes_first(tmp_path):
    old = [entry(tmp_path / "xla-1", f"old{i}", used=1000.0 - i) for i in range(3)]
    new = [entry(tmp_path / "xla-2", f"new{i}", used=100.0 - i) for i in range(3)]
    os.utime(old[0], times=(time.time(), old[0].stat().st_mtime))  # it was read just now
    size = old[0].stat().st_size
    cache.shrink(tmp_path, 6 * size)
    assert all(path.exists() for path in old + new)
    cache.shrink(tmp_path, 3 * size + 1)
    assert [path.exists() for path in old + new] == [True, False, False, False, True, True]


# Programs from it.

TRAIN = """
    import sys
    import jax
    from jax import monitoring
    from causal_diffusion import cli

    events = []
    monitoring.register_event_listener(lambda event, **_: events.append(event.rpartition("/")[2]))
    try:
        cli.run(cli.train_main)
    finally:
        print("found", events.count("cache_hits"), "made", events.count("cache_misses"))
"""
TINY = ["--config=quickstart:tiny", "--config.model.width=16", "--config.model.depth=1", "--config.train.steps=6",
        "--config.log.every=1", "--config.evaluate.clips=0", "--config.log.evaluate=0", "--config.log.checkpoint=10"]


def trained(workdir, folder, count=1, strict=True, script=TRAIN):
    """(the record, how many programs were found in the cache, how many were put there) of a run."""
    env = {cache.VARIABLE: str(folder)} | ({"PYTHONWARNINGS": "error"} if strict else {})
    ended = processes.run(script, count, *TINY, f"--workdir={workdir}", env=env, devices=1)
    assert [e.code for e in ended] == [0] * count, ended
    found, made = map(int, re.search(r"found (\d+) made (\d+)", ended[0].out).groups())
    return (workdir / "metrics.jsonl").read_bytes(), found, made


def entries(folder):
    return {path.name: path.stat().st_size for path in folder.glob(f"*{cache.SUFFIX}")}


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """(the record of a run that found nothing, the folder that it left, a copy of that)."""
    place = tmp_path_factory.mktemp("first")
    folder, copy = place / "programs", place / "copy"
    record, found, made = trained(place / "run", folder)
    before = entries(folder)
    assert not found and made == len(before) and any(name.startswith("jit_train_step-") for name in before)
    return record, folder, shutil.copytree(folder, copy)


@pytest.fixture
def cold(first_run):
    """(the record, the folder as it was left, how many programs are in it). JAX's keys depend on the folder's path."""
    record, folder, copy = first_run
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    return record, folder, len(entries(folder))


@pytest.mark.full
def test_from_disk_or_compiled_a_run_has_the_same_bits(cold, tmp_path):
    """The second start reads the step from disk and compiles what is broken there, without a warning."""
    record, folder, made = cold
    before = entries(folder)
    small = sorted((size, name) for name, size in before.items())
    for how, (_, name) in zip(("cut", "flipped", "empty"), small, strict=False):
        broken(folder / name, how)
    again, found, remade = trained(tmp_path / "run", folder)
    assert again == record and (found, remade) == (made - 3, 3)
    assert entries(folder).keys() == before.keys() and min(entries(folder).values()) > 0


@pytest.mark.full
def test_a_broken_step_is_compiled_again_to_the_same_bits(cold, tmp_path):
    record, folder, made = cold
    for path in folder.glob(f"*{cache.SUFFIX}"):
        broken(path, "cut" if path.name.startswith("jit_train_step-") else "flipped")
    assert trained(tmp_path / "run", folder) == (record, 0, made)


@pytest.mark.full
def test_an_entry_that_breaks_after_the_start_is_a_warning(cold, tmp_path):
    """As one that another process is just writing."""
    record, folder, _ = cold
    for path in folder.glob(f"*{cache.SUFFIX}"):
        broken(path, "cut")
    script = TRAIN.replace("    events = []", "    cli.compilation_cache.tidy = lambda folder: None\n    events = []")
    assert trained(tmp_path / "run", folder, strict=False, script=script)[:2] == (record, 0)


@pytest.mark.full
def test_two_at_once_share_a_folder(cold, tmp_path):
    (record, folder, _), runs = cold, [tmp_path / "1", tmp_path / "2"]
    names = entries(folder).keys()
    shutil.rmtree(folder)
    with contextlib.ExitStack() as both:
        env = {cache.VARIABLE: str(folder)}
        arguments = [(TRAIN, 1, *TINY, f"--workdir={run}") for run in runs]
        started = [both.enter_context(processes.started(*each, env=env, devices=1)) for each in arguments]
        ended = [one for each in started for one in each.finish()]
    assert [e.code for e in ended] == [0, 0], ended
    assert {(run / "metrics.jsonl").read_bytes() for run in runs} == {record}
    assert entries(folder).keys() == names and all(map(cache._whole, folder.glob(f"*{cache.SUFFIX}")))


@pytest.mark.full
def test_the_processes_of_one_run_share_a_folder_that_is_named(tmp_path):
    record, found, made = trained(tmp_path / "cold", tmp_path / "programs", count=2, strict=False)
    assert found < made  # one may find what the other has just kept
    assert trained(tmp_path / "warm", tmp_path / "programs", count=2, strict=False) == (record, found + made, 0)


def test_the_processes_of_one_run_keep_nothing_elsewhere(monkeypatch):
    """Before JAX is asked for its devices."""
    asked = []
    monkeypatch.setattr(cli.distributed, "initialise", lambda cluster: asked.append("joined"))
    monkeypatch.setattr(cli.distributed, "coordination_client", lambda: asked[0])
    monkeypatch.setattr(cache, "only_if_shared", lambda: asked.append("asked"))
    monkeypatch.setattr("causal_diffusion.training.loop.dry_run", lambda config: asked.append("ran"))
    cli.train_main(["--config=quickstart:tiny", "--dry_run"])
    assert asked == ["joined", "asked", "ran"]
