"""Captions as condition tokens: equal captions have equal tokens, of words or of a frozen encoder."""

import copy
import pickle

import numpy as np
import pytest

from causal_diffusion.data.captioned import Captioned
from causal_diffusion.data.pipeline import Loader
from causal_diffusion.errors import UserError
from causal_diffusion.nn.text.words import Words

CAPTIONS = ["a person walks", "a person waves", "a person walks", "someone jumps up and down", "a person waves"]


class Source:
    def __init__(self, captions=CAPTIONS, count=5):
        self.captions, self._count = captions, count

    def __len__(self):
        return self._count

    def __getitem__(self, i):
        return {"video": np.full((2, 3), range(len(self))[i], np.float32)}


class Frozen:
    """Three tokens of width two for a caption, of its length and its first letter; counts what it is asked."""

    def __init__(self):
        self.asked = []

    def encode(self, captions):
        self.asked += captions
        text = np.array([[[len(c) / 3, ord(c[0]) + i / 7] for i in range(3)] for c in captions], np.float32)
        return text, np.array([[True, True, len(c) > 15] for c in captions])


def test_words_are_ids_and_equal_captions_are_equal():
    source = Source()
    words = Words.of(source.captions, tokens=4)
    got = [Captioned(source, words.encode)[i] for i in range(5)]
    for i, element in enumerate(got):
        assert set(element) == {"video", "text", "text_mask"}
        assert element["text"].dtype == np.int32 and element["text_mask"].dtype == np.bool_
        np.testing.assert_array_equal(element["text"], words.encode([CAPTIONS[i]])[0][0])
        np.testing.assert_array_equal(element["text_mask"], words.encode([CAPTIONS[i]])[1][0])
        np.testing.assert_array_equal(element["video"], i)
    assert not np.array_equal(got[0]["text"], got[1]["text"])


def test_a_frozen_encoder_is_asked_once_per_caption():
    encoder = Frozen()
    source = Captioned(Source(), encoder.encode, numbered=True)
    assert sorted(encoder.asked) == sorted(set(CAPTIONS))
    numbers = [int(source[i]["caption"]) for i in range(5)]
    assert [[a == b for b in numbers] for a in numbers] == [[a == b for b in CAPTIONS] for a in CAPTIONS]
    for i, caption in enumerate(CAPTIONS):
        text, mask = encoder.encode([caption])
        assert source[i]["text"].dtype == np.float32 and source[i]["caption"].dtype == np.int32
        np.testing.assert_array_equal(source[i]["text"], text[0].astype(np.float16))
        np.testing.assert_array_equal(source[i]["text_mask"], mask[0])
    assert "caption" not in Captioned(Source(), encoder.encode)[0]


def test_it_is_the_source_in_everything_else():
    source = Source()
    source.body, words = "a body", Words.of(CAPTIONS, tokens=4)
    dressed = Captioned(source, words.encode)
    assert (len(dressed), dressed.body, dressed.captions) == (5, "a body", CAPTIONS)
    np.testing.assert_array_equal(dressed[-1]["video"], 4)
    with pytest.raises(IndexError):
        dressed[5]
    with pytest.raises(AttributeError):
        _ = dressed.nothing
    assert "Source" in repr(dressed) and "tokens=[4]" in repr(dressed)
    for twin in (copy.copy(dressed), pickle.loads(pickle.dumps(dressed))):
        np.testing.assert_array_equal(twin[3]["text"], dressed[3]["text"])
    loader = Loader(dressed, batch=2, seed=0, threads=0)
    batch = next(loader)
    loader.close()
    assert batch["text"].shape == (2, 4) and batch["text"].dtype == np.int32


@pytest.mark.parametrize("captions", [None, [], CAPTIONS[:4], [""] * 5])
def test_a_source_without_captions_is_refused(captions):
    with pytest.raises(UserError) as refusal:
        Captioned(Source(captions), Frozen().encode)
    assert str(refusal.value) == "text.encoder reads captions, and Source has none: text.encoder = 'none' would do"
