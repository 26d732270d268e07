"""Streams from a folder that ``python -m causal_diffusion.export --stream`` wrote: without the model's code.

    from causal_diffusion.exported import read_stream

    programs = read_stream("quickstart_stream")          # compiles; nothing compiles afterwards
    stream = programs.start(seed=0, label=3)
    block = stream.next()                                # float32 [B, frames of a block, *space, C]

This file needs JAX (with ``flatbuffers``, extra ``export``), NumPy and safetensors alone, and of this package
modules without the model's code: ``errors``, ``file_access``, ``frames``, ``jax_settings``, ``ranges``, ``seeds`` and
``workers``. A folder holds

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

import functools
import hashlib
import importlib.util
import logging
import math
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import load

from causal_diffusion.errors import CheckpointError, UserError
from causal_diffusion.file_access import parse_json, read_bytes, unsealed
from causal_diffusion.frames import check_values, take_frames
from causal_diffusion.jax_settings import under_own_settings
from causal_diffusion.ranges import SIZE, check_number
from causal_diffusion.seeds import random_key
from causal_diffusion.workers import Once, settled

log = logging.getLogger(__name__)

FORMAT = "causal_diffusion stream 2"
UNSEALED = "causal_diffusion stream 1"  # without a checksum of stream.json; read with a warning
META = "stream.json"
PARAMETERS = "parameters.safetensors"


@under_own_settings
def read_stream(folder: str | os.PathLike) -> "Programs":
    """Reads a folder and compiles its programs for the device at hand.

    Raises:
        CheckpointError: a file is missing, damaged, or not of this format. UnreadableError: one cannot be read now.
        UserError: ``flatbuffers`` is missing, the programs are for other platforms, or JAX is too old or too new.
    """
    folder = Path(folder).expanduser()
    try:
        meta = parse_json(read_bytes(folder / META))
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

    @under_own_settings
    def start(self, seed: int = 0, *, label=None, text=None, text_mask=None, context=None, context_action=None,
              action=None, observed=None, reference=None) -> "Stream":  # fmt: skip
        """A stream. Arguments are those of ``Pipeline.stream`` and its ``cond``; prompts come as condition tokens."""
        meta = self.meta
        B, shape, given = meta["batch"], tuple(meta["frame_shape"]), meta["context"]
        if (context is None) != (given == 0):
            raise UserError(f"this folder is of streams with {given} frames of context: give {given or 'none'}")
        context = np.zeros((0, *shape)) if context is None else context
        frames = _frames(meta, "context", context, (given, *shape))
        if meta["reference"] and reference is None and not given:
            raise UserError("this system needs a reference frame, or a context whose first frame is taken")
        if reference is None and meta["reference"]:
            reference = frames[:, 0]
        return Stream(self, _begun(
            self, seed, dict(label=label, text=text, text_mask=text_mask), frames,
            _array("context_action", context_action, (given, meta["action"]), B),
            _frames(meta, "reference", reference, shape), action, observed,
        ))  # fmt: skip


class _Moment(NamedTuple):
    """All that changes of a stream."""

    state: Any
    encoded: Any  # the condition
    condition: dict
    void: int  # frames that the next block to be begun lacks
    done: int = 0  # steps that were begun
    actions: np.ndarray | None = None  # of frames to come, [B, T, A]
    held: np.ndarray | None = None
    observed: np.ndarray | None = None
    given: tuple = (None, None)  # the action and the values with which ``ahead`` was asked for
    ahead: tuple[np.ndarray, ...] = ()  # blocks [B, T, ...] that are there and were not returned


class Stream:
    """An endless stream of blocks; made by ``Programs.start``.

    As of ``streaming.session``, an exception may interrupt it at any instruction: it then continues with the next block
    that was not returned. A step, which consumes the state, is stored as a ``Once`` before it begins.
    """

    def __init__(self, programs: Programs, moment: "_Moment"):
        self._programs, self._meta = programs, programs.meta
        self._lock, self._current = threading.RLock(), moment

    @property
    def _now(self) -> _Moment:
        return settled(self._current, functools.partial(setattr, self, "_current"))

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
        blocks = check_number("blocks", blocks, SIZE, error=UserError)
        before = None
        try:
            with self._lock:
                now = _queued(self._meta, self._now, action, observed)
                while len(now.ahead) < blocks:
                    now = self._step(now, blocks - len(now.ahead))
                frames = np.concatenate(now.ahead[:blocks], axis=1)
                after = now._replace(ahead=now.ahead[blocks:], given=(None, None))
                before = now
                self._current = after
            return frames
        except BaseException:
            if before is not None:
                self._current = before
            raise

    def _step(self, now: _Moment, n: int) -> _Moment:
        """At most ``n`` steps, those that one program makes."""
        meta = self._meta
        name, until = _program_at(meta, now.done)
        n = min(n, meta["capacity"], until - now.done)

        def step():
            then, entering = _entering(meta, now, n * meta["emit"], 0 if meta["waiting"] else now.void)
            steps = [_by_step(a, n, meta["capacity"]) for a in entering]
            state, (frames,) = self._programs(name, now.state, now.encoded, steps, [np.int32(n)])
            blocks = [block[:, now.void if i == 0 else 0 :] for i, block in enumerate(np.asarray(frames)[:n])]
            return then._replace(state=state, void=0, done=now.done + n, ahead=(*now.ahead, *blocks))

        self._current = Once(step, now, now.state)
        return self._now

    @under_own_settings
    def update(self, **condition) -> None:
        """Another ``label``, ``text`` or ``text_mask`` for blocks that enter from now on; what is left out stays."""
        with self._lock:
            now = self._now
            given = {name: value for name, value in condition.items() if value is not None}
            merged = now.condition | ({"text_mask": None} if "text" in given else {}) | given
            encoded = self._programs("encode_condition", _parsed(self._meta, merged))
            self._current = now._replace(condition=merged, encoded=encoded)


def _program_at(meta, done: int):
    """(the program that advances a stream after ``done`` steps, the step before which another one does)."""
    ahead = [step for _, step in meta["steps"] if step > done]
    name = [name for name, step in meta["steps"] if step <= done][-1]
    return name, min(ahead, default=math.inf)


def _begun(programs, seed, condition, context, context_action, reference, action, observed) -> _Moment:
    """The moment at which a stream begins."""
    meta, B = programs.meta, programs.meta["batch"]
    encoded = programs("encode_condition", _parsed(meta, condition))
    key = random_key(seed, impl=meta["keys"])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(B, dtype=np.int32))
    now = _Moment(None, encoded, condition, 0 if meta["context"] else meta["pad"])
    now, ramp = _queued(meta, now, action, observed)._replace(given=(None, None)), []
    if meta["waiting"]:
        now, ramp = _entering(meta, now, meta["waiting"], now.void)
    past = []
    if meta["action"] and meta["context"]:
        known = context_action is not None
        value = context_action if known else np.zeros((B, meta["context"], meta["action"]), np.float32)
        past = [value, np.full(value.shape[:2], known)]
    given = [*([] if reference is None else [reference]), context, *past, *ramp]
    return now._replace(state=programs("init_state", [jax.random.key_data(keys)], encoded, given))


def _parsed(meta, condition: dict) -> list:
    """[label [B, 1]], then [text [B, 1, M, ...], mask [B, 1, M]], as far as the system takes them."""
    B, out = meta["batch"], []
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


def _queued(meta, now: _Moment, action, observed) -> _Moment:
    """With an action and known values of frames to come; those of a call that is made again are queued already."""
    B = meta["batch"]
    for name, value, takes in (("action", action, meta["action"]), ("observed", observed, meta["observed"])):
        if value is not None and not takes:
            raise UserError(f"this system takes no {name!r}")
    if action is not None:
        action = np.asarray(action)
        action = action[None] if action.ndim == 1 else action
        action = _array("action", action, (action.shape[-2], meta["action"]), B)
    if observed is not None:
        shape = meta["frame_shape"]
        frames = np.shape(observed)[-1 - len(shape)] if np.ndim(observed) > len(shape) else 1
        observed = _frames(meta, "observed", observed, (frames, *shape), unknown=True)
    if now.ahead and all(map(_equal, now.given, (action, observed))):
        return now
    if action is not None:
        now = now._replace(actions=action)
    if observed is not None:
        now = now._replace(observed=observed)
    return now._replace(given=(action, observed))


def _equal(one, two) -> bool:
    return one is two or (one is not None and two is not None and np.array_equal(one, two, equal_nan=True))


def _entering(meta, now: _Moment, frames: int, void: int) -> tuple[_Moment, list]:
    """(what is left, [action, given], then [observed, given], each [B, frames, ...]); the first ``void`` have none."""
    B, out = meta["batch"], []
    if meta["action"]:
        taken, rest = _split(now.actions, frames - void)
        value, known, held = np.zeros((B, frames, meta["action"]), np.float32), void, now.held
        if taken is not None:
            known += taken.shape[1]
            value[:, void:known], held = taken, taken[:, -1:]
        if held is not None:
            value[:, known:], known = held, frames
        given = (np.arange(frames) >= void) & (np.arange(frames) < known)
        out += [value, np.broadcast_to(given, (B, frames))]
        now = now._replace(actions=rest, held=held)
    if meta["observed"]:
        taken, rest = _split(now.observed, frames - void)
        value = np.full((B, frames, *meta["frame_shape"]), np.nan, np.float32)
        if taken is not None:
            value[:, void : void + taken.shape[1]] = taken
        out += [np.where(np.isfinite(value), value, np.float32(0)), np.isfinite(value)]
        now = now._replace(observed=rest)
    return now, out


def _split(queue, frames):
    """The first frames of [B, T, ...], and the rest; None where there are none."""
    if queue is None:
        return None, None
    return queue[:, :frames], queue[:, frames:] if queue.shape[1] > frames else None


def _by_step(a, n, capacity):
    """[B, n E, ...] -> [capacity, B, E, ...]."""
    a = np.moveaxis(a.reshape(a.shape[0], n, -1, *a.shape[2:]), 1, 0)
    return np.pad(a, ((0, capacity - n), *((0, 0),) * (a.ndim - 1)))


def _frames(meta, name, value, shape, unknown=False):
    """Frames as [B, *shape] (``causal_diffusion.frames``); None stays None."""
    if value is None:
        return None
    pictures = meta.get("pictures", False)  # folders of earlier versions do not say
    return _array(name, take_frames(name, value, pictures=pictures, unknown=unknown), shape, meta["batch"])


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
