"""What the readers of published folders of captioned motion share: a file of vectors per clip, their Mean and Std.

    stretch     |----------------------------------------------|      a clip, or the part of it that captions describe
    elements    [--------][--------][--------]                        data.frames long, starts data.stride apart
                [--------][--------][--------]                        ... and again for its next caption
    short one   |------|~~~~                                          from data.shortest frames on: padded with zeros

data.stride = data.frames makes one element of each stretch and caption where stretches are no longer than two elements.
Everything is in memory, as float32: of the 23,384 training clips of HumanML3D 3.5 GB, or 0.9 GB of root and positions.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from causal_diffusion.data.array_file import read_array
from causal_diffusion.data.captions import Caption
from causal_diffusion.data.config import DataConfig
from causal_diffusion.data.motion_clips import UNIT, count_windows, padded
from causal_diffusion.errors import UnreadableError, UserError
from causal_diffusion.motion.body import Body
from causal_diffusion.text_files import check_share, read_lines

log = logging.getLogger(__name__)

DAMAGED = ("damaged", "not finite", "captions")  # kinds of Refused
FEW = 3  # so many damaged clips, or lines of captions, are left out whatever their share


class Stretch(NamedTuple):
    """A clip, or a part of one, and what is said about it."""

    name: str
    numbers: np.ndarray  # float32 [T, C], as the files have them
    captions: tuple[Caption, ...]  # at least one


class MotionFolder:
    """Windows of captioned stretches: see the module's docstring, and sources.py for an element.

    With data.shortest an element also says how many of its frames count ('length', int32), a multiple of four.

    Attributes:
        captions: one string per element.
        clips, names: how many stretches there are and what they are called: 'ID', or 'ID[start:stop]' of a part.
        clip_captions, clip_records: of each its first caption, and all of them with words and times (``Caption``).
        mean, std: float32 [C]: element = (numbers - mean) / std.
        body: what the numbers mean (``motion.body``); None where they are not of a representation of this library.
        fps: frames per second.

    Raises:
        UserError: no stretch is long enough.
    """

    def __init__(
        self,
        config: DataConfig,
        split: str,
        stretches: list[Stretch],
        scale: tuple[np.ndarray, np.ndarray],
        fps: float,
        body: Body | None,
    ):
        self._config, self._split, self._stretches = config, split, stretches
        (self.mean, self.std), self.fps, self.body = scale, fps, body
        self.names = [s.name for s in stretches]
        self.clip_records = [s.captions for s in stretches]
        self.clip_captions = [s.captions[0].text for s in stretches]
        lengths = np.array([len(s.numbers) for s in stretches])
        self._windows = count_windows(config, lengths, self.names, split, f"no clip of the {split} split")
        counts = self._windows * [len(s.captions) for s in stretches]
        # Element i lies in the stretch s with first[s] <= i < first[s + 1].
        self._first = np.cumsum([0, *counts])
        self._digest = None

    @staticmethod
    def condition_sizes(config: DataConfig) -> tuple[int, int]:
        del config
        return 0, 0

    def __len__(self) -> int:
        return int(self._first[-1])

    def __repr__(self) -> str:
        c = self._config
        shortest = f", shortest={c.shortest}" if c.shortest else ""
        return (
            f"{type(self).__name__}(split={self._split!r}, clips={len(self)}, stretches={self.clips}, "
            f"digest={self.digest}, size={(c.frames, c.channels)}, stride={c.stride}{shortest})"
        )

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        stretch, _, start = self._locate(range(len(self))[i])
        frames = self._normal(stretch.numbers[start : start + self._config.frames])
        return padded(frames, self._config.frames) if self._config.shortest else {"video": frames}

    @property
    def captions(self) -> list[str]:
        pairs = zip(self._stretches, self._windows, strict=True)
        return [caption.text for s, windows in pairs for caption in s.captions for _ in range(windows)]

    def record(self, i: int) -> Caption:
        """Element i's caption with words and times."""
        stretch, caption, _ = self._locate(range(len(self))[i])
        return stretch.captions[caption]

    @property
    def clips(self) -> int:
        return len(self._stretches)

    def clip(self, i: int) -> np.ndarray:
        """All frames of stretch i, float32 [T, C], normalised as elements are."""
        return self._normal(self._stretches[range(self.clips)[i]].numbers)

    def denormalise(self, x):
        """[..., C] of elements -> the numbers of the files."""
        return x * self.std + self.mean

    @property
    def digest(self) -> str:
        """Of all stretches, captions and the scale."""
        if self._digest is None:
            content = hashlib.sha256(self.mean.tobytes() + self.std.tobytes())
            for name, numbers, captions in self._stretches:
                content.update(repr((name, [tuple(caption) for caption in captions])).encode())
                content.update(np.ascontiguousarray(numbers))
            self._digest = content.hexdigest()[:12]
        return self._digest

    def _normal(self, numbers):
        return (numbers - self.mean) / self.std

    def _locate(self, i: int) -> tuple[Stretch, int, int]:
        """Element i's stretch, which of its captions, and its first frame there."""
        s = int(np.searchsorted(self._first, i, side="right")) - 1
        caption, window = divmod(i - int(self._first[s]), int(self._windows[s]))
        return self._stretches[s], caption, window * self._config.stride


