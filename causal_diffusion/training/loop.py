"""The train loop, to be read from top to bottom."""

import functools
import json
import os
import platform
from pathlib import Path

import jax

from causal_diffusion import config as configs
from causal_diffusion.checkpoint import Checkpoints, Restored, read_meta
from causal_diffusion.data.pipeline import Loader, horizontal_flip
from causal_diffusion.data.sources import make_source, spec_of
from causal_diffusion.errors import CheckpointError, UserError
from causal_diffusion.nn.transformer import unstack_layers
from causal_diffusion.parallel.mesh import global_batch, make_mesh
from causal_diffusion.recipe import Recipe, build
from causal_diffusion.render.sheet import contact_sheet
from causal_diffusion.streaming.pipeline import Pipeline
from causal_diffusion.training import evaluate
from causal_diffusion.training.init_from import init_from
from causal_diffusion.training.interrupt import Interrupted, interruptible
from causal_diffusion.training.logger import Logger
from causal_diffusion.training.report import summary
from causal_diffusion.training.state import TrainState, abstract_state, sharded_state
from causal_diffusion.training.step import compile_step, held_out_loss


def dry_run(config) -> str:
    """What ``train`` would do, as a printable summary. Compiles the step; needs no data and writes nothing."""
    recipe = build(config)
    mesh = make_mesh(recipe.config.mesh)
    return summary(recipe, mesh, compile_step(recipe, mesh))


def train(config, workdir, source=None, held_out=None) -> Pipeline:
    """Trains a system, or goes on where its workdir stands, and evaluates it.

    Args:
        config: from ``load_config``.
        workdir: folder for checkpoints, ``metrics.jsonl``, TensorBoard files and samples.
        source, held_out: the clips themselves, see ``data.array_source``, with ``data.source = 'own'``; without
            ``held_out`` nothing is evaluated. Else both are opened as the config says.

    Returns:
        The Pipeline with the averaged parameters.

    Raises:
        UserError: a config that cannot be, data that are not there, a workdir of another system, Ctrl-C (after a
            checkpoint was written).
    """
    recipe = build(config)
    config, workdir = recipe.config, Path(workdir)
    mesh = make_mesh(config.mesh)
    if (file := next((p for p in (workdir, *workdir.parents) if p.is_file()), None)) is not None:
        raise UserError(f"workdir is {workdir}, and {file} is a file: name a folder")
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.log.keep)
    if checkpoints.latest() is not None:
        _check_identity(config, read_meta(checkpoints.directory), checkpoints.directory)

    # 1. Data. Order and augmentation are functions of the global sample index.
    augment = horizontal_flip if config.train.flip else None
    own = source is not None
    source = source if own else make_source(config.data, "train")
    spec = spec_of(source, config.data)
    loader = Loader(
        source,
        batch=config.train.batch,
        seed=config.seed,
        augment=augment,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )
    clips = evaluate.held_out(config, held_out) if held_out is not None or not own else None

    # 2. The step, and what it costs.
    with interruptible() as interrupted:
        step_fn = compile_step(recipe, mesh, spec)
        _say(summary(recipe, mesh, step_fn))

        # 3. State: resumed, taken over, or fresh.
        state, start, pending = _begin(recipe, mesh, checkpoints)
        loader.seek(start)
        _write_config(config, workdir)
        logger = Logger(workdir, config.train.steps, start, config.log.every, pending)
        pipeline = Pipeline(config, _for_sampling(state.ema))
        quick = functools.partial(_evaluate_quickly, recipe, pipeline, clips, logger)

        def save(step):
            logger.flush()
            checkpoints.save(
                step,
                ema=unstack_layers(state.ema),
                train=state,
                data={"position": loader.position, "pending": logger.pending()},
                meta=_meta(config),
            )

        # 4. Steps. The next batch is drawn only after the checkpoint, so that both agree about the position.
        saved = start
        try:
            for step in range(start + 1, config.train.steps + 1):
                state, metrics = step_fn(state, global_batch(mesh, next(loader)))
                logger.step(step, metrics)
                if config.log.evaluate and step % config.log.evaluate == 0 and step < config.train.steps:
                    quick(step, state)
                if step % config.log.checkpoint == 0 or step == config.train.steps:
                    save(step)
                    saved = step
                if interrupted() and step < config.train.steps:
                    if saved < step:
                        save(step)
                    raise Interrupted(
                        f"interrupted after step {step:,}, which is saved in {checkpoints.directory}; the same "
                        "command goes on from there"
                    )
            # 5. What came of it.
            pipeline.params = _for_sampling(state.ema)
            if clips is not None and jax.process_index() == 0:
                result = evaluate.final(pipeline, clips, workdir / "samples")
                for tag, pixels in result.pictures.items():
                    logger.image(config.train.steps, f"final/{tag}", pixels)
                logger.video(config.train.steps, "final/stream", result.clip, config.data.fps or 10.0)
                logger.write(f"\n{result.table}\nclip, contact sheet and curves are in {workdir / 'samples'}")
        finally:
            logger.close()
            loader.close()
    return pipeline


