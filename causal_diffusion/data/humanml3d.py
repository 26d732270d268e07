"""HumanML3D and KIT-ML (Guo et al. 2022) as a source: the folder that the authors' scripts make.

    new_joint_vecs/ID.npy               [T, 263] or [T, 251], see below (``motion.humanml``)
    texts/ID.txt                        captions (``captions``)
    Mean.npy, Std.npy                   [263], by which elements are normalised
    train.txt, val.txt, test.txt        names, one a line; also train_val.txt, all.txt: any list is a split
    new_joints/, animations/, ...       not read

data.path is this folder, or one that has it as HumanML3D/ or t2m/ (KIT-ML/ or kit/). IDs with M before the number are
mirrored clips. The width of a frame says which data set it is, and with it the rate and the lengths that the authors'
loaders accept (LAYOUTS):

    263 numbers    HumanML3D    22 joints    20 frames per second      40 to 199 frames
    251 numbers    KIT-ML       21 joints    12.5 frames per second    24 to 199 frames
    12 J - 1       one's own    J joints     data.fps                  4 frames or more

Captions of a part of a clip describe a stretch of their own, if that is as long. Clips that a list names and the folder
does not have, that hold a number that is not finite, have less than four frames, are damaged or have no usable caption
are left out with a warning, as single lines of captions are: folders made by the published scripts miss a few (23,382
training clips of 23,384 is what many have). If more than a third of the clips or lines are damaged, all are refused.
"""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from causal_diffusion.data.captions import Caption, usable_captions
from causal_diffusion.data.config import DataConfig
from causal_diffusion.data.motion_clips import UNIT
from causal_diffusion.data.motion_folder import (
    FEW,
    MotionFolder,
    Refused,
    Stretch,
    find_folder,
    read_list,
    read_numbers,
    read_scale,
    report,
)
from causal_diffusion.errors import UnreadableError, UserError
from causal_diffusion.motion import humanml
from causal_diffusion.motion.body import Body
from causal_diffusion.motion.skeleton import HUMANML3D
from causal_diffusion.text_files import check_share

log = logging.getLogger(__name__)


class Layout(NamedTuple):
    """What the authors' loaders take a data set for."""

    fps: float  # frames per second; 0: not known
    least: int  # frames: least <= clip < most
    most: int

    @property
    def lengths(self) -> str:
        """The lengths that are used, in words."""
        return f"{self.least} to {self.most - 1} frames" if self.most < 10**9 else f"{self.least} frames or more"


LAYOUTS = {263: Layout(20.0, 40, 200), 251: Layout(12.5, 24, 200)}  # numbers of a frame -> HumanML3D, KIT-ML
OTHER = Layout(0.0, UNIT, 10**9)


