"""Encodes a data set once, so that a transformer trains on latents without an encoder.

    python -m causal_diffusion.encode --vae=runs/video_vae --config=configs/video_folder.py --out=latents --split=train
    python -m causal_diffusion.encode --vae=runs/video_vae --config=configs/video_folder.py --out=latents --split=test

    --config.section.key=value     changes the data, --config.data.path=/where/your/videos/are say
    --whole                        clips as long as they are, cut to a whole number of latents, where the source has
                                   them (motion_clips); else the source's own elements, data.frames long
    --clips=N                      only the first N

It writes latents/train and latents/test (data/latents.py says what), for ``data.source = 'latents'``. Kept is the mean
of the posterior, before normalisation. The same command goes on where it was stopped: complete shards are kept, and
the others made again. However often it was stopped, the files end up the same, byte for byte, on the same machine with
the same versions.

Clips of different lengths share few compiled programs: each is padded at its end to one of a few lengths, and its
latents are cut. No latent of a causal autoencoder sees a later frame, so they are those of the clip by itself, to
rounding. Longer ones than --piece latents are streamed, in constant memory.
"""

import dataclasses
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from causal_diffusion.checkpoint.paths import remove_tree
from causal_diffusion.data.latents import FORMAT, META, UNFINISHED, read_meta
from causal_diffusion.data.record_shards import Shard, damage_of, read_json, shard_name, write_json, write_shard
from causal_diffusion.errors import UnreadableError, UserError
from causal_diffusion.folder_lock import FILE as OWNER
from causal_diffusion.folder_lock import own_folder
from causal_diffusion.frames import ROUNDING, take_frames
from causal_diffusion.jax_settings import under_own_settings
from causal_diffusion.ranges import COUNT, COUNT_OR_NONE, check_number

log = logging.getLogger(__name__)

PLAN = "plan.json"  # in the folder of what is unfinished: what the set will be
ENDLESS = 2**24  # clips; a source of more is made up as it is read, and must be told how many
DTYPES = ("float32", "float16")
# How a difference between a folder and a command is told.
WORDS = {"vae": "the VAE's fingerprint", "source": "the data", "format": "the format"}


