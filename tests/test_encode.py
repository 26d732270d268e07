"""Encoding a data set: the same bytes whatever happens to the process, exact at every length, mistakes in one line."""

import dataclasses
import fcntl
import io
import json
import os
import subprocess
import sys
import textwrap
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from causal_diffusion import encode
from causal_diffusion.data.record_shards import read_json
from causal_diffusion.encode import encode_source, padded_length
from causal_diffusion.errors import UserError
from tests.data.encoded import contents, records
from tests.data.toy_vae import SERIES, Pictures, Toy, ToyConfig, Whole

ROOT = Path(__file__).parents[1]
LENGTHS = (12, 23, 8, 41, 4, 20, 57)


def run(out, source=None, vae=None, **options):
    defaults = dict(fingerprint="ab" * 32, shard_clips=3, batch=2, progress=False)
    if source is None:
        source, vae, defaults["whole"] = Whole(LENGTHS), vae or Toy(SERIES), True
    return encode_source(vae or Toy(), "params", source, out, **defaults | options)


def refusal(out, *arguments, **options):
    with pytest.raises(UserError) as error:
        run(out, *arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# What is written.


def test_records_and_meta_tell_all(tmp_path):
    meta, made = run(tmp_path)
    assert made == 3 and read_json(tmp_path / "meta.json") == meta
    assert sorted(contents(tmp_path)) == [*(f"latents-0000{i}-of-00003.array_record" for i in range(3)), "meta.json"]
    _, clips = records(tmp_path)
    whole = Whole(LENGTHS)
    for i, clip in enumerate(clips):
        assert set(clip) == {"name", "caption", "latents"}
        assert (clip["name"], clip["caption"]) == (whole.names[i], whole.clip_captions[i])
        frames = LENGTHS[i] // 4 * 4
        np.testing.assert_array_equal(clip["latents"], Toy(SERIES).encode("params", whole.clip(i)[None, :frames])[0])
    every = np.concatenate([clip["latents"] for clip in clips]).astype(np.float64)
    np.testing.assert_allclose(meta["mean"], every.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(meta["std"], every.std(axis=0), rtol=1e-12)
    assert meta["geometry"] == dict(time=4, apart=False, space=1, axes=0, channels=3, latent=6)
    assert meta["vae"] == dict(fingerprint="ab" * 32, config=dataclasses.asdict(SERIES))
    assert (meta["clips"], meta["latents"], meta["shape"], meta["captions"]) == (7, len(every), [6], True)
    assert [shard["lengths"] for shard in meta["shards"]] == [[3, 5, 2], [10, 1, 5], [14]]
    assert meta["plan"]["source"] == repr(whole) and meta["format"] == 1


def test_conditions_are_kept_frame_by_frame(tmp_path):
    meta, _ = run(tmp_path, Pictures())
    assert (meta["classes"], meta["action_dim"], meta["shape"], meta["captions"]) == (5, 2, [2, 2, 6], True)
    for i, clip in enumerate(records(tmp_path)[1]):
        original = Pictures()[i]
        assert (clip["name"], clip["caption"]) == (str(i), f"clip {i}")
        for key in ("label", "action", "text", "text_mask"):
            np.testing.assert_array_equal(clip[key], original[key])
            assert clip[key].dtype == original[key].dtype
    meta, _ = run(tmp_path / "bare", Pictures(captions=False, conditions=False))
    assert (meta["classes"], meta["action_dim"], meta["captions"]) == (0, 0, False)
    assert set(records(tmp_path / "bare")[1][0]) == {"name", "latents"}


def test_statistics_survive_a_large_mean_and_do_not_depend_on_the_shards(tmp_path):
    whole = Whole(LENGTHS)
    for clip in whole._clips:
        clip += 3e4
    metas = [run(tmp_path / str(n), whole, Toy(SERIES), whole=True, shard_clips=n)[0] for n in (1, 3, 100)]
    every = np.concatenate([clip["latents"] for clip in records(tmp_path / "3")[1]]).astype(np.float64)
    for meta in metas:
        np.testing.assert_allclose(meta["mean"], every.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(meta["std"], every.std(axis=0), rtol=1e-9)


def test_uint8_clips_are_scaled(tmp_path):
    whole = Whole((8,))
    whole._clips = [np.array([[0, 51, 255]] * 8, np.uint8)]
    run(tmp_path, whole, Toy(SERIES), whole=True)
    np.testing.assert_allclose(records(tmp_path)[1][0]["latents"][0, 3:], [-1, -0.6, 1], atol=1e-6)


# Lengths.


@pytest.mark.parametrize("config", [SERIES, dataclasses.replace(SERIES, apart=True)])
@pytest.mark.parametrize("piece", [0, 2, 3, 64])
def test_padded_clips_have_exactly_the_latents_of_unpadded_ones(tmp_path, config, piece):
    """And few shapes come up: of 40 lengths, those of the grid, or whole pieces."""
    whole, vae = Whole(range(4, 44)), Toy(config)
    run(tmp_path, whole, vae, whole=True, shard_clips=40, batch=4, piece=piece)
    first = int(config.apart)
    for i, clip in enumerate(records(tmp_path)[1]):
        video = whole.clip(i)
        video = video[: first + (len(video) - first) // 4 * 4]
        np.testing.assert_array_equal(clip["latents"], Toy(config).encode("params", video[None])[0])
    assert {shape[0] for shape, _ in vae.seen} == {4}
    lengths = {config_latents(config, shape[1]) for shape, _ in vae.seen}
    if piece in (0, 64):
        assert lengths <= {1, 2, 3, 4, 6, 8, 12} and all(used == 0 for _, used in vae.seen)
    else:
        assert all(n <= piece or (n - first) % piece == 0 and used == piece for n, used in (
            (config_latents(config, shape[1]), used) for shape, used in vae.seen))  # fmt: skip


def config_latents(config, frames):
    return Toy(config).geometry.latents(frames)


def test_padding_costs_at_most_a_third_and_few_lengths():
    for piece in (0, 5, 64):
        padded = [padded_length(n, piece, 1) for n in range(1, 200)]
        assert all(n <= m for n, m in zip(range(1, 200), padded, strict=True)) and padded == sorted(padded)
        short = [(n, m) for n, m in zip(range(1, 200), padded, strict=True) if not 0 < piece < n]
        assert all(m <= max(n + 1, 1.5 * n) for n, m in short) and len({m for _, m in short}) <= 16
    assert [padded_length(n, 0, 0) for n in (1, 2, 3, 4, 5, 7, 9, 13)] == [1, 2, 3, 4, 6, 8, 12, 16]
    assert [padded_length(n, 4, 1) for n in (4, 5, 6, 9, 10)] == [4, 5, 9, 9, 13]
    assert [padded_length(n, 4, 0) for n in (3, 4, 5, 8, 9)] == [3, 4, 8, 8, 12]


def test_elements_are_never_padded(tmp_path):
    vae = Toy()
    run(tmp_path, Pictures(n=7, frames=17), vae, shard_clips=4, batch=3)
    assert {shape[1] for shape, _ in vae.seen} == {17}
    assert [shape[0] for shape, _ in vae.seen] == [3, 3, 3]  # the last batch of a shard is filled up


def test_clips_too_short_for_a_latent_are_skipped(tmp_path, caplog):
    meta, _ = run(tmp_path, Whole((3, 8, 2, 0, 1, 2, 9)), Toy(SERIES), whole=True)
    assert [shard["records"] for shard in meta["shards"]] == [1, 0, 1] and meta["clips"] == 2
    assert [clip["name"] for clip in records(tmp_path)[1]] == ["walk 8", "walk 9"]
    assert "skipped 2 whole clips: they have fewer than the 4 frames of a latent" in caplog.text
    assert refusal(tmp_path / "none", Whole((3, 2)), Toy(SERIES), whole=True) == (
        "none of the 2 clips has the 4 frames of a latent")


# Interruptions.


def test_two_runs_write_the_same_bytes(tmp_path):
    for name in "ab":
        run(tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


KILLED = """
    import os, shutil, signal, sys
    from pathlib import Path
    from causal_diffusion import encode
    from causal_diffusion.data import record_shards
    from tests.data.encoded import contents
    from tests.data.toy_vae import SERIES, Toy, Whole
    from tests.test_encode import LENGTHS

    def child(out, deadly=0):
        '''Encodes in a process of its own, which kills itself before the so manieth thing it does to the disk.'''
        if pid := os.fork():
            return os.waitpid(pid, 0)[1]
        done = 0
        def counted(f):
            def call(*arguments, **options):
                nonlocal done
                done += 1
                if done == deadly:
                    os.kill(os.getpid(), signal.SIGKILL)
                return f(*arguments, **options)
            return call
        os.fsync = lambda descriptor: None  # what is written outlives a process without it, and it takes long
        for name in ("fsync", "replace", "unlink", "rmdir", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        record_shards.pack = counted(record_shards.pack)
        encode.encode_source(Toy(SERIES), "params", Whole(LENGTHS), out, fingerprint="ab" * 32, shard_clips=3, batch=2,
                             whole=True, progress=False)
        os._exit(0)

    root, deadly = Path(sys.argv[1]), 0
    assert child(root / "whole") == 0
    expected = contents(root / "whole")
    while True:
        deadly += 1
        out = root / str(deadly)
        status = child(out, deadly)
        there = {name: data for name, data in contents(out).items() if "/" not in name} if out.exists() else {}
        assert there.items() <= expected.items(), (deadly, "a file under its own name is not whole")
        if status == 0:
            break
        assert status == signal.SIGKILL, status
        second = child(out, 1 + deadly * 7 % 23)  # and once more, somewhere else
        assert second in (0, signal.SIGKILL), second
        assert child(out) == 0
        assert contents(out) == expected, deadly
        shutil.rmtree(out)
    print(deadly - 1)
"""


def test_killed_before_every_step_it_ends_in_the_same_bytes(tmp_path):
    """kill -9 at every call that touches the disk: no file is ever half-written under its name, and no byte differs."""
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


def test_complete_shards_are_kept_and_damaged_ones_made_again(tmp_path, caplog):
    run(tmp_path)
    expected, (first, second, third) = contents(tmp_path), sorted(tmp_path.glob("*.array_record"))
    times = {path: path.stat().st_mtime_ns for path in (first, second, third)}
    assert run(tmp_path)[1] == 0 and not caplog.records  # complete already
    second.write_bytes(expected[second.name][:-1])
    third.unlink()
    assert run(tmp_path)[1] == 2
    assert f"{second} has" in caplog.text and f"{third} is missing: it is made again" in caplog.text
    assert contents(tmp_path) == expected
    assert first.stat().st_mtime_ns == times[first] and second.stat().st_mtime_ns != times[second]


def test_an_error_on_the_way_keeps_what_is_complete(tmp_path):
    whole = Whole(LENGTHS)
    good = whole._clips[4].copy()
    whole._clips[4][2, 1] = np.nan
    run(tmp_path / "expected")
    assert refusal(tmp_path / "x", whole, Toy(SERIES), whole=True) == (
        "clip walk 4 of the data has a value that is not finite, at [2, 1]")
    assert sorted(path.name for path in (tmp_path / "x").glob("*")) == [
        "latents-00000-of-00003.array_record", "unfinished"]  # fmt: skip
    whole._clips[4] = good
    assert run(tmp_path / "x", whole, Toy(SERIES), whole=True)[1] == 2
    assert contents(tmp_path / "x") == contents(tmp_path / "expected")


# What is refused.


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("options, message", [
    (dict(fingerprint="cd" * 32), f"the VAE's fingerprint is {'ab' * 32}, not {'cd' * 32}"),
    (dict(source=Whole((1, 9)), whole=True), "the data is Whole([12, 23, 8, 41, 4, 20, 57]), not Whole([1, 9])"),
    (dict(split="test"), "--split is train, not test"),
    (dict(shard_clips=4), "--shard_clips is 3, not 4"),
    (dict(batch=1), "--batch is 2, not 1"),
    (dict(piece=0), "--piece is 64, not 0"),
    (dict(dtype="float16"), "--dtype is float32, not float16"),
    (dict(clips=3), "--clips is 7, not 3"),
    (dict(source=Whole(LENGTHS)), "--whole is True, not False"),
])  # fmt: skip
def test_a_folder_of_other_latents(tmp_path, options, message, finished):
    run(tmp_path)
    if not finished:
        os.mkdir(tmp_path / "unfinished")
        meta = json.loads((tmp_path / "meta.json").read_text())
        (tmp_path / "unfinished/plan.json").write_text(json.dumps(meta["plan"]))
        (tmp_path / "meta.json").unlink()
    before = contents(tmp_path)
    options = {"vae": Toy(SERIES)} | options if "source" in options else options
    told = refusal(tmp_path, **options)
    assert told.startswith(f"{tmp_path} holds latents of which {message}")
    assert told.endswith(": choose another --out, or remove that folder")
    assert contents(tmp_path) == before


def test_a_folder_that_another_process_writes_into(tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        assert refusal(tmp_path) == (
            f"{tmp_path} is in use: another process; wait for it, end it, or try another --out")
    finally:
        os.close(folder)
    run(tmp_path)
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/x"):
        assert refusal(path) == f"--out: {path} cannot be a folder, a file is in its place: choose another"


class Endless(Pictures):
    def __len__(self):
        return 2**30


class Wild(Toy):
    def encode(self, params, video, piece=0):
        with np.errstate(over="ignore"):
            return Toy.encode(self, params, video, piece) * np.float32(self.config.scale)


UNFIT = "clip 0 of the data does not fit the VAE: "


@pytest.mark.parametrize("source, options, message", [
    (Pictures(frames=8), {}, UNFIT + "8 frames are no whole number of latents: a clip has 1 + 4 n, 5 or 9 would do"),
    (Pictures(size=5), {}, UNFIT + "the height is 5: a multiple of 2, 4 or 6 would do"),
    (Pictures(), dict(vae=Toy(ToyConfig(channels=1))), UNFIT + "a clip has 3 channels"),
    (Pictures(), dict(whole=True), "--whole is set, and Pictures has no whole clips: leave it out"),
    (Pictures(), dict(clips=11), "--clips is 11 and the data have 10: --clips=10 would do, or leave it out"),
    (Endless(), {}, "the data have no end (1,073,741,824 clips): say how many, --clips=10000 would do"),
    (Pictures(), dict(batch=0), "--batch is 0; it is at least 1"),
    (Pictures(), dict(shard_clips=0), "--shard_clips is 0; it is at least 1"),
    (Pictures(), dict(piece=-1), "--piece is -1; it is at least 0"),
    (Pictures(), dict(dtype="int8"), "--dtype is int8: it is one of float32, float16"),
    (Pictures(), dict(vae=Wild(ToyConfig(scale=1e20))), "the VAE makes latents of clip 0 that are not finite"),
    (Pictures(), dict(vae=Wild(ToyConfig(scale=1e4)), dtype="float16"), "clip 0 has a latent of "),
])  # fmt: skip
def test_data_and_options_that_do_not_fit(tmp_path, source, options, message):
    assert refusal(tmp_path, source, **options).startswith(message)
    assert not (tmp_path / "meta.json").exists()


def test_the_first_clips_only(tmp_path):
    meta, made = run(tmp_path, Endless(), clips=4)
    assert meta["clips"] == 4 and made == 2


# The command.


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Calls main with a toy autoencoder and toy pictures; returns what a mistake leaves on stderr."""
    module = SimpleNamespace(load_vae=lambda path: (Toy(), "params"), fingerprint=lambda vae, params: "ab" * 32)
    monkeypatch.setitem(sys.modules, "causal_diffusion.autoencoder", module)
    sources = SimpleNamespace(make_source=lambda config, split: Pictures(frames=config.frames, seed=len(split)))
    monkeypatch.setitem(sys.modules, "causal_diffusion.data.sources", sources)
    required = [f"--out={tmp_path / 'set'}", "--vae=runs/vae", "--config=quickstart", "--config.data.frames=5"]
    return lambda *arguments: encode.main([*required, *arguments])


def fails(call):
    from causal_diffusion.cli import run as run_command

    stderr = io.StringIO()
    with redirect_stderr(stderr), pytest.raises(SystemExit) as exit:
        run_command(call)
    assert exit.value.code == 2
    lines = [line for line in stderr.getvalue().replace("\r", "\n").split("\n") if line and "%|" not in line]
    assert len(lines) == 1, lines
    return lines[0]


def test_the_command_says_what_it_made_and_where_to_go_on(command, tmp_path, capsys):
    command("--shard_clips=4")
    said = f"{tmp_path / 'set/train'}: 10 clips, 20 latents in 3 shards\n"
    captured = capsys.readouterr()
    assert captured.out == said and "10/10" in captured.err and "clip/s" in captured.err
    command("--shard_clips=4")
    captured = capsys.readouterr()
    assert captured.out == said.replace(":", " is complete already:", 1) and "%|" not in captured.err
    command("--shard_clips=4", "--split=test")
    meta = [json.loads((tmp_path / "set" / split / "meta.json").read_text()) for split in ("train", "test")]
    assert meta[0]["plan"]["source"] != meta[1]["plan"]["source"] and meta[1]["plan"]["split"] == "test"
    assert "--shard_clips is 4, not 256" in fails(command)


@pytest.mark.parametrize("argument, message", [
    ("--config.data.frames=6", "6 frames are no whole number of latents: a clip has 1 + 4 n, 5 or 9 would do"),
    ("--config.data.frame=6", "error: unknown config key 'data.frame'; the nearest is 'data.frames'"),
    ("--split=all", "argument --split: invalid choice: 'all'"),
    ("--batch=x", "argument --batch: invalid int value: 'x'; python -m causal_diffusion.encode --help lists"),
    ("--frames=9", "unknown argument '--frames=9'; there are"),
])
def test_mistakes_in_the_command_are_one_line(command, argument, message):
    assert message in fails(lambda: command(argument))


def test_what_is_missing_in_the_command_is_named():
    assert "the following arguments are required: --vae, --config, --out" in fails(lambda: encode.main([]))
