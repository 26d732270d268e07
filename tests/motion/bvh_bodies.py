"""A walk as BVH text in any axes, unit, pose and dialect, and forward kinematics without code of the package."""

import functools
import re

import numpy as np

from causal_diffusion.motion import bvh
from causal_diffusion.motion import rotations as rot
from causal_diffusion.motion.inverse_kinematics import rest_offsets, solve
from causal_diffusion.motion.skeleton import of
from tests.walking_stream import NAMES, PARENTS, walk

TURNS = {"y": (0, 0, 0), "z": (np.pi / 2, 0, 0), "x": (0, 0, -np.pi / 2)}  # of y up, about x, y, z
UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254, "ft": 0.3048}


@functools.cache
def walking(frames=12):
    """(skeleton, rotations, root) of a walk of that many frames at 20 a second."""
    x, skeleton = walk(frames, 20).astype(np.float64), of(NAMES, PARENTS)
    skeleton = skeleton.with_offsets(rest_offsets(x, skeleton))
    rotations, root = solve(skeleton, x)
    return skeleton, np.asarray(rotations, np.float64), np.asarray(root, np.float64)


def written(path, up="y", unit="cm", pose=(0, 0, 0), lower=0.0, size=1.0, rest=True, frames=12):
    """Writes a walk of a body of 1.6 m.

    Args:
        up, unit: of the file.
        pose: angles about x, y, z by which the whole body is turned about its hips: (pi / 2, 0, 0) lies on its face.
        lower: metres by which the hips are put down.
        rest: whether the rest pose is turned to ``up`` too.
    """
    skeleton, q, root = walking(frames)
    q, root = q.copy(), (root - [0, lower, 0]) * size
    q[:, 0] = rot.multiply(rot.from_euler(np.array(pose, float), "XYZ"), q[:, 0])
    turn = rot.from_euler(np.array(TURNS[up], float), "XYZ")
    offsets = np.array(skeleton.offsets) * size
    if rest:
        offsets = rot.rotate(turn, offsets)
        q = rot.multiply(rot.multiply(turn, q), rot.inverse(turn))
    else:
        q[:, 0] = rot.multiply(turn, q[:, 0])
    path.parent.mkdir(parents=True, exist_ok=True)
    bvh.write(path, skeleton.with_offsets(offsets), q, rot.rotate(turn, root), 20, scale=UNITS[unit])
    return path


def renamed(path, change):
    """The file with every joint's name changed."""
    path.write_text(re.sub(r"(ROOT|JOINT) (\S+)", lambda m: f"{m[1]} {change(m[2])}", path.read_text()))
    return path


def six_channels(path, relative):
    """The file with position channels on every joint: the OFFSET, or what is to be added to it (nothing)."""
    head, tail = path.read_text().split("MOTION")
    offsets = re.findall(r"OFFSET (.*)\n\s*CHANNELS", head)
    axes = "Xposition Yposition Zposition"
    head = re.sub(r"CHANNELS 3 ", f"CHANNELS 6 {axes} ", head)
    lines = tail.strip().split("\n")
    rows = []
    for line in lines[2:]:
        numbers = line.split()
        row = numbers[:6]
        for j, offset in enumerate(offsets[1:]):
            row += ("0 0 0" if relative else offset).split() + numbers[6 + 3 * j : 9 + 3 * j]
        rows.append(" ".join(row))
    path.write_text(head + "MOTION\n" + "\n".join([*lines[:2], *rows]) + "\n")
    return path


def independent(path, relative=False):
    """{joint: positions [T, 3]} in axes and units of the file, by 4 x 4 matrices."""
    words = path.read_text(encoding="utf-8-sig").replace("{", " { ").replace("}", " } ").split()
    at, stack, joints = 0, [], []  # a joint: name, parent, offset, channels
    while words[at].upper() != "MOTION":
        word = words[at].upper()
        if word in ("ROOT", "JOINT", "END"):
            end = words.index("{", at)
            name = " ".join(words[at + 1 : end]) if word != "END" else None
            joints.append([name, stack[-1] if stack else None, None, []])
            stack.append(len(joints) - 1)
            at = end + 1
        elif word == "OFFSET":
            joints[stack[-1]][2] = np.array(words[at + 1 : at + 4], float)
            at += 4
        elif word == "CHANNELS":
            count = int(words[at + 1])
            joints[stack[-1]][3] = words[at + 2 : at + 2 + count]
            at += 2 + count
        else:
            if word == "}":
                stack.pop()
            at += 1
    table = np.array(words[words.index("Time:", at) + 2 :], float)
    table = table.reshape(-1, sum(len(joint[3]) for joint in joints))
    out = {joint[0]: np.zeros((len(table), 3)) for joint in joints if joint[0]}
    for t, row in enumerate(table):
        world, numbers = [], iter(row)
        for name, parent, offset, channels in joints:
            move, turn = offset.copy(), np.eye(4)
            for channel in channels:
                axis, value = "XYZ".index(channel[0].upper()), next(numbers)
                if channel[1:].lower() == "position":
                    move[axis] = value + (offset[axis] if relative else 0)
                    continue
                c, s, m = np.cos(np.deg2rad(value)), np.sin(np.deg2rad(value)), np.eye(4)
                i, j = (axis + 1) % 3, (axis + 2) % 3
                m[i, i], m[i, j], m[j, i], m[j, j] = c, -s, s, c
                turn = turn @ m
            local = np.eye(4)
            local[:3, 3] = move
            local = local @ turn
            world.append(local if parent is None else world[parent] @ local)
            if name:
                out[name][t] = world[-1][:3, 3]
    return out
