import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.motion import bvh, inverse_kinematics
from causal_diffusion.motion import rotations as rot
from causal_diffusion.motion import skeleton as sk
from causal_diffusion.motion.skeleton import HUMANML3D, Skeleton, forward

SHARED = Path(os.environ.get("CD_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")) / "motion"
KNOWN = HUMANML3D.with_offsets(np.random.default_rng(5).uniform(-0.3, 0.3, (22, 3)))


def shared(*parts):
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the shared motion is not here (CD_SHARED_DATA): {path}")
    return path


def clip(*lead, body=KNOWN, frames=7, seed=0):
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((*lead, frames, body.joints, 4))
    q /= np.linalg.norm(q, axis=-1, keepdims=True)
    return forward(body, q, rng.standard_normal((*lead, frames, 3)))


@pytest.mark.parametrize("lead", [(), (2,)])
def test_rotations_that_were_found_put_joints_where_they_are(lead):
    x = clip(*lead)
    q, root = inverse_kinematics.solve(KNOWN, x)
    assert q.shape == (*lead, 7, 22, 4) and type(q) is np.ndarray
    np.testing.assert_allclose(np.linalg.norm(q, axis=-1), 1.0, atol=1e-12)
    np.testing.assert_array_equal(root, x[..., 0, :])
    np.testing.assert_allclose(forward(KNOWN, q, root), x, atol=1e-12)
    for leaf in (10, 11, 15, 20, 21):
        np.testing.assert_array_equal(q[..., leaf, :], np.broadcast_to(rot.IDENTITY, (*lead, 7, 4)))


def test_a_rest_pose_is_no_rotation_and_a_turned_body_turns_only_its_root():
    rest = forward(KNOWN, np.tile(rot.IDENTITY, (1, 22, 1)), np.zeros((1, 3)))
    q, _ = inverse_kinematics.solve(KNOWN, rest)
    np.testing.assert_allclose(rot.to_matrix(q), np.broadcast_to(np.eye(3), (1, 22, 3, 3)), atol=1e-7)
    turn = rot.from_euler([0.4, 2.0, -0.3], "XYZ")
    q, _ = inverse_kinematics.solve(KNOWN, rot.rotate(turn, rest) + [1.0, 2.0, 3.0])
    np.testing.assert_allclose(rot.to_matrix(q[0, 0]), rot.to_matrix(turn), atol=1e-7)
    np.testing.assert_allclose(rot.to_matrix(q[0, 1:]), np.broadcast_to(np.eye(3), (21, 3, 3)), atol=1e-7)


def test_a_joint_with_one_below_turns_the_shortest_way():
    arm = Skeleton(("a", "b"), (-1, 0), ((0, 0, 0), (0, 2, 0)))
    q, _ = inverse_kinematics.solve(arm, np.array([[[1.0, 1, 1], [3, 1, 1]], [[0, 0, 0], [0, -2, 0]]]))
    np.testing.assert_allclose(q[0, 0], rot.from_euler([0, 0, -np.pi / 2], "XYZ"), atol=1e-15)
    assert abs(q[1, 0, 0]) < 1e-15  # opposite: half a turn


def test_disturbed_joints_are_met_as_near_as_a_rotation_can():
    """No small turn about any axis brings the root's children nearer."""
    x = clip() + np.random.default_rng(1).normal(0, 0.03, (7, 22, 3))
    q, _ = inverse_kinematics.solve(KNOWN, x)
    offsets, seen = np.array(KNOWN.offsets)[[1, 2, 3]], x[:, [1, 2, 3]] - x[:, :1]

    def error(q):
        return np.sum((rot.rotate(q[:, None], offsets) - seen) ** 2, axis=(1, 2))

    assert (error(q[:, 0]) > 1e-4).all()
    for axis in np.eye(3):
        for angle in (0.01, -0.01):
            small = np.append(np.cos(angle), np.sin(angle) * axis)
            assert (error(rot.multiply(small, q[:, 0])) > error(q[:, 0])).all()


@pytest.mark.parametrize("offsets", [
    [[0, 0, 0], [0, 1, 0], [0, 2, 0], [0, 0.5, 0]],  # all on one line: no turn about it is seen
    [[0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]],  # two span a plane; the third bone has no length
    [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]],
])  # fmt: skip
def test_degenerate_bodies_are_met_and_finite(offsets):
    body = Skeleton(tuple("abcd"), (-1, 0, 0, 0), offsets)
    q = np.tile(rot.IDENTITY, (5, 4, 1))
    q[:, 0] = rot.from_euler(np.random.default_rng(0).uniform(-3, 3, (5, 3)), "XYZ")
    x = forward(body, q, np.ones((5, 3)))
    solved = forward(body, *inverse_kinematics.solve(body, x))
    np.testing.assert_allclose(solved, x, atol=1e-14)
    estimated = body.with_offsets(inverse_kinematics.rest_offsets(x, body))
    np.testing.assert_allclose(forward(estimated, *inverse_kinematics.solve(estimated, x)), x, atol=1e-14)