class HumanML3D(MotionFolder):
    """Windows of HumanML3D's or KIT-ML's clips: see the module's docstring and ``MotionFolder``.

    data.channels is 263 for full vectors or 67 for root and positions (251 or 64 of 21 joints); data.height and
    data.width are 0. data.frames = 196, data.shortest = 40 and data.stride = 196 are what the field's benchmarks take.

    Args:
        split: 'train' reads train.txt, 'test' test.txt, and so on.

    Raises:
        UserError: parts of the folder are missing (all of them are named), a file is damaged, no clip is left, or the
            config asks for what is not there.
    """

    def __init__(self, config: DataConfig, split: str):
        parts = {name: (name,) for name in ("new_joint_vecs/", "texts/", "Mean.npy", "Std.npy", f"{split}.txt")}
        nested = ("HumanML3D", "t2m", "HumanML3D/HumanML3D", "KIT-ML", "kit", "KIT-ML/KIT-ML")
        found = find_folder(config.path, nested, parts, "HumanML3D")
        scale, total = read_scale(
            found["Mean.npy"], found["Std.npy"], _widths, config, lambda total: _layout(total, config).fps
        )
        layout = _layout(total, config)
        listed = found[f"{split}.txt"]
        stretches = _read(listed, found["new_joint_vecs/"], found["texts/"], total, config.channels, layout)
        super().__init__(config, split, stretches, scale, layout.fps, _body((total + 1) // 12, scale, layout.fps))


def _layout(total: int, config: DataConfig) -> Layout:
    """Of frames of ``total`` numbers; data.fps states the rate where no published data set has such frames."""
    return LAYOUTS.get(total) or OTHER._replace(fps=config.fps)


def _read(listed: Path, vectors: Path, texts: Path, total: int, channels: int, layout: Layout) -> list[Stretch]:
    names, refused, stretches, clips = read_list(listed), [], [], 0
    lines, wrong = 0, []  # of captions; what is wrong with some
    for name in names:
        text = texts / f"{name}.txt"
        numbers = read_numbers(vectors / f"{name}.npy", total, channels)
        if isinstance(numbers, np.ndarray) and not text.is_file():
            numbers = Refused("no captions", f"{text.name} is not in {texts.name}/")
        if isinstance(numbers, Refused):
            refused.append(numbers)
            continue
        if not layout.least <= len(numbers) < layout.most:
            continue
        try:
            captions, wrong_here = usable_captions(text)
        except UnreadableError:
            raise
        except UserError as error:
            refused.append(Refused("captions", str(error)))
            continue
        lines, wrong = lines + len(captions) + len(wrong_here), wrong + wrong_here
        of_clip = _stretches(name, numbers, captions, layout)
        stretches += of_clip
        clips += bool(of_clip)
    report(refused, len(names), listed, log)
    check_share(wrong, lines, f"lines of captions in {texts}", FEW)
    if wrong:
        log.warning("left out %d of %d lines of captions: %s%s", len(wrong), lines, wrong[0],
                    " (the first of them)" if len(wrong) > 1 else "")  # fmt: skip
    _warn_of_idle_captions(vectors, texts, set(names))
    used = len(names) - len(refused)
    if not stretches:
        raise UserError(f"no clip of {listed} has {layout.lengths}: the authors use no other, and "
                        "data.source = 'own' would do for clips of one's own")  # fmt: skip
    if clips < used:
        log.warning("skipped %d of %d clips of %s: no caption describes %s of them", used - clips, used,
                    listed.name, layout.lengths)  # fmt: skip
    return stretches


def _stretches(name: str, numbers: np.ndarray, captions: list[Caption], layout: Layout) -> list[Stretch]:
    """The clip with the captions of all of it, and each part that captions describe."""
    by_part = {}
    for caption in captions:
        by_part.setdefault(caption.frames(layout.fps, len(numbers)) if not caption.whole else None, []).append(caption)
    out = []
    for part, described in by_part.items():
        start, stop = part or (0, len(numbers))
        if layout.least <= stop - start < layout.most:
            out.append(Stretch(f"{name}[{start}:{stop}]" if part else name, numbers[start:stop], tuple(described)))
    return out


def _warn_of_idle_captions(vectors: Path, texts: Path, listed: set[str]) -> None:
    there = {path.stem for path in vectors.glob("*.npy")} | listed
    idle = sorted(path.stem for path in texts.glob("*.txt") if path.stem not in there)
    if idle:
        log.warning("%s/ has captions of %d clips that %s/ does not have, %s first", texts.name, len(idle),
                    vectors.name, idle[0])  # fmt: skip


def _widths(total: int) -> tuple[int, ...]:
    joints, rest = divmod(total + 1, 12)
    return () if rest or joints < 2 else (total, humanml.essential_width(joints))


def _body(joints: int, scale: tuple[np.ndarray, np.ndarray], fps: float) -> Body:
    known = joints == HUMANML3D.joints
    names = HUMANML3D.names if known else tuple(f"joint {j}" for j in range(joints))
    parents = HUMANML3D.parents if known else (-1,) * joints
    representation = "humanml" if len(scale[0]) == humanml.width(joints) else "essential"
    return Body(representation, names, parents, fps, *(tuple(map(float, values)) for values in scale))