def _begin(recipe: Recipe, mesh, checkpoints: Checkpoints) -> tuple[TrainState, int, list[float]]:
    """(state, steps done, losses since the last line of the record)."""
    config = recipe.config
    shapes, shardings = abstract_state(recipe, mesh)
    if checkpoints.latest() is None:
        if checkpoints.directory.is_dir() and any(checkpoints.directory.iterdir()):
            _say(f"no complete checkpoint is in {checkpoints.directory}: starting from step 0")
        state = sharded_state(recipe, mesh, config.seed)
        if config.train.init_from:
            state, report = init_from(recipe, state, shardings, config.train.init_from)
            _say("parameters taken over:\n" + "\n".join(report))
        return state, 0, []
    like = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings)
    restored = checkpoints.restore({"train": like})
    for step, reason in restored.skipped:
        _say(f"checkpoint {step} is damaged ({reason}): going on from {restored.step}")
    _say(f"going on from step {restored.step:,} of {config.train.steps:,}")
    return restored.train, restored.data["position"], restored.data["pending"]


def _check_identity(config: configs.Config, saved: Restored, directory) -> None:
    """Refuses a workdir of another system; reports elastic keys that changed."""
    identity, elastic = configs.differences(configs.freeze(saved.meta["config"]), config)
    for key, (old, new) in identity.items():
        raise CheckpointError(
            f"{key} is {new!r}, and the checkpoints in {directory} were made with {old!r}: set it back, or choose "
            "another --workdir"
        )
    for key, (old, new) in elastic.items():
        _say(f"changed since the checkpoint: {key} = {new!r} (was {old!r})")


def _evaluate_quickly(recipe, pipeline, clips, logger, step, state):
    """Held-out loss, next-frame PSNR and a short clip of the averaged parameters."""
    if clips is None:
        return
    frames = recipe.frames
    loss = held_out_loss(recipe, state.ema, clips.video[:, :frames], clips.condition)
    pipeline.params = _for_sampling(state.ema)
    streamed = evaluate.stream_held_out(pipeline, clips, min(frames, clips.frames))
    known = clips.future[:, : streamed.shape[1]]
    model = evaluate.mean_psnr(streamed[:, : known.shape[1]], known)
    values = {"held_out/loss": loss, "held_out/next_frame_psnr": float(model[0]),
              "held_out/last_frame_psnr": float(model[-1])}
    logger.scalars(step, values)
    rows, whole = evaluate.rows(clips, streamed)
    logger.video(step, "held_out/stream", whole, recipe.config.data.fps or 10.0)
    logger.image(step, "held_out/sheet", contact_sheet(rows, context=clips.context, group=2, max_columns=18))
    logger.write(f"step {step:,}: held-out loss {loss:.4f}, next-frame PSNR {model[0]:.2f} dB, "
                 f"{known.shape[1]} frames on {model[-1]:.2f} dB")


def _for_sampling(ema):
    """Averaged parameters in canonical form, whole on one device, where the evaluation streams."""
    return unstack_layers(jax.device_put(jax.device_get(ema), jax.local_devices()[0]))


def _meta(config):
    return {
        "config": json.loads(configs.to_json(config)),
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
    }


def _write_config(config, workdir):
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        partial = workdir / "config.json.partial"
        partial.write_text(configs.to_json(config) + "\n")
        os.replace(partial, workdir / "config.json")


def _say(text):
    if jax.process_index() == 0:
        print(text, flush=True)

