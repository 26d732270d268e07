"""Words as tokens, for data with a small vocabulary: nothing to download, and trained with the model.

    "A person waves, then says bye-bye."  ->  a person waves then says bye-bye  ->  [2, 5, 41, 9, 17, 0, 0, ...]

Id 0 is padding, 1 a word that is not in the vocabulary, words count from 2. ``word_embedding`` embeds them, as a part
of the model.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from causal_diffusion.checkpoint.leaves import reason_of, replacing
from causal_diffusion.errors import UnreadableError, UserError
from causal_diffusion.file_access import sealed, unsealed
from causal_diffusion.jax_settings import under_own_settings
from causal_diffusion.nn.text.base import TextEncoder, Warned, check_tokens, checked_captions
from causal_diffusion.nn.text.word_embedding import PADDING
from causal_diffusion.text_files import read_json

log = logging.getLogger(__name__)

FILE = "words.json"
FORMAT = 2
FORMATS = (1, FORMAT)  # that are read; 1 has no checksum
UNKNOWN, FIRST = 1, 2  # ids beside PADDING

WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")


def split(caption: str) -> list[str]:
    """The words of a caption, lower case and without punctuation; hyphens and apostrophes inside a word stay."""
    text = unicodedata.normalize("NFKC", caption).lower().replace("\u2019", "'").replace("\u2010", "-")
    return WORD.findall(text)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Words, of which number i has the id i + 2.

    Raises:
        ValueError: a word is no word (``split`` would not return it as it is), or is there twice.
    """

    words: tuple[str, ...]

    def __post_init__(self):
        for word in self.words:
            if not isinstance(word, str) or split(word) != [word]:
                raise ValueError(f"{word!r} is no word; lower case without spaces, such as 'walks', would do")
        if len(self._ids) < len(self.words):
            twice = next(word for word, n in collections.Counter(self.words).items() if n > 1)
            raise ValueError(f"the word {twice!r} is there twice; once would do")

    @functools.cached_property
    def _ids(self):
        return {word: FIRST + i for i, word in enumerate(self.words)}

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = 1, most: int = 0) -> "Vocabulary":
        """The words of captions, the most frequent first, then by alphabet.

        Args:
            captions: in any order.
            min_count: rarer words are left out.
            most: ids there may be, the rarest words being left out; 0: any number.

        Raises:
            UserError: no word is left.
        """
        counts = collections.Counter(word for caption in captions for word in split(caption))
        words = sorted((word for word, n in counts.items() if n >= min_count), key=lambda word: (-counts[word], word))
        if most:
            words = words[: max(0, most - FIRST)]
        if not words:
            raise UserError(f"{len(counts)} words in the captions, and none is left of min_count {min_count} and a "
                            f"vocabulary of {most}: captions, 1 and 0 would do")  # fmt: skip
        return cls(tuple(words))

    @property
    def size(self) -> int:
        """How many ids there are, those of padding and of the unknown word included."""
        return FIRST + len(self.words)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the words in their order."""
        return hashlib.sha256(json.dumps(["words", 1, self.words]).encode()).hexdigest()

    def ids(self, words: Iterable[str]) -> list[int]:
        """The id of each word."""
        return [self._ids.get(word, UNKNOWN) for word in words]

    def save(self, folder: str | os.PathLike) -> None:
        """Writes words.json into a folder.

        Raises:
            UserError: it cannot be written.
        """
        path = Path(folder).expanduser() / FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                said = sealed({"format": FORMAT, "words": self.words})
                file.write((json.dumps(said, ensure_ascii=False, indent=0) + "\n").encode())
        except OSError as error:
            raise UserError(f"cannot write {path}: {reason_of(error)}") from error

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Vocabulary":
        """From the words.json of a folder, or from that file itself.

        Raises:
            UserError: it cannot be read, or is none.
        """
        path = Path(folder).expanduser()
        path = path / FILE if path.suffix != ".json" else path
        try:
            said = read_json(path)
            said, has_digest = unsealed(said) if isinstance(said, dict) else (said, False)
        except UnreadableError:
            raise
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {reason_of(error)}; Vocabulary.build(captions).save(folder) "
                            "writes one") from error  # fmt: skip
        if not isinstance(said, dict) or said.get("format") not in FORMATS or not isinstance(said.get("words"), list):
            raise UserError(f"{path} is no vocabulary; an object with format {FORMAT} and a list of words would do")
        if not has_digest:
            if said["format"] == FORMAT:
                raise UserError(f"{path} is damaged: its checksum is missing")
            log.warning("%s is of format 1, without a checksum: whether it is as it was written is not known", path)
        try:
            return cls(tuple(said["words"]))
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error


class Words(TextEncoder):
    """Captions to ids of words, int32 [N, M].

    A word that is not in the vocabulary has the id 1, and the first time a warning names it.

    Attributes: ``words``, the Vocabulary.

    Raises:
        UserError: ``tokens`` is no number of tokens.
    """

    name, width = "words", 0

    def __init__(self, words: Vocabulary, tokens: int):
        check_tokens(tokens)
        self.words, self.tokens, self.vocabulary = words, tokens, words.size
        self._cut, self._unknown = Warned(), Warned()

    @classmethod
    def of(cls, captions: Iterable[str], tokens: int, most: int = 0, min_count: int = 1) -> "Words":
        """An encoder of the words of captions; see ``Vocabulary.build``."""
        return cls(Vocabulary.build(captions, min_count, most), tokens)

    @classmethod
    def load(cls, folder: str | os.PathLike, tokens: int) -> "Words":
        """From the folder that ``save`` wrote; see ``Vocabulary.load``."""
        return cls(Vocabulary.load(folder), tokens)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes words.json into a folder; see ``Vocabulary.save``."""
        self.words.save(folder)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([self.words.fingerprint, self.tokens]).encode()).hexdigest()

    @under_own_settings
    def encode(self, captions: Sequence[str], cache=None):
        del cache  # ids are made sooner than they are read
        captions = checked_captions(captions)
        text = np.full((len(captions), self.tokens), PADDING, np.int32)
        cut = []
        for i, caption in enumerate(captions):
            words = split(caption)
            if len(words) > self.tokens:
                cut.append(caption)
            words = words[: self.tokens]
            text[i, : len(words)] = ids = self.words.ids(words)
            for word in self._unknown.new(w for w, own in zip(words, ids, strict=True) if own == UNKNOWN):
                log.warning("the vocabulary of %d words has no %r: the model never saw it", len(self.words.words), word)
        self._cut.cut(cut, self)
        return text, text != PADDING
