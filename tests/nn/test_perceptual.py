"""How different pictures look: LPIPS beside its twin in numpy and beside torch, and the distance without weights."""

import pickle
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from causal_diffusion.checkpoint.foreign import of_arrays
from causal_diffusion.errors import UserError
from causal_diffusion.evaluation import video
from causal_diffusion.nn import perceptual
from causal_diffusion.nn.perceptual import feature_distance, lpips, lpips_weights, vgg16

LPIPS_NAMES = {n: f"net.slice{i}.{n}" for i, stage in enumerate(perceptual.LAYERS, 1) for n in stage}


@pytest.fixture(scope="module")
def state():
    """Random weights under torchvision's names, float16 to keep the files small, with what real files have besides."""
    rng, out = np.random.default_rng(0), {}
    for key, shape in perceptual._wanted().items():
        if key.startswith("lin"):
            out[key] = rng.uniform(size=shape).astype(np.float16)
        else:
            std = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) == 4 else 0.1
            out[key] = (std * rng.standard_normal(shape, np.float32)).astype(np.float16)
    return out | {"classifier.0.weight": np.zeros((2, 2)), "scaling_layer.shift": np.zeros((1, 3, 1, 1))}


@pytest.fixture(scope="module")
def path(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "lpips.npz"
    np.savez(path, **state)
    return path


@pytest.fixture(scope="module")
def weights(path):
    return lpips_weights(path)


def clips(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1.0, 1.0, shape).astype(np.float32)


fast_lpips = jax.jit(lpips)
distance = jax.jit(feature_distance)
slope = jax.jit(jax.grad(lambda a, b: jnp.sum(feature_distance(a, b)), argnums=(0, 1)))


def test_lpips_is_that_of_the_evaluation(weights):
    a, b = clips(2, 1, 16, 18, 3), clips(2, 1, 16, 18, 3, seed=1)
    lins = [np.asarray(lin) for lin in weights.lins]
    twin = video.lpips(a, b, lambda frames: vgg16(weights, frames), weights=lins, network="random VGG16")
    got = fast_lpips(weights, a, b)
    assert got.shape == (2, 1) and twin.value.min() > 1e-2
    np.testing.assert_allclose(got, twin.value, rtol=1e-5)
    assert jax.eval_shape(lpips, weights, a[:, 0], b[:, 0]).shape == (2,)
    assert np.abs(fast_lpips(weights, a, a)).max() < 1e-12


@pytest.mark.full
def test_grey_is_shown_as_three_equal_channels(weights):
    a, b = clips(2, 1, 16, 18, 1), clips(2, 1, 16, 18, 1, seed=1)
    three = [np.repeat(x, 3, axis=-1) for x in (a, b)]
    np.testing.assert_allclose(fast_lpips(weights, a, b), fast_lpips(weights, *three), rtol=1e-5)


def test_names_of_lpips_and_of_torchvision_give_the_same(state, weights, path, tmp_path):
    renamed = {
        re.sub(r"features\.(\d+)\.", lambda m: f"{LPIPS_NAMES[int(m[1])]}.", key): value for key, value in state.items()
    }
    assert "net.slice4.17.weight" in renamed and "net.slice5.28.bias" in renamed
    renamed |= {f"lins.{i}.model.1.weight": state[f"lin{i}.model.1.weight"] for i in range(5)}
    np.savez(tmp_path / "named.npz", **renamed)
    for a, b in zip(jax.tree.leaves(lpips_weights(tmp_path / "named.npz")), jax.tree.leaves(weights), strict=True):
        np.testing.assert_array_equal(a, b)


def test_safetensors_give_the_same(state, weights, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    for a, b in zip(jax.tree.leaves(lpips_weights(tmp_path / "w.safetensors")), jax.tree.leaves(weights), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("change, words", [
    (lambda s: s.pop("features.17.weight"), r"has no 'features.17.weight'"),
    (lambda s: [s.pop(f"lin{i}.model.1.weight") for i in (3, 1)], "has no 'lin1.model.1.weight'"),
    (lambda s: s.update({"features.0.weight": np.zeros((64, 1, 3, 3))}), r"'features.0.weight' has .*\(64, 3, 3, 3\)"),
    (lambda s: s.update({"lin4.model.1.weight": np.full((1, 512, 1, 1), np.nan)}), "lin4.model.1.weight.* not finite"),
    (lambda s: s.update({"features.30.weight": np.zeros(1)}), "has 'features.30.weight', which LPIPS"),
], ids=["missing", "first missing", "shape", "nan", "another network"])  # fmt: skip
def test_the_first_wrong_key_is_named(state, tmp_path, monkeypatch, change, words):
    changed = dict(state)
    change(changed)
    (tmp_path / "w.npz").write_bytes(b"")
    monkeypatch.setattr(perceptual, "open_weights", lambda path, convert: of_arrays(path, changed))
    with pytest.raises(UserError, match=words) as caught:
        lpips_weights(tmp_path / "w.npz")
    assert "\n" not in str(caught.value)


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("name", ["w.pth", "w.npz", "w.safetensors", "array.npz"])
def test_a_pickle_is_refused_and_nothing_in_it_runs(name, tmp_path):
    marker, file = tmp_path / "ran", tmp_path / name
    if name == "array.npz":
        np.savez(file, **{"features.0.weight": np.array([Trap(marker)], dtype=object)})
    else:
        file.write_bytes(pickle.dumps(Trap(marker)))
    with pytest.raises(UserError) as caught:
        lpips_weights(file)
    assert not marker.exists() and name in str(caught.value) and "\n" not in str(caught.value)
    assert ("python -c" in str(caught.value)) == (name == "w.pth")


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="no weights of LPIPS at .*absent.npz"):
        lpips_weights(tmp_path / "absent.npz")
    for name, words in (("empty.npz", "empty.npz: it is empty"), ("array.npz", "array.npz is no readable .npz")):
        with open(tmp_path / name, "wb") as file:
            if name == "array.npz":
                np.save(file, np.zeros(3))
        with pytest.raises(UserError, match=words):
            lpips_weights(tmp_path / name)


@pytest.mark.parametrize("a, b, words", [
    ((1, 1, 16, 16, 3), (1, 1, 16, 17, 3), "must be equal"),
    ((1, 1, 16, 16, 2), (1, 1, 16, 16, 2), "C 1 or 3"),
    ((1, 16, 16), (1, 16, 16), r"\[N, H, W, C\]"),
    ((1, 1, 16, 15, 3), (1, 1, 16, 15, 3), "16 x 15 pixels vanish"),
])  # fmt: skip
def test_frames_that_lpips_cannot_compare(weights, a, b, words):
    with pytest.raises(UserError, match=words):
        lpips(weights, np.zeros(a), np.zeros(b))


def torch_lpips(state, a, b):
    """From its definition, in torch: [N, 3, H, W] -> [N]."""
    import torch
    from torch.nn import functional as F

    t = {key: torch.from_numpy(value.astype(np.float32)) for key, value in state.items()}
    shift, scale = (torch.tensor(x).view(1, 3, 1, 1) for x in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))

    def maps(x):
        x, out, n = (x - shift) / scale, [], 0
        for block in range(5):
            x = F.max_pool2d(x, 2) if block else x
            n += bool(block)  # a pooling has a number, as have convolutions and ReLUs
            for _ in range(2 if block < 2 else 3):
                x = F.relu(F.conv2d(x, t[f"features.{n}.weight"], t[f"features.{n}.bias"], padding=1))
                n += 2
            out.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return out

    pairs = zip(maps(a), maps(b), strict=True)
    return sum(F.conv2d((x - y) ** 2, t[f"lin{i}.model.1.weight"]).mean((1, 2, 3)) for i, (x, y) in enumerate(pairs))


@pytest.mark.oracle
def test_lpips_and_its_gradient_are_those_of_torch(state, weights):
    torch = pytest.importorskip("torch")
    a, b = clips(2, 35, 32, 3), clips(2, 35, 32, 3, seed=1)  # an odd height: pooling leaves its last row out
    x, y = (torch.from_numpy(v.transpose(0, 3, 1, 2).copy()) for v in (a, b))
    x.requires_grad_(True)
    want = torch_lpips(state, x, y)
    want.sum().backward()
    got, gradient = jax.jit(jax.value_and_grad(lambda a: jnp.sum(lpips(weights, a, b))))(a)
    np.testing.assert_allclose(lpips(weights, a, b), want.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(got, want.sum().item(), rtol=1e-5)
    slope = x.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gradient, slope, rtol=0, atol=1e-5 * np.abs(slope).max())


@pytest.mark.oracle
def test_the_command_in_the_message_converts(state, weights, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.nn.Parameter(torch.from_numpy(value)) for key, value in state.items()}
    for name, lin in (("vgg16.pth", False), ("vgg.pth", True)):  # torchvision's and lpips' files are two
        torch.save({k: v for k, v in tensors.items() if k.startswith("lin") == lin}, tmp_path / name)
    with pytest.raises(UserError) as caught:
        lpips_weights(tmp_path / "vgg16.pth")
    command = str(caught.value).split("try python ")[1]
    subprocess.run(f"{sys.executable} {command} vgg.pth", shell=True, cwd=tmp_path, check=True)
    for a, b in zip(jax.tree.leaves(lpips_weights(tmp_path / "lpips.npz")), jax.tree.leaves(weights), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.full
def test_gradients_are_finite_where_nothing_is_to_be_seen(weights):
    """Black frames, equal frames, and features that are all zero."""
    dead = weights._replace(biases=tuple(b - 1e3 for b in weights.biases))
    black = jnp.zeros((1, 1, 16, 16, 3))
    slope = jax.jit(jax.grad(lambda a, b, w: jnp.sum(lpips(w, a, b))))
    for w, other in ((weights, black), (dead, black + 0.5)):
        assert np.all(np.isfinite(slope(black, other, w)))
    assert np.any(slope(black, black + 0.5, weights))


# Without weights


def scene(size=32, frames=1, channels=3):
    """Edges, bars and a gradient, [1, T, size, size, C] within [-1, 1]."""
    y, x = np.mgrid[:size, :size] / size
    bars = np.sign(np.sin(9 * x + 4 * y)) * (y > 0.4) + 0.8 * ((x - 0.5) ** 2 + (y - 0.25) ** 2 < 0.03)
    base = 0.5 * bars + 0.3 * (x - 0.5)
    colours = np.linspace(0.6, 1.0, channels)
    moved = np.stack([np.roll(base, 2 * t, axis=1) for t in range(frames)])
    return np.float32(moved[None, ..., None] * colours)


def blurred(x, times):
    for _ in range(times):
        for axis in (2, 3):
            pad = np.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(5)], mode="edge")
            x = sum(w * np.take(pad, range(i, i + x.shape[axis]), axis) for i, w in enumerate((0.25, 0.5, 0.25)))
    return x.astype(np.float32)


