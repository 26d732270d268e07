"""Turns a folder of BVH files into motion clips that training reads (``data.motion_clips``).

    python -m causal_diffusion.motion_import recordings motion
    python -m causal_diffusion.motion_import recordings motion --joints=humanml3d --captions=captions.jsonl --fps=20

    recordings/**/*.bvh          metres, y up,         motion/motion_train_00-of-01.npz
    recordings/captions.jsonl    one body, one rate    motion/motion_test.npz

All clips get the joints of the first file (--joints=all), some of them (--joints=Hips,Spine,...), or the 22 joints of
HumanML3D (--joints=humanml3d), to which files that name joints in their own ways can be brought. Names that are not
understood are mapped by a file (--joints=names.txt, ``motion.joint_map``). Bones get the lengths that they have in the
first file, and the lowest joint of each clip is put on the floor. A tenth of the files, always the same, is held out.

Vertical axis, unit and meaning of position channels are decided once for all files of one skeleton, from the evidence
of the whole folder (``motion.bvh_conventions``), and printed. --up, --unit and --positions state them instead.

A file that cannot be read, or that is no body a human can have (``motion.plausible``), is left out by name. With no
file left there is no output and the exit code is 2.

A line of captions.jsonl is {"file": "takes/walk.bvh", "caption": "a person walks"}; a file with several lines is there
once for each. Where nothing is said of a file, its caption is the words of its name. Lines that cannot be used are left
out with a warning; more than a third of them are refused.
"""

import logging
import re
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from causal_diffusion.checkpoint.leaves import reason_of, replacing
from causal_diffusion.data.config import held_out_count
from causal_diffusion.data.folder_files import Unused, files_below
from causal_diffusion.data.motion_clips import PATTERNS, UNIT
from causal_diffusion.errors import UnreadableError, UserError
from causal_diffusion.file_access import parse_json
from causal_diffusion.motion import bvh, bvh_conventions
from causal_diffusion.motion.as_humanml3d import as_humanml3d
from causal_diffusion.motion.bvh_conventions import AXES, SAMPLE
from causal_diffusion.motion.bvh_text import POSITIONS, parse
from causal_diffusion.motion.humanml import essential_width
from causal_diffusion.motion.joint_map import mapped_clip, read_joint_map
from causal_diffusion.motion.joints import world
from causal_diffusion.motion.plausible import check_body, check_clip
from causal_diffusion.motion.resample import resample
from causal_diffusion.motion.retarget import retarget, select
from causal_diffusion.motion.skeleton import HUMANML3D, Motion, Skeleton, UnknownRole
from causal_diffusion.text_files import check_share, read_lines

log = logging.getLogger(__name__)

FILES = {"train": "motion_train_00-of-01.npz", "test": "motion_test.npz"}
CAPTIONS = "captions.jsonl"
UNNAMED = "a person moves"  # the caption of a file whose name has no words
_OTHER = "of other kinds, by their endings"
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


class Imported(NamedTuple):
    """What was written: clips per split, of which joints; and why files were left out."""

    train: int
    test: int
    skeleton: Skeleton
    left_out: list[str]
    conventions: list[str]  # how files were read, one entry per way


