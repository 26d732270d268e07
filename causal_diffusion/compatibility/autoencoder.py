"""Can an autoencoder be trained on these data, and can a transformer work on its latents?"""

import numpy as np

from causal_diffusion.compatibility.refusal import refuse
from causal_diffusion.config import Config
from causal_diffusion.data.sources import element_spec
from causal_diffusion.errors import UserError


def clip_shapes(config: Config) -> dict:
    """Shape and dtype of every array of a clip as the network that trains sees it: cropped, or latents of it.

    How many condition tokens somebody's own clips bring is not known before they come: as many as text.tokens.
    """
    spec = dict(element_spec(config.data))
    if config.trains == "vae" and config.train.crop:
        frames, *_, channels = spec["video"].shape
        spec["video"] = type(spec["video"])((frames, config.train.crop, config.train.crop, channels), np.float32)
    video = spec["video"]
    brings = config.trains == "transformer" and config.model.text and config.data.source in ("own", "latents")
    if config.trains != "vae" and (config.text.encoder != "none" or brings):
        taker = config.model if config.trains == "transformer" else config.motion_text
        shape, words = (config.text.tokens,), taker.vocabulary
        spec["text"] = type(video)(shape if words else (*shape, taker.text), np.int32 if words else np.float32)
        spec["text_mask"] = type(video)(shape, np.bool_)
        if config.train.compose:  # two captions, and which of them each latent has
            latents = spec["video"].shape[0]
            if config.vae.form != "none" and config.data.source != "latents":
                latents = _latent_shape(config, video.shape)[0]
            for name in ("text", "text_mask"):
                spec[name] = type(video)((2, *spec[name].shape), spec[name].dtype)
            spec["text_of"] = type(video)((latents,), np.int32)
        if config.trains == "motion_text":
            spec["caption"] = type(video)((), np.int32)
    if config.trains != "transformer" or config.vae.form == "none" or config.data.source == "latents":
        return spec
    spec["video"] = type(video)(_latent_shape(config, video.shape), video.dtype)
    return spec


def check_latents(config: Config) -> None:
    """Do the data and the autoencoder of a transformer's latents go together?"""
    if config.train.crop:
        refuse(
            f"train.crop is {config.train.crop} and trains is 'transformer': it sees whole frames, "
            "train.crop = 0 would do"
        )
    if config.vae.form == "none":
        if config.vae.checkpoint:
            refuse(
                f"vae.checkpoint is {config.vae.checkpoint!r} and vae.form is 'none': the config states the "
                "autoencoder's sizes too, those of its own config would do"
            )
        return
    geometry, data = config.vae.geometry, config.data
    if data.source != "latents":
        _latent_shape(config, element_spec(data)["video"].shape)
    elif data.channels != geometry.latent or bool(data.height) != bool(geometry.axes):
        refuse(
            f"data.channels is {data.channels} and the latents of vae.form = {config.vae.form!r} have "
            f"{geometry.latent}: they must be equal, data.channels = {geometry.latent} would do"
        )
    if config.model.action and geometry.time > 1:
        refuse(
            f"model.action is {config.model.action} and a latent stands for {geometry.time} frames: actions go with "
            "single frames, model.action = 0 would do"
        )
    if config.guidance.observe != "none":
        refuse(
            f"guidance.observe is {config.guidance.observe!r} and vae.form is {config.vae.form!r}: what is known are "
            "frames, not latents; guidance.observe = 'none' would do"
        )


def check_autoencoder(config: Config) -> tuple[int, ...]:
    """The shape of a training clip [T, *space, C]. UserError where config and data clash."""
    vae, loss = config.vae, config.reconstruction
    if config.trains != "vae":
        refuse("trains is 'transformer': an autoencoder is trained by trains = 'vae'")
    if vae.form == "none":
        refuse("trains is 'vae' and vae.form is 'none': vae.form = 'video' would do")
    shape, crop = element_spec(config.data)["video"].shape, config.train.crop
    _latent_shape(config, shape)
    if crop and not vae.geometry.axes:
        refuse(f"train.crop is {crop} and the data are no pictures: train.crop = 0 would do")
    if crop and not 0 < crop <= min(shape[1:3]):
        refuse(f"train.crop is {crop} and frames are {shape[1]} x {shape[2]}: train.crop = {min(shape[1:3])} would do")
    if crop:
        shape = clip_shapes(config)["video"].shape
        _latent_shape(config, shape)
    if loss.align and not getattr(vae.sizes, "align", 0):
        refuse(
            f"reconstruction.align is {loss.align} and this autoencoder has no projection onto the features: "
            + ("vae.motion.align = 256 would do" if vae.form == "motion" else "reconstruction.align = 0 would do")
        )
    if loss.teacher and vae.form != "video":
        refuse(
            f"reconstruction.teacher is {loss.teacher!r} and vae.form is {vae.form!r}: only the decoder of the video "
            "autoencoder is distilled, vae.form = 'video' would do"
        )
    if loss.root > shape[-1]:
        refuse(
            f"reconstruction.root is {loss.root} and the data have {shape[-1]} channels: at most as many count as "
            f"root, reconstruction.root = {shape[-1]} would do"
        )
    if loss.lpips and not vae.geometry.axes:
        refuse(
            f"reconstruction.lpips is {loss.lpips!r} and the data are no pictures: reconstruction.lpips = '' would do"
        )
    return shape


def _latent_shape(config, shape):
    try:
        return config.vae.geometry.latent_shape(shape)
    except UserError as error:
        raise UserError(f"data and vae.form = {config.vae.form!r} clash: {error}") from None
