"""A config, or the run that it made, -> an autoencoder.

    recipe = build_autoencoder(config)                 # what training works with
    vae, params = load_vae("runs/video_vae")           # what everything else works with

An autoencoder has a *fingerprint*, a digest of its sizes and of every number in it. Latents mean nothing without the
autoencoder that made them, so data sets of latents and transformers trained on them both keep it.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from causal_diffusion.checkpoint import Checkpoints, folder_of, read_ema, read_meta
from causal_diffusion.checkpoint.fingerprints import of_tree
from causal_diffusion.compatibility.autoencoder import check_autoencoder
from causal_diffusion.config import Config, differences, freeze, to_json
from causal_diffusion.errors import CheckpointError, UserError
from causal_diffusion.file_access import is_dir
from causal_diffusion.jax_settings import under_own_settings
from causal_diffusion.nn.discriminator import Discriminator
from causal_diffusion.nn.vae import VAE, VAEConfig

FOLDER = "vae"  # in the workdir of a transformer's run: the autoencoder that its latents come from


class AutoencoderRecipe(NamedTuple):
    """What the training of an autoencoder works with."""

    config: Config
    vae: VAE
    frames: int  # of a training clip
    frame_shape: tuple[int, ...]  # (*space, channels) of one frame
    teacher: VAE | None = None  # whose decoder is the target, in distillation
    features: Callable | None = None  # (params, frames) -> [B, L, F] that latents are aligned with; None: kinematics

    @property
    def discriminator(self) -> Discriminator | None:
        """The network that tells clips from reconstructions; None where none is trained."""
        loss = self.config.reconstruction
        return Discriminator.of(self.vae.geometry, width=loss.gan_width) if loss.gan else None

    def init_params(self, key):
        """{'vae': ..., 'discriminator': ... where there is one}, float32."""
        params = {"vae": self.vae.init(key)}
        if self.discriminator is not None:
            x = jnp.zeros((1, self.frames, *self.frame_shape), jnp.float32)
            params["discriminator"] = self.discriminator.init(jax.random.fold_in(key, 1), x)["params"]
        return params

    def labels(self, params):
        """Which part of the optimizer a parameter belongs to: 'vae', 'discriminator' or 'frozen' (the encoder of a
        teacher)."""

        def label(path, _):
            names = [entry.key for entry in path]
            if names[0] == "discriminator":
                return "discriminator"
            distilled = self.config.reconstruction.teacher
            return "frozen" if distilled and names[1] in self.vae.network.encoder_modules else "vae"

        return jax.tree_util.tree_map_with_path(label, params)

    def canonical(self, params):
        """What a checkpoint keeps of averaged parameters: the autoencoder's."""
        return params["vae"]


def build_autoencoder(config) -> AutoencoderRecipe:
    """Checks a config and makes its recipe. UserError names the keys that clash and a value that would do."""
    config = freeze(config)
    frames, *frame_shape = check_autoencoder(config)
    return AutoencoderRecipe(config, VAE(config.vae), frames, tuple(frame_shape))


@under_own_settings
def load_vae(path, *, step: int | None = None) -> tuple[VAE, dict]:
    """Reads the newest intact checkpoint of an autoencoder: (vae, its averaged parameters).

    Args:
        path: the workdir of the run that trained it, its folder of checkpoints, or the workdir of a transformer that
            works on its latents.
        step: a certain checkpoint instead of the newest.

    Raises:
        CheckpointError: nothing intact is there. UserError: it is no autoencoder's.
    """
    folder = _folder_of(Path(path).expanduser())
    saved = read_meta(folder, step)
    config = freeze(saved.meta["config"])
    if config.trains != "vae":
        what = "model of motions and captions" if config.trains == "motion_text" else "transformer that works on pixels"
        raise UserError(f"{path} holds a {what}: there is no autoencoder in it")
    vae = _with_statistics(VAE(config.vae), saved.meta)
    return vae, read_ema(folder, vae.init, step)


def save_vae(folder, vae: VAE, params) -> None:
    """Writes an autoencoder by itself, for ``load_vae``; one that is there already must be this one."""
    checkpoints = Checkpoints(folder, asynchronous=False, alone=True)
    meta = {"config": json.loads(to_json(Config(trains="vae", vae=vae.config))), "latents": statistics_of(vae)}
    if checkpoints.latest() is None:
        checkpoints.save(0, ema=params, meta=meta)
        return
    there, kept = load_vae(folder)
    if fingerprint(there, kept) != fingerprint(vae, params):
        raise CheckpointError(f"{folder} holds another autoencoder: choose another --workdir")


def statistics_of(vae: VAE) -> dict:
    """{'mean': [...], 'std': [...]}, for the meta of a checkpoint."""
    return {"mean": list(vae.mean), "std": list(vae.std)}


def check_sizes(vae: VAE, stated: VAEConfig, where) -> None:
    """UserError at the first size in which an autoencoder differs from what a config states."""
    identity, _ = differences(Config(vae=stated), Config(vae=vae.config))
    for key, (asked, there) in identity.items():
        if key == "vae.form" or key.startswith(f"vae.{stated.form}."):
            raise UserError(f"{key} is {asked!r} and the autoencoder in {where} has {there!r}: set {key} = {there!r}")


def fingerprint(vae: VAE, params) -> str:
    """A digest of an autoencoder: its sizes and every number in it, but not the statistics of its latents."""
    sizes = {"form": vae.config.form} | dataclasses.asdict(vae.config.sizes)
    return of_tree(params, json.dumps(sizes, sort_keys=True).encode())


def _with_statistics(vae, meta):
    latents = meta.get("latents") or {"mean": (), "std": ()}
    return dataclasses.replace(vae, mean=tuple(latents["mean"]), std=tuple(latents["std"]))


def _folder_of(path):
    if is_dir(path / FOLDER):
        return path / FOLDER
    return folder_of(path)
