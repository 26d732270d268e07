"""Encoding a data set with real autoencoders: from a folder and back as latents, whole clips, through kills."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from causal_diffusion import encode
from causal_diffusion.encode import encode_source
from tests.data.encoded import contents, records
from tests.data.toy_vae import Whole

ROOT = Path(__file__).parents[1]


def test_a_trained_vae_from_its_folder_and_back_as_latents(tmp_path, capsys):
    """The module itself as a command's main: moving digits, the video autoencoder, both splits, and the reader."""
    from causal_diffusion.autoencoder import fingerprint, save_vae
    from causal_diffusion.data.config import DataConfig
    from causal_diffusion.data.latents import Latents, check_made_by
    from causal_diffusion.data.sources import make_source
    from causal_diffusion.nn.vae import VAE, VAEConfig
    from causal_diffusion.nn.video_vae import VideoVAEConfig

    sizes = VideoVAEConfig(channels=1, base=4, latent=2, multipliers=(1, 2), time_down=(True,), blocks=1)
    vae = VAE(VAEConfig("video", video=sizes))
    params = untrained(vae)
    save_vae(tmp_path / "vae", vae, params)
    for split in ("train", "test"):
        encode.main([f"--vae={tmp_path / 'vae'}", "--config=quickstart", f"--out={tmp_path / 'set'}", "--clips=4",
                     f"--split={split}", "--config.data.frames=5", "--shard_clips=3"])  # fmt: skip
    assert capsys.readouterr().out.splitlines()[1] == f"{tmp_path / 'set/test'}: 4 clips, 12 latents in 2 shards"
    latents = Latents(DataConfig(source="latents", path=str(tmp_path / "set"), frames=3, height=8, width=8, channels=2,
                                 classes=10, action_dim=2), "test")  # fmt: skip
    check_made_by(latents, fingerprint(vae, params), "the folder")
    source = make_source(DataConfig(frames=5), "test")
    expected = np.asarray(vae.encode(params, np.stack([source[i]["video"] for i in range(3)])))
    assert len(latents) == 4
    for i in range(3):
        denormalised = latents[i]["video"] * np.float32(latents.std) + np.float32(latents.mean)
        np.testing.assert_allclose(denormalised, expected[i], atol=1e-5 * np.abs(expected).max())
        assert latents[i]["label"] == source[i]["label"] and latents[i]["action"].shape == (3, 2)
        np.testing.assert_allclose(latents[i]["action"][1], source[i]["action"][1:3].mean(axis=0), rtol=1e-6)
    assert latents.vae_config["form"] == "video" and latents.vae_config["video"]["base"] == 4


def untrained(vae):
    """Parameters that are cheaper to make than those of ``init``, and no closer to zero."""
    import jax

    like, rng = jax.eval_shape(vae.init, jax.random.key(0)), np.random.default_rng(0)
    return jax.tree.map(lambda a: (0.2 * rng.standard_normal(a.shape)).astype(np.float32), like)


def test_whole_clips_through_the_motion_vae(tmp_path):
    """Padded, streamed in pieces and in batches: the latents of each clip by itself."""
    from causal_diffusion.nn.motion_vae import MotionVAEConfig
    from causal_diffusion.nn.vae import VAE, VAEConfig

    vae = VAE(VAEConfig("motion", motion=MotionVAEConfig(channels=3, latent=2, width=8, align=0)))
    params, whole = untrained(vae), Whole((17, 41, 15, 41))  # 4, 10, 3 latents
    encode_source(vae, params, whole, tmp_path, fingerprint="x", whole=True, piece=4, batch=2, progress=False)
    for i, clip in enumerate(records(tmp_path)[1][:2]):
        frames = whole.clip(i)[None, : len(whole.clip(i)) // 4 * 4]
        expected = np.asarray(vae.encode(params, frames))[0]
        np.testing.assert_allclose(clip["latents"], expected, atol=1e-5 * np.abs(expected).max())


MOTION = """
    import os, sys, time
    import numpy as np
    from causal_diffusion.data.config import DataConfig
    from causal_diffusion.data.motion_clips import MotionClips
    from causal_diffusion.encode import encode_source
    from causal_diffusion.nn.motion_vae import MotionVAEConfig
    from causal_diffusion.nn.vae import VAE, VAEConfig
    from tests.test_encode_vaes import untrained

    vae = VAE(VAEConfig("motion", motion=MotionVAEConfig(channels=65, latent=8, width=32, align=0)))
    data = DataConfig(source="motion_clips", path=sys.argv[1], frames=32, height=0, width=0, channels=65)
    encode_source(vae, untrained(vae), MotionClips(data, "train"), sys.argv[2], fingerprint="untrained", whole=True,
                  shard_clips=128, batch=16, progress=False)
"""


@pytest.mark.full
def test_the_whole_motion_set_encoded_through_kills_has_the_same_bytes(tmp_path):
    """kill -9 from outside, three times, wherever it is just then; then to the end."""
    folder = Path(os.environ.get("CD_SHARED_DATA", ROOT.parent / "shared" / "data")) / "motion"
    if not folder.is_dir():
        pytest.skip("the shared motion clips are not here (CD_SHARED_DATA)")

    def start(out):
        command = [sys.executable, "-c", textwrap.dedent(MOTION), str(folder), str(out)]
        with open(tmp_path / "stderr", "a") as told:
            return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=told)

    files = [np.load(path) for path in folder.glob("*_train_*.npz")]
    clips = sum(len(file["name"]) for file in files)
    for file in files:
        file.close()
    count = -(-clips // 128)
    assert start(tmp_path / "whole").wait() == 0, (tmp_path / "stderr").read_text()
    out, rng = tmp_path / "killed", np.random.default_rng(0)
    for kill in range(1, 4):
        process = start(out)
        while len(list(out.glob("*.array_record"))) < kill * count // 5 and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -9, (tmp_path / "stderr").read_text()
        assert (out / "unfinished").is_dir() and not (out / "meta.json").exists()
    assert start(out).wait() == 0, (tmp_path / "stderr").read_text()
    expected = contents(tmp_path / "whole")
    assert contents(out) == expected and len(expected) == count + 1
    meta, encoded = records(out)
    assert meta["clips"] == len(encoded) == clips > 2000
    every = np.concatenate([clip["latents"] for clip in encoded]).astype(np.float64)
    np.testing.assert_allclose(meta["mean"], every.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(meta["std"], every.std(axis=0), rtol=1e-12)
