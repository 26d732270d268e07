"""A config, or the run that it made, -> a model of motions and captions, which judges and guides autoencoders.

    recipe = build_motion_text(config)                       # what training works with
    judge = load_motion_text("runs/motion_text")             # what everything else works with
    motions, captions = judge.embed_motions(clips, body), judge.embed_captions(["a person walks"])
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.checkpoint import beside, folder_of, read_ema, read_meta
from causal_diffusion.compatibility.refusal import refuse
from causal_diffusion.config import Config, freeze
from causal_diffusion.errors import UserError
from causal_diffusion.motion import humanml
from causal_diffusion.motion.body import Body
from causal_diffusion.nn.motion_text import MotionText, aligned_features
from causal_diffusion.nn.text.encoder import FOLDER as TEXT
from causal_diffusion.nn.text.encoder import check_encoder, open_text_encoder

AT_A_TIME = 32  # clips in one pass


class MotionTextRecipe(NamedTuple):
    """What the training of such a model works with."""

    config: Config
    model: MotionText
    frames: int  # of a training clip
    frame_shape: tuple[int, ...]  # (channels,) of one frame

    def init_params(self, key):
        """Fresh parameters, float32."""
        x = jnp.zeros((1, self.frames, *self.frame_shape), jnp.float32)
        return self.model.init(key, x)["params"]


def build_motion_text(config) -> MotionTextRecipe:
    """Checks a config and makes its recipe. UserError names the keys that clash and a value that would do."""
    config = freeze(config)
    data, model, text = config.data, config.motion_text, config.text
    if data.height:
        refuse(f"trains is 'motion_text' and data.height is {data.height}: a motion has no space, data.height = 0 "
               "would do")  # fmt: skip
    for key, stated, there in (("channels", model.channels, data.channels), ("tokens", model.tokens, text.tokens)):
        if stated != there:
            section = "data" if key == "channels" else "text"
            refuse(f"motion_text.{key} is {stated} and {section}.{key} is {there}: they must be equal, "
                   f"motion_text.{key} = {there} would do")  # fmt: skip
    if data.frames % model.time:
        refuse(f"data.frames is {data.frames} and motion_text.time is {model.time}: a whole number of features, "
               f"data.frames = {max(1, data.frames // model.time) * model.time} would do")  # fmt: skip
    if text.encoder == "none":
        refuse("trains is 'motion_text' and text.encoder is 'none': it learns from captions, text.encoder = 'words' "
               "would do")  # fmt: skip
    if (text.encoder == "words") != bool(model.vocabulary):
        wanted = 1000 if text.encoder == "words" else 0
        refuse(f"text.encoder is {text.encoder!r} and motion_text.vocabulary is {model.vocabulary}: ids of words, and "
               f"only they, are looked up, motion_text.vocabulary = {wanted} would do")  # fmt: skip
    return MotionTextRecipe(config, MotionText(model), data.frames, data.frame_shape)


def by_parts(recipe: MotionTextRecipe, body: Body | None) -> MotionTextRecipe:
    """The recipe with the numbers of each part of a body told apart; whole where nobody knows which they are."""
    config = recipe.model.config
    if config.parts or body is None or body.representation == "joints":
        return recipe
    parts = humanml.parts(body.skeleton, config.channels)
    parts = tuple(tuple(int(i) for i in part) for part in parts.values())
    return recipe._replace(model=MotionText(dataclasses.replace(config, parts=parts)))


class Judge:
    """A trained model of motions and captions.

    Attributes: ``model``, its averaged ``params``, the ``text`` encoder that reads its captions, and the ``body`` whose
    frames it takes.
    """

    def __init__(self, model: MotionText, params, text, body: Body | None, path=""):
        self.model, self.params, self.text, self.body, self.path = model, params, text, body, str(path)
        self._motion = jax.jit(lambda params, x, length: model.apply({"params": params}, x, length, method="motion")[0])
        self._caption = jax.jit(lambda params, t, mask: model.apply({"params": params}, t, mask, method="text"))

    def embed_motions(self, clips, body: Body | None = None) -> np.ndarray:
        """Clips [T, C] of frames of ``body`` (None: of its own), whose lengths may differ -> float32 [N, E]."""
        time, out = self.model.config.time, []
        longest = max(len(clip) for clip in clips) // time * time
        width = 2 ** math.ceil(math.log2(max(1, longest // time))) * time
        for at in range(0, len(clips), AT_A_TIME):
            part = clips[at : at + AT_A_TIME]
            x, length = np.zeros((AT_A_TIME, width, self.model.config.channels), np.float32), np.full(AT_A_TIME, time)
            for i, clip in enumerate(part):
                count = len(clip) // time * time
                if count < time:
                    raise UserError(f"clip {at + i} has {len(clip)} frames: at least {time} are judged")
                x[i, :count], length[i] = self.convert(np.asarray(clip[:count]), body), count
            out.append(np.asarray(self._motion(self.params, x, length.astype(np.int32)))[: len(part)])
        return np.concatenate(out)

    def embed_captions(self, captions) -> np.ndarray:
        """N strings -> float32 [N, E]."""
        text, mask = self.text.encode(list(captions))
        out = []
        for at in range(0, len(captions), AT_A_TIME):
            part = slice(at, at + AT_A_TIME)
            rows = len(text[part])
            filled = [np.concatenate([a[part], np.repeat(a[:1], AT_A_TIME - rows, axis=0)]) for a in (text, mask)]
            out.append(np.asarray(self._caption(self.params, *filled))[:rows])
        return np.concatenate(out)

    def convert(self, frames, body: Body | None):
        """Frames of another body's scale in the scale that the model was trained in."""
        return rescaled(frames, body, self.body)


def rescaled(frames, source: Body | None, target: Body | None):
    """Frames [..., C] of one body in the scale of another of the same representation and joints."""
    if source is None or target is None or source == target:
        return frames
    if (source.representation, source.names) != (target.representation, target.names):
        raise UserError(
            f"these frames are {source.representation!r} of {source.joints} joints, and the model of motions and "
            f"captions knows {target.representation!r} of {target.joints}: train it with the same data.representation"
        )
    return target.normalise(source.denormalise(frames))


def load_motion_text(path, *, step: int | None = None) -> Judge:
    """Reads the newest intact checkpoint of such a run.

    Raises:
        CheckpointError: none is there. UserError: the run is of another kind.
    """
    folder = folder_of(path)
    meta = read_meta(folder, step).meta
    config = freeze(meta["config"])
    if config.trains != "motion_text":
        raise UserError(f"{path} holds no model of motions and captions: its config says trains = {config.trains!r}")
    parts = tuple(tuple(part) for part in meta["parts"])
    model = MotionText(dataclasses.replace(config.motion_text, parts=parts))
    recipe = build_motion_text(config)._replace(model=model)
    ema = read_ema(folder, recipe.init_params, step)
    text = open_text_encoder(config.text, beside(folder, TEXT))
    check_encoder(folder, meta, text)
    return Judge(model, ema, text, Body.of_meta(meta["body"]), path)


def features_of(judge: Judge, body: Body | None):
    """(params, frames [B, T, C] of ``body``) -> [B, T / time, E], for the alignment of latents."""
    return functools.partial(_features, judge.model, body, judge.body)


def _features(model, source, target, params, x):
    return aligned_features(model, params, rescaled(x, source, target))