def import_folder(
    folder, out, *, captions=None, joints: str = "all", fps: float = 20.0, holdout: float = 0.1,
    up: str | None = None, scale: float | None = None, unit: str | None = None, positions: str | None = None,
    strict: bool = False, progress: bool = True,
) -> Imported:  # fmt: skip
    """Reads every BVH file below ``folder`` and writes the clips into the folder ``out``.

    Args:
        captions: file of captions; None: captions.jsonl in ``folder``, if it is there.
        joints: 'all', 'humanml3d', names parted by commas, parents first, or a file of names (``motion.joint_map``).
        fps: frames per second of the clips.
        holdout: share of the files that is held out.
        up, scale, unit, positions: conventions of the files (``motion.bvh.read``); None: decided for the folder.
        strict: a file that cannot be used is an error, and not left out with a warning.
        progress: shows a bar.

    Raises:
        UserError: nothing usable is there, a joint or a captioned file does not exist, or ``out`` holds other clips.
    """
    folder, out = Path(folder).expanduser(), Path(out).expanduser()
    for key, value, good, would_do in (
        ("fps", fps, 0 < fps < np.inf, 20), ("holdout", holdout, 0 <= holdout < 1, 0.1),
        ("scale", scale, scale is None or 0 < scale < np.inf, 0.01), ("up", up, up in (None, *AXES), "z"),
    ):  # fmt: skip
        if not good:
            raise UserError(f"--{key} is {value}: --{key}={would_do} would do")
    bvh_conventions.check(up, positions, "--")
    scale = bvh_conventions.metres(unit, scale, "--")
    wanted = _wanted_joints(joints)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name the one that holds the BVH files")
    unused = Unused(_OTHER)
    paths = [folder / name for name in files_below(folder, unused, _why_not)]
    left_out = [f"{folder / name}: {why}" for why, name in unused.lost]
    if left_out and strict:
        raise UserError(left_out[0])
    if not unused.ordinary:
        log.warning("not used: %s", unused)
    if not paths:
        found = f", only other files: {unused}" if unused else ""
        raise UserError(f"there is no BVH file in {folder}{found}: name the folder that holds them")
    names = {path: path.relative_to(folder).with_suffix("").as_posix() for path in paths}
    said = _captions(folder, captions, set(names.values()))
    others = [p.name for pattern in PATTERNS.values() for p in out.glob(pattern) if p.name not in FILES.values()]
    if others:
        raise UserError(f"{out} holds other clips, {others[0]}: choose another folder, or remove them")
    conventions, shown = _conventions(paths, up, scale, positions, progress)
    target, clips = None, {}
    for path in tqdm(paths, unit="file", dynamic_ncols=True, disable=not progress):
        try:
            recording = parse(path)
            motion = bvh.to_motion(recording, conventions[path])
            check_body(motion)
            first = target or _Target.of(motion, wanted, fps)
            clips[names[path]] = first.fit(motion)
            target = first
        except UnreadableError:
            raise
        except UserError as error:
            why = str(error) if str(path) in str(error) else f"{path}: {error}"
            if strict or isinstance(error, _WrongName):
                raise UserError(why) from None
            left_out.append(why)
            log.warning("left out: %s", why)
    if not clips:
        raise UserError(f"no BVH file in {folder} can be used, {len(paths)} are there: {left_out[0]}")
    unsaid = [name for name in clips if said and name not in said]
    if unsaid:
        log.warning("%d files have no caption and get the words of their names: %s", len(unsaid), _some(unsaid))
    ranked = sorted(clips, key=lambda name: (zlib.crc32(name.encode()), name))  # so that a new file moves few others
    held_out, counts = set(ranked[: held_out_count(len(clips), holdout)]), {}
    for split, file in FILES.items():
        chosen = {name: clip for name, clip in clips.items() if (name in held_out) == (split == "test")}
        counts[split] = _write(out / file, chosen, said, target.skeleton, fps)
    return Imported(**counts, skeleton=target.skeleton, left_out=left_out, conventions=shown)


def _why_not(name: str, size: int) -> str:
    return "" if name.lower().endswith(".bvh") else _OTHER


class _WrongName(UserError):
    """A joint of --joints that the first file lacks."""


def _wanted_joints(joints: str) -> str | tuple[str, ...] | dict[str, str]:
    """'all', 'humanml3d', names, or {name here: name in the files} of a file."""
    if joints in ("all", "humanml3d"):
        return joints
    path = Path(joints).expanduser()
    if path.is_file():
        return read_joint_map(path)
    if "," not in joints and (path.suffix in (".txt", ".json") or "/" in joints):
        raise UserError(f"--joints is {joints}, and there is no such file: --joints=all would do")
    return tuple(name.strip() for name in joints.split(","))


