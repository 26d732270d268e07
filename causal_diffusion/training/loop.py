"""The train loop, to be read from top to bottom."""

import contextlib
import time

import jax

from causal_diffusion import config as configs
from causal_diffusion.checkpoint import Checkpoints, Restored, read_meta
from causal_diffusion.checkpoint.paths import as_path, local_part, write_whole
from causal_diffusion.data.pipeline import Loader, horizontal_flip, in_turn, random_crop
from causal_diffusion.data.sources import make_source, spec_of
from causal_diffusion.errors import CheckpointError, UserError
from causal_diffusion.folder_lock import own_folder
from causal_diffusion.jax_settings import under_own_settings
from causal_diffusion.lasting_output import lasting
from causal_diffusion.nn.text.encoder import check_encoder
from causal_diffusion.parallel.distributed import is_writer
from causal_diffusion.parallel.mesh import batch_part, global_batch, make_mesh
from causal_diffusion.training.guard import FaultWatch
from causal_diffusion.training.interrupt import interruptible
from causal_diffusion.training.kept import checked
from causal_diffusion.training.logger import Logger
from causal_diffusion.training.optimizer import learning_rate
from causal_diffusion.training.report import peak_of, summary, training_flops
from causal_diffusion.training.runs import make_recipe, make_run
from causal_diffusion.training.state import TrainState, abstract_state, sharded_state
from causal_diffusion.training.step import compile_step
from causal_diffusion.training.watch import Watch


@under_own_settings
def dry_run(config) -> str:
    """What ``train`` would do, as a printable summary. Compiles the step; needs no data and writes nothing."""
    recipe = make_recipe(config)
    mesh = make_mesh(recipe.config.mesh)
    run = make_run(recipe, mesh)
    return summary(run.recipe, mesh, compile_step(run.recipe, mesh, None, *run.frozen), *run.frozen)


@under_own_settings
def train(config, workdir, source=None, held_out=None):
    """Trains a system or an autoencoder, or goes on where its workdir stands, and evaluates it.

    Args:
        config: from ``load_config``.
        workdir: folder for checkpoints, ``metrics.jsonl``, ``timing.jsonl``, TensorBoard files and samples. In a bucket
            (``gs://bucket/runs/one``) it holds the checkpoints alone; the rest goes to the local folder ``runs/one``.
        source, held_out: the clips themselves, see ``data.array_source``, with ``data.source = 'own'``; without
            ``held_out`` nothing is evaluated. Else both are opened as the config says.

    Returns:
        The Pipeline with the averaged parameters; of an autoencoder (vae, averaged parameters).

    Raises:
        UserError: a config that cannot be, data that are not there, a workdir of another system or of another process
            that trains in it, Ctrl-C or SIGTERM (after a checkpoint was written).
    """
    began, recipe = time.monotonic(), make_recipe(config)
    place, workdir = as_path(workdir), local_part(workdir)
    if (file := next((p for p in (workdir, *workdir.parents) if p.is_file()), None)) is not None:
        raise UserError(f"workdir is {workdir}, and {file} is a file: name a folder")
    with own_folder(workdir, "training", "--workdir") if is_writer() else contextlib.nullcontext() as lock:
        return _train(recipe, place, workdir, lock, source, held_out, began)


