"""Files that map names of joints, for skeletons whose names are not understood.

    # name here = name in the BVH files
    pelvis = Bip01 Pelvis
    left_hip = Bip01 L Thigh
    ...

or the same as a JSON object, {"pelvis": "Bip01 Pelvis", ...}. Names here may be any. Those of ``Skeleton.roles`` and of
HumanML3D's joints are understood; if all that HumanML3D's body needs are there, clips get its 22 joints.
"""

from pathlib import Path

from causal_diffusion.errors import UnreadableError, UserError
from causal_diffusion.file_access import parse_json
from causal_diffusion.motion.as_humanml3d import NEEDED, as_humanml3d
from causal_diffusion.motion.retarget import select
from causal_diffusion.motion.skeleton import HUMANML3D, Motion
from causal_diffusion.text_files import read_text


def read_joint_map(path: Path) -> dict[str, str]:
    """{name here: name in the files} of a file of joints.

    Raises:
        UserError: it cannot be read, or the first line that is wrong.
    """
    try:
        text = read_text(path)
        if text.lstrip().startswith("{"):
            pairs = list(parse_json(text).items())
            lines = [f"key {key!r}" for key, _ in pairs]
        else:
            numbered = [(i, line.split("#")[0].strip()) for i, line in enumerate(text.split("\n"), 1)]
            pairs = [tuple(part.strip() for part in line.split("=", 1)) for _, line in numbered if line]
            lines = [f"line {i}" for i, line in numbered if line]
    except UnreadableError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): lines such as 'left_hip = Bip01 L Thigh' would do") from None
    known = {}
    for where, pair in zip(lines, pairs, strict=True):
        if len(pair) != 2 or not all(isinstance(name, str) and name for name in pair) or pair[0] in known:
            raise UserError(f"{path}, {where}: two names, each once, 'left_hip = Bip01 L Thigh', would do")
        known[pair[0]] = pair[1]
    if not known:
        raise UserError(f"{path} names no joint: lines such as 'left_hip = Bip01 L Thigh' would do")
    return known


def mapped(motion: Motion, names: dict[str, str]) -> Motion:
    """The joints of those names, renamed, in the order of the file."""
    order = sorted(names.items(), key=lambda pair: motion.skeleton.index(pair[1]))
    return select(motion, dict(order))


def mapped_clip(motion: Motion, names: dict[str, str]):
    """(skeleton, positions [T, J, 3]) of mapped joints: HumanML3D's 22 where all roles that these need are named."""
    some = mapped(motion, names)
    if all(role in some.skeleton.roles for role in NEEDED):
        return HUMANML3D, as_humanml3d(some)
    return some.skeleton, some.positions
