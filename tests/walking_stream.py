"""A stream of motion that needs no model: a body that walks in a circle, and jumps when it is told to."""

import numpy as np

NAMES = ("Hips", "Spine", "Neck", "Head", "UpperArm_L", "LowerArm_L", "Hand_L", "UpperArm_R", "LowerArm_R", "Hand_R",
         "UpperLeg_L", "LowerLeg_L", "Foot_L", "Toes_L", "UpperLeg_R", "LowerLeg_R", "Foot_R", "Toes_R")  # fmt: skip
PARENTS = (-1, 0, 1, 2, 2, 4, 5, 2, 7, 8, 0, 10, 11, 12, 0, 14, 15, 16)
RADIUS, SPEED, RAISED = 1.6, 1.1, 0.5  # metres, metres per second, metres


def walk(frames, fps, raised=0.0, first=0) -> np.ndarray:
    """Frames first to first + frames - 1 of a walk round a circle, float32 [T, J, 3]."""
    t = (first + np.arange(frames)) / fps
    step = 2 * np.pi * 0.9 * t
    x = np.zeros((frames, len(NAMES), 3))  # facing +z, left is +x
    put = dict(zip(NAMES, range(len(NAMES)), strict=True))
    x[:, put["Hips"]] = [0, 0.92, 0]
    x[:, put["Hips"], 1] += 0.02 * np.cos(2 * step)
    for name, up in (("Spine", 0.22), ("Neck", 0.52), ("Head", 0.64)):
        x[:, put[name]] = x[:, 0] + [0, up, 0.02]
    for side, sign, phase in (("L", 1, 0), ("R", -1, np.pi)):
        swing = np.sin(step + phase)
        bend = 0.5 + 0.5 * np.cos(step + phase)  # the leg that comes forward is bent
        x[:, put[f"UpperLeg_{side}"]] = x[:, 0] + [0.09 * sign, -0.03, 0]
        _hang(x, put[f"UpperLeg_{side}"], put[f"LowerLeg_{side}"], 0.42, 0.42 * swing + 0.2 * bend)
        _hang(x, put[f"LowerLeg_{side}"], put[f"Foot_{side}"], 0.42, 0.42 * swing - 0.6 * bend)
        _hang(x, put[f"Foot_{side}"], put[f"Toes_{side}"], 0.13, 0.42 * swing - 0.6 * bend + 1.3)
        x[:, put[f"UpperArm_{side}"]] = x[:, put["Neck"]] + [0.17 * sign, -0.06, 0]
        _hang(x, put[f"UpperArm_{side}"], put[f"LowerArm_{side}"], 0.28, -0.5 * swing)
        _hang(x, put[f"LowerArm_{side}"], put[f"Hand_{side}"], 0.25, -0.5 * swing + 0.35)
    angle = SPEED / RADIUS * t
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    turned = np.stack([c * x[..., 0] + s * x[..., 2], x[..., 1] + raised, c * x[..., 2] - s * x[..., 0]], axis=-1)
    centre = np.stack([RADIUS * (1 - np.cos(angle)), np.zeros_like(angle), RADIUS * np.sin(angle)], axis=-1)
    return (turned + centre[:, None]).astype(np.float32)


def _hang(x, above, below, length, angle):
    x[:, below] = x[:, above] + length * np.stack([0 * angle, -np.cos(angle), np.sin(angle)], axis=-1)


class WalkingStream:
    """Under a prompt with 'jump' it is raised; one with 'break' breaks it. ``made`` counts pieces."""

    def __init__(self, fps=30, piece=6):
        self.fps, self.joint_names, self.parents = fps, NAMES, PARENTS
        self._piece, self.made, self.prompt = piece, 0, None

    def start(self, prompt):
        self.prompt = prompt

    def next(self):
        first, self.made = self.made * self._piece, self.made + 1
        return walk(self._piece, self.fps, RAISED * ("jump" in self.prompt), first)

    def update(self, prompt):
        if "break" in prompt:
            raise RuntimeError("it broke")
        self.prompt = prompt