class Refused(NamedTuple):
    """Why a clip of a list is not used; ``kind`` is the same for clips of the same trouble."""

    kind: str
    detail: str

    @property
    def damaged(self) -> bool:
        """Whether something is there and wrong, where others are merely absent or short."""
        return self.kind in DAMAGED


def find_folder(path: str, nested: Iterable[str], parts: dict[str, tuple[str, ...]], what: str) -> dict[str, Path]:
    """The files and folders that a data set is made of, in data.path or a folder in it.

    Args:
        nested: names of folders in data.path that may be the data set.
        parts: what is needed -> the names it may have; a name that ends in '/' is a folder.
        what: names the data set in messages.

    Returns:
        needed -> where it is.

    Raises:
        UserError: in one line all that is missing from the folder that has most.
    """
    if not path:
        raise UserError(f"data.path is empty: set it to the folder of {what}")
    top = Path(path).expanduser()
    if not top.is_dir():
        raise UserError(f"data.path {path!r} is no folder: set it to the one of {what}")

    def search(folder):
        found = {}
        for need, names in parts.items():
            for name in names:
                if (folder / name).is_dir() if name.endswith("/") else (folder / name).is_file():
                    found.setdefault(need, folder / name)
        return found

    folders = [top.resolve(), *(top.resolve() / name for name in nested)]
    folder, found = max(((f, search(f)) for f in folders), key=lambda pair: len(pair[1]))
    missing = [names[0] for need, names in parts.items() if need not in found]
    if missing:
        packed = [name.rstrip("/") + end for name in missing for end in (".zip", ".rar")]
        packed = [name for name in packed if (folder / name).is_file()]
        hint = f"unpack {', '.join(packed)} there" if packed else f"put there what {what} has under these names"
        raise UserError(f"{folder} has no {', '.join(missing)}: {hint}")
    return found


