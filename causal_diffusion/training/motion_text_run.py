"""The run of a model of motions and captions: what is loaded, shown and kept (``runs`` says what a run is asked)."""

import dataclasses
import json
from typing import NamedTuple

import numpy as np

from causal_diffusion.checkpoint.fingerprints import of_text
from causal_diffusion.data.captioned import Captioned
from causal_diffusion.data.sources import make_source
from causal_diffusion.errors import UserError
from causal_diffusion.evaluation.motion import r_precision
from causal_diffusion.motion_text import Judge, MotionTextRecipe, by_parts
from causal_diffusion.parallel.distributed import is_writer
from causal_diffusion.training.evaluate import drawn
from causal_diffusion.training.kept import meta_of, open_text, whole

POOL = 32  # captions among which a motion finds its own
TOP = 3  # places that count


class HeldOut(NamedTuple):
    """Held-out motions [T, C], their lengths differ, and a caption of each."""

    motions: list[np.ndarray]
    captions: list[str]


class MotionTextRun:
    """Makes a Judge."""

    frozen = ()

    def __init__(self, recipe: MotionTextRecipe, mesh, workdir, source):
        self._workdir, self.body = workdir, getattr(source, "body", None)
        self.recipe = by_parts(recipe, self.body)
        config = recipe.config
        self.text = None if workdir is None else open_text(config, config.motion_text.vocabulary, workdir, source)

    def dress(self, source):
        """The source as training reads it: with its captions as tokens, numbered."""
        return Captioned(source, self.text.encode, numbered=True)

    def augment(self, source):
        """What is done to its elements besides: nothing."""
        return None

    def spec(self, spec: dict) -> dict:
        """The step looks at all of a clip."""
        return spec

    def prepare(self, batch: dict) -> dict:
        """A global batch, as the step takes it."""
        return batch

    def begin(self, state, shardings):
        """The fresh state as it is to start, and what was taken over from where."""
        if self.recipe.config.train.init_from:
            raise UserError("train.init_from is of transformers: this model starts afresh, train.init_from = ''")
        return state, []

    def canonical(self, ema):
        """Averaged parameters as a checkpoint keeps them."""
        return ema

    def meta(self, ema, last: bool) -> dict:
        """What else a checkpoint keeps."""
        return meta_of(self.recipe.config, self.body, of_text(self.text)) | {"parts": self.recipe.model.config.parts}

    def open(self, ema, held_out) -> None:
        """Gets ready to evaluate; ``held_out``: a source, None: as the config says, False: there is none."""
        config, self._clips = self.recipe.config, None
        if held_out is not False and config.evaluate.clips:
            data = dataclasses.replace(config.data, mirror=False)
            source = held_out if held_out is not None else make_source(data, "test")
            elements = [(source[i], source.captions[i]) for i in drawn(source, config.evaluate.clips)]
            motions = [e["video"][: int(e.get("length", len(e["video"])))] for e, _ in elements]
            self._clips = HeldOut(motions, [caption for _, caption in elements])
        self.product = Judge(self.recipe.model, whole(ema), self.text, self.body, self._workdir)

    def quick(self, step: int, state, logger) -> None:
        """How often a held-out caption is nearest to its own motion."""
        numbers = self._measured(state)
        if numbers:
            logger.scalars(step, {f"held_out/{name}": value for name, value in numbers.items()})
            logger.write(f"step {step:,}: {_headline(numbers)}")

    def final(self, state, logger) -> None:
        """The same at the end, written down."""
        numbers = self._measured(state)
        if not numbers or not is_writer():
            return
        folder = self._workdir / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").write_text(json.dumps(numbers, indent=1) + "\n")
        logger.write(f"\n{_headline(numbers)}\nnumbers are in {folder}")

    def _measured(self, state):
        self.product.params = whole(state.ema)
        if self._clips is None or len(set(self._clips.captions)) < TOP:
            return {}
        motions, captions = self._clips
        pool = min(POOL, len(set(captions)))
        embedded = self.product.embed_captions(captions), self.product.embed_motions(motions)
        top = r_precision(*embedded, pool=pool, top=TOP, captions=captions)
        return {f"top{k + 1}": float(value) for k, value in enumerate(top)} | {"pool": pool, "clips": len(motions)}


def _headline(numbers):
    tops = ", ".join(f"{numbers[f'top{k}']:.3f}" for k in (1, 2, 3))
    return (f"held-out R-precision, top 1 to 3: {tops} among {numbers['pool']} different captions, {numbers['clips']} "
            "motions")  # fmt: skip
