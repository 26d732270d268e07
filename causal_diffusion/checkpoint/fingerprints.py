"""Fingerprints of what a run, a stream or an export was made with, and their comparison.

    {"weights": "3f9c...", "words": "07ab...", "vae": "e51d..."}

A part that something does not have is left out of its fingerprints.
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from causal_diffusion.errors import CheckpointError

log = logging.getLogger(__name__)

PARTS = {
    "weights": "weights", "words": "word list", "text_encoder": "text encoder", "vae": "VAE",
    "steering": "steering loss",
}  # fmt: skip
OPTIONAL = ("words", "text_encoder")  # prompts may also come as condition tokens: without an encoder nothing is known
SHOWN = 12  # digits of a fingerprint in a message


def of_tree(tree: Any, header: bytes = b"") -> str:
    """SHA-256 of ``header`` and of path, dtype, shape and content of every array of a tree."""
    digest = hashlib.sha256(header)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def of_text(encoder: Any) -> dict[str, str]:
    """The fingerprint of a text encoder or a word list, under its part; none without one."""
    if encoder is None:
        return {}
    return {"words" if encoder.name == "words" else "text_encoder": encoder.fingerprint}


def of_loss(loss: Any, scale: float, *shapes: jax.ShapeDtypeStruct) -> str:
    """'VERSION:DIGEST' of what a user's function computes from arguments of these shapes, and of its scale.

    What it computes is its jaxpr with the constants in it, which one version of JAX writes alike every time.
    """
    closed = jax.make_jaxpr(loss)(*shapes)
    text = re.sub(r" at 0x[0-9a-f]+", "", str(closed.jaxpr))
    return f"{jax.__version__}:{of_tree(list(closed.consts), f'{scale!r} {text}'.encode())}"


def check_same(where: Any, saved: Mapping[str, str] | None, own: Mapping[str, str], remedy: str) -> None:
    """Compares what something was made with with what it is to be used with.

    Args:
        where: what was saved, for the message.
        saved: its fingerprints; None: it is of a schema version that has none, which a warning says.
        own: those of what it is to be used with.
        remedy: what to try.

    Raises:
        CheckpointError: a part differs; it is named.
    """
    if saved is None:
        log.warning("%s is of schema version 1, without fingerprints: whether its %s are these is not known", where,
                    ", ".join(PARTS[part] for part in own) or "parts")  # fmt: skip
        return
    for part, name in PARTS.items():
        made, given = saved.get(part), own.get(part)
        if made == given or (part in OPTIONAL and None in (made, given)):
            continue
        if part == "steering" and made and given and made.split(":")[0] != given.split(":")[0]:
            log.warning("%s was steered under JAX %s: its %s is not compared", where, made.split(":")[0], name)
            continue
        had, has = (f"{_short(each)}" if each else "none" for each in (made, given))
        other = "other" if part == "weights" else "another"
        differ = f"fingerprint {had}, here {has}"
        raise CheckpointError(f"{where} was made with {other} {name} than here ({differ}): {remedy}")


def _short(fingerprint):
    return fingerprint.rpartition(":")[2][:SHOWN]
