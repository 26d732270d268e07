"""Streams from a folder that ``python -m causal_diffusion.export --stream`` wrote: without the model's code.

    from causal_diffusion.exported import read_stream

    programs = read_stream("quickstart_stream")          # compiles; nothing compiles afterwards
    stream = programs.start(seed=0, label=3)
    block = stream.next()                                # float32 [B, frames of a block, *space, C]

This file needs JAX (with ``flatbuffers``, extra ``export``), NumPy and safetensors alone, and of this package five
modules without the model's code: ``errors``, ``file_access``, ``frames``, ``ranges`` and ``seeds``. A folder holds

    stream.json              shapes, names, versions, fingerprints, the SHA-256 of every other file and that of itself
    parameters.safetensors   the averaged parameters
    encode_condition.bin     a condition as the network reads it, once per change
    init_state.bin           a stream that has seen its context
    filling.bin, full.bin    up to ``capacity`` steps while the cache fills, and afterwards: (state, frames); what they
                             return lies where their state lay

where programs are StableHLO as ``jax.export`` serialises it, for one batch size and one length of context. Their
arguments and results are lists of arrays: pytrees are flattened, and keys of random numbers are their raw uint32. On
the same device and versions the frames have the bits of ``Pipeline.stream``; of a system on latents they are latents.

JAX promises to read what is at most six months older than itself, or three weeks newer
(docs.jax.dev, "Exporting and serializing", compatibility guarantees). ``stream.json`` names the version that wrote it.
Matrices are multiplied in the dtype that ``model.dtype`` means on the machine that exports.
"""

import hashlib
import importlib.util
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load

from causal_diffusion.errors import CheckpointError, UserError
from causal_diffusion.file_access import read_bytes, unsealed
from causal_diffusion.frames import check_values, take_frames
from causal_diffusion.ranges import COUNT, check_number
from causal_diffusion.seeds import random_key

log = logging.getLogger(__name__)

FORMAT = "causal_diffusion stream 2"
UNSEALED = "causal_diffusion stream 1"  # without a checksum of stream.json; read with a warning
META = "stream.json"
PARAMETERS = "parameters.safetensors"


def read_stream(folder: str | os.PathLike) -> "Programs":
    """Reads a folder and compiles its programs for the device at hand.

    Raises:
        CheckpointError: a file is missing, damaged, or not of this format. UnreadableError: one cannot be read now.
        UserError: ``flatbuffers`` is missing, the programs are for other platforms, or JAX is too old or too new.
    """
    folder = Path(folder)
    try:
        meta = json.loads(read_bytes(folder / META))
        if meta["format"] not in (FORMAT, UNSEALED):
            raise CheckpointError(f"{folder} is {meta['format']!r}, not {FORMAT!r}: export the run again")
        meta, has_digest = unsealed(meta)
        if not has_digest:
            if meta["format"] == FORMAT:
                raise ValueError("its checksum is missing")
            log.warning("%s is %r, without a checksum: export the run again", folder / META, UNSEALED)
        files = {name: _intact(folder / name, digest) for name, digest in meta["files"].items()}
        arrays = load(files.pop(PARAMETERS))
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise CheckpointError(f"{folder / META} is damaged: export the run again") from error
    platform = platform_of_device()
    if platform not in meta["platforms"]:
        wanted = ",".join([*meta["platforms"], platform])
        raise UserError(f"{folder} is for {', '.join(meta['platforms'])} and this device is {platform}: export it with "
                        f"--platforms={wanted}")  # fmt: skip
    params = [jax.device_put(arrays[name]) for name in meta["parameters"]]
    advances = {f"{name}.bin" for name, _ in meta["steps"]}
    programs = {name: _compiled(folder / name, data, donate=name in advances) for name, data in files.items()}
    return Programs(meta, params, programs)


def platform_of_device() -> str:
    """The default device's platform, as ``jax.export`` names it."""
    version = jax.devices()[0].client.platform_version.lower()
    return {"gpu": "rocm" if "rocm" in version else "cuda"}.get(jax.default_backend(), jax.default_backend())


