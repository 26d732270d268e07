"""Held-out evaluation of an autoencoder: what comes back, beside what goes in and what the simplest code would give.

Of a video the simplest code is the mean of every patch that one latent stands for (its frames x 8 x 8 pixels, say):
PSNR counts against that. Of a motion it is a principal component analysis of the same groups of frames with as many
numbers as a latent has, fitted to the training clips, and the error is that of the joints, in millimetres.
Reconstructions are those of the posterior's mean.
"""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from causal_diffusion.autoencoder import AutoencoderRecipe
from causal_diffusion.config import Config
from causal_diffusion.data.sources import make_source
from causal_diffusion.evaluation.motion_error import GroupPCA, mean_joint_error
from causal_diffusion.evaluation.video import psnr, ssim
from causal_diffusion.nn.vae import VAE
from causal_diffusion.render.files import write_png
from causal_diffusion.render.sheet import contact_sheet
from causal_diffusion.training.evaluate import are_pictures, draw, drawn

SHOWN = 4  # clips on the contact sheet
STATISTICS_CLIPS = 256  # training clips over which latents are measured
AT_A_TIME = 8  # clips in memory at once


class Reconstruction(NamedTuple):
    """Numbers by name, one line that sums them up, a contact sheet uint8 [H, W, 3] or None."""

    numbers: dict[str, float]
    headline: str
    sheet: np.ndarray | None


def held_out(config: Config, source=None) -> np.ndarray | None:
    """``evaluate.clips`` held-out clips [B, T, *space, C], always the same; None if there are to be none."""
    if not config.evaluate.clips:
        return None
    source = source or make_source(config.data, "test")
    return Clips(source, draw(source, config.evaluate.clips)["video"])


class Clips(NamedTuple):
    """Held-out clips and the source that they are of."""

    source: object
    video: np.ndarray


def reconstruct(recipe: AutoencoderRecipe, params, clips: Clips) -> Reconstruction:
    """Encodes and decodes held-out clips with the given parameters."""
    vae, video = recipe.vae, clips.video
    if getattr(clips.source, "body", None) is not None:
        return of_motion(vae, params, clips.source, recipe.config)
    out = in_parts(lambda part: vae.decode(params, vae.encode(params, part)), video)
    if not are_pictures(video):
        return of_series(out, video)
    base = patch_means(video, vae.geometry)
    numbers = {
        "psnr": mean_psnr(out, video),
        "psnr_patch_means": mean_psnr(base, video),
        "ssim": float(np.mean(ssim(out, video))),
        "ssim_patch_means": float(np.mean(ssim(base, video))),
        "clips": len(video),
    }
    headline = (
        f"held-out reconstruction: PSNR {numbers['psnr']:.2f} dB, SSIM {numbers['ssim']:.3f}; means of patches "
        f"{numbers['psnr_patch_means']:.2f} dB, {numbers['ssim_patch_means']:.3f} "
        f"({numbers['psnr'] - numbers['psnr_patch_means']:+.2f} dB), {len(video)} clips"
    )
    rows = []
    for i in range(min(SHOWN, len(video))):
        rows += [("held out", video[i]), ("reconstructed", out[i]), ("means of patches", base[i])]
    sheet = contact_sheet(rows, context=0, group=3, max_columns=9, title=headline.partition(";")[0])
    return Reconstruction(numbers, headline, sheet)


def of_series(out, video) -> Reconstruction:
    """Of numbers that nobody has said what they are: the share of their variance that comes back."""
    error, spread = np.mean((out - video) ** 2), np.mean((video - video.mean(axis=(0, 1))) ** 2)
    numbers = {"explained": float(1.0 - error / spread), "clips": len(video)}
    headline = f"held-out reconstruction: {numbers['explained']:.4f} of the variance, {len(video)} clips"
    return Reconstruction(numbers, headline, None)


