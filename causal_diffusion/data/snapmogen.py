"""SnapMoGen (Guo et al. 2025, arXiv 2507.09122) as a source: the folder that its authors publish, unpacked.

    renamed_feats/NAME.npy                  [T, 296], 30 frames a second: a whole recording
    data_split_info/train_ids.txt           NAME#START#END, one a line: a clip is frames START to END of a recording;
                                            also val_ids.txt, test_ids.txt
    all_caption_clean.json                  {NAME#START#END: {"manual": [two sentences], "gpt": [four rewritings]}}
    meta_data/mean.npy, std.npy             [296], by which elements are normalised
    data_split_info/*_fnames.txt, renamed_bvhs/                     not read

data.path is this folder, or one that has it as SnapMoGen/; the lists may be in data_split_info1/ instead. NAMEs with m_
before them are mirrored recordings. A frame is seen from the heading, but unlike ``motion.humanml`` the root is among
the 24 joints and turning is by the whole angle:

    0  yaw velocity, radians        4 : 148    rotations, two columns of a matrix, in the frame of the heading
    1 : 3  root velocity, x and z   148 : 220  positions around the root's ground point
    3  root height                  220 : 292  velocities: differences of those positions
                                    292 : 296  contacts of the left and right feet
"""

import logging
from pathlib import Path

from causal_diffusion.data.captions import Caption
from causal_diffusion.data.config import DataConfig
from causal_diffusion.data.motion_clips import UNIT
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
from causal_diffusion.errors import UnreadableError, UserError
from causal_diffusion.text_files import check_share, read_json

log = logging.getLogger(__name__)

FPS = 30.0
WIDTH, ESSENTIAL = 296, 148  # numbers of a frame, and those of root and rotations


class SnapMoGen(MotionFolder):
    """Windows of SnapMoGen's clips: see the module's docstring and ``MotionFolder``.

    data.channels is 296, or 148 for root and rotations (what the authors' evaluator takes); data.height and data.width
    are 0. A clip's captions are the manual ones, then the rewritings. There is no ``body``.

    Raises:
        UserError: parts of the folder are missing (all of them are named), a file is damaged, no clip is left, or the
            config asks for what is not there.
    """

    def __init__(self, config: DataConfig, split: str):
        parts = {
            "renamed_feats/": ("renamed_feats/",),
            "all_caption_clean.json": ("all_caption_clean.json",),
            "mean": ("meta_data/mean.npy",),
            "std": ("meta_data/std.npy",),
            "ids": (f"data_split_info/{split}_ids.txt", f"data_split_info1/{split}_ids.txt"),
        }
        found = find_folder(config.path, ("SnapMoGen",), parts, "SnapMoGen")
        widths = {WIDTH: (WIDTH, ESSENTIAL)}
        scale, _ = read_scale(
            found["mean"], found["std"], lambda total: widths.get(total, ()), config, lambda total: FPS
        )
        captions = _read_captions(found["all_caption_clean.json"])
        stretches = _read(found["ids"], found["renamed_feats/"], captions, config.channels)
        super().__init__(config, split, stretches, scale, FPS, None)


def _read(listed: Path, features: Path, captions: dict[str, tuple[Caption, ...]], channels: int) -> list[Stretch]:
    ids, refused, stretches, recordings = read_list(listed), [], [], {}
    for number, clip in enumerate(ids, 1):
        try:
            name, start, stop = _parse(clip, f"{listed} clip {number}")
        except UserError as error:
            refused.append(Refused("damaged", str(error)))
            continue
        if name not in recordings:
            recordings[name] = read_numbers(features / f"{name}.npy", WIDTH, channels)
        numbers = recordings[name]
        if isinstance(numbers, Refused):
            refused.append(numbers)
        elif clip not in captions:
            refused.append(Refused("no captions", f"all_caption_clean.json says nothing about {clip}"))
        elif len(numbers[start:stop]) < UNIT:
            refused.append(Refused("short", f"{clip} is {len(numbers[start:stop])} of {len(numbers)} frames, a motion "
                                            f"has at least {UNIT}"))  # fmt: skip
        else:
            stretches.append(Stretch(clip, numbers[start:stop], captions[clip]))
    report(refused, len(ids), listed, log)
    there, known = {path.stem for path in features.glob("*.npy")}, set(ids)
    idle = sorted(clip for clip in captions if clip.partition("#")[0] not in there and clip not in known)
    if idle:
        log.warning("all_caption_clean.json has captions of %d clips that %s/ does not have, %s first", len(idle),
                    features.name, idle[0])  # fmt: skip
    return stretches


def _parse(clip: str, where: str) -> tuple[str, int, int]:
    name, *ends = clip.split("#")
    if len(ends) != 2 or not all(end.isdecimal() for end in ends) or not int(ends[0]) < int(ends[1]):
        raise UserError(f"{where} is {clip!r}: name#start#end, 'gp_00171#0#276', would do")
    return name, int(ends[0]), int(ends[1])


def _read_captions(path: Path) -> dict[str, tuple[Caption, ...]]:
    """Of every clip that has one at least; what is no entry is left out with a warning."""
    try:
        content = read_json(path)
    except UnreadableError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}): replace it") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no table of clips: replace it by the published one")
    captions, wrong = {}, []
    for clip, sentences in content.items():
        texts = [sentences.get(kind, []) for kind in ("manual", "gpt")] if isinstance(sentences, dict) else [None]
        if not all(isinstance(some, list) and all(isinstance(text, str) for text in some) for some in texts):
            wrong.append(f'{path}: {clip} has no captions of the form {{"manual": [sentence], "gpt": [sentence]}}')
        elif of_clip := tuple(Caption(text.strip()) for some in texts for text in some if text.strip()):
            captions[clip] = of_clip
    check_share(wrong, len(content), f"entries of {path}")
    if wrong:
        log.warning("left out %d of %d entries of %s: %s", len(wrong), len(content), path.name, wrong[0])
    return captions