def _conventions(paths, up, scale, positions, progress):
    """{path: how it is read}, decided from all files, and the same in words; doubts are logged."""
    said = []
    for path in tqdm(paths, desc="conventions", unit="file", dynamic_ncols=True, disable=not progress):
        try:
            said.append((path, bvh_conventions.evidence(parse(path, sample=SAMPLE))))
        except UnreadableError:
            raise
        except UserError:
            pass  # it is left out, with the reason, when it is read as a whole
    decided = bvh_conventions.decide([evidence for _, evidence in said], up, scale, positions)
    groups, lying = {}, []
    for (path, evidence), found in zip(said, decided, strict=True):
        groups.setdefault(found, []).append(path.name)
        if up is None and evidence.contradicts(found.conventions):
            lying.append(path.name)
    for (_, uncertain), files in groups.items():
        if uncertain:
            log.warning("%d files (%s): %s", len(files), _some(files), uncertain)
    if lying:
        log.warning("%d files look as if another axis were up, and are taken to lie: %s; import them by themselves, or "
                    "try --up, if they do not", len(lying), _some(lying))  # fmt: skip
    shown = [f"{len(files)} files ({_some(files)}): {found.conventions}" for found, files in groups.items()]
    return {path: found.conventions for (path, _), found in zip(said, decided, strict=True)}, shown


class _Target(NamedTuple):
    """What every clip is brought to."""

    joints: str | tuple[str, ...] | dict[str, str]
    skeleton: Skeleton
    lengths: np.ndarray
    fps: float

    @classmethod
    def of(cls, motion: Motion, joints: str | tuple[str, ...] | dict[str, str], fps: float):
        """That of the first file."""
        joints = motion.skeleton.names if joints == "all" else joints
        try:
            skeleton, positions = _chosen(motion, joints)
        except UserError as error:
            raise error if joints == "humanml3d" else _WrongName(f"--joints: {error}") from None
        return cls(joints, skeleton, np.median(skeleton.bone_lengths(positions), axis=0), fps)

    def fit(self, motion: Motion) -> tuple[np.ndarray, np.ndarray]:
        """(positions float16 [T, J, 3] around the ground point, that point float32 [T, 2] from where it starts)."""
        named = self.joints.values() if isinstance(self.joints, dict) else self.joints
        lacking = [name for name in named if name not in motion.skeleton.names]
        if self.joints != "humanml3d" and lacking:
            raise UserError(f"it has no joint {lacking[0]!r} as the first file has: --joints=humanml3d may fit both")
        try:
            skeleton, positions = _chosen(motion, self.joints)
            if skeleton.parents != self.skeleton.parents:
                raise UserError("its joints hang together in another way than those of the first file: import it by "
                                "itself")  # fmt: skip
            positions = resample(positions, motion.fps, self.fps)
            if len(positions) < UNIT:
                raise UserError(f"it has {len(positions)} frames at {self.fps:g} a second: a clip has {UNIT} or more")
            positions = retarget(positions, skeleton, self.lengths)
        except UnknownRole as error:
            raise UserError(f"{error}; --joints=FILE maps names, 'left_hip = {motion.skeleton.names[-1]}'") from None
        root = positions[:, 0, [0, 2]]
        with np.errstate(over="ignore"):
            around, path = world(positions, -root).astype(np.float16), (root - root[0]).astype(np.float32)
        check_clip(around, path, skeleton.joints, self.fps)
        return around, path


def _chosen(motion, wanted) -> tuple[Skeleton, np.ndarray]:
    if isinstance(wanted, dict):
        return mapped_clip(motion, wanted)
    if wanted == "humanml3d":
        return HUMANML3D, as_humanml3d(motion)
    some = select(motion, wanted)
    return some.skeleton, some.positions


