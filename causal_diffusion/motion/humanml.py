"""The representation of HumanML3D (Guo et al. 2022, "Generating Diverse and Natural 3D Human Motions from Text").

Frame i of a clip of J joints (metres, y up, the left of a body that faces +z at +x) is told by what is seen from the
heading of the body and by the way to frame i + 1: T frames give T - 1 vectors of 12 J - 1 numbers (263 of 22 joints).

    0                   root yaw velocity    half the angle from the heading of frame i to that of i + 1, clockwise
    1 : 3               root velocity        x and z of root_(i+1) - root_i, seen from the heading of frame i + 1
    3                   root height          y of the root
    4 : 3 J + 1         positions            joints 1 to J - 1 around the root's ground point, seen from heading i
    3 J + 1 : 9 J - 5   rotations            two columns of a matrix for each of joints 1 to J - 1, see below
    9 J - 5 : 12 J - 5  velocities           joint_(i+1) - joint_i of all J joints, seen from heading i
    12 J - 5 : 12 J - 1 contacts             left ankle, left toe, right ankle, right toe: moves by less than CONTACT

The heading phi is an angle about y, 0 along +z and a quarter turn along +x. The authors store the arcsine of the y of
the quaternion r_(i+1) r_i^-1 that turns one frame's view into the next, where r_i turns by -phi_i. Hence

    x[i, 0] = (phi_i - phi_(i+1)) / 2,    phi_i = phi_0 - 2 sum over s < i of x[s, 0]                          (1)
    path_i = path_0 + sum over s < i of turn(phi_(s+1)) x[s, 1:3]                                              (2)

At frame 0 the body heads along up x a, a the direction of (right hip - left hip) + (right shoulder - left shoulder).
From frame 1 on the hips come with the opposite sign, and the directions are smoothed over the clip by a Gaussian of
SMOOTH frames that is cut at four deviations, the end frames repeated outwards. So it is in the released code, where two
functions list hips in different orders and the second starts from no turn, and in the data made by it: the clip that
comes with it is met to 1e-5. Frame 0 thus has a jump in yaw, and a body wider at the hips than at the shoulders would
seem to face backwards. With ``smooth=0`` every frame's heading is as frame 0's: for one's own data only.

Joint j's rotation turns the rest direction u_j of its bone the shortest way into its direction in the clip: G_j, told
from its parent's, G_p(j)^-1 G_j. The first bones of the spine, the legs and the arms have turn(-phi) for G_p(j), where
both phi and bones are those of the clip turned to face +z at frame 0. That is the authors' form. It makes rotations
independent of where a clip faces as a whole but not of how far it has turned since; positions and velocities depend on
neither.

Two deviations. Their arcsine has the wrong sign at the one frame where a heading passes -z (r_i jumps from q to -q
there), and such a clip cannot be recovered; here equation (1) always takes the short way. And a bone of no length has
its rest direction, where they divide by zero.

Frame i needs frame i + 1 and, through the smoothed heading, hips and shoulders of 4 SMOOTH frames to either side.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.errors import UserError
from causal_diffusion.motion import rotations as rot
from causal_diffusion.motion.skeleton import Skeleton

Array = Any
SMOOTH = 20.0  # frames, the deviation of the Gaussian
CONTACT = 0.002  # square metres, of the squared displacement from frame to frame
ROOT = 4  # leading numbers of a frame that are about the root
FEET = ("left_ankle", "left_toe", "right_ankle", "right_toe")
PARTS = ("torso", "left arm", "right arm", "left leg", "right leg")
_UP, _DOWN, _FORWARD = (0.0, 1.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0)


def width(joints: int) -> int:
    """Numbers per frame of a body of that many joints."""
    return 12 * joints - 1


def essential_width(joints: int) -> int:
    """Numbers per frame that ``decode`` needs: root and positions."""
    return ROOT + 3 * (joints - 1)


def groups(joints: int) -> dict[str, slice]:
    """Which numbers of a frame are of one kind, and so share a scale."""
    names = ("root yaw velocity", "root linear velocity", "root height", "positions", "rotations", "velocities")
    ends = np.cumsum([0, 1, 2, 1, 3 * (joints - 1), 6 * (joints - 1), 3 * joints, 4]).tolist()
    return {n: slice(*ends[i : i + 2]) for i, n in enumerate((*names, "contacts"))}


def essential(x: Array) -> Array:
    """Root and positions, the leading 4 + 3 (J - 1) of full vectors [..., 12 J - 1] (MARDM, arXiv 2411.16575)."""
    count, rest = divmod(x.shape[-1] + 1, 12)
    if rest or count < 2:
        raise UserError(f"a frame has {x.shape[-1]} numbers: 12 per joint less one, {width(22)} of 22 would do")
    return x[..., : essential_width(count)]


def encode(positions: Array, skeleton: Skeleton, smooth: float = SMOOTH) -> Array:
    """Positions in the world [T, J, 3], metres -> [T - 1, 12 J - 1]; numpy or jax, in the precision of the positions.

    Args:
        skeleton: names and parents of the joints; needs hips, shoulders, ankles and toes (``Skeleton.roles``).
        smooth: frames, the deviation of the Gaussian over forward directions; 0: none, see the module's docstring.

    Raises:
        UserError: fewer than two frames, another number of joints, or a joint that cannot be found.
    """
    phi = _heading(positions, skeleton, smooth)
    xp = _kind(positions)
    root = positions[:, :1]
    around = positions - root * xp.asarray([1, 0, 1], root.dtype)
    local = _turn(-phi[:, None], around)
    turned = phi[1:] - phi[:-1]
    turned = xp.arctan2(xp.sin(turned), xp.cos(turned))
    change = positions[1:] - positions[:-1]
    velocity = _turn(-phi[1:], change[:, 0])
    feet = [skeleton.roles[role] for role in FEET]
    contacts = xp.sum(change[:, feet] ** 2, axis=-1) < CONTACT
    T = len(positions) - 1
    parts = [
        -turned[:, None] / 2,
        velocity[:, 0::2],
        local[:-1, 0, 1:2],
        local[:-1, 1:].reshape(T, -1),
        rot.to_six(_rotations(positions, phi, skeleton))[:-1].reshape(T, -1),
        _turn(-phi[:-1, None], change).reshape(T, -1),
        contacts.astype(root.dtype),
    ]
    return xp.concatenate(parts, axis=-1)


def decode(x: Array, joints: int, before: Array | None = None) -> tuple[Array, Array]:
    """Equations (1) and (2), the inverse of ``encode``: [..., T, C] -> (positions [..., T, J, 3] in the world, after).

    Reads the leading 4 + 3 (J - 1) numbers only; those after them may be there or not. Works under jit.

    Args:
        before: [..., 3], heading and the root's x and z of the first frame; None: a clip begins at 0, facing +z.

    Returns:
        ``after``, [..., 3], is the same of the frame after the last: a stream is decoded piece by piece with the
        ``after`` of one piece as ``before`` of the next. Pieces equal the whole.
    """
    if x.ndim < 2 or x.shape[-1] < essential_width(joints):
        raise UserError(f"{joints} joints take {essential_width(joints)} or {width(joints)} numbers per frame, got "
                        f"numbers {x.shape}: [..., frames, {essential_width(joints)}] would do")  # fmt: skip
    xp, lead = _kind(x), x.shape[:-2]
    before = xp.zeros(3, x.dtype) if before is None else xp.asarray(before, x.dtype)
    before = xp.broadcast_to(before, (*lead, 3))[..., None, :]
    phi = _sum(xp, before[..., 0], -2 * x[..., 0])
    still = xp.zeros_like(x[..., 0])
    step = _turn(phi[..., 1:], xp.stack([x[..., 1], still, x[..., 2]], axis=-1))
    path = xp.stack([_sum(xp, before[..., 1 + i], step[..., 2 * i]) for i in (0, 1)], axis=-1)
    local = x[..., ROOT : essential_width(joints)].reshape(*x.shape[:-1], joints - 1, 3)
    ground = xp.stack([path[..., :-1, 0], still, path[..., :-1, 1]], axis=-1)
    limbs = _turn(phi[..., :-1, None], local) + ground[..., None, :]
    root = xp.stack([path[..., :-1, 0], x[..., 3], path[..., :-1, 1]], axis=-1)
    after = xp.concatenate([phi[..., -1:], path[..., -1, :]], axis=-1)
    return xp.concatenate([root[..., None, :], limbs], axis=-2), after


def start(positions: Array, skeleton: Skeleton) -> Array:
    """Where a clip [T, J, 3] begins, the ``before`` with which ``decode`` gives its own positions back: [3]."""
    xp = _kind(positions)
    return xp.concatenate([_heading(positions[:1], skeleton, 0, least=1), positions[0, 0, 0::2]])


def canonical(positions: Array, skeleton: Skeleton) -> Array:
    """The clip [T, J, 3] with its lowest point at y = 0, its first root at x = z = 0, and facing +z at first.

    Then decode(encode(canonical(p))) is canonical(p) without its last frame.
    """
    xp = _kind(positions)
    phi, x, z = start(positions, skeleton)
    return _turn(-phi, positions - xp.stack([x, xp.min(positions[..., 1]), z]))


def group_std(std: Array, joints: int) -> np.ndarray:
    """Deviations [12 J - 1] -> the mean of those of their kind, as in the authors' Std.npy."""
    out = np.array(std)
    _check_width(out, joints)
    for kind in groups(joints).values():
        out[kind] = out[kind].mean()
    return out


