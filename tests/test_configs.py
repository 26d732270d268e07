"""The shipped configs: each builds, can be sized without data, and trains in its tiny variant as it is."""

import dataclasses
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import jax
import numpy as np
import pytest

import causal_diffusion as cd
from causal_diffusion.cli import train_main
from causal_diffusion.config import config_folder, differences, freeze, load_config, override, thaw
from causal_diffusion.data.sources import make_source
from causal_diffusion.parallel.mesh import make_mesh
from causal_diffusion.recipe import build, parameter_count
from causal_diffusion.training import loop
from causal_diffusion.training.state import create
from causal_diffusion.training.step import train_step

ROOT = Path(__file__).parents[1]
ALL_NAMES = sorted(path.stem for path in config_folder().glob("*.py"))
NAMES = [name for name in ALL_NAMES if load_config(name).trains == "transformer"]  # the others: test_vae_configs.py
FAMILY = (  # published systems: full size is for accelerators, 'tiny' learns moving digits in minutes
    "acdit", "ar_diffusion", "ca2_vdm", "causal_forcing", "causvid", "deep_forcing", "dfot", "diffusion_forcing", "far",
    "far_long", "knot_forcing", "longlive", "magi1", "nfd", "rolling_forcing", "self_forcing", "skyreels_v2",
    "streaming_tsdiff", "vid_gpt",
)  # fmt: skip
MOTION = ("cmdm", "flooddiffusion", "motionstreamer")  # text to motion: 'tiny' learns motion capture in an hour
APPROXIMATE = {"deep_forcing", "knot_forcing", "longlive", "rolling_forcing"}  # kept frames move; the others are exact
VARIANTS = dict.fromkeys(FAMILY + MOTION, ("", "tiny")) | {
    "cmdm": ("", "stream", "stream_tiny", "tiny"), "quickstart": ("", "tiny"), "video_folder": ("", "gpu", "tiny"),
}  # fmt: skip
# What a tiny variant may change: sizes, steps, batch and data.
SIZES = {
    "model.width", "model.heads", "model.depth", "model.mlp", "model.registers", "layout.block", "layout.window",
    "model.period", "levels.known", "schedule.chunk", "schedule.in_flight", "mesh.fsdp", "layout.sinks",
    "layout.coarse", "cache.budget", "cache.recent", "model.head_width", "model.head_depth", "vae.motion.latent",
    "vae.motion.width", "vae.motion.align",
}  # fmt: skip
STEPS = {
    "train.steps", "train.warmup", "train.lr", "train.ema", "schedule.steps", "schedule.step_times", "schedule.stride",
    "schedule.guess", "log.every", "log.evaluate", "log.checkpoint", "evaluate.clips", "evaluate.context",
    "evaluate.frames", "train.weight_decay", "guidance.scale",
}  # fmt: skip
BATCH = {"train.batch"}
DATA = {
    "data.source", "data.frames", "data.height", "data.width", "data.channels", "data.classes", "data.action_dim",
    "model.channels", "model.patch", "model.classes", "model.action", "model.text",
    "process.clip",  # the range of the data
    "data.fps", "data.stride", "data.shortest", "data.representation", "data.mirror", "data.unseen", "data.path",
    "train.compose",  # a set of clips that each have one caption
    "vae.motion.channels", "text.encoder", "text.path", "text.tokens", "model.vocabulary",
}  # fmt: skip
OWN = {"motionstreamer": {"process.path", "process.predict", "train.own_past"}}  # its docstring says why
ALL = [f"{name}:{variant}" if variant else name for name in NAMES for variant in VARIANTS[name]]


