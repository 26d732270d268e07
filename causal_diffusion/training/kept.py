"""What runs of all kinds keep: parameters as they are evaluated, the meta of a checkpoint, the words of captions."""

import json
import platform

import jax

from causal_diffusion import config as configs
from causal_diffusion.data.captioned import captions_of
from causal_diffusion.data.checked import Checked
from causal_diffusion.nn.text.encoder import FOLDER as TEXT
from causal_diffusion.nn.text.encoder import open_text_encoder
from causal_diffusion.nn.text.words import Words
from causal_diffusion.parallel.distributed import barrier, is_writer
from causal_diffusion.parallel.mesh import gathered


def whole(tree):
    """Parameters whole on one device of each process, where evaluation runs. Called by all processes alike."""
    return jax.device_put(gathered(tree), jax.local_devices()[0])


def checked(source, config, frames: int | None = None) -> Checked:
    """A source of a user's own, whose rows are checked against the config; ``frames``: of a clip, None: any number."""
    takes = {"transformer": config.model, "motion_text": config.motion_text}.get(config.trains)
    classes, vocabulary = getattr(takes, "classes", 0), getattr(takes, "vocabulary", 0)
    return Checked(source, config.data, classes=classes, vocabulary=vocabulary, frames=frames)


def meta_of(config, body=None, fingerprints: dict | None = None) -> dict:
    """The meta that every checkpoint has: config, versions, fingerprints, and what frames of motion mean.

    Args:
        fingerprints: of what the run reads beside its data, see ``checkpoint.fingerprints``. The weights are covered by
            the checksums of the checkpoint itself.
    """
    meta = {
        "schema": 2,
        "fingerprints": fingerprints or {},
        "config": json.loads(configs.to_json(config)),
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
    }
    return meta if body is None else meta | {"body": body.to_meta()}


def open_text(config, vocabulary: int, workdir, source):
    """The text encoder of a run, None without; words are those of the training captions, and stay in the workdir."""
    if config.text.encoder == "none":
        return None
    if config.text.encoder != "words":
        return open_text_encoder(config.text)
    folder = workdir / TEXT
    if folder.is_dir():
        return open_text_encoder(config.text, folder)
    words = Words.of(captions_of(source), tokens=config.text.tokens, most=vocabulary)
    barrier("the words are read")  # before they are written where others might look
    if is_writer():
        words.save(folder)
    return words