def _captions(folder, path, names) -> dict[str, list[str]]:
    """Name of a clip -> what is said of it; empty where there is no file of captions."""
    path = Path(path).expanduser() if path else folder / CAPTIONS
    if path == folder / CAPTIONS and not path.exists():
        return {}
    try:
        lines = [line for line in read_lines(path) if line.text.strip()]
    except UnreadableError:
        raise
    except (OSError, UserError) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}): a file of captions would do") from None
    said, missing, wrong = {}, [], []
    for line in lines:
        try:
            entry = parse_json("" if line.wrong else line.text)
            file, caption = entry["file"], " ".join(entry["caption"].split())
            name = file[:-4] if file.lower().endswith(".bvh") else file
        except (ValueError, TypeError, KeyError, AttributeError):
            caption = ""
        if not caption:
            why = f"{line.wrong}, try saving it as UTF-8; " if line.wrong else ""
            example = '{"file": "walk.bvh", "caption": "a person walks"}'
            wrong.append(f"{path}, line {line.number}: {why}{example} would do")
        elif name in names:
            said.setdefault(name, []).append(caption)
        else:
            missing.append(file)
    check_share(wrong, len(lines), f"lines of {path.name}")
    absent = f"{path} has captions for clips that do not exist: {_some(missing)}; remove these lines"
    check_share([absent] * len(missing), len(lines), f"lines of {path.name}")
    if wrong:
        log.warning("left out %d of %d lines of captions: %s", len(wrong), len(lines), wrong[0])
    if missing:
        log.warning("left out %d of %d lines of captions: %s", len(missing), len(lines), absent)
    return said


def _some(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def caption_of(name: str) -> str:
    """What a file's name says: 'takes/walk_turnLeft_02' -> 'walk turn left'."""
    return " ".join(_WORD.findall(name.rpartition("/")[2])).lower() or UNNAMED


def _write(path, clips, said, skeleton, fps) -> int:
    """One split, a clip once per caption. Returns how many there are; of none there is no file."""
    rows = [(name, text, *clip) for name, clip in clips.items() for text in said.get(name) or [caption_of(name)]]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not rows:
            path.unlink(missing_ok=True)
            return 0
        names, texts, positions, roots = zip(*rows, strict=True)
        with replacing(path) as file:
            np.savez(
                file, positions=np.concatenate(positions), root_xz=np.concatenate(roots), name=np.array(names),
                text=np.array(texts), clip_start=np.cumsum([0, *map(len, roots)]), fps=np.float32(fps),
                joint_names=np.array(skeleton.names), parents=np.array(skeleton.parents),
            )  # fmt: skip
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason_of(error)}") from error
    return len(rows)


def main(arguments=None) -> None:
    """The command: see the module's docstring."""
    from causal_diffusion.cli import Parser

    parser = Parser(prog="python -m causal_diffusion.motion_import", description="Turns BVH files into motion clips.")
    parser.add_argument("folder", help="holds the BVH files, in folders below it too")
    parser.add_argument("out", help="folder of the clips, for data.path")
    parser.add_argument("--captions", help=f"file of captions; default: {CAPTIONS} in the folder, if it is there")
    parser.add_argument("--joints", default="all", help="all, humanml3d, names parted by commas, or a file of names")
    parser.add_argument("--fps", type=float, default=20.0, help="frames per second of the clips")
    parser.add_argument("--holdout", type=float, default=0.1, help="share of the files that is held out")
    parser.add_argument("--up", choices=AXES, help="vertical axis of the files; default: decided for the folder")
    parser.add_argument("--unit", help="m, cm, mm, in or ft, or metres per unit; default: decided for the folder")
    parser.add_argument("--scale", type=float, help="metres per unit of the files, instead of --unit")
    parser.add_argument("--positions", choices=POSITIONS, help="position channels replace the OFFSET, or are added to "
                        "it; default: decided for the folder")  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="end at the first file that cannot be used")
    options = vars(parser.parse_args(arguments))
    made = import_folder(**options)
    J, out = made.skeleton.joints, options["out"]
    for line in made.conventions:
        print(line)
    print(f"{out}: {made.train} training and {made.test} held-out clips of {J} joints, {len(made.left_out)} files left "
          f"out\nset data.path={out} data.unseen=0 and, in data, vae.motion and motion_text, "
          f"channels={essential_width(J)} (where data.representation=essential)")  # fmt: skip


if __name__ == "__main__":
    from causal_diffusion.cli import run

    run(main)