@pytest.fixture(scope="module")
def one_device():
    """Batches are as shipped, and eight devices would want multiples of eight. Each step is compiled once."""
    step, mesh = loop.compile_step, make_mesh(devices=jax.devices()[:1])
    step_once = functools.cache(lambda network, mesh: step(build(network), mesh))

    def compile_step(recipe, mesh, spec=None):
        data = dataclasses.replace(recipe.config.data, path="")
        return step_once(dataclasses.replace(recipe.config, data=data), mesh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_mesh", lambda config: mesh)
        patch.setattr(loop, "compile_step", compile_step)
        yield


def test_every_config_is_known_here():
    assert NAMES == sorted(VARIANTS)


@pytest.mark.parametrize("name", ALL)
def test_it_builds_and_survives_a_round_trip(name):
    config = load_config(name)
    assert freeze(thaw(freeze(config))) == freeze(config)
    recipe = build(config)
    assert recipe.config.name == name.partition(":")[0]
    assert recipe.kind == ("approximate" if recipe.config.name in APPROXIMATE else "exact")
    assert build(recipe.config).config == recipe.config
    context, layout = recipe.config.evaluate.context, recipe.layout
    assert 0 < context < recipe.frames and (context + layout.pad) % layout.block == 0
    if recipe.config.name not in MOTION:  # their streams are measured by themselves
        assert recipe.config.evaluate.frames + context > recipe.frames  # it is streamed past its training length


@pytest.mark.parametrize("name", NAMES)
def test_tiny_changes_sizes_steps_batch_and_data_only(name):
    full, tiny = (freeze(load_config(n)) for n in (name, f"{name}:tiny"))
    identity, elastic = differences(full, tiny)
    changed = {**identity, **elastic}
    assert {"model.width", "train.steps"} <= set(changed) <= SIZES | STEPS | BATCH | DATA | OWN.get(name, set())
    assert OWN.get(name, set()) <= set(changed)
    if name in MOTION:
        assert tiny.data.source == "motion_clips" and tiny.data.frames == 128 and tiny.model.width <= 192
        assert tiny.text.encoder == "words" and tiny.vae.motion == freeze(load_config("motion_vae:text")).vae.motion
        assert (full.schedule.view().in_flight == 1) == (tiny.schedule.view().in_flight == 1)
        return
    if name in FAMILY:
        assert tiny.data.source == "moving_digits" and tiny.data.frames <= 16 and tiny.model.width <= 192
        assert tiny.model.classes == 10 and (tiny.process.clip in (full.process.clip, 1.0))  # pixels lie in [-1, 1]
        # The same share of blocks is in flight, or all that the clip has room for.
        assert (full.schedule.view().in_flight == 1) == (tiny.schedule.view().in_flight == 1)
    else:
        assert tiny.train.steps <= 20 and tiny.model.width <= 32
        assert "schedule" not in {key.partition(".")[0] for key in changed}


def test_every_key_that_tiny_may_change_is_changed_somewhere():
    """So that the list above stays as short as it is."""
    changed = set()
    for name in NAMES:
        for part in differences(*(freeze(load_config(n)) for n in (name, f"{name}:tiny"))):
            changed |= set(part)
    assert changed == SIZES | STEPS | BATCH | DATA | set().union(*OWN.values())


@pytest.mark.parametrize("name", NAMES)
def test_its_docstring_says_how_to_run_it_and_what_to_expect(name):
    text = (config_folder() / f"{name}.py").read_text().split('"""')[1]
    own = load_config(name).data.source == "own"  # clips that no command line can name
    command = f'cd.train(cd.load_config("{name}"), workdir=' if own else (
        f"python train.py --config=configs/{name}.py --workdir=")
    assert command in text.replace("\n", " ")
    published = name in FAMILY + MOTION
    for word in ("Command:", "Hardware:", "Expected:", *(("'tiny'",) if published else ("Method:",))):
        assert word in text
    if published:
        assert re.search(r"^Papers?: .*arXiv \d{4}\.\d{5}", text, re.M | re.S)
        for choice in ("layout", "process", "levels", "schedule", "guidance", "cache"):
            assert re.search(rf"^  {choice}  +\S", text, re.M), choice
        assert f"  layout     {load_config(name).layout.kind}" in text
    with pytest.raises(cd.UserError, match=f"{name}.py: {name} has no variant 'tinny'.*'tiny'"):
        load_config(f"{name}:tinny")


@pytest.mark.parametrize("name", FAMILY + MOTION)
def test_the_full_size_is_counted_without_being_made(name):
    """From shapes alone; the figure that a docstring gives is that of the network."""
    before = {id(a) for a in jax.live_arrays()}
    config = freeze(load_config(name))
    if not config.model.mask_channel:
        config = override(config, {"model.layers": "scan"})  # as many parameters, traced once
    count = parameter_count(jax.eval_shape(build(config).init_params, jax.random.key(0)))
    assert sum(a.nbytes for a in jax.live_arrays() if id(a) not in before) < 2**22
    text = (config_folder() / f"{name}.py").read_text()
    exact, about = re.search(r"(\d{1,3}(?:,\d{3})+) parameters", text), re.search(r"(\d+) M parameters", text)
    if exact:
        assert count == int(exact[1].replace(",", ""))
    elif about:
        assert abs(count / 1e6 / int(about[1]) - 1) < 0.015
    assert count > {"streaming_tsdiff": 1e6, "cmdm": 38_697_023}.get(name, 5e7)


def test_cmdm_takes_the_published_number_of_sweeps_and_streams_with_three_blocks_in_flight():
    """K + (N - 1) U rows after the first: 82 for 17 blocks of three latents, 146 for 49 of one latent."""
    full = build(load_config("cmdm"))
    assert (full.layout.block, full.frames, full.layout.block_count(full.frames)) == (3, 51, 17)
    for blocks, sweeps in ((17, 82), (49, 146), (1, 50)):
        matrix = np.asarray(full.schedule.matrix(blocks))
        assert matrix.shape == (sweeps + 1, blocks) and (matrix[0] == 50).all() and (matrix[-1] == 0).all()
    for name in ("cmdm:stream", "cmdm:stream_tiny"):
        recipe = build(load_config(name))
        assert recipe.schedule.view().in_flight == 3 and recipe.layout.block == 1
        running = np.asarray(recipe.schedule.matrix(40))
        steps = recipe.schedule.steps
        assert ((running > 0) & (running < steps)).sum(axis=1).max() <= 3
    identity, elastic = differences(*(freeze(load_config(n)) for n in ("cmdm:tiny", "cmdm:stream_tiny")))
    assert not identity and set(elastic) == {"schedule.steps", "schedule.stride", "stream.capacity"}  # one checkpoint


QUICK = ("quickstart:tiny",)
COMPILED = [name for name in ALL if name not in FAMILY]  # the family's full sizes are for a cluster to compile


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.full) for n in COMPILED])
def test_dry_run_needs_no_data(name, one_device, tmp_path, monkeypatch, capsys):
    """Parameter table, total with separators, FLOPs and memory; the folder of videos does not exist."""
    path, _, variant = name.partition(":")
    monkeypatch.chdir(tmp_path)
    train_main([f"--config={ROOT}/configs/{path}.py:{variant}".rstrip(":"), "--dry_run"])
    said = capsys.readouterr().out
    count = parameter_count(jax.eval_shape(build(load_config(name)).init_params, jax.random.key(0)))
    assert count > (10_000 if variant == "tiny" else 500_000)
    assert re.search(rf"^total +{count:,} +{4 * count:,}$", said, re.MULTILINE)
    flops = re.search(r"FLOPs +([\d,]+) per step", said)
    assert int(flops[1].replace(",", "")) > 6 * count  # forward and backward, at least once per parameter
    total = re.search(r"memory +([\d,.]+) MiB total", said)
    assert float(total[1].replace(",", "")) * 2**20 > 16 * count  # parameters, average and two moments
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_quickstart_tiny_trains_as_shipped(one_device, tmp_path, capsys):
    train_main(["--config=quickstart:tiny", f"--workdir={tmp_path}"])
    said = capsys.readouterr()
    said = said.out + said.err
    config = freeze(load_config("quickstart:tiny"))
    check_run(config, tmp_path)
    assert "held-out next-frame PSNR: model" in said and "copying the last frame" in said
    assert "digit recognised, streamed" in said and "digit recognised, true frames" in said
    assert (tmp_path / "samples/recognised.png").exists()
    assert config.evaluate.context + config.evaluate.frames > config.data.frames  # it streams past its training length
    board = next((tmp_path / "tensorboard").iterdir()).read_bytes()
    assert b"held_out/stream" in board and b"GIF89a" in board and b"held_out/loss" in board