def test_bones_without_length_pass_the_turn_to_the_joint_above():
    """As in CMU's files, where both hip joints and the lower back are at the hips."""
    names, parents = ("hips", "l_in", "r_in", "back", "l_hip", "r_hip", "chest"), (-1, 0, 0, 0, 1, 2, 3)
    offsets = np.zeros((7, 3))
    offsets[4:] = [[0.1, -0.1, 0], [-0.1, -0.1, 0], [0, 0.2, 0]]
    body = Skeleton(names, parents, offsets)
    q = np.tile(rot.IDENTITY, (1, 7, 1))
    q[:, 0] = rot.from_euler([0.1, 1.2, 0.3], "XYZ")
    solved, _ = inverse_kinematics.solve(body, forward(body, q, np.zeros((1, 3))))
    np.testing.assert_allclose(rot.to_matrix(solved), rot.to_matrix(q), atol=1e-7)


def test_jax_gives_what_numpy_gives():
    body = Skeleton(tuple("abcde"), (-1, 0, 0, 2, 0), KNOWN.offsets[:5])
    x = clip(body=body).astype(np.float32)
    q, root = jax.jit(lambda x: inverse_kinematics.solve(body, x))(jnp.asarray(x))
    expected, _ = inverse_kinematics.solve(body, x)
    assert isinstance(q, jax.Array) and q.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(rot.to_matrix(np.asarray(q)), rot.to_matrix(expected), atol=1e-4)


def test_offsets_are_a_t_pose_with_the_lengths_and_shapes_of_the_body():
    x = clip(frames=40)
    offsets = inverse_kinematics.rest_offsets(x, HUMANML3D)
    assert offsets.dtype == np.float64 and offsets.shape == (22, 3) and not offsets[0].any()
    np.testing.assert_allclose(np.linalg.norm(offsets, axis=-1)[1:], KNOWN.bone_lengths(x)[0], atol=1e-12)
    known = np.array(KNOWN.offsets)
    for children in ([1, 2, 3], [12, 13, 14]):  # a rigid group keeps its angles
        a, b = offsets[children], known[children]
        np.testing.assert_allclose(a @ a.T, b @ b.T, atol=1e-9)
    unit = offsets[1:] / np.linalg.norm(offsets[1:], axis=-1, keepdims=True)
    for joints, direction in (((4, 5, 7, 8), (0, -1, 0)), ((10, 11), (0, 0, 1)), ((6, 9, 15), (0, 1, 0)),
                              ((16, 18, 20), (1, 0, 0)), ((17, 19, 21), (-1, 0, 0))):  # fmt: skip
        np.testing.assert_allclose(unit[np.array(joints) - 1], [direction] * len(joints), atol=1e-12)
    body = HUMANML3D.with_offsets(offsets)
    np.testing.assert_allclose(forward(body, *inverse_kinematics.solve(body, x)), x, atol=1e-9)


def test_lengths_are_medians():
    arm = sk.of("ab", (-1, 0))
    x = np.zeros((5, 2, 3))
    x[:, 1, 0] = [1, 1.1, 0.9, 30, 1]
    np.testing.assert_allclose(inverse_kinematics.rest_offsets(x, arm), [[0, 0, 0], [0, 1, 0]], atol=1e-15)


def test_held_out_clips_are_met_within_a_centimetre(tmp_path):
    """Offsets from a few training frames; a clip of the test set goes through a BVH file besides."""
    shared("bandai_test.npz")
    worlds = []
    for path, step in ((sorted(SHARED.glob("bandai_train*.npz"))[0], 200), (SHARED / "bandai_test.npz", 20)):
        with np.load(path) as data:
            x = data["positions"][::step].astype(np.float64)
            x[..., ::2] += data["root_xz"][::step, None]
            body = sk.of(data["joint_names"], data["parents"])
        worlds.append(x)
    body = body.with_offsets(inverse_kinematics.rest_offsets(worlds[0], body))
    q, root = inverse_kinematics.solve(body, worlds[1])
    errors = np.linalg.norm(forward(body, q, root) - worlds[1], axis=-1)
    assert len(errors) > 2000 and errors.mean() < 5e-4 and errors.max() < 5e-3  # metres
    bvh.write(tmp_path / "a.bvh", body, q[:50], root[:50], 30)
    back = bvh.read(tmp_path / "a.bvh")
    assert back.skeleton.names == body.names
    np.testing.assert_allclose(back.positions, forward(body, q[:50], root[:50]), atol=1e-5)


@pytest.mark.parametrize("name", ["cmu1_jumping_jacks", "dab", "wave_hello"])
def test_bodies_of_other_files_are_met(name):
    m = bvh.read(shared("bvh", "animated_drawings", f"{name}.bvh"), ends=True)
    estimated = m.skeleton.with_offsets(inverse_kinematics.rest_offsets(m.positions, m.skeleton))
    for body in (m.skeleton, estimated):
        q, root = inverse_kinematics.solve(body, m.positions)
        np.testing.assert_allclose(forward(body, q, root), m.positions, atol=1e-9)


def test_bad_positions_are_refused():
    x = clip()
    x[3, 4, 1] = np.nan
    for call in (lambda x: inverse_kinematics.solve(KNOWN, x), lambda x: inverse_kinematics.rest_offsets(x, KNOWN)):
        with pytest.raises(UserError, match=r"joint left_knee of frame 3 is nowhere \(not finite\)"):
            call(x)
        for wrong in (x[:, 1:], x[0], x[..., :2]):
            with pytest.raises(UserError, match=r"do not fit 22 joints: \[..., frames, 22, 3\] do"):
                call(wrong)
    with pytest.raises(UserError, match="there are no frames to estimate offsets from"):
        inverse_kinematics.rest_offsets(clip()[:0], KNOWN)
    with pytest.raises(UserError, match="the skeleton has no offsets"):
        inverse_kinematics.solve(HUMANML3D, clip())
