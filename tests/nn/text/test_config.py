"""What a config may say of the text encoder."""

import pytest

from causal_diffusion.nn.text.config import ENCODERS, MOST_WORDS, TextConfig
from causal_diffusion.nn.text.word_embedding import WordEmbedding


def test_prompts_have_a_fixed_number_of_tokens_where_there_is_an_encoder():
    assert TextConfig().fixed == 0
    for encoder in ENCODERS:
        assert TextConfig(encoder, tokens=7).fixed == (7 if encoder != "none" else 0)


def test_words_have_as_many_places_as_the_embedding():
    assert WordEmbedding(vocabulary=5, width=4).tokens == MOST_WORDS
    assert TextConfig("words", tokens=MOST_WORDS).tokens == MOST_WORDS


@pytest.mark.parametrize(("values", "said"), [
    (dict(encoder="bert"), "text.encoder is 'bert'; it is one of none, words, distilbert, clip, t5, umt5"),
    (dict(tokens=0), "text.tokens is 0; it is at least 1, try text.tokens = 1"),
    (dict(encoder="words", tokens=65), "at most 64 words have a place, text.tokens = 64 would do"),
    (dict(encoder="words", path="x"), "text.path is 'x' and text.encoder is 'words': .*text.path = '' would do"),
    (dict(cache="x"), "text.cache is 'x' and text.encoder is 'none': .*text.cache = '' would do"),
])  # fmt: skip
def test_values_that_cannot_be_are_refused(values, said):
    with pytest.raises(ValueError, match=said) as refusal:
        TextConfig(**values)
    assert "\n" not in str(refusal.value)
