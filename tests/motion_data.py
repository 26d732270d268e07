"""A folder of clips of a whole body, as the readers of motion take it: small, and nothing like a real motion."""

import numpy as np

NAMED = [name for name in "Hips Spine Chest Neck Head".split()] + [
    f"{part}_{side}" for side in "LR" for part in ("Shoulder", "UpperArm", "LowerArm", "Hand")] + [
    f"{part}_{side}" for side in "LR" for part in ("UpperLeg", "LowerLeg", "Foot", "Toes")]  # fmt: skip
PARENTS = [-1, 0, 1, 2, 3, 2, 5, 6, 7, 2, 9, 10, 11, 0, 13, 14, 15, 0, 17, 18, 19]
KINDS = {"walk": ("calm", "angry", "proud"), "wave-left-hand": ("calm", "angry"), "wave-right-hand": ("calm", "angry")}


def write_bodies(folder, frames=12):
    """Clips of that many frames of 21 joints with content and style, two of each pair in training, one held out.

    Returns:
        The folder.
    """
    rng, pairs = np.random.default_rng(0), [(c, s) for c, styles in KINDS.items() for s in styles]
    styles = sorted({style for _, style in pairs})
    for name, repeats in (("train_00-of-01", 2), ("test", 1)):
        count = repeats * len(pairs)
        positions = rng.standard_normal((frames * count, 21, 3)).cumsum(axis=0).astype(np.float16) * np.float16(0.01)
        positions += np.float16([[0.1 * (i % 5), 0.05 * i, 0.02 * (i % 3)] for i in range(21)])
        positions[:, 0, ::2] = 0.0
        np.savez(
            folder / f"some_{name}.npz", positions=positions,
            root_xz=rng.standard_normal((frames * count, 2)).astype(np.float32).cumsum(axis=0) * 0.01,
            clip_start=np.arange(0, frames * count + 1, frames), fps=np.float32(30),
            text=np.array([f"a person does {c}, {s} style" for c, s in pairs * repeats]),
            name=np.array([f"{name} {i}" for i in range(count)]),
            content=np.array([list(KINDS).index(c) for c, _ in pairs * repeats]),
            style=np.array([styles.index(s) for _, s in pairs * repeats]),
            content_names=np.array(list(KINDS)), style_names=np.array(styles),
            joint_names=np.array(NAMED), parents=np.array(PARENTS),
        )  # fmt: skip
    return folder
