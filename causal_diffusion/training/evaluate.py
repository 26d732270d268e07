"""Held-out evaluation by streaming: what comes out, frame by frame, beside what truly came.

Context frames of held-out clips are given, the system streams on, and every number is a curve over the streamed
frames, so that drift shows. The first of them is next-frame prediction, whose baseline is to copy the last given
frame. Where the data are digits, a classifier of the real ones says in which frames the context's digit is still
recognised.
"""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from causal_diffusion.config import Config
from causal_diffusion.data.moving_digits import digit_images
from causal_diffusion.data.sources import make_source
from causal_diffusion.errors import UserError
from causal_diffusion.evaluation.digits import DigitRecogniser
from causal_diffusion.evaluation.video import psnr
from causal_diffusion.nn.vae import Codec
from causal_diffusion.render.files import write_png
from causal_diffusion.render.plot import line_plot
from causal_diffusion.render.sheet import contact_sheet
from causal_diffusion.render.video import tile, write_video
from causal_diffusion.training.report import aligned

SAMPLES_SHOWN = 4


class HeldOut(NamedTuple):
    """Held-out clips [B, context + known, ...] with their conditions, how many frames are streamed, and captions."""

    video: np.ndarray
    condition: dict
    context: int
    frames: int
    captions: tuple[str, ...] = ()

    @property
    def future(self) -> np.ndarray:
        """The true frames after the context, as far as they are known: at most ``frames`` of them."""
        return self.video[:, self.context : self.context + self.frames]


def held_out(config: Config, source=None, codec: Codec | None = None, dress=None) -> HeldOut | None:
    """``evaluate.clips`` held-out clips, always the same, as long as the data allow; None if there are to be none.

    With a ``codec`` the clips are encoded: context and frames count latents. ``dress`` gives a source condition tokens.
    """
    clips, context, frames = config.evaluate.clips, config.evaluate.context, config.evaluate.frames
    if not clips:
        return None
    known, what = config.data.frames, "data.frames"
    if codec is not None:
        known, what = codec.geometry.latents(config.data.frames), "the number of latents of data.frames"
    if context < 1 or frames < 1 or context >= known:
        raise UserError(
            f"evaluate.context is {context}, evaluate.frames is {frames} and {what} is {known}: at "
            f"least one frame is given and one streamed; evaluate.context = {max(1, known // 3)} would do"
        )
    source = source or _held_out_source(config, context + frames if codec is None else codec.geometry.frames(
        context + frames))
    dressed, chosen = source if dress is None else dress(source), drawn(source, clips)
    stacked = draw(dressed, clips)
    if "length" in stacked:  # of padded clips only whole ones can be streamed on from
        whole = stacked.pop("length") >= stacked["video"].shape[1]
        if not whole.any():
            raise UserError(
                f"no held-out clip has all of its {stacked['video'].shape[1]} frames: evaluate.clips = 0 would do"
            )
        stacked = {name: value[whole] for name, value in stacked.items()}
        chosen = [i for i, is_whole in zip(chosen, whole, strict=True) if is_whole]
    _check_held_out(config, stacked)
    if codec is not None:
        stacked["video"] = np.asarray(codec.encode(stacked["video"]))
    condition = {}
    if config.model.action:
        condition["context_action"] = stacked["action"][:, :context]
        condition["action"] = stacked["action"][:, context:]
    condition |= {name: stacked[name] for name in ("label", "text", "text_mask") if name in stacked}
    captions = getattr(source, "captions", None)
    captions = tuple(captions[i] for i in chosen) if captions else ()
    return HeldOut(stacked["video"], condition, context, frames, captions)


def drawn(source, clips: int) -> list[int]:
    """Which ``clips`` elements of a source are looked at, always the same."""
    # Neighbours in a folder of videos are overlapping windows of one file, so clips are drawn from all over.
    return np.random.default_rng(0).choice(len(source), min(clips, len(source)), replace=False).tolist()


def draw(source, clips: int) -> dict[str, np.ndarray]:
    """These elements, stacked."""
    elements = [source[i] for i in drawn(source, clips)]
    return {name: np.stack([e[name] for e in elements]) for name in elements[0]}


