"""Sources of one's own: labels, words and frames are checked in the row in which they are read."""

import numpy as np
import pytest

from causal_diffusion.config import Config, override
from causal_diffusion.data.array_source import ArraySource
from causal_diffusion.data.checked import Checked
from causal_diffusion.data.config import DataConfig
from causal_diffusion.errors import UserError
from causal_diffusion.recipe import build
from causal_diffusion.training.kept import checked
from causal_diffusion.training.loop import train

DATA = DataConfig(source="own", frames=4, height=8, width=8, classes=3)


class Rows:
    """Three elements; ``change`` is put into the second."""

    body = "a body"

    def __init__(self, **change):
        self._change = change

    def __len__(self):
        return 3

    def __repr__(self):
        return "Rows()"

    def __getitem__(self, i):
        element = {"video": np.full((4, 8, 8, 1), 0.25, np.float32), "label": np.int32(i)}
        return element | (self._change if i == 1 else {})


def rows(**change):
    return Checked(Rows(**change), DATA, classes=3, vocabulary=10, frames=4)


def test_what_is_right_comes_as_it_is():
    source = rows(text=np.array([1, 9, 0]), label=np.int64(-1))
    assert (repr(source), len(source), source.body) == ("Rows()", 3, "a body")
    for i in range(3):
        np.testing.assert_array_equal(source[i]["video"], np.full((4, 8, 8, 1), 0.25))
    assert source[1]["label"] == -1  # no label


def test_pixels_are_mapped():
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    taken = rows(video=pixels)[1]["video"]
    assert taken.dtype == np.float32 and (taken.min(), taken.max()) == (-1.0, 1.0)


@pytest.mark.parametrize(("change", "said"), [
    (dict(label=np.int32(3)), "label of clip 1 is 3; classes are 0 .. 2, .* try model.classes = 4"),
    (dict(label=np.int64(2**32)), "label of clip 1 is 4294967296; classes are 0 .. 2"),
    (dict(label=-2), "label of clip 1 is -2; classes are 0 .. 2, and -1 is none: count from 0"),
    (dict(label=np.float32(1.0)), r"label of clip 1 is float32\[\]; it is one integer"),
    (dict(label=np.array([1])), r"label of clip 1 is int64\[1\]; it is one integer"),
    (dict(text=np.array([3, 10])), "text of clip 1 has ids 3 .. 10; ids of words are 0 .. 9, try model.vocabulary = 1"),
    (dict(text=np.array([-1, 0])), "text of clip 1 has ids -1 .. 0; ids of words are 0 .. 9"),
    (dict(text=np.array([1.0])), "text of clip 1 is float64; .* ids of words, integers"),
    (dict(video=np.full((4, 8, 8, 1), 2.0)), "video of clip 1 has values from 2 to 2: .* within 0.001"),
    (dict(video=np.full((4, 8, 8, 1), np.nan)), "video of clip 1 has a value that is not finite, at"),
    (dict(video=np.zeros((4, 8, 8, 1), int)), "video of clip 1 is int64"),
    (dict(video=np.zeros((4, 8, 9, 1))), r"video of clip 1 is \(4, 8, 9, 1\); .* it is \(4, 8, 8, 1\)"),
    (dict(video=np.zeros((5, 8, 8, 1))), r"video of clip 1 is \(5, 8, 8, 1\); .* it is \(4, 8, 8, 1\)"),
    (dict(action=np.full((4, 2), np.inf)), "action of clip 1 has a value that is not finite"),
])  # fmt: skip
def test_what_is_wrong_names_its_row(change, said):
    source = rows(**change)
    source[0], source[2]
    with pytest.raises(UserError, match=said) as error:
        source[1]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("label", "said"), [([0, -2], "label of clip 1 is -2"), ([2**31, 0], "label of clip 0 is 21")])
def test_labels_of_arrays_are_classes(label, said):
    with pytest.raises(UserError, match=said):
        ArraySource(np.zeros((2, 4, 8, 8, 1), np.uint8), label=np.array(label))


SYSTEM = {
    "data.source": "own", "data.height": 8, "data.width": 8, "data.frames": 4, "data.classes": 10, "model.classes": 10,
    "model.width": 16, "model.heads": 2, "model.depth": 1, "model.mlp": 16, "model.patch": (1, 8, 8), "train.batch": 2,
    "evaluate.clips": 0,
}  # fmt: skip


@pytest.mark.parametrize("label", [10, 57])
def test_a_run_refuses_labels_beyond_its_classes(tmp_path, label):
    source = ArraySource(np.zeros((8, 4, 8, 8, 1), np.uint8), label=np.full(8, label))
    with pytest.raises(UserError, match=f"label of clip 0 is {label}; classes are 0 .. 9"):
        train(override(Config(), SYSTEM), tmp_path, source=source)
    held_out = checked(source, override(Config(), SYSTEM))
    with pytest.raises(UserError, match=f"label of clip 5 is {label}"):
        held_out[5]


def test_fewer_classes_than_the_data_have_are_refused():
    build(override(Config(), SYSTEM))
    build(override(Config(), SYSTEM | {"model.classes": 12}))
    with pytest.raises(UserError, match="model.classes is 5 and the data have 10 classes: .* try model.classes = 10"):
        build(override(Config(), SYSTEM | {"model.classes": 5}))
