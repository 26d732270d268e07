"""Which encoder turns prompts into condition tokens."""

import dataclasses

from causal_diffusion.ranges import Range, check_numbers

ENCODERS = {
    "none": "prompts are handed over as tokens",
    "words": "word ids, embedded by a layer that the transformer trains",
    "distilbert": "DistilBERT (CMDM)",
    "clip": "CLIP's text tower",
    "t5": "the encoder of T5",
    "umt5": "the encoder of UMT5 (Wan)",
}

MOST_WORDS = 64  # of a prompt that the transformer embeds itself


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text encoder. All but 'words' are frozen networks with weights of their own."""

    encoder: str = "none"  # a key of ENCODERS
    path: str = ""  # of a frozen encoder: its folder, or its name in the user's hub cache
    tokens: int = 24  # condition tokens of a prompt: longer ones are cut, shorter ones padded
    cache: str = ""  # of a frozen encoder: folder in which the tokens of captions are kept; '': they are not

    def __post_init__(self):
        if self.encoder not in ENCODERS:
            raise ValueError(f"text.encoder is {self.encoder!r}; it is one of {', '.join(ENCODERS)}")
        check_numbers(self, "text", tokens=Range(1, 4_096))
        if self.encoder == "words" and self.tokens > MOST_WORDS:
            raise ValueError(
                f"text.tokens is {self.tokens} and text.encoder is 'words': at most {MOST_WORDS} words have a place, "
                f"text.tokens = {MOST_WORDS} would do"
            )
        for name in ("path", "cache"):
            if getattr(self, name) and self.encoder in ("none", "words"):
                raise ValueError(
                    f"text.{name} is {getattr(self, name)!r} and text.encoder is {self.encoder!r}: it belongs to a "
                    f"frozen encoder, text.{name} = '' would do"
                )

    @property
    def fixed(self) -> int:
        """Condition tokens of every prompt; 0: any number."""
        return 0 if self.encoder == "none" else self.tokens
