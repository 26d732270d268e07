import dataclasses

import numpy as np
import pytest

from causal_diffusion.data.array_source import ArraySource
from causal_diffusion.data.config import DataConfig
from causal_diffusion.data.sources import spec_of
from causal_diffusion.errors import UserError

VIDEO = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 6, 1), np.uint8)


def test_values_labels_and_actions_arrive():
    action = np.arange(24.0).reshape(4, 3, 2)
    source = ArraySource(VIDEO, label=np.array([3, 1, 4, 1]), action=action)
    assert len(source) == 4
    element = source[2]
    np.testing.assert_allclose((element["video"] + 1) * 127.5, VIDEO[2], atol=1e-4)
    assert element["video"].dtype == np.float32
    assert element["label"] == 4 and element["label"].dtype == np.int32 and element["label"].shape == ()
    np.testing.assert_array_equal(element["action"], action[2])
    assert element["action"].dtype == np.float32


def test_uint8_reaches_both_ends_exactly():
    source = ArraySource(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1, 1))
    assert source[0]["video"].item() == -1 and source[1]["video"].item() == 1


def test_floats_pass_unchanged_and_are_not_shared():
    video = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 2, 2, 1)
    element = ArraySource(video)[1]
    np.testing.assert_array_equal(element["video"], video[1])
    element["video"][:] = 0
    assert video[1].any()
    assert set(element) == {"video"}


def test_repr_is_deterministic():
    source = ArraySource(VIDEO, label=[0, 1, 2, 3])
    assert repr(source) == "ArraySource(video=uint8[4, 3, 5, 6, 1], label=int64[4])"


def test_iteration_ends():
    assert len(list(ArraySource(VIDEO))) == 4


@pytest.mark.parametrize("arguments, message", [
    ((VIDEO[..., 0],), r"\[clip, frame, height, width, channel\], got shape \(4, 3, 5, 6\)"),
    ((VIDEO.astype(np.int32),), "must be uint8 or floating point in .*, got int32"),
    ((VIDEO, [0, 1, 2]), r"label must be integers of shape \(4,\), one per clip, got int64 of shape \(3,\)"),
    ((VIDEO, [0.0, 1, 2, 3]), "label must be integers .* got float64"),
    ((VIDEO, None, np.zeros((4, 2, 2))), r"action must have shape \(4, 3, numbers\).* got \(4, 2, 2\)"),
])
def test_wrong_arrays(arguments, message):
    with pytest.raises(UserError, match=message):
        ArraySource(*arguments)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [255.0, np.nan])
def test_values_out_of_range_name_the_clip(value, channels):
    video = np.zeros((3, 2, 2, 2, channels))
    video[1, 0, 0, 0, 0] = value
    source = ArraySource(video)
    assert source[0]["video"].max() == 0
    with pytest.raises(UserError, match=r"clip 1 of video has (values from|a value that is not finite)"):
        source[1]


@pytest.mark.parametrize("channels", [2, 4, 16])
def test_latents_are_as_large_as_they_are(channels):
    video = 10 * np.random.default_rng(0).standard_normal((3, 2, 2, 2, channels))
    np.testing.assert_array_equal(ArraySource(video)[1]["video"], video[1].astype(np.float32))
    for value in (np.nan, np.inf, -np.inf):
        video[1, 0, 1, 0, 0] = value
        with pytest.raises(UserError, match="clip 1 of video has a value that is not finite"):
            ArraySource(video)[1]


def test_a_config_states_any_number_of_channels_for_clips_of_ones_own():
    latents = ArraySource(np.full((2, 3, 4, 5, 8), 7.0))
    config = DataConfig(source="own", frames=3, height=4, width=5, channels=8)
    assert spec_of(latents, config)["video"].shape == (3, 4, 5, 8)
    for source in ("moving_digits", "video_folder"):
        with pytest.raises(UserError, match=r"data.channels must be 1 \(grey\) or 3 \(RGB\), got 8"):
            dataclasses.replace(config, source=source)
    with pytest.raises(UserError, match="data.channels is 0; it is at least 1"):
        dataclasses.replace(config, channels=0)