def as_far(x, change, mse):
    """x + a multiple of the change, at a mean squared error."""
    return (x + change * np.sqrt(mse / np.mean(change**2))).astype(np.float32)


@pytest.mark.parametrize("shape", [
    (2, 3, 8, 8, 3), (1, 1, 1, 1, 1), (2, 9, 13, 5), (2, 1, 32, 17, 1), (2, 9, 5), (1, 1, 2),
], ids=str)  # fmt: skip
def test_any_size_has_a_distance_that_is_zero_for_equal_inputs_only(shape):
    a, b = clips(*shape), clips(*shape, seed=1)
    got = distance(a, b)
    assert got.shape == shape[: {3: 2, 4: 1, 5: 2}[len(shape)]] and np.all(got > 0.0)
    assert not np.any(distance(a, a))
    nudged = a.copy()
    nudged[(0,) * a.ndim] += 1e-4
    assert distance(nudged, a).reshape(-1)[0] > 0.0
    for x in (a, b):
        slopes = slope(x, b)
        assert all(np.all(np.isfinite(s)) for s in slopes) and np.any(slopes[0]) == (x is a)


@pytest.mark.parametrize("pattern", ["checkers", "columns", "constant", "slope"])
def test_no_pattern_is_invisible(pattern):
    """Not even those that derivatives miss: the finest ones, and the constant."""
    y, x = np.mgrid[:16, :16]
    e = {"checkers": (-1.0) ** (x + y), "columns": (-1.0) ** x, "constant": 1.0 + 0 * x, "slope": x / 16}[pattern]
    b = scene(16)
    assert distance(as_far(b, np.broadcast_to(e[..., None], b.shape), 1e-2), b)[0, 0] > 0.05