def of_motion(vae: VAE, params, source, config: Config) -> Reconstruction:
    """Of whole clips of a source with a ``body``, in millimetres of its joints. The components weigh all numbers alike,
    or the root's 30 times: the root is a speed, whose errors add up along the path."""
    g, chosen = vae.geometry, np.random.default_rng(0).permutation(source.clips)[: config.evaluate.clips]
    wanted = [_whole_groups(source.clip(int(i)), g.time) for i in chosen]
    got = [_padded(lambda x: vae.decode(params, vae.encode(params, x)), clip, g.time) for clip in wanted]
    train, body = make_source(config.data, "train"), source.body
    # The first of the numbers that share a scale are the root's; in metres, so that joints count alike.
    lines, std = {"vae": got}, np.asarray(body.std)
    moving = np.arange(g.channels) < (2 if body.representation == "joints" else 3)
    for name, root in (("pca", 1.0), ("pca_root", 30.0)):
        weight = np.where(moving, root, 1.0) * std
        pca = GroupPCA.fit((train.clip(i) * weight for i in range(train.clips)), g.time, g.latent)
        lines[name] = [pca.reconstruct(clip * weight) / weight for clip in wanted]

    def decode(clip):
        return body.local(clip), body.positions(clip)[0]

    numbers = {}
    for name, clips in lines.items():
        error = mean_joint_error(zip(clips, wanted, strict=True), decode)
        numbers |= {f"{name}_local_mm": error.local, f"{name}_world_mm": error.world}
    numbers["clips"] = len(wanted)
    headline = (
        f"held-out joint error: {numbers['vae_local_mm']:.1f} mm local, {numbers['vae_world_mm']:.1f} mm world; "
        f"principal components {numbers['pca_local_mm']:.1f} mm, {numbers['pca_world_mm']:.1f} mm, with the root "
        f"weighed {numbers['pca_root_local_mm']:.1f} mm, {numbers['pca_root_world_mm']:.1f} mm; {len(wanted)} clips"
    )
    return Reconstruction(numbers, headline, None)


def _whole_groups(clip, time):
    return clip[: len(clip) // time * time]


def _padded(f, clip, time):
    """f of one clip, filled up at its end so that few lengths are compiled: what follows changes nothing before it."""
    bucket = 32 * time
    length = -(-len(clip) // bucket) * bucket
    filled = np.concatenate([clip, np.repeat(clip[-1:], length - len(clip), axis=0)])
    return np.asarray(f(filled[None])[0])[: len(clip)]


def in_parts(f, video) -> np.ndarray:
    """f of clips, a few at a time; the last few are filled up so that one program serves all."""
    out = []
    for at in range(0, len(video), AT_A_TIME):
        part = video[at : at + AT_A_TIME]
        filled = np.concatenate([part, np.repeat(part[-1:], AT_A_TIME - len(part), axis=0)])
        out.append(np.asarray(f(filled))[: len(part)])
    return np.concatenate(out)


def mean_psnr(a, b) -> float:
    """PSNR in dB by clip, of the squared error over all its frames, averaged over clips."""
    flat = (len(a), 1, 1, -1, 1)
    return float(np.mean(np.minimum(psnr(a.reshape(flat), b.reshape(flat)), 100.0)))


def patch_means(video: np.ndarray, geometry) -> np.ndarray:
    """Clips [B, T, H, W, C] in which every patch that a latent stands for is its mean."""
    out = np.empty_like(video)
    time, p = geometry.time, geometry.space
    edges = [0, *([1] if geometry.apart else [])]
    edges += list(range(edges[-1] + time, video.shape[1] + 1, time))
    for a, b in zip(edges, edges[1:], strict=False):
        part = video[:, a:b]
        B, T, H, W, C = part.shape
        mean = part.reshape(B, T, H // p, p, W // p, p, C).mean(axis=(1, 3, 5), keepdims=True)
        out[:, a:b] = np.broadcast_to(mean, (B, T, H // p, p, W // p, p, C)).reshape(part.shape)
    return out


def with_statistics(vae: VAE, params, source) -> VAE:
    """The autoencoder with mean and deviation of its latents over training clips, always the same ones."""
    total = count = squares = 0.0
    chosen = drawn(source, STATISTICS_CLIPS)
    for at in range(0, len(chosen), AT_A_TIME):
        part = np.stack([source[i]["video"] for i in chosen[at : at + AT_A_TIME]])
        z = np.asarray(in_parts(lambda x: vae.encode(params, x), part), np.float64)
        axes = tuple(range(z.ndim - 1))
        total, squares, count = total + z.sum(axes), squares + (z**2).sum(axes), count + z[..., 0].size
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-12))
    return dataclasses.replace(
        vae, mean=tuple(float(np.float32(m)) for m in mean), std=tuple(float(np.float32(s)) for s in std)
    )


def write(result: Reconstruction, folder: Path) -> None:
    """Contact sheet and numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    if result.sheet is not None:
        write_png(folder / "reconstruction.png", result.sheet)
    (folder / "evaluation.json").write_text(json.dumps(result.numbers, indent=1) + "\n")