def decoded(codec: Codec, clips: HeldOut, streamed: np.ndarray) -> tuple[HeldOut, np.ndarray]:
    """Latents of clips and of a stream -> the frames that they stand for."""
    geometry, context = codec.geometry, clips.video[:, : clips.context]
    given = geometry.frames(clips.context)
    whole = np.asarray(codec.decode(np.concatenate([context, streamed], axis=1)))[:, given:]
    true = np.asarray(codec.decode(clips.video))
    return HeldOut(true, clips.condition, given, whole.shape[1]), whole


def are_pictures(video: np.ndarray) -> bool:
    """Whether clips [B, T, ...] can be shown."""
    return video.ndim == 5 and video.shape[-1] in (1, 3)


def stream_held_out(pipeline, clips: HeldOut, frames: int | None = None) -> np.ndarray:
    """What the system streams after the context, [B, frames, ...]."""
    model = pipeline.config.model
    takes = {"label": model.classes, "text": model.text, "text_mask": model.text}
    condition = {name: value for name, value in clips.condition.items() if takes.get(name, True)}
    context = clips.video[:, : clips.context]
    return pipeline.generate(0, frames or clips.frames, len(context), condition, context)


def curves(config: Config, clips: HeldOut, streamed: np.ndarray) -> dict[str, np.ndarray]:
    """Curves over the streamed frames: 'psnr', 'psnr_copy', and for digits 'recognised', 'recognised_true'."""
    future = clips.future[:, : streamed.shape[1]]
    known = streamed[:, : future.shape[1]]
    last = np.broadcast_to(clips.video[:, clips.context - 1 : clips.context], future.shape)
    out = {"psnr": mean_psnr(known, future), "psnr_copy": mean_psnr(last, future)}
    if config.data.source in RECOGNISERS:
        recogniser = RECOGNISERS[config.data.source](config)
        labels = clips.condition["label"]
        for name, video in (("recognised", streamed), ("recognised_true", future)):
            out[name] = recogniser.score(np.mean(video, axis=-1, keepdims=True), labels)
    return out


def mean_psnr(a, b) -> np.ndarray:
    """PSNR in dB by frame, averaged over clips; identical frames count as 100 dB."""
    if a.ndim == 3:  # a series
        a, b = a[:, :, None, None], b[:, :, None, None]
    return np.mean(np.minimum(psnr(a, b), 100.0), axis=0)


class Final(NamedTuple):
    """What ``final`` made: a table to print, the curves, pictures by name, and the clip that was written, if any."""

    table: str
    curves: dict[str, np.ndarray]
    pictures: dict[str, np.ndarray]
    clip: np.ndarray | None


def final(pipeline, clips: HeldOut, folder: Path, codec: Codec | None = None) -> Final:
    """Streams on from the held-out context and writes clip, contact sheet, curves and numbers into ``folder``.

    With a ``codec`` the pipeline streams latents, and what they stand for is looked at.
    """
    config, length = pipeline.config, pipeline.config.data.frames
    streamed = stream_held_out(pipeline, clips)
    if codec is not None:
        length = codec.geometry.frames(pipeline.recipe.frames)
        clips, streamed = decoded(codec, clips, streamed)
    lines = curves(config, clips, streamed)
    title = f"{config.name}: trained on {length} frames, streamed for {clips.frames}"
    pictures, whole = {}, None
    if are_pictures(clips.video):
        shown, whole = rows(clips, streamed)
        pictures["stream"] = contact_sheet(
            shown, context=clips.context, train_length=length, group=2, max_columns=18, title=title
        )
        write_video(folder / "stream.mp4", tile(whole), config.data.fps or 10.0)
    pictures |= {
        "psnr": line_plot(
            {"streamed": lines["psnr"], "last frame copied": lines["psnr_copy"]},
            title="PSNR against the true future", xlabel="streamed frame", ylabel="dB", x_start=1,
            marks={"training length": length - clips.context},
        ),
    }
    if "recognised" in lines:
        pictures["recognised"] = line_plot(
            {"streamed": lines["recognised"], "true frames": lines["recognised_true"]},
            title="Frames in which the context's digit is recognised", xlabel="streamed frame", ylabel="share",
            x_start=1, y_range=(0.0, 1.0), marks={"training length": length - clips.context},
        )
    for name, pixels in pictures.items():
        write_png(folder / f"{name}.png", pixels)
    numbers = {name: [round(float(x), 4) for x in curve] for name, curve in lines.items()}
    numbers |= {"clips": len(streamed), "context": clips.context, "frames": clips.frames}
    (folder / "evaluation.json").write_text(json.dumps(numbers, indent=1) + "\n")
    return Final(table(lines, clips), lines, pictures, whole)


