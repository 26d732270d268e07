"""Clips that an autoencoder has encoded, as a source: what ``python -m causal_diffusion.encode`` wrote.

A set of latents is a folder with one folder per split::

    runs/latents/train/latents-00000-of-00012.array_record ...     records: see record_shards.py
                       meta.json                                   written last: a folder without it is unfinished
    runs/latents/test/...

A record holds a clip's latents, float32 or float16 [L, *space, Z], its name, and its caption, label, actions and text
where the data have them. The meta tells which autoencoder made the set, by fingerprint and config, from which data,
what every shard must be, and the mean and deviation of each channel.

An element is a window of a clip, normalised by the statistics of the training split. Windows start data.stride latents
apart. Where the first latent of a clip stands for one frame and the others for several, every window starts where its
clip does: a decoder takes the first latent of a stream for one that stands for one frame.
"""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np

from causal_diffusion.data.config import DataConfig
from causal_diffusion.data.record_shards import Records, Shard, check_shards, read_json
from causal_diffusion.errors import UnreadableError, UserError
from causal_diffusion.motion.body import Body

log = logging.getLogger(__name__)

FORMAT = 1
META = "meta.json"
UNFINISHED = "unfinished"  # folder of what an encode keeps until it is complete
CHECKED = 4 * 2**30  # bytes of shards up to which all of them are compared with their checksums at the start
COMMAND = "python -m causal_diffusion.encode"


class Latents:
    """Windows of the latents in data.path: see the module's docstring, and sources.py for what an element holds.

    data.frames, data.height, data.width and data.channels are those of latents; height and width are 0 of a series.
    Clips of fewer latents are skipped with a warning; from data.shortest on they are padded with zeros, and elements
    have their 'length'. An action is the mean over the frames that a latent stands for.

    Attributes: ``captions``, one string per element; ``mean`` and ``std`` of each channel, by which elements are
    normalised; ``body``, what the frames behind latents of motion mean, else None; ``fingerprint`` and ``vae_config``
    (a dict) of the autoencoder; ``meta``, all that is known of the set.

    Raises:
        UserError: the folder is missing, unfinished or damaged, or is not what the data section states.
    """

    def __init__(self, config: DataConfig, split: str):
        self._config, self._split = config, split
        root = _checked_folder(config.path)
        self._folder = root / split
        self.meta = read_meta(self._folder)
        train = self.meta if split == "train" else read_meta(root / "train")
        self.fingerprint, self.vae_config = self.meta["vae"]["fingerprint"], self.meta["vae"]["config"]
        if train["vae"]["fingerprint"] != self.fingerprint:
            own, other = _short(self.fingerprint), _short(train["vae"]["fingerprint"])
            raise UserError(f"{self._folder} was made by another VAE ({own}) than the training split in "
                            f"{root / 'train'} ({other}): encode both with one")
        self.mean, self.std = tuple(train["mean"]), tuple(train["std"])
        self.body = Body.of_meta(self.meta.get("body"))
        shards = [Shard(*(shard[key] for key in Shard._fields)) for shard in self.meta["shards"]]
        again = f"run `{COMMAND} --out={root} --split={split}` again as it was made, and it makes that shard again"
        check_shards(self._folder, shards, again, CHECKED)
        self._records = Records(self._folder, shards)
        _check_stated(config, self.meta, self._folder)
        self._windows = self._of_clips([n for shard in self.meta["shards"] for n in shard["lengths"]])

    @staticmethod
    def condition_sizes(config: DataConfig) -> tuple[int, int]:
        return config.classes, config.action_dim

    def __len__(self) -> int:
        return len(self._windows)

    def __repr__(self) -> str:
        c = self._config
        content = [[shard["sha256"] for shard in self.meta["shards"]], self.mean, self.std]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
        conditions = f"classes={c.classes}, action_dim={c.action_dim}"
        conditions += f", shortest={c.shortest}" if c.shortest else ""
        return (f"Latents(split={self._split!r}, windows={len(self)}, digest={digest}, vae={_short(self.fingerprint)}, "
                f"frames={c.frames}, stride={c.stride}, {conditions})")

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        clip, start = self._windows[range(len(self))[i]]
        record, window = self._records[clip], slice(start, start + self._config.frames)
        latents = record["latents"][window].astype(np.float32)
        element = {"video": (latents - np.float32(self.mean)) / np.float32(self.std)}
        if self._config.shortest:
            video = np.zeros((self._config.frames, *latents.shape[1:]), np.float32)
            video[: len(latents)] = element["video"]
            element = {"video": video, "length": np.asarray(len(latents), np.int32)}
        if self._config.classes:
            element["label"] = np.asarray(record["label"], np.int32)
        if self._config.action_dim:
            action = _per_latent(record["action"], self.meta["geometry"])[window]
            element["action"] = np.pad(action, ((0, len(element["video"]) - len(action)), (0, 0)))
        for key in ("text", "text_mask"):
            if key in record:
                element[key] = record[key].copy()
        return element

    @property
    def captions(self) -> list[str]:
        captions = [caption for shard in self.meta["shards"] for caption in shard["captions"]]
        return [captions[clip] for clip, _ in self._windows] if captions else [""] * len(self)

    def _of_clips(self, lengths):
        """(clip, first latent) of each window."""
        frames, apart = self._config.frames, self.meta["geometry"]["apart"]
        key = "shortest" if self._config.shortest else "frames"
        least = getattr(self._config, key)
        short = sum(n < least for n in lengths)
        if short == len(lengths):
            raise UserError(f"no clip in {self._folder} has data.{key}={least} latents: the longest has "
                            f"{max(lengths)}; set data.{key} to at most {max(lengths)}, or encode longer clips")
        if short:
            log.warning("skipped %d of the %d clips in %s: they have fewer latents than data.%s=%d (the shortest "
                        "%d)", short, len(lengths), self._folder, key, least, min(lengths))
        padded = [frames if least <= n < frames else n for n in lengths]
        starts = (range(0, n - frames + 1, self._config.stride)[: 1 if apart else None] for n in padded)
        return [(clip, start) for clip, of_clip in enumerate(starts) for start in of_clip]


