"""Streams a trained system into a video file, block by block."""

import dataclasses
import time

import numpy as np
from tqdm.auto import tqdm

from causal_diffusion.data.sources import make_source
from causal_diffusion.errors import UserError
from causal_diffusion.ranges import SIZE, SIZE_OR_NONE, Range, check_number
from causal_diffusion.render.video import tile, write_video
from causal_diffusion.seeds import check_seed
from causal_diffusion.streaming.decoding import latents_for
from causal_diffusion.streaming.pipeline import Pipeline

FPS = Range(0, 1_000, open_low=True)  # of a video file


def stream_to_file(pipeline: Pipeline, out, *, seed=0, frames=64, batch=4, label=None, context=None, fps=None) -> None:
    """Streams ``frames`` frames of ``batch`` samples and writes them side by side, context included.

    Args:
        out: .mp4 or .gif.
        label: class of all samples or one for each; None: that of the held-out clips, or none.
        context: how many held-out frames to start from, or latents where the data are latents; None: as many as the
            config's evaluation, 0 for none.
        fps: of the file; None: that of the data, or 10.
    """
    config, block, codec = pipeline.config, pipeline.rollout.emit, pipeline.codec
    check_number("--frames", frames, SIZE, default=64, error=UserError)
    check_number("--batch", batch, SIZE, error=UserError)
    check_seed(seed, "--seed")
    if fps is not None:
        check_number("--fps", fps, FPS, default=10.0, kind=float, error=UserError)
    encodes = codec is not None and config.data.source != "latents"
    if context is None:
        context = config.evaluate.context
        context = codec.geometry.frames(context) if encodes else context
    check_number("--context", context, SIZE_OR_NONE, error=UserError)
    if context and config.data.source == "own":
        raise UserError("data.source is 'own', so held-out clips are not known here: start from nothing, --context=0")
    cond, given = {}, None
    if label is not None:
        cond["label"] = label[0] if len(label) == 1 else label
    if context:
        source = make_source(dataclasses.replace(config.data, frames=max(context, config.data.frames)), "test")
        if len(source) < batch:
            raise UserError(f"--batch is {batch} and {len(source)} clips are held out: --batch={len(source)} would do")
        clips = [source[i] for i in range(batch)]
        given = np.stack([clip["video"][:context] for clip in clips])
        if config.model.classes and label is None:
            cond["label"] = np.array([clip["label"] for clip in clips])
        if config.model.action:
            cond["context_action"] = np.stack([clip["action"][:context] for clip in clips])
            cond["action"] = np.stack([clip["action"][context:] for clip in clips])
            cond = {k: v for k, v in cond.items() if k != "action" or v.shape[1]}
    stream = pipeline.stream(seed, batch, cond, given, ahead=True)
    parts, wanted = [], frames if codec is None else latents_for(codec, frames, stream.decoded)
    if given is not None:
        parts.append(given if codec is None or encodes else np.asarray(codec.decode(given)))
    context, steps = parts[0].shape[1] if parts else 0, -(-(wanted + stream.void) // block)
    start = time.perf_counter()
    for i in tqdm(range(steps), unit="block", dynamic_ncols=True):
        stream.ahead = i + 1 < steps
        parts.append(next(stream))
    seconds = time.perf_counter() - start
    video = np.concatenate(parts, axis=1)[:, : context + frames]
    write_video(out, tile(video), fps or config.data.fps or 10.0)
    rate, first = stream.watch.frames / max(seconds, 1e-9), stream.watch.first
    print(
        f"{out}: {batch} x {frames} frames after {context} given ones, {rate:.1f} frames/s; first output after "
        f"{first:.2f} s; {stream.watch}"
    )