def rows(clips: HeldOut, streamed: np.ndarray):
    """(rows of a contact sheet, true and streamed in turn; the same clips as one batch [B, T, 2 H + 1, W, C])."""
    shown = min(SAMPLES_SHOWN, len(streamed))
    context = clips.video[:shown, : clips.context]
    whole = np.concatenate([context, streamed[:shown]], axis=1)
    true = np.concatenate([context, clips.future[:shown]], axis=1)
    sheet = []
    for i in range(shown):
        sheet += [("true future", true[i, : whole.shape[1]]), ("streamed", whole[i])]
    padded = np.full_like(whole, -1.0)  # where the truth ends, black
    known = min(true.shape[1], whole.shape[1])
    padded[:, :known] = true[:, :known]
    bar = np.full((*whole.shape[:2], 1, *whole.shape[3:]), -0.6, np.float32)
    return sheet, np.concatenate([padded, bar, whole], axis=2)


def table(lines: dict[str, np.ndarray], clips: HeldOut) -> str:
    """The curves at a few frames, one line each, after the headline."""
    length = max(len(curve) for curve in lines.values())
    at = sorted({i for i in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, length) if i <= length})
    names = {
        "psnr": "PSNR, streamed (dB)",
        "psnr_copy": "PSNR, last frame copied (dB)",
        "recognised": "digit recognised, streamed",
        "recognised_true": "digit recognised, true frames",
    }
    rows = [("streamed frame", *(str(i) for i in at))]
    for key, curve in lines.items():
        digits = 1 if key.startswith("psnr") else 2
        rows.append((names[key], *(f"{curve[i - 1]:.{digits}f}" if i <= len(curve) else "" for i in at)))
    gain = lines["psnr"][0] - lines["psnr_copy"][0]
    return (
        f"held-out next-frame PSNR: model {lines['psnr'][0]:.2f} dB, copying the last frame "
        f"{lines['psnr_copy'][0]:.2f} dB ({gain:+.2f} dB), {len(clips.video)} clips\n"
        + aligned(rows, right=range(1, len(at) + 1))
    )


def _check_held_out(config, stacked):
    """A source that the user brought is only known by its first clip until here, and needed hours later."""
    data, model, shape = config.data, config.model, stacked["video"].shape[1:]
    stated = data.frame_shape
    if shape[1:] != stated:
        raise UserError(f"held-out frames are {shape[1:]}; by the data section of the config they are {stated}")
    if shape[0] <= config.evaluate.context:
        raise UserError(
            f"held-out clips have {shape[0]} frames and evaluate.context is {config.evaluate.context}: at least one "
            "frame follows the context, longer clips would do"
        )
    for name, key in (("label", "classes"), ("action", "action"), ("text", "text")):
        if getattr(model, key) and name not in stacked:
            raise UserError(
                f"held-out clips have no {name} and model.{key} is {getattr(model, key)}: give them what training has"
            )


def _held_out_source(config, frames):
    """The held-out split with clips of ``frames`` frames, or as long as they are for training if none is longer."""
    try:
        return make_source(dataclasses.replace(config.data, frames=frames, shortest=0), "test")
    except UserError:  # the stream then goes on past what is known
        return make_source(config.data, "test")


def _digit_recogniser(config):
    return DigitRecogniser.fit(*digit_images("train", config.data.holdout), seed=0)


RECOGNISERS = {"moving_digits": _digit_recogniser}