@pytest.mark.full
@pytest.mark.parametrize("name", FAMILY)
def test_twenty_steps_on_one_batch_are_learned(name):
    """Levels and noise are those of (key, index), the same at every step; only the pace is set for so short a run."""
    recipe = build(load_config(f"{name}:tiny", {"train.lr": 2e-3, "train.warmup": 2}))
    config = recipe.config
    source = make_source(config.data, "train")
    elements = [source[i] for i in range(config.train.batch)]
    batch = {key: np.stack([e[key] for e in elements]) for key in elements[0]}
    batch["index"] = np.arange(config.train.batch, dtype=np.int32)
    state = jax.jit(functools.partial(create, recipe))(jax.random.key(0))
    step, losses = jax.jit(functools.partial(train_step, recipe)), []
    for _ in range(21):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and losses[20] < 0.9 * losses[0], losses


def check_run(config, workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(
        range(config.log.every, config.train.steps + 1, config.log.every))
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    numbers = json.loads((workdir / "samples/evaluation.json").read_text())
    assert numbers["frames"] == config.evaluate.frames and numbers["context"] == config.evaluate.context
    with av.open(str(workdir / "samples/stream.mp4")) as container:
        assert len(list(container.decode(video=0))) == config.evaluate.context + config.evaluate.frames


def write_videos(folder, count=4, frames=24, fps=8):
    """Coloured squares that cross the picture."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        with av.open(str(folder / f"clip{index}.mkv"), "w") as container:
            stream = container.add_stream("ffv1", rate=Fraction(fps))
            stream.height, stream.width, stream.pix_fmt = 32, 48, "bgr0"
            colour = rng.integers(64, 256, 3)
            for t in range(frames):
                picture = np.zeros((32, 48, 3), np.uint8)
                x = (index * 7 + t) % 40
                picture[8:20, x : x + 8] = colour
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())


def with_path(folder, destination):
    """configs/video_folder.py with nothing but its PATH edited."""
    text = (config_folder() / "video_folder.py").read_text()
    edited = re.sub(r'^PATH = ".*?"', f'PATH = "{folder}"', text, flags=re.MULTILINE)
    assert edited != text
    destination.write_text(edited)
    return destination


@pytest.mark.full
def test_video_folder_tiny_trains_on_own_videos(one_device, tmp_path, capsys):
    write_videos(tmp_path / "videos")
    (tmp_path / "videos/broken.mp4").write_bytes(b"not a video")
    config = with_path(tmp_path / "videos", tmp_path / "video_folder.py")
    train_main([f"--config={config}:tiny", f"--workdir={tmp_path / 'run'}"])
    check_run(freeze(load_config(f"{config}:tiny")), tmp_path / "run")
    said = capsys.readouterr()
    assert "held-out next-frame PSNR: model" in said.out + said.err


def test_clips_shorter_than_the_window_are_named(tmp_path):
    write_videos(tmp_path / "videos", count=2, frames=3)
    config = with_path(tmp_path / "videos", tmp_path / "video_folder.py")
    with pytest.raises(cd.UserError, match="no training clip has data.frames=4 frames.*has 3.*at most 3") as error:
        train_main([f"--config={config}:tiny", f"--workdir={tmp_path / 'run'}"])
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.full
def test_video_folder_tiny_trains_on_real_footage(tmp_path):
    """In a shell, editing nothing but the path."""
    shared = Path(os.environ.get("CD_SHARED_DATA", ROOT.parent / "shared" / "data")) / "video"
    if not shared.is_dir():
        pytest.skip("the shared footage is not here (CD_SHARED_DATA)")
    config = with_path(shared, tmp_path / "video_folder.py")
    for name in ("train.py", "sample.py"):
        shutil.copy(ROOT / name, tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def python(*arguments):
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    said = python("train.py", f"--config={config}:tiny", "--workdir=runs/video")
    assert "held-out next-frame PSNR: model" in said
    check_run(freeze(load_config(f"{config}:tiny")), tmp_path / "runs/video")
    python("sample.py", "--checkpoint=runs/video", "--frames=5", "--batch=2", "--out=clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert len(list(container.decode(video=0))) == 2 + 5