def evaluator_stats(mean: Array, std: Array, joints: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean, std) by which the published evaluator normalises, from those of Mean.npy and Std.npy, [12 J - 1].

    Deviations of the root's four numbers and of the contacts are divided by 25: a bias of 5 towards them, applied
    twice. (The means that came with the evaluator differ by up to .028 in heights; they cannot be derived.)
    """
    mean, std = np.array(mean), np.array(std)
    _check_width(std, joints)
    std[:ROOT] /= 25
    std[groups(joints)["contacts"]] /= 25
    return mean, std


def parts(skeleton: Skeleton, channels: int) -> dict[str, np.ndarray]:
    """Part of PARTS -> which of a frame's numbers are about it, int [...]; every number is in one part.

    The root's numbers are the torso's and a foot's contacts its leg's.

    Raises:
        UserError: ``channels`` is neither 12 J - 1 nor 4 + 3 (J - 1).
    """
    J = skeleton.joints
    if channels not in (width(J), essential_width(J)):
        raise UserError(f"{J} joints have no {channels} numbers per frame: {width(J)} or {essential_width(J)} would do")
    owner, part = np.zeros(width(J), int), np.array([PARTS.index(name) for name in joint_parts(skeleton)])
    for kind, of_joints, size in (("positions", part[1:], 3), ("rotations", part[1:], 6), ("velocities", part, 3)):
        owner[groups(J)[kind]] = np.repeat(of_joints, size)
    owner[groups(J)["contacts"]] = np.repeat([PARTS.index("left leg"), PARTS.index("right leg")], 2)
    return {name: np.flatnonzero(owner[:channels] == i) for i, name in enumerate(PARTS)}


def joint_parts(skeleton: Skeleton) -> tuple[str, ...]:
    """Per joint the part of PARTS that it belongs to; collar bones belong to arms."""
    found = ["torso"] * skeleton.joints
    for side in ("left", "right"):
        for part, role in (("arm", "shoulder"), ("leg", "hip")):
            top = skeleton.roles[f"{side}_{role}"]
            while (up := skeleton.parents[top]) > 0 and skeleton.mirrored[up] != up:
                top = up
            for j in range(top, skeleton.joints):
                if j == top or found[skeleton.parents[j]] == f"{side} {part}":
                    found[j] = f"{side} {part}"
    return tuple(found)


def rest_directions(skeleton: Skeleton) -> np.ndarray:
    """u_j, where the bone that ends in joint j points at rest: unit vectors [J, 3], of the root zero.

    The authors' ones for their 22 joints, and by the same rules for others: the first bone of a limb points sideways,
    the rest of arms and legs down; what ends in toes and head points forward, and what else is in the middle up.
    """
    part, roles = joint_parts(skeleton), skeleton.roles
    out = np.zeros((skeleton.joints, 3))
    forward = {roles["left_toe"], roles["right_toe"], roles.get("head")}
    for j in range(1, skeleton.joints):
        parent = skeleton.parents[j]
        if j in forward or parent in forward:
            forward.add(j)
            out[j] = _FORWARD
        elif part[j] == "torso":
            out[j] = _UP
        else:
            first = part[parent] != part[j]
            out[j] = (1.0 if part[j].startswith("left") else -1.0, 0.0, 0.0) if first else _DOWN
    return out


def _rotations(positions, phi, skeleton):
    """Local rotations of joints 1 to J - 1, [T, J - 1, 4]."""
    xp = _kind(positions)
    parents, part = np.array(skeleton.parents), joint_parts(skeleton)
    bones = _turn(-phi[0], positions[:, 1:] - positions[:, parents[1:]])
    length = xp.sqrt(xp.sum(bones**2, axis=-1, keepdims=True))
    rest = xp.asarray(rest_directions(skeleton)[1:], positions.dtype)
    bones = xp.where(length > 1e-8, bones / xp.where(length > 1e-8, length, 1), rest)
    turned = xp.concatenate([rot.yaw(phi[0] - phi)[:, None], rot.between(rest, bones)], axis=1)
    frame = np.array([0 if part[p] != part[j] else p for j, p in enumerate(parents)][1:])
    return rot.multiply(rot.inverse(turned[:, frame]), turned[:, 1:])


def _heading(positions, skeleton, smooth, least=2):
    """phi [T] of a clip [T, J, 3], radians."""
    if positions.ndim != 3 or positions.shape[1:] != (skeleton.joints, 3) or len(positions) < least:
        raise UserError(f"positions {positions.shape} are no clip of {skeleton.joints} joints: [frames, "
                        f"{skeleton.joints}, 3] of at least two frames would do")  # fmt: skip
    xp, roles = _kind(positions), skeleton.roles
    hips, shoulders = (
        positions[:, roles[f"right_{role}"]] - positions[:, roles[f"left_{role}"]] for role in ("hip", "shoulder")
    )
    phi = xp.arctan2(*_forward(xp, shoulders + hips))
    if not smooth:
        return phi
    reach = int(4 * smooth + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / smooth) ** 2)
    kernel = xp.asarray(kernel / kernel.sum(), positions.dtype)
    forward = (xp.convolve(xp.pad(v, reach, mode="edge"), kernel, mode="valid") for v in _forward(xp, shoulders - hips))
    return xp.concatenate([phi[:1], xp.arctan2(*forward)[1:]])


def _forward(xp, across):
    """x and z of up x the direction of ``across`` [T, 3], a horizontal vector that is shorter where that is tilted."""
    length = xp.sqrt(xp.sum(across**2, axis=-1))
    across = across / xp.where(length > 0, length, 1)[:, None]
    return across[:, 2], -across[:, 0]


def _turn(angle, v):
    """Vectors [..., 3] turned about y: a quarter turn takes z to x."""
    return rot.rotate(rot.yaw(angle), v)


def _sum(xp, first, steps):
    """[..., 1] and [..., T] -> [..., T + 1], running sums; in numpy pieces that go on from a sum give the same bits."""
    return xp.cumsum(xp.concatenate([first, steps], axis=-1), axis=-1)


def _check_width(std, joints):
    if std.shape != (width(joints),):
        raise UserError(f"deviations {std.shape} are not of {joints} joints: ({width(joints)},) would do")


def _kind(x):
    return jnp if isinstance(x, jax.Array) else np