def read_meta(folder: Path) -> dict:
    """The meta of one split of a set. UserError: it is missing, unfinished, or written by another version."""
    try:
        meta = read_json(folder / META)
        version = meta["format"]
    except FileNotFoundError:
        if (folder / UNFINISHED).is_dir():
            raise UserError(f"the encoding of {folder} is not finished: run the same `{COMMAND}` again, and it goes on "
                            "from the shards that are there") from None
        raise UserError(f"there is no set of latents in {folder}: make it with `{COMMAND} --out={folder.parent} "
                        f"--split={folder.name}`") from None
    except UnreadableError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / META} cannot be read: remove it and run the same `{COMMAND}` again") from error
    if version != FORMAT:
        raise UserError(f"{folder / META} is of format {version}, and this version reads {FORMAT}: encode again")
    return meta


def check_made_by(source, fingerprint: str, where) -> None:
    """UserError where latents and the autoencoder in ``where`` do not belong together; see
    ``causal_diffusion.autoencoder.fingerprint``."""
    made_by = getattr(source, "fingerprint", None)
    if made_by is not None and made_by != fingerprint:
        raise UserError(f"these latents were made by another VAE: theirs is {_short(made_by)}, that of {where} is "
                        f"{_short(fingerprint)}; encode the data again, or set vae.checkpoint to the run of theirs")


def _checked_folder(path):
    if not path:
        raise UserError(f"data.path is empty: set it to a folder that `{COMMAND}` wrote")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.path {path!r} is no folder: set it to one that `{COMMAND}` wrote")
    return folder.resolve()


def _check_stated(config, meta, folder):
    """UserError at the first key of the data section that is not what the set has."""
    *space, channels = meta["shape"]
    height, width = space or (0, 0)
    for key, there in (("channels", channels), ("height", height), ("width", width)):
        if getattr(config, key) != there:
            raise UserError(f"data.{key} is {getattr(config, key)} and the latents in {folder} have {there}: "
                            f"set data.{key}={there}")
    if config.classes and not meta["classes"]:
        raise UserError(f"data.classes={config.classes} and the latents in {folder} have no labels: set "
                        "data.classes=0, or encode data that have them")
    if config.classes and config.classes < meta["classes"]:
        raise UserError(f"data.classes is {config.classes} and a label in {folder} is {meta['classes'] - 1}: set "
                        f"data.classes={meta['classes']}")
    if config.action_dim not in (0, meta["action_dim"]):
        raise UserError(f"data.action_dim is {config.action_dim} and the actions in {folder} have "
                        f"{meta['action_dim'] or 'none'}: set data.action_dim={meta['action_dim']}")


def _per_latent(action, geometry):
    """[frames, A] -> [L, A], the mean over the frames of each latent: all that led from one to the next."""
    first = action[: int(geometry["apart"])]
    rest = action[len(first) :].reshape(-1, geometry["time"], action.shape[-1])
    return np.concatenate([first, rest.mean(axis=1)]).astype(np.float32)


def _short(fingerprint):
    return fingerprint[:12]
