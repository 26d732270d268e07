"""HumanML3D (Guo et al. 2022) as a source: the folder that its authors' scripts make.

    new_joint_vecs/ID.npy               [T, 263], 20 frames a second (``motion.humanml``); [T, 251] of 21 joints
    texts/ID.txt                        captions (``captions``)
    Mean.npy, Std.npy                   [263], by which elements are normalised
    train.txt, val.txt, test.txt        names, one a line; also train_val.txt, all.txt: any list is a split
    new_joints/, animations/, ...       not read

data.path is this folder, or one that has it as HumanML3D/ or t2m/. IDs with M before the number are mirrored clips.
By the rule of the authors' loaders only clips of 40 to 199 frames are used, and captions of a part of a clip describe a
stretch of their own, if that is as long. Clips that a list names and the folder does not have, that hold a number that
is not finite or have less than four frames are left out with a warning: folders made by the published scripts miss a
few (23,382 training clips of 23,384 is what many have).
"""

import logging
from pathlib import Path

import numpy as np

from causal_diffusion.data.captions import Caption, read_captions
from causal_diffusion.data.config import DataConfig
from causal_diffusion.data.motion_folder import (
    MotionFolder,
    Refused,
    Stretch,
    find_folder,
    read_list,
    read_numbers,
    read_scale,
    report,
)
from causal_diffusion.errors import UserError
from causal_diffusion.motion import humanml
from causal_diffusion.motion.body import Body
from causal_diffusion.motion.skeleton import HUMANML3D

log = logging.getLogger(__name__)

FPS = 20.0
LEAST, MOST = 40, 200  # frames: LEAST <= clip < MOST


class HumanML3D(MotionFolder):
    """Windows of HumanML3D's clips: see the module's docstring and ``MotionFolder``.

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
        nested = ("HumanML3D", "t2m", "HumanML3D/HumanML3D")
        found = find_folder(config.path, nested, parts, "HumanML3D")
        scale, total = read_scale(found["Mean.npy"], found["Std.npy"], _widths, config, FPS)
        listed = found[f"{split}.txt"]
        stretches = _read(listed, found["new_joint_vecs/"], found["texts/"], total, config.channels)
        super().__init__(config, split, stretches, scale, FPS, _body((total + 1) // 12, scale))


def _read(listed: Path, vectors: Path, texts: Path, total: int, channels: int) -> list[Stretch]:
    names, refused, stretches, clips = read_list(listed), [], [], 0
    for name in names:
        text = texts / f"{name}.txt"
        numbers = read_numbers(vectors / f"{name}.npy", total, channels)
        if isinstance(numbers, np.ndarray) and not text.is_file():
            numbers = Refused("no captions", f"{text.name} is not in {texts.name}/")
        if isinstance(numbers, Refused):
            refused.append(numbers)
            continue
        of_clip = _stretches(name, numbers, read_captions(text)) if LEAST <= len(numbers) < MOST else []
        stretches += of_clip
        clips += bool(of_clip)
    report(refused, len(names), listed, log)
    _warn_of_idle_captions(vectors, texts, set(names))
    used = len(names) - len(refused)
    if not stretches:
        raise UserError(f"no clip of {listed} has {LEAST} to {MOST - 1} frames: the authors use no other, and "
                        "data.source = 'own' would do for clips of one's own")  # fmt: skip
    if clips < used:
        log.warning("skipped %d of %d clips of %s: no caption describes %d to %d frames of them", used - clips, used,
                    listed.name, LEAST, MOST - 1)  # fmt: skip
    return stretches


def _stretches(name: str, numbers: np.ndarray, captions: list[Caption]) -> list[Stretch]:
    """The clip with the captions of all of it, and each part that captions describe."""
    by_part = {}
    for caption in captions:
        by_part.setdefault(caption.frames(FPS, len(numbers)) if not caption.whole else None, []).append(caption)
    out = []
    for part, described in by_part.items():
        start, stop = part or (0, len(numbers))
        if LEAST <= stop - start < MOST:
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


def _body(joints: int, scale: tuple[np.ndarray, np.ndarray]) -> Body:
    known = joints == HUMANML3D.joints
    names = HUMANML3D.names if known else tuple(f"joint {j}" for j in range(joints))
    parents = HUMANML3D.parents if known else (-1,) * joints
    representation = "humanml" if len(scale[0]) == humanml.width(joints) else "essential"
    return Body(representation, names, parents, FPS, *(tuple(map(float, values)) for values in scale))
