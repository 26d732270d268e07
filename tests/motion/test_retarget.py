import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.motion import rotations as rot
from causal_diffusion.motion.retarget import retarget, select
from causal_diffusion.motion.skeleton import HUMANML3D, Motion, Skeleton, forward

LEG = np.array([4, 5, 7, 8]) - 1  # knees and ankles of HUMANML3D, as bones


def clip(*lead, frames=6, seed=0):
    rng = np.random.default_rng(seed)
    body = HUMANML3D.with_offsets(rng.standard_normal((22, 3)) / 5)
    q = rng.standard_normal((*lead, frames, 22, 4))
    q /= np.linalg.norm(q, axis=-1, keepdims=True)
    root = rng.standard_normal((*lead, frames, 3))
    return body, q, root, forward(body, q, root)


@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_bones_get_the_lengths_and_keep_their_directions(lead):
    body, _, root, x = clip(*lead)
    lengths = np.random.default_rng(1).uniform(0.1, 0.5, 21)
    y = retarget(x, body, lengths, floor=False)
    np.testing.assert_allclose(body.bone_lengths(y), np.broadcast_to(lengths, (*lead, 6, 21)), atol=1e-14)
    parents = np.array(body.parents[1:])
    before, after = (a[..., 1:, :] - a[..., parents, :] for a in (x, y))
    cosine = np.sum(before * after, axis=-1) / body.bone_lengths(x) / body.bone_lengths(y)
    np.testing.assert_allclose(cosine, 1.0, atol=1e-12)
    ratio = lengths[LEG].sum() / np.linalg.norm(np.array(body.offsets)[LEG + 1], axis=-1).sum()
    np.testing.assert_allclose(y[..., 0, :], ratio * root, atol=1e-12)


def test_the_floor_is_the_lowest_joint_of_each_clip():
    body, _, _, x = clip(2)
    lengths = np.full(21, 0.2)
    free, y = retarget(x, body, lengths, floor=False), retarget(x, body, lengths)
    np.testing.assert_allclose(y[..., 1].min(axis=(1, 2)), 0.0, atol=1e-15)
    np.testing.assert_array_equal(y[..., ::2], free[..., ::2])
    lift = y[..., 1] - free[..., 1]
    np.testing.assert_allclose(lift, np.broadcast_to(lift[:, :1, :1], lift.shape), atol=1e-14)


def test_the_same_lengths_change_nothing_and_a_way_back_is_one():
    body, _, _, x = clip()
    own = body.bone_lengths(x)[0]
    np.testing.assert_allclose(retarget(x, body, own, floor=False), x, atol=1e-13)
    there = retarget(x, body, np.linspace(0.1, 0.4, 21), floor=False)
    np.testing.assert_allclose(retarget(there, body, own, floor=False), x, atol=1e-13)


def test_jax_gives_what_numpy_gives_and_bones_without_length_stay_finite():
    body, _, _, x = clip()
    x = x.astype(np.float32)
    x[:, 3] = x[:, 0]
    lengths = np.linspace(0.1, 0.4, 21)
    y = retarget(x, body, lengths)
    assert type(y) is np.ndarray and y.dtype == np.float32 and np.isfinite(y).all()
    legs = Skeleton(("hips", "left_hip", "left_knee", "left_ankle", "right_hip", "right_knee", "right_ankle"),
                    (-1, 0, 1, 2, 0, 4, 5))  # fmt: skip
    z = jax.jit(lambda x: retarget(x, legs, lengths[:6]))(jnp.asarray(x[:, :7]))
    assert isinstance(z, jax.Array)
    np.testing.assert_allclose(z, retarget(x[:, :7], legs, lengths[:6]), atol=1e-5)


def test_bad_lengths_and_shapes_are_refused():
    body, _, _, x = clip()
    for lengths in (np.ones(22), np.full(21, np.nan), -np.ones(21), np.ones((1, 21))):
        with pytest.raises(UserError, match=r"lengths .* must be 21 finite lengths of bones in metres"):
            retarget(x, body, lengths)
    with pytest.raises(UserError, match="have no frames"):
        retarget(x[0], body, np.ones(21))
    with pytest.raises(UserError, match="do not fit 22 joints"):
        retarget(x[:, 1:], body, np.ones(21))
    with pytest.raises(UserError, match="no joint for 'left_knee'"):
        retarget(np.zeros((2, 2, 3)), Skeleton(("a", "b"), (-1, 0)), np.ones(1))


def motion(still=()):
    body, q, root, _ = clip()
    q[:, [body.index(name) for name in still]] = rot.IDENTITY
    return Motion(body, q, root, forward(body, q, root), 20.0)


def test_selected_joints_stay_where_they_are_under_their_new_names():
    m = motion(still=["spine1", "spine2", "left_collar"])
    names = {"hips": "pelvis", "chest": "spine3", "arm": "left_shoulder", "foot": "left_foot"}
    some = select(m, names)
    assert some.skeleton.names == tuple(names) and some.skeleton.parents == (-1, 0, 1, 0) and some.fps == 20.0
    np.testing.assert_array_equal(some.positions, m.positions[:, [0, 9, 16, 10]])
    x = forward(some.skeleton, some.rotations, some.root)
    np.testing.assert_allclose(x[:, :3], some.positions[:, :3], atol=1e-13)  # what was dropped between did not turn
    assert np.abs(x[:, 3] - some.positions[:, 3]).max() > 0.01  # left_hip, left_knee and left_ankle did


def test_all_joints_in_any_order_are_the_same_motion():
    m = motion()
    chain = [joint for path in HUMANML3D.chains() for joint in path]
    order = [HUMANML3D.names[joint] for joint in dict.fromkeys(chain)]
    back = select(select(m, order), HUMANML3D.names)
    assert order != list(HUMANML3D.names)
    assert (back.skeleton.names, back.skeleton.parents) == (m.skeleton.names, m.skeleton.parents)
    np.testing.assert_allclose(back.skeleton.offsets[1:], m.skeleton.offsets[1:], atol=1e-14)
    np.testing.assert_allclose(rot.to_matrix(back.rotations), rot.to_matrix(m.rotations), atol=1e-12)
    np.testing.assert_array_equal(back.positions, m.positions)
    np.testing.assert_array_equal(back.root, m.root)


@pytest.mark.parametrize("names, message", [
    (["pelvis", "left_hnd"], "no joint is named 'left_hnd': 'left_hip' would do, of pelvis, left_hip"),
    (["pelvis", "LeftWrist"], "no joint is named 'LeftWrist': 'left_wrist' would do"),
    (["pelvis", "left_knee", "left_hip"], "'left_knee' is selected before 'left_hip', which it hangs on"),
    (["left_hip", "pelvis"], "'left_hip' is selected before 'pelvis', which it hangs on: put 'pelvis' first"),
    (["spine1", "left_hip"], "'left_hip' does not hang on 'spine1': put a joint that is above both first"),
    (["pelvis", "pelvis"], "joint 'pelvis' is selected twice"),
    ({"a": "pelvis", "b": "head", "c": "head"}, "joint 'head' is selected twice"),
    ([], "no joint is selected: 'pelvis' and some below it would do"),
])  # fmt: skip
def test_names_that_make_no_body_are_refused(names, message):
    with pytest.raises(UserError, match=message) as error:
        select(motion(), names)
    assert "\n" not in str(error.value)
