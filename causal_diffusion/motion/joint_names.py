"""Finds the side and the part of the body of a joint by its name.

    mixamorig_LeftUpLeg    Character1_LeftUpLeg    Bip01 L Thigh    CC_Base_L_Thigh    m_avg_L_Hip    J_Bip_L_UpperLeg
    LeftUpLeg              UpperLeg_L              LThigh           lThigh             lthigh         KneeLeft

Words that most joints of a skeleton begin with, 'mixamorig' or 'Bip' and '01', and what stands before a colon are
prefixes and are dropped. Of the other words one may name a side; the rest in lower case is the stem.
"""

import collections
import re
from collections.abc import Sequence

# Per role the joint names, without their side, in the order in which they are looked for: 'shoulder' is the collar bone
# where there is an 'upperarm', and 'foot' the toes where there is an 'ankle'.
MIDDLE = {
    "hips": ("hips", "pelvis", "hip", "hipcenter"),
    "neck": ("neck", "neck1", "lowerneck", "neck01", "neck0", "necktwist01"),
    "head": ("head",),
}
SIDED = {
    "hip": ("upperleg", "upleg", "uleg", "thigh", "thighbend", "hip", "hipjoint"),
    "knee": ("knee", "lowerleg", "leg", "calf", "shin"),
    "ankle": ("ankle", "foot"),
    "toe": ("toes", "toe", "toebase", "toe0", "toe01", "ball", "foot"),
    "shoulder": ("upperarm", "uparm", "uarm", "arm", "shldrbend", "shldr", "shoulder"),
    "elbow": ("elbow", "lowerarm", "forearm", "farm", "forearmbend"),
    "wrist": ("wrist", "hand"),
}
OTHER = {"left": "right", "right": "left"}
_SIDES = {"l": "left", "left": "left", "r": "right", "right": "right"}
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_BODY = set(
    "spine chest neck head hips hip pelvis upper lower up leg arm fore thigh calf shin knee foot ankle toe toes hand "
    "wrist elbow shoulder clavicle collar thumb index middle ring pinky little finger".split()
)


def split(names: Sequence[str]) -> tuple[tuple[str | None, str], ...]:
    """Per joint 'left', 'right' or None, and its stem: lower case, without side, prefix and punctuation."""
    words = _without_prefix([[w.lower() for w in _WORDS.findall(name.rpartition(":")[2])] for name in names])
    joined = {"".join(of_joint) for of_joint in words}
    return tuple(_split(of_joint, joined) for of_joint in words)


def _without_prefix(words: list[list[str]]) -> list[list[str]]:
    while True:
        first = collections.Counter(of_joint[0] for of_joint in words if len(of_joint) > 1)
        word, count = first.most_common(1)[0] if first else ("", 0)
        if count < 3 or 2 * count <= len(words) or word in _SIDES or word in _BODY:
            return words
        words = [of_joint[1:] if of_joint[0:1] == [word] and len(of_joint) > 1 else of_joint for of_joint in words]


def _split(words: list[str], joined: set[str]) -> tuple[str | None, str]:
    sides = [word for word in words if word in _SIDES]
    if sides:
        words = list(words)
        words.remove(sides[0])
        return _SIDES[sides[0]], "".join(words)
    stem = "".join(words[1:] if words[:1] == ["c"] and len(words) > 1 else words)  # J_Bip_C_Hips: the centre
    for start, side in _SIDES.items():  # 'lhand', where the letter may as well begin a word as in 'lowerback'
        other = {"l": "r", "left": "right", "r": "l", "right": "left"}[start]
        if stem.startswith(start) and other + stem.removeprefix(start) in joined:
            return side, stem.removeprefix(start)
    return None, stem
