"""The transformer in Wan 2.1's form against diffusers' WanTransformer3DModel: sizes, and number by number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.nn.embedders import Condition
from causal_diffusion.nn.transformer import Stream, Transformer, TransformerConfig

pytestmark = pytest.mark.oracle

HEADS, WIDTH, CHANNELS, TEXT, PATCH = 2, 40, 3, 7, (1, 2, 2)
SIZES = dict(
    patch_size=PATCH, num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, in_channels=CHANNELS,
    out_channels=CHANNELS, text_dim=TEXT, freq_dim=32, ffn_dim=48, num_layers=2, rope_max_seq_len=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def wan(torch):
    return pytest.importorskip("diffusers").WanTransformer3DModel


def test_as_many_parameters_as_wan_1_3b(torch, wan):
    with torch.device("meta"):
        theirs = wan(
            patch_size=(1, 2, 2), num_attention_heads=12, attention_head_dim=128, in_channels=16, out_channels=16,
            text_dim=4096, freq_dim=256, ffn_dim=8960, num_layers=30,
        )  # fmt: skip
    assert sum(p.numel() for p in theirs.parameters()) == 1_418_996_800  # test_transformer.py has it of ours


def linear(weights, name):
    return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}


def attention(weights, name):
    parts = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
    return {ours: linear(weights, f"{name}.{theirs}") for ours, theirs in parts.items()} | {
        f"{part}_norm": {"scale": weights[f"{name}.norm_{part}.weight"]} for part in "qk"
    }


def ours_from(weights):
    """Weights of diffusers' model in our tree."""
    patches = weights["patch_embedding.weight"]  # [D, C, time, height, width]; our patches have channels last
    params = {
        "embed": {
            "kernel": patches.transpose(2, 3, 4, 1, 0).reshape(-1, len(patches)),
            "bias": weights["patch_embedding.bias"],
        },
        "projection": linear(weights, "condition_embedder.time_proj"),
        "head": linear(weights, "proj_out"),
        "head_modulation": {"table": weights["scale_shift_table"][0]},
    }
    for ours, theirs in {"time": "time_embedder", "text": "text_embedder"}.items():
        layers = {"in": "linear_1", "out": "linear_2"}
        params[ours] = {a: linear(weights, f"condition_embedder.{theirs}.{b}") for a, b in layers.items()}
    for i in range(SIZES["num_layers"]):
        params[f"block_{i}"] = {
            "modulation": {"table": weights[f"blocks.{i}.scale_shift_table"][0]},
            "attention": attention(weights, f"blocks.{i}.attn1"),
            "cross_attention": attention(weights, f"blocks.{i}.attn2"),
            "cross_norm": {
                "scale": weights[f"blocks.{i}.norm2.weight"],
                "bias": weights[f"blocks.{i}.norm2.bias"],
            },
            "mlp_in": linear(weights, f"blocks.{i}.ffn.net.0.proj"),
            "mlp_out": linear(weights, f"blocks.{i}.ffn.net.2"),
        }
    return params


@pytest.fixture(scope="module")
def pair(torch, wan):
    """diffusers' model with random weights, and ours with the same ones."""
    rng = np.random.default_rng(0)
    theirs = wan(**SIZES).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            p.copy_(torch.from_numpy(around + 0.3 * rng.normal(size=tuple(p.shape))))
    ours = Transformer(
        TransformerConfig(
            width=WIDTH, depth=2, heads=HEADS, mlp=48, patch=PATCH, channels=CHANNELS, text=TEXT, text_layers=2,
            frequencies=32, modulation="table", head="table", dtype="float32",
        )
    )  # fmt: skip
    return theirs, ours, ours_from({name: p.numpy() for name, p in theirs.state_dict().items()})


@pytest.mark.parametrize("levels", ["one for all frames", "one per frame"])
def test_outputs_are_equal(torch, pair, levels):
    """Order of attention, rotary axes, modulation, GELU, head: one slip in any of them and this fails."""
    theirs, ours, params = pair
    rng = np.random.default_rng(1)
    B, T, height, width, M = 2, 3, 4, 6, 5
    x = rng.normal(size=(B, T, height, width, CHANNELS)).astype(np.float32)
    text = rng.normal(size=(B, M, TEXT)).astype(np.float32)
    t = rng.uniform(0.05, 0.95, (B, T)).astype(np.float32)
    tokens = height * width // 4
    if levels == "one for all frames":
        t = np.repeat(t[:, :1], T, axis=1)
        timestep = torch.from_numpy(1000 * t[:, 0])
    else:
        timestep = torch.from_numpy(1000 * np.repeat(t, tokens, axis=1))
    with torch.no_grad():
        expected = theirs(
            hidden_states=torch.from_numpy(x.transpose(0, 4, 1, 2, 3).copy()),
            timestep=timestep,
            encoder_hidden_states=torch.from_numpy(text),
        ).sample
    expected = expected.numpy().transpose(0, 2, 3, 4, 1)
    stream = Stream(x=jnp.asarray(x), t=jnp.asarray(t), frame=jnp.broadcast_to(jnp.arange(T), (B, T)))
    condition = Condition(text=jnp.asarray(text)[:, None])
    everything = np.ones((T, T), bool)
    shapes = jax.eval_shape(ours.init, jax.random.key(0), {"noisy": stream}, condition, everything)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    out, _ = jax.jit(ours.apply)({"params": params}, {"noisy": stream}, condition, everything)
    assert np.abs(out["noisy"] - expected).max() < 1e-4 * np.abs(expected).max()
    if levels == "one per frame":
        flat = np.repeat(t[:, :1], T, axis=1)
        other, _ = jax.jit(ours.apply)(
            {"params": params}, {"noisy": Stream(stream.x, flat, stream.frame)}, condition, everything
        )
        assert np.abs(other["noisy"] - expected).max() > 1e-2 * np.abs(expected).max()
