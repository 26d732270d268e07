"""diffusers' WanTransformer3DModel with our weights: every pass takes the whole context, in both directions."""

import numpy as np
import torch

from benchmarks.peers.transformer import THREADS
from causal_diffusion.nn.config import TransformerConfig


def weights(params: dict) -> dict:
    """Our parameters, in canonical form, under diffusers' names."""
    out = {}

    def linear(name, ours):
        out[f"{name}.weight"], out[f"{name}.bias"] = np.array(ours["kernel"]).T, np.array(ours["bias"])

    for ours, theirs in {"time": "time_embedder", "text": "text_embedder"}.items():
        for a, b in {"in": "linear_1", "out": "linear_2"}.items():
            linear(f"condition_embedder.{theirs}.{b}", params[ours][a])
    linear("condition_embedder.time_proj", params["projection"])
    linear("proj_out", params["head"])
    out["scale_shift_table"] = np.array(params["head_modulation"]["table"])[None]
    for name in (name for name in params if name.startswith("block_")):
        block, there = params[name], f"blocks.{name.removeprefix('block_')}"
        for ours, theirs in {"attention": "attn1", "cross_attention": "attn2"}.items():
            for a, b in {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}.items():
                linear(f"{there}.{theirs}.{b}", block[ours][a])
            for part in "qk":
                out[f"{there}.{theirs}.norm_{part}.weight"] = np.array(block[ours][f"{part}_norm"]["scale"])
        out[f"{there}.norm2.weight"] = np.array(block["cross_norm"]["scale"])
        out[f"{there}.norm2.bias"] = np.array(block["cross_norm"]["bias"])
        out[f"{there}.scale_shift_table"] = np.array(block["modulation"]["table"])[None]
        linear(f"{there}.ffn.net.0.proj", block["mlp_in"])
        linear(f"{there}.ffn.net.2", block["mlp_out"])
    return out


class Recompute:
    """Denoises the last frame of a context by Euler steps of a velocity, all frames going through every pass."""

    def __init__(self, c: TransformerConfig, params: dict, text, times):
        """``text``: condition tokens [M, E]; ``times``: the levels from noise to clean."""
        from diffusers import WanTransformer3DModel

        torch.set_num_threads(THREADS)
        self.model = WanTransformer3DModel(
            patch_size=c.patch, num_attention_heads=c.heads, attention_head_dim=c.width // c.heads,
            in_channels=c.channels, out_channels=c.channels, text_dim=c.text, freq_dim=c.frequencies, ffn_dim=c.mlp,
            num_layers=c.depth,
        ).eval()  # fmt: skip
        ours = weights(params)
        patches = np.array(params["embed"]["kernel"]).reshape(*c.patch, c.channels, c.width)
        ours["patch_embedding.weight"] = patches.transpose(4, 3, 0, 1, 2)
        ours["patch_embedding.bias"] = np.array(params["embed"]["bias"])
        self.model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in ours.items()})
        self.text, self.times = torch.from_numpy(np.array(text))[None], [float(t) for t in times]

    @torch.inference_mode()
    def next(self, frames):
        """The last frame of ``frames`` [1, T, *space, C], which is noise, denoised: [1, 1, *space, C]."""
        x = torch.from_numpy(frames).movedim(-1, 1).contiguous()
        for t, s in zip(self.times, self.times[1:], strict=False):
            out = self.model(x, torch.tensor([1000.0 * t]), self.text).sample
            x[:, :, -1] += (s - t) * out[:, :, -1]
        return x[:, :, -1:].movedim(1, -1).numpy()