def _train(recipe, place, workdir, lock, source, held_out, began):
    """Trains in a workdir that belongs to this process (``lock``), or to process 0 of its run (None)."""
    config, mesh = recipe.config, make_mesh(recipe.config.mesh)
    checkpoints = Checkpoints(place / "checkpoints", keep=config.log.keep, keep_every=config.log.keep_every)
    if place != workdir:
        _say(f"checkpoints go to {checkpoints.directory}, logs and samples to {workdir.absolute()}")
    saved = read_meta(checkpoints.directory) if checkpoints.latest() is not None else None
    if saved is not None:
        _check_identity(config, saved, checkpoints.directory)

    # 1. Data. Order and augmentation are functions of the global sample index.
    crop = random_crop(config.train.crop) if config.train.crop else None
    augment = in_turn(crop, horizontal_flip if config.train.flip else None)
    own = source is not None
    source = checked(source, config, config.data.frames) if own else make_source(config.data, "train")
    held_out = held_out if held_out is None else checked(held_out, config)
    run = make_run(recipe, mesh, workdir, source)
    if saved is not None:
        check_encoder(checkpoints.directory, saved.meta, getattr(run, "text", None))
    source = run.dress(source)
    augment = in_turn(augment, run.augment(source))
    recipe, spec = run.recipe, run.spec(spec_of(source, config.data))
    part, parts = batch_part(mesh)
    loader = Loader(
        source,
        batch=config.train.batch,
        seed=config.seed,
        augment=augment,
        process_index=part,
        process_count=parts,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )

    # 2. The step, and what it costs.
    with interruptible() as interrupted, checkpoints:
        step_fn = compile_step(recipe, mesh, spec, *run.frozen)
        peak = peak_of(recipe, mesh)
        flops = training_flops(recipe, *run.frozen) if peak else None
        _say(summary(recipe, mesh, step_fn, *run.frozen, flops=flops))

        # 3. State: resumed, taken over, or fresh.
        state, start, pending = _begin(run, mesh, checkpoints)
        loader.seek(start)
        _write_config(config, workdir)
        logger = Logger(workdir, config.train.steps, start, config.log.every, pending)
        watch = Watch(workdir, start, config.log, batch=config.train.batch, flops=flops, peak=peak, began=began,
                      show=logger.show, say=logger.write)  # fmt: skip
        faults = FaultWatch(config.train.guard, workdir, config.log.every, logger.write)
        run.open(state.ema, held_out if held_out is not None or not own else False)

        def save(step):
            with watch.apart("checkpoint", metrics):
                faults.settle()
                logger.flush()
                if lock is not None:
                    lock.check()
                checkpoints.save(
                    step,
                    ema=run.canonical(state.ema),
                    train=state,
                    data={"position": loader.position, "pending": logger.pending()},
                    meta=run.meta(state.ema, last=step == config.train.steps),
                )

        # 4. Steps. The next batch is drawn only after the checkpoint, so that both agree about the position.
        saved = start
        try:
            for step in range(start + 1, config.train.steps + 1):
                with watch.step(step):
                    with watch.waiting():
                        batch = global_batch(mesh, next(loader))
                    batch = run.prepare(batch)
                    state, metrics = step_fn(state, batch, *run.frozen)
                    faults.watch(step, batch, metrics)
                    logger.step(step, metrics)
                watch.tick(step, metrics)
                if config.log.evaluate and step % config.log.evaluate == 0 and step < config.train.steps:
                    with watch.apart("evaluation", metrics):
                        run.quick(step, state, logger)
                if step % config.log.checkpoint == 0 or step == config.train.steps:
                    save(step)
                    saved = step
                if (stopped := interrupted()) and step < config.train.steps:
                    if saved < step:
                        save(step)
                    checkpoints.wait()
                    raise stopped(
                        f"{stopped.word} after step {step:,}, which is saved in {checkpoints.directory}; the same "
                        "command goes on from there"
                    )
            # 5. What came of it.
            with watch.apart("evaluation", state.step):
                run.final(state, logger)
        finally:
            with contextlib.ExitStack() as last:  # each is ended, whatever the others raise
                for part in (loader, logger, watch):
                    last.callback(part.close)
    return run.product


def _begin(run, mesh, checkpoints: Checkpoints) -> tuple[TrainState, int, list[float]]:
    """(state, steps done, losses since the last line of the record)."""
    recipe, config = run.recipe, run.recipe.config
    shapes, shardings = abstract_state(recipe, mesh)
    if checkpoints.latest() is None:
        if checkpoints.directory.is_dir() and any(checkpoints.directory.iterdir()):
            _say(f"no complete checkpoint is in {checkpoints.directory}: starting from step 0")
        state = sharded_state(recipe, mesh, config.seed)
        state, report = run.begin(state, shardings)
        if report:
            _say("parameters taken over:\n" + "\n".join(report))
        return state, 0, []
    like = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings)
    restored = checkpoints.restore({"train": like})
    for step, reason in restored.skipped:
        _say(f"checkpoint {step} is damaged ({reason}): going on from {restored.step}")
    _say(f"going on from step {restored.step:,} of {config.train.steps:,}")
    if (note := resumed_note(config, configs.freeze(restored.meta["config"]), restored.step)) is not None:
        _say(note)
    return restored.train, restored.data["position"], restored.data["pending"]


def resumed_note(config: configs.Config, saved: configs.Config, step: int) -> str | None:
    """What a user who goes on from ``step`` may not expect; None: nothing."""
    steps, before = config.train.steps, saved.train.steps
    if step >= steps:
        return f"nothing is left to train: step {step:,} of {steps:,} is done; try train.steps = {2 * step}"
    old, new = (float(learning_rate(each)(step)) for each in (saved.train, config.train))
    if steps == before or abs(new - old) <= 1e-3 * config.train.lr:
        return None
    return (f"train.steps is {steps:,} and was {before:,}, over which the learning rate decays: it was {old:.3g} at "
            f"step {step:,} and restarts at {new:.3g}; try train.steps = {before} to go on as before")  # fmt: skip


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


def _write_config(config, workdir):
    if is_writer():
        workdir.mkdir(parents=True, exist_ok=True)
        write_whole(workdir / "config.json", (configs.to_json(config) + "\n").encode())


def _say(text):
    if is_writer():
        print(text, file=lasting("stdout"), flush=True)