def check_flatbuffers() -> None:
    """UserError where JAX cannot serialise programs."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("exported programs need flatbuffers: pip install 'causal_diffusion[export]'")


class Programs:
    """The compiled programs of a stream with its parameters.

    Attributes:
        meta: what ``stream.json`` says: 'batch'; 'emit', frames of a block (or chunk); 'context', frames of context;
            'frame_shape'; 'config'; and more.
    """

    def __init__(self, meta: dict, params: list, programs: dict[str, Any]):
        self.meta = meta
        self._params, self._programs = params, programs

    def __call__(self, name: str, *groups):
        """Runs a program; ``groups`` are lists of arrays, after the parameters."""
        return self._programs[f"{name}.bin"](self._params, *groups)

    def start(self, seed: int = 0, *, label=None, text=None, text_mask=None, context=None, context_action=None,
              action=None, observed=None, reference=None) -> "Stream":  # fmt: skip
        """A stream. Arguments are those of ``Pipeline.stream`` and its ``cond``; prompts come as condition tokens."""
        meta = self.meta
        B, shape, given = meta["batch"], tuple(meta["frame_shape"]), meta["context"]
        if (context is None) != (given == 0):
            raise UserError(f"this folder is of streams with {given} frames of context: give {given or 'none'}")
        context = np.zeros((0, *shape)) if context is None else context
        frames = self._frames("context", context, (given, *shape))
        if meta["reference"] and reference is None and not given:
            raise UserError("this system needs a reference frame, or a context whose first frame is taken")
        if reference is None and meta["reference"]:
            reference = frames[:, 0]
        stream = Stream(self)
        stream._begin(
            seed, dict(label=label, text=text, text_mask=text_mask), frames,
            _array("context_action", context_action, (given, meta["action"]), B),
            self._frames("reference", reference, shape), action, observed,
        )  # fmt: skip
        return stream

    def _frames(self, name, value, shape, unknown=False):
        """Frames as [B, *shape] (``causal_diffusion.frames``); None stays None."""
        if value is None:
            return None
        pictures = self.meta.get("pictures", False)  # folders of earlier versions do not say
        return _array(name, take_frames(name, value, pictures=pictures, unknown=unknown), shape, self.meta["batch"])


class Stream:
    """An endless stream of blocks; made by ``Programs.start``."""

    def __init__(self, programs: Programs):
        self._programs, self._meta = programs, programs.meta
        self._void = 0 if self._meta["context"] else self._meta["pad"]  # frames that the next block lacks
        self._actions = self._held = self._observed = None
        self._done = 0  # steps

    def __iter__(self):
        return self

    def __next__(self) -> np.ndarray:
        return self.next()

    def next(self, action=None, observed=None) -> np.ndarray:
        """The next block, [B, ``emit``, *space, C].

        Args:
            action: of the frames that enter now, [A], [T, A] or [B, T, A]; the last is held.
            observed: values known of them and of later ones, [T, *space, C] or [B, T, ...], NaN where unknown.
        """
        return self.take(1, action, observed)

    def take(self, blocks: int, action=None, observed=None) -> np.ndarray:
        """``blocks`` blocks at once, [B, blocks ``emit``, *space, C]: the same bits as that many calls of ``next``."""
        meta, out, void = self._meta, [], self._void
        blocks = check_number("blocks", blocks, COUNT, error=UserError)
        self._queue(action, observed)
        while blocks > 0:
            name, until = self._now()
            n = min(blocks, meta["capacity"], until - self._done)
            entering = self._entering(n * meta["emit"], 0 if meta["waiting"] else self._void)
            steps = [_by_step(a, n, meta["capacity"]) for a in entering]
            self._state, (frames,) = self._programs(name, self._state, self._encoded, steps, [np.int32(n)])
            out.append(np.asarray(frames)[:n])
            blocks, self._void, self._done = blocks - n, 0, self._done + n
        out = np.moveaxis(np.concatenate(out), 0, 1)
        return out.reshape(out.shape[0], -1, *meta["frame_shape"])[:, void:]

    def update(self, **condition) -> None:
        """Another ``label``, ``text`` or ``text_mask`` for blocks that enter from now on; what is left out stays."""
        given = {name: value for name, value in condition.items() if value is not None}
        if "text" in given:
            given = {"text_mask": None} | given
        self._encode(self._condition | given)

    def _encode(self, condition):
        """Takes a condition over; one that is refused leaves the stream as it is."""
        self._encoded = self._programs("encode_condition", self._parsed(condition))
        self._condition = condition

    def _now(self):
        """(the program that advances the stream now, the step before which another one does)."""
        ahead = [step for _, step in self._meta["steps"] if step > self._done]
        name = [name for name, step in self._meta["steps"] if step <= self._done][-1]
        return name, min(ahead, default=math.inf)

    def _begin(self, seed, condition, context, context_action, reference, action, observed):
        meta, B = self._meta, self._meta["batch"]
        self._encode(condition)
        key = random_key(seed, impl=meta["keys"])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(B))
        self._queue(action, observed)
        ramp = self._entering(meta["waiting"], self._void) if meta["waiting"] else []
        past = []
        if meta["action"] and meta["context"]:
            known = context_action is not None
            value = context_action if known else np.zeros((B, meta["context"], meta["action"]), np.float32)
            past = [value, np.full(value.shape[:2], known)]
        given = [*([] if reference is None else [reference]), context, *past, *ramp]
        self._state = self._programs("init_state", [jax.random.key_data(keys)], self._encoded, given)

    def _parsed(self, condition):
        """[label [B, 1]], then [text [B, 1, M, ...], mask [B, 1, M]], as far as the system takes them."""
        meta, B, out = self._meta, self._meta["batch"], []
        given = {name for name, value in condition.items() if value is not None}
        label, text, mask = (condition.get(name) for name in ("label", "text", "text_mask"))
        takes = ["label"] * bool(meta["classes"]) + ["text", "text_mask"] * bool(meta["text"])
        if given - set(takes):
            raise UserError(f"this model takes no {min(given - set(takes))!r}; it takes {', '.join(takes) or 'none'}")
        if meta["classes"]:
            label = np.asarray(-1 if label is None else label)
            integers = label.dtype.kind in "iu"
            if not integers or label.size not in (1, B) or label.min() < -1 or label.max() >= meta["classes"]:
                most = meta["classes"] - 1
                raise UserError(f"label is {label.tolist()}; it is -1 .. {most}, one or one for each of {B} samples")
            out.append(np.broadcast_to(label.astype(np.int32).reshape(-1, 1), (B, 1)))
        if meta["text"]:
            tokens = tuple(meta["text"])  # [M] of ids, or [M, E]
            ids = len(tokens) == 1
            none = text is None
            text = np.zeros(tokens, np.int32 if ids else np.float32) if none else np.asarray(text)
            words = meta["config"]["model"]["vocabulary"]
            if ids and (text.dtype.kind not in "iu" or text.min() < 0 or text.max() >= words):
                raise UserError(f"text has {text.min()} .. {text.max()} ({text.dtype}); ids of words are integers in "
                                f"0 .. {words - 1}")  # fmt: skip
            text = _array("text", text, tokens, B, np.int32 if ids else np.float32)
            if mask is None:
                mask = np.arange(tokens[0]) == 0 if none else text != 0 if ids else np.ones(tokens[0], bool)
            out += [text[:, None], _array("text_mask", mask, tokens[:1], B, np.bool_)[:, None]]
        return out

    def _queue(self, action, observed):
        meta, B = self._meta, self._meta["batch"]
        for name, value, takes in (("action", action, meta["action"]), ("observed", observed, meta["observed"])):
            if value is not None and not takes:
                raise UserError(f"this system takes no {name!r}")
        if action is not None:
            action = np.asarray(action)
            action = action[None] if action.ndim == 1 else action
            self._actions = _array("action", action, (action.shape[-2], meta["action"]), B)
        if observed is not None:
            shape = meta["frame_shape"]
            frames = np.shape(observed)[-1 - len(shape)] if np.ndim(observed) > len(shape) else 1
            self._observed = self._programs._frames("observed", observed, (frames, *shape), unknown=True)

    def _entering(self, frames, void):
        """[action, given], then [observed, given], each [B, frames, ...]; the first ``void`` frames have none."""
        meta, B, out = self._meta, self._meta["batch"], []
        if meta["action"]:
            now, self._actions = _split(self._actions, frames - void)
            value, known = np.zeros((B, frames, meta["action"]), np.float32), void
            if now is not None:
                known += now.shape[1]
                value[:, void:known], self._held = now, now[:, -1:]
            if self._held is not None:
                value[:, known:], known = self._held, frames
            given = (np.arange(frames) >= void) & (np.arange(frames) < known)
            out += [value, np.broadcast_to(given, (B, frames))]
        if meta["observed"]:
            now, self._observed = _split(self._observed, frames - void)
            value = np.full((B, frames, *meta["frame_shape"]), np.nan, np.float32)
            if now is not None:
                value[:, void : void + now.shape[1]] = now
            out += [np.where(np.isfinite(value), value, np.float32(0)), np.isfinite(value)]
        return out


def _split(queue, frames):
    """The first frames of [B, T, ...], and the rest; None where there are none."""
    if queue is None:
        return None, None
    return queue[:, :frames], queue[:, frames:] if queue.shape[1] > frames else None


def _by_step(a, n, capacity):
    """[B, n E, ...] -> [capacity, B, E, ...]."""
    a = np.moveaxis(a.reshape(a.shape[0], n, -1, *a.shape[2:]), 1, 0)
    return np.pad(a, ((0, capacity - n), *((0, 0),) * (a.ndim - 1)))


def _array(name, value, shape, batch, dtype=np.float32):
    """``value`` as [B, *shape]; None stays None."""
    if value is None:
        return None
    value = np.asarray(value)
    if value.shape not in (tuple(shape), (batch, *shape)):
        raise UserError(f"{name} is {list(value.shape)}; it is {list(shape)} or {[batch, *shape]}")
    if dtype == np.float32:
        if value.dtype.kind not in "iufV":  # bfloat16 is of kind V
            raise UserError(f"{name} is {value.dtype}; it is an array of numbers")
        check_values(name, value, pictures=False, unknown=name == "observed")
    return np.ascontiguousarray(np.broadcast_to(value, (batch, *shape)), dtype)


def _intact(path, digest) -> bytes:
    data = read_bytes(path, None)
    if hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    return data


def _compiled(path, data, donate):
    check_flatbuffers()
    try:
        exported = jax.export.deserialize(bytearray(data))
    except ValueError as error:  # of another age
        raise UserError(f"JAX {jax.__version__} does not read {path}: {error}".partition("\n")[0]) from error
    (arguments, _) = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    program = jax.jit(exported.call, donate_argnums=1 if donate else ())
    return program.lower(*jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments)).compile()
