import numpy as np
import pytest

from causal_diffusion.data.config import DataConfig, held_out_count
from causal_diffusion.data.sources import SOURCES, condition_sizes, element_spec, make_source
from causal_diffusion.errors import UserError


@pytest.mark.parametrize("config", [DataConfig(), DataConfig(frames=3, height=9, channels=3, digits=2)])
def test_spec_of_moving_digits_matches_an_element(config):
    element = make_source(config, "train")[0]
    assert {k: (v.shape, v.dtype) for k, v in element.items()} == {
        k: (s.shape, s.dtype) for k, s in element_spec(config).items()}
    assert set(element) == {"video", "label", "action"}
    assert condition_sizes(config) == (10, 2)


def test_spec_of_a_video_folder_needs_no_data():
    config = DataConfig(source="video_folder", path="nowhere", frames=5, height=6, width=7, channels=3)
    assert {k: s.shape for k, s in element_spec(config).items()} == {"video": (5, 6, 7, 3)}
    config = DataConfig(source="video_folder", frames=5, classes=4, action_dim=3)
    spec = element_spec(config)
    assert spec["label"].shape == () and spec["label"].dtype == np.int32
    assert spec["action"].shape == (5, 3) and spec["action"].dtype == np.float32
    assert condition_sizes(config) == (4, 3)


def test_every_source_in_the_table_has_a_spec():
    for name in SOURCES:
        assert element_spec(DataConfig(source=name))["video"].shape == (12, 16, 16, 1)


def test_unknown_source_names_the_nearest():
    with pytest.raises(UserError, match="'moving_digit' is unknown: did you mean 'moving_digits'"):
        make_source(DataConfig(source="moving_digit"), "train")
    with pytest.raises(UserError, match="did you mean 'video_folder'"):
        element_spec(DataConfig(source="videofolder"))


@pytest.mark.parametrize("source", list(SOURCES))
def test_nothing_is_held_out(source):
    config = DataConfig(source=source, holdout=0.0, path="nowhere")
    with pytest.raises(UserError, match="data.holdout is 0, so nothing is held out"):
        make_source(config, "test")


def test_unknown_split():
    with pytest.raises(ValueError, match="'train', 'test'.* got 'validation'"):
        make_source(DataConfig(), "validation")


@pytest.mark.parametrize("key, value, message", [
    ("frames", 0, "data.frames is 0; it is at least 1, try data.frames = 1"),
    ("height", -4, "data.height is -4; it is at least 1, try data.height = 1"),
    ("width", 0, r"data.width is -?\d; .* try data.width = \d"),
    ("stride", 0, r"data.stride is -?\d; .* try data.stride = \d"),
    ("digits", 0, r"data.digits is -?\d; .* try data.digits = \d"),
    ("fps", float("nan"), "data.fps is nan; it is at least 0, try data.fps = 0.0"),
    ("classes", -1, r"data.classes is -?\d; .* try data.classes = \d"),
    ("action_dim", -1, r"data.action_dim is -?\d; .* try data.action_dim = \d"),
    ("seed", -1, r"data.seed is -?\d; .* try data.seed = \d"),
    ("threads", -1, r"data.threads is -?\d; .* try data.threads = \d"),
    ("prefetch", -1, r"data.prefetch is -?\d; .* try data.prefetch = \d"),
    ("channels", 2, r"data.channels must be 1 \(grey\) or 3 \(RGB\), got 2"),
    ("speed", 0.0, "data.speed is 0.0; it is positive, try data.speed = 1.25"),
    ("holdout", 1.0, r"data.holdout is 1.0; it lies in \[0, 1\), try data.holdout = 0.1"),
])
def test_impossible_values_are_refused_at_once(key, value, message):
    with pytest.raises(UserError, match=message) as error:
        DataConfig(**{key: value})
    assert "\n" not in str(error.value)


def test_held_out_count_leaves_something_on_both_sides():
    assert [held_out_count(n, 0.1) for n in (2, 5, 10, 25, 1000)] == [1, 1, 1, 2, 100]
    assert held_out_count(3, 0.99) == 2
    assert held_out_count(1, 0.5) == 0
    assert held_out_count(50, 0.0) == 0