def read_scale(
    mean: Path,
    std: Path,
    widths: Callable[[int], tuple[int, ...]],
    config: DataConfig,
    rate: Callable[[int], float],
):
    """(mean, std) float32 [data.channels] from files of all C numbers, and C. What never changes keeps its size.

    Args:
        widths: C -> how many leading numbers of a frame data.channels may ask for; () if no frame has C.
        rate: C -> frames per second of the data set whose frames have C numbers; 0: only data.fps can state it.

    Raises:
        UserError: a file is wrong, or the config asks for what motion does not have.
    """
    values = []
    for path in (mean, std):
        values.append(_load(path))
        if values[-1].ndim != 1 or not np.isfinite(values[-1]).all() or not widths(len(values[-1])):
            raise UserError(f"{path} has the shape {values[-1].shape} or is not finite: the published one would do")
    total, allowed, fps = len(values[0]), widths(len(values[0])), rate(len(values[0]))
    if len(values[1]) != total:
        raise UserError(f"{mean} has {total} numbers and {std} has {len(values[1])}: both must be of one data set")
    if config.channels not in allowed:
        raise UserError(f"data.channels is {config.channels}: a frame has {total} numbers, set data.channels="
                        f"{' or '.join(map(str, allowed))}")  # fmt: skip
    if config.height or config.width:
        raise UserError(f"data.height is {config.height} and data.width is {config.width}: motion has no pixels, set "
                        "data.height=0 and data.width=0")  # fmt: skip
    if config.fps not in (0, fps):
        raise UserError(f"data.fps is {config.fps:g}: these clips have {fps:g} frames per second, and vectors are not "
                        "resampled, set data.fps=0")  # fmt: skip
    if not fps:
        raise UserError(f"data.fps is 0, and no published data set has frames of {total} numbers: the rate is unknown, "
                        "try data.fps = 20, or what it is")  # fmt: skip
    for key, left in (("classes", 0), ("action_dim", 0), ("mirror", False), ("unseen", 0)):
        if getattr(config, key):
            reason = "mirrored clips are in the folder" if key == "mirror" else "these clips have captions only"
            raise UserError(f"data.{key} is {getattr(config, key)}: {reason}, set data.{key}={left}")
    std = np.where(values[1] > 1e-8, values[1], 1.0)
    return (np.float32(values[0][: config.channels]), np.float32(std[: config.channels])), total


def read_numbers(path: Path, total: int, channels: int) -> np.ndarray | Refused:
    """The first ``channels`` numbers of each frame of a clip of [T, total], float32, or why it cannot be used."""
    if not path.is_file():
        return Refused("missing", f"{path.name} is not in {path.parent.name}/")
    try:
        array = _load(path)
    except UnreadableError:
        raise
    except UserError as error:
        return Refused("damaged", str(error))
    if array.ndim != 2 or array.shape[1] != total:
        return Refused("damaged", f"{path} has the shape {array.shape}: a clip is [frames, {total}], replace or remove "
                                  "the file")  # fmt: skip
    if len(array) < UNIT:
        return Refused("short", f"{path.stem} has {len(array)} frames, a motion has at least {UNIT}")
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        return Refused("not finite", f"frame {int(np.argmax(bad))} of {path.stem} is not finite")
    return array[:, :channels].astype(np.float32, "C")


def report(refused: list[Refused], listed: int, source: Path, log_to: logging.Logger) -> None:
    """One warning per kind of trouble, with how many clips have it and which is the first.

    Raises:
        UserError: no clip is left, or more than FEW and more than ``text_files.SHARE`` of them are damaged.
    """
    if len(refused) == listed:
        first = refused[0].detail if refused else "it lists none"
        raise UserError(f"no clip of {source} can be used, {first}: put the files there, or correct the list")
    damaged = [r.detail for r in refused if r.damaged]
    check_share(damaged, listed, f"clips of {source}", FEW)
    for kind in dict.fromkeys(r.kind for r in refused):
        same = [r for r in refused if r.kind == kind]
        log_to.warning("left out %d of %d clips of %s: %s%s", len(same), listed, source.name, same[0].detail,
                       " (the first of them)" if len(same) > 1 else "")  # fmt: skip


def read_list(path: Path) -> list[str]:
    """Names, one a line, without empty lines and repetitions; lines that are not text are left out with a warning."""
    try:
        lines = read_lines(path)
    except UnreadableError:
        raise
    except (OSError, UserError) as error:
        raise UserError(f"{path} cannot be read ({error}): it is a list of names, one a line") from None
    wrong = [f"line {line.number} {line.wrong}" for line in lines if line.wrong]
    check_share(wrong, len(lines), f"lines of {path}")
    if wrong:
        log.warning("left out %d of %d lines of %s: %s", len(wrong), len(lines), path.name, wrong[0])
    return list(dict.fromkeys(name for line in lines if not line.wrong for name in line.text.split()))


def _load(path: Path) -> np.ndarray:
    try:
        return read_array(path)
    except UnreadableError:
        raise
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}): replace or remove it") from None