def test_lost_and_made_up_structure_costs_more_than_a_shift_of_brightness():
    """All at one mean squared error."""
    b = scene()
    soft = blurred(b, 2)
    mse = np.mean((soft - b) ** 2)
    noise = np.random.default_rng(0).normal(size=b.shape)
    brighter = distance(as_far(b, np.ones_like(b), mse), b)[0, 0]
    assert brighter == pytest.approx(np.sqrt(mse), rel=0.05)  # the first term alone
    assert distance(soft, b)[0, 0] > 2 * brighter
    assert distance(as_far(b, noise, mse), b)[0, 0] > 2 * brighter


def test_more_blur_costs_more():
    b = scene()
    costs = [float(distance(blurred(b, n), b)[0, 0]) for n in (0, 1, 2, 4, 8)]
    assert costs == sorted(costs) and costs[0] == 0.0 and costs[1] > 0.01


def test_what_is_busy_hides_an_error():
    noise = 0.05 * np.random.default_rng(0).normal(size=(1, 1, 32, 32, 3))
    busy, flat = np.random.default_rng(1).choice([-0.5, 0.5], noise.shape), np.zeros(noise.shape)
    assert distance(busy + noise, busy)[0, 0] < 0.5 * distance(flat + noise, flat)[0, 0]


def test_filters_are_of_length_one_and_see_their_own_direction():
    spike = np.zeros((1, 1, 9, 9), np.float32)
    spike[..., 4, 4] = 1.0
    kernels = [np.asarray(r)[0, 0] for r in perceptual._responses(jnp.asarray(spike))]
    for kernel in kernels:
        assert np.linalg.norm(kernel) == pytest.approx(1.0, abs=2e-3) and abs(kernel.sum()) < 1e-6
    y, x = np.mgrid[:32, :32] - 15.5
    for n in (0, 4):
        for k, wave in enumerate((x, y, (x + y) / 2**0.5, (x - y) / 2**0.5)):
            seen = perceptual._responses(jnp.asarray(np.sin(wave)[None, None], jnp.float32))[n : n + 4]
            assert np.argmax([np.mean(np.asarray(r)[..., 4:-4, 4:-4] ** 2) for r in seen]) == k