@under_own_settings
def encode_source(
    vae,
    params,
    source,
    out,
    *,
    fingerprint: str,
    split: str = "train",
    shard_clips: int = 256,
    batch: int = 8,
    piece: int = 64,
    dtype: str = "float32",
    whole: bool = False,
    clips: int = 0,
    progress: bool = True,
) -> tuple[dict, int]:
    """Writes one split of a set of latents, or goes on with it.

    Args:
        vae: has ``config``, ``geometry`` and ``encode(params, video, piece=)``, as ``nn.vae.VAE`` does.
        params: its parameters.
        source: of clips, see data/sources.py; with ``whole``, it has ``clips``, how many, and ``clip(i)``.
        out: folder of the split.
        fingerprint: of the autoencoder.
        split: which one it is, for the records.
        shard_clips: clips in a shard.
        batch: clips encoded at a time.
        piece: latents encoded at a time of longer clips; 0: all.
        dtype: of the latents in the file.
        whole: encodes whole clips instead of the source's elements.
        clips: the first so many only; 0: all.
        progress: shows a bar.

    Returns:
        The meta of the set, and how many shards were made now (0: it was complete).

    Raises:
        UserError: clips that do not fit the autoencoder, values that are not finite, a folder of other latents, or a
            disk that takes no more.
    """
    reader = _Clips(source, whole, clips)
    plan = dict(format=FORMAT, vae=fingerprint, source=repr(source), split=split, clips=len(reader), whole=whole)
    plan |= dict(shard_clips=shard_clips, batch=batch, piece=piece, dtype=dtype)
    _check_options(plan)
    out, count = Path(out).expanduser(), -(-len(reader) // shard_clips)
    work = out / UNFINISHED
    with own_folder(out, "encoding", "--out", f"{UNFINISHED}/{OWNER}"):
        files = [shard_name("latents", i, count) for i in range(count)]
        done, complete = _found(out, plan)
        if complete and len(done) == count:
            remove_tree(work)
            return read_meta(out), 0
        work.mkdir(exist_ok=True)
        write_json(work / PLAN, plan, work)
        spans = [range(i * shard_clips, min(len(reader), (i + 1) * shard_clips)) for i in range(count)]
        kept = sum(len(span) for file, span in zip(files, spans, strict=True) if file in done)
        made = 0
        with tqdm(total=len(reader), initial=kept, unit="clip", dynamic_ncols=True, disable=not progress) as bar:
            for file, span in zip(files, spans, strict=True):
                if file not in done:
                    records = _encode_span(vae, params, reader, span, plan, bar)
                    shard = write_shard(out / file, records, work)
                    done[file] = shard._asdict() | _facts(records)
                    write_json(work / f"{file}.json", done[file], work)
                    made += 1
        meta = _meta(vae, plan, [done[file] for file in files])
        if (body := getattr(source, "body", None)) is not None:
            meta["body"] = body.to_meta()
        write_json(out / META, meta, work)
        remove_tree(work)
    return read_meta(out), made


class _Clips:
    """What is to be encoded, by number: a source's elements, or its whole clips."""

    def __init__(self, source, whole, clips):
        if whole and not hasattr(source, "clip"):
            raise UserError(f"--whole is set, and {type(source).__name__} has no whole clips: leave it out")
        self._source, self._whole = source, whole
        there = source.clips if whole else len(source)
        check_number("--clips", clips, COUNT_OR_NONE, error=UserError)
        if clips > there:
            raise UserError(f"--clips is {clips} and the data have {there}: --clips={there} would do, or leave it out")
        if not clips and there > ENDLESS:
            raise UserError(f"the data have no end ({there:,} clips): say how many, --clips=10000 would do")
        self._count = clips or there
        self._captions = getattr(source, "clip_captions" if whole else "captions", None)
        self._names = getattr(source, "names", None) if whole else None

    def __len__(self):
        return self._count

    def name(self, i):
        return str(self._names[i]) if self._names is not None else str(i)

    def read(self, i, geometry) -> dict | None:
        """Clip i with its name and conditions, checked; a whole one is cut, and None if it makes no latent."""
        element = self._source.clip(i) if self._whole else self._source[i]
        element = dict(element) if isinstance(element, dict) else {"video": element}
        if self._whole:
            frames = len(element["video"])
            first = int(geometry.apart)
            latents = first + max(0, frames - first) // geometry.time
            if not frames or not latents:
                return None
            for key in {"video", "action"} & element.keys():
                element[key] = element[key][: geometry.frames(latents)]
        video, where = element["video"], f"clip {self.name(i)} of the data"
        try:
            geometry.latent_shape(video.shape)
        except UserError as error:
            raise UserError(f"{where} does not fit the VAE: {error}") from None
        element["video"] = take_frames(where, video, pictures=geometry.pictures, tolerance=ROUNDING)
        if self._captions is not None:
            element["caption"] = self._captions[i]
        return element | {"name": self.name(i)}


def _encode_span(vae, params, reader, span, plan, bar) -> list[dict]:
    """The records of some clips, in their order. Clips that are padded to one length are encoded together."""
    geometry, rows = vae.geometry, min(plan["batch"], plan["shard_clips"], plan["clips"])  # the same in every shard
    records, waiting, short = {}, {}, 0

    def encode(length):
        group = waiting.pop(length)
        shape = records[group[0][0]]["video"].shape[1:]
        video = np.zeros((rows, geometry.frames(length), *shape), np.float32)
        for row, (i, _) in enumerate(group):
            clip = records[i].pop("video")
            video[row, : len(clip)] = clip
        streamed = plan["piece"] if 0 < plan["piece"] < length else 0
        latents = np.asarray(vae.encode(params, video, piece=streamed))
        for row, (i, own) in enumerate(group):
            records[i]["latents"] = _stored(latents[row, :own], plan["dtype"], reader.name(i))
        bar.update(len(group))

    for i in span:
        clip = reader.read(i, geometry)
        if clip is None:
            short += 1
            bar.update()
            continue
        records[i] = clip
        own = geometry.latents(len(clip["video"]))
        length = padded_length(own, plan["piece"], int(geometry.apart)) if plan["whole"] else own
        waiting.setdefault(length, []).append((i, own))
        if len(waiting[length]) == rows:
            encode(length)
    for length in sorted(waiting):
        encode(length)
    if short:
        log.warning("skipped %d whole clips: they have fewer than the %d frames of a latent", short, geometry.frames(1))
    return list(records.values())


def padded_length(latents: int, piece: int, first: int) -> int:
    """Latents that a clip is padded to: 1, 2, 3, 4, 6, 8, 12, 16, 24 ... or whole pieces, after ``first`` latents."""
    if 0 < piece < latents:
        return first + -(-(latents - first) // piece) * piece
    power = 1 << (latents - 1).bit_length()
    length = 3 * power // 4 if 3 * power // 4 >= latents and power > 2 else power
    return min(length, piece) if piece else length


def _stored(latents, dtype, name):
    """As they are kept in the file."""
    if not np.isfinite(latents).all():
        raise UserError(f"the VAE makes latents of clip {name} that are not finite: it does not fit these data")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(latents, dtype)
    if not np.isfinite(stored).all():
        raise UserError(f"clip {name} has a latent of {np.abs(latents).max():.3g}, too large for --dtype={dtype}: "
                        "--dtype=float32 would do")  # fmt: skip
    return stored


class _Moments(NamedTuple):
    """Of each channel: how many numbers, their mean, and the sum of squares about it, in float64."""

    count: int
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, latents):
        x = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
        return cls(len(x), x.mean(axis=0), x.var(axis=0) * len(x))

    def __add__(self, other):
        """Of both together (Chan et al. 1979)."""
        count, step = self.count + other.count, other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        return _Moments(count, mean, self.squares + other.squares + step**2 * (self.count * other.count / count))


def _facts(records) -> dict:
    """What the meta tells of a shard beside its file."""
    if not records:
        return dict(lengths=[], captions=[], classes=0, action_dim=0, shape=[], moments=None)
    first = records[0]
    moments = _summed(_Moments.of(record["latents"]) for record in records)
    return dict(
        lengths=[len(record["latents"]) for record in records],
        captions=[record["caption"] for record in records] if "caption" in first else [],
        classes=max(int(record["label"]) for record in records) + 1 if "label" in first else 0,
        action_dim=first["action"].shape[-1] if "action" in first else 0,
        shape=list(first["latents"].shape[1:]),
        moments=dict(count=moments.count, mean=moments.mean.tolist(), squares=moments.squares.tolist()),
    )


def _summed(moments):
    total = None
    for each in moments:
        total = each if total is None else total + each
    return total


def _meta(vae, plan, shards) -> dict:
    """See data/latents.py. Nothing in it depends on when, where or how often the command ran."""
    some = [shard for shard in shards if shard["records"]]
    if not some:
        raise UserError(f"none of the {plan['clips']} clips has the {vae.geometry.frames(1)} frames of a latent")
    each = (_Moments(m["count"], np.array(m["mean"]), np.array(m["squares"])) for m in (s["moments"] for s in some))
    total = _summed(each)
    std = np.sqrt(total.squares / total.count)
    std[std == 0] = 1.0  # of a channel that never changes: normalised, it is 0
    return dict(
        format=FORMAT,
        vae=dict(fingerprint=plan["vae"], config=dataclasses.asdict(vae.config)),
        geometry=vae.geometry._asdict(),
        shape=some[0]["shape"],
        plan=plan,
        clips=sum(shard["records"] for shard in some),
        latents=sum(sum(shard["lengths"]) for shard in some),
        captions=any(any(shard["captions"]) for shard in some),
        classes=max(shard["classes"] for shard in some),
        action_dim=some[0]["action_dim"],
        mean=total.mean.tolist(),
        std=std.tolist(),
        shards=shards,
    )


def _found(out, plan) -> tuple[dict, bool]:
    """({file: entry of an intact shard}, whether the set was complete). UserError: the folder is of other latents."""
    work, meta = out / UNFINISHED, None
    if (out / META).exists():
        meta = read_meta(out)
        there = meta["plan"]
    elif (work / PLAN).exists():
        there = _read_json(work / PLAN)
    else:
        return {}, False
    for key, wanted in plan.items():
        if there.get(key) != wanted:
            raise UserError(f"{out} holds latents of which {WORDS.get(key, '--' + key)} is {there.get(key)}, not "
                            f"{wanted}: choose another --out, or remove that folder")  # fmt: skip
    entries = {entry["file"]: entry for entry in meta["shards"]} if meta else {}
    for path in sorted(work.glob("*.array_record.json")):
        entries |= {entry["file"]: entry for entry in [_read_json(path)]}
    intact = {}
    for file, entry in entries.items():
        damage = damage_of(out, Shard(*(entry[key] for key in Shard._fields)))
        if damage:
            log.warning("%s %s: it is made again", out / file, damage)
        else:
            intact[file] = entry
    return intact, meta is not None


def _read_json(path):
    try:
        return read_json(path)
    except UnreadableError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: remove {path.parent} and start again") from error


def _check_options(plan):
    for key, allowed in {"shard_clips": COUNT, "batch": COUNT, "piece": COUNT_OR_NONE}.items():
        check_number(f"--{key}", plan[key], allowed, error=UserError)
    if plan["dtype"] not in DTYPES:
        raise UserError(f"--dtype is {plan['dtype']}: it is one of {', '.join(DTYPES)}")


def main(arguments=None) -> None:
    """The command: see the module's docstring."""
    from causal_diffusion.cli import Parser, parse_options
    from causal_diffusion.config import freeze, load_config

    parser = Parser(prog="python -m causal_diffusion.encode", description="Encodes a data set into latents.")
    parser.add_argument("--vae", required=True, help="workdir of the autoencoder's run")
    parser.add_argument("--config", required=True, help="configs/NAME.py, or NAME, whose section 'data' counts")
    parser.add_argument("--out", required=True, help="folder of the set; the split gets a folder in it")
    parser.add_argument("--split", default="train", choices=("train", "test"))
    parser.add_argument("--whole", action="store_true", help="whole clips instead of data.frames each")
    parser.add_argument("--clips", type=int, default=0, help="the first so many; 0: all")
    parser.add_argument("--shard_clips", type=int, default=256, help="clips in a file")
    parser.add_argument("--batch", type=int, default=8, help="clips encoded at a time")
    parser.add_argument("--piece", type=int, default=64, help="latents encoded at a time of longer clips; 0: all")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the latents in the files")
    options, overrides = parse_options(parser, arguments)
    config = freeze(load_config(options.config, overrides))
    from causal_diffusion.autoencoder import fingerprint, load_vae  # seconds of imports: wrong keys are told before
    from causal_diffusion.data.sources import make_source

    vae, params = load_vae(options.vae)
    source = make_source(config.data, options.split)
    settings = vars(options)
    own = {key: settings[key] for key in ("split", "whole", "clips", "shard_clips", "batch", "piece", "dtype")}
    out = Path(options.out).expanduser() / options.split
    meta, made = encode_source(vae, params, source, out, fingerprint=fingerprint(vae, params), **own)
    what = f"{meta['clips']:,} clips, {meta['latents']:,} latents in {len(meta['shards'])} shards"
    print(f"{out}: {what}" if made else f"{out} is complete already: {what}")


if __name__ == "__main__":
    from causal_diffusion.cli import run

    run(main)