def test_frames_and_channels_are_compared_apart():
    a, b = clips(2, 3, 16, 16, 2), clips(2, 3, 16, 16, 2, seed=1)
    whole = distance(a, b)
    np.testing.assert_allclose(whole[1:, 2:], distance(a[1:, 2:], b[1:, 2:]), rtol=1e-5)
    one_by_one = [np.asarray(distance(a[..., c : c + 1], b[..., c : c + 1])) for c in range(2)]
    np.testing.assert_allclose(whole, np.mean(one_by_one, axis=0), rtol=1e-5)


def test_a_series_that_shivers_is_further_than_one_that_is_displaced():
    t = np.arange(24)[:, None]
    b = np.float32(np.sin(0.2 * t + np.arange(5)))[None]
    shiver = 0.1 * (-1.0) ** t
    displaced = np.mean(distance(b + 0.1, b))
    assert displaced == pytest.approx(0.1, rel=0.02)
    assert np.mean(distance(np.float32(b + shiver), b)) > 2 * displaced
    assert np.mean(distance(0.5 * b, b)) > 2 * np.mean(distance(b + 0.5 * np.std(b), b) - displaced) > 0.0


def test_series_by_hand():
    """Two frames have the span of 1 alone; then equations (5) to (7) in a few numbers."""
    b, e = np.float32([[[1.0], [3.0]]]), np.float32([[[0.5], [-0.5]]])
    change = np.array([0.0, -1.0]) / 2**0.5
    contrast = np.sqrt(np.array([0.0, (2.0 / 2**0.5) ** 2 / 2]) + 0.01)

    def size(x):
        return np.sqrt(x**2 + 1e-6) - 1e-3

    np.testing.assert_allclose(feature_distance(b + e, b)[0], size(0.5) + size(change) / contrast, rtol=1e-5)


def test_no_frame_of_a_series_depends_on_later_ones():
    a, b = clips(1, 12, 3), clips(1, 12, 3, seed=1)
    whole = distance(a, b)
    np.testing.assert_allclose(distance(a[:, :7], b[:, :7]), whole[:, :7], rtol=1e-6)
    a[:, 7:] += 1.0
    changed = distance(a, b)
    np.testing.assert_array_equal(changed[:, :7], whole[:, :7])
    assert np.all(changed[:, 7:] != whole[:, 7:])


@pytest.mark.parametrize("a, b, words", [
    ((1, 2, 8, 8, 3), (1, 2, 8, 8, 1), "must be equal"),
    ((4, 4), (4, 4), r"\[B, T, C\]"),
    ((1, 0, 3), (1, 0, 3), "none empty"),
])  # fmt: skip
def test_shapes_that_have_no_distance(a, b, words):
    with pytest.raises(UserError, match=words):
        feature_distance(np.zeros(a), np.zeros(b))
