"""Text encoders on the host: captions in, condition tokens out.

    encoder = FrozenEncoder("distilbert", "distilbert-base-uncased", tokens=64)
    text, mask = encoder.encode(["a person walks forward"])              float32 [1, 64, 768], bool [1, 64]

    encoder = Words.of(captions, tokens=16)
    text, mask = encoder.encode(["a person walks forward"])              int32 [1, 16], bool [1, 16]

A frozen encoder gives the last hidden state of every token, special ones included, zero behind the caption's end. It
computes each caption once per call, in batches of captions of about the same length, on the default device. The words'
encoder gives ids, which ``word_embedding.WordEmbedding`` in the model embeds.
"""

import dataclasses
import functools
import hashlib
import json
import os

import jax
import numpy as np

from causal_diffusion.checkpoint.fingerprints import check_same, of_text
from causal_diffusion.errors import UserError
from causal_diffusion.jax_settings import under_own_settings
from causal_diffusion.nn.text import clip_text, distilbert, t5, weights
from causal_diffusion.nn.text.base import TextEncoder, Warned, check_tokens, checked_captions
from causal_diffusion.nn.text.config import TextConfig
from causal_diffusion.nn.text.text_cache import TextCache
from causal_diffusion.nn.text.tokenizer import load_tokenizer
from causal_diffusion.nn.text.words import FILE, Words

FOLDER = "text"  # of a run's workdir, where what its encoder has learnt of the captions is kept
BATCH = 16  # captions that are computed at once; one alone, as a prompt, is a batch of one
SHORTEST = 8  # tokens of the smallest bucket; the others double, up to the encoder's tokens

# By kind: (module, config, names of weights, what config.json calls it).
FROZEN = {
    "distilbert": (distilbert.DistilBert, distilbert.DistilBertConfig, distilbert.NAMES, distilbert.MODEL_TYPES),
    "clip": (clip_text.ClipText, clip_text.ClipTextConfig, clip_text.NAMES, clip_text.MODEL_TYPES),
    "t5": (t5.T5Encoder, t5.T5Config, t5.NAMES, ("t5",)),
    "umt5": (t5.T5Encoder, t5.T5Config, t5.NAMES, ("umt5",)),
}
PUBLISHED = {"distilbert": "distilbert-base-uncased", "clip": "openai/clip-vit-base-patch32",
             "t5": "google/t5-v1_1-base", "umt5": "google/umt5-base"}  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def last_hidden(module, params, ids, mask):
    """The last hidden states of a frozen encoder's module, float32 [B, M, E]; compiled once per shape."""
    out = module.apply({"params": params}, ids, mask)
    return out[0] if isinstance(out, tuple) else out


class FrozenEncoder(TextEncoder):
    """One of the encoders that others trained.

    Args:
        name: 'distilbert', 'clip', 't5' or 'umt5'.
        path: its folder, or its name in the user's hub cache, see weights.py.
        tokens: M, to which every caption is padded or cut, special tokens included.
        cache: folder in which features are kept where ``encode`` is given none; '': they are not.

    Attributes: ``config`` and ``module`` of the network, and its float32 ``params``.

    Raises:
        UserError: the folder is none of that kind or lacks a part, or ``tokens`` is out of range.
    """

    def __init__(self, name: str, path: str | os.PathLike, tokens: int, cache: str | os.PathLike = ""):
        check_tokens(tokens)
        if not path:
            raise UserError(f"text.path is '' and text.encoder is {name!r}: {PUBLISHED[name]!r} would do")
        Module, Config, names, model_types = FROZEN[name]
        folder = weights.find(path)
        said = weights.read_config(folder)
        _check_kind(folder, name, said.get("model_type"), model_types)
        self.config = config = weights.checked_config(folder, said, Config.read)
        if config.most_tokens and tokens > config.most_tokens:
            raise UserError(f"tokens is {tokens}; {config.most_tokens}, which {folder} takes at most, would do")
        self.name, self.tokens, self.width, self.vocabulary = name, tokens, config.width, 0
        self._folder, self._cache = folder, cache
        self._tokenizer, self._tokenizer_files = load_tokenizer(folder, tokens)
        if self._tokenizer.get_vocab_size() > config.vocabulary:
            size = self._tokenizer.get_vocab_size()
            raise UserError(f"{self._tokenizer_files[0]} has {size} tokens; {config.vocabulary} or fewer, as "
                            f"{weights.CONFIG} says, would do")  # fmt: skip
        self.module = Module(config)
        self.params = weights.load(folder, self.module, names)
        self._cut = Warned()

    @functools.cached_property
    def fingerprint(self) -> str:
        said = {
            "kind": self.name, "tokens": self.tokens, "config": dataclasses.asdict(self.config),
            "tokenizer": [weights.digest(path) for path in self._tokenizer_files],
            "weights": weights.digests(self._folder),
        }  # fmt: skip
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    @under_own_settings
    def encode(self, captions, cache=None):
        captions = checked_captions(captions)
        ids = {caption: self._tokenizer.encode(caption) for caption in dict.fromkeys(captions)}
        self._cut.cut([caption for caption, found in ids.items() if found.overflowing], self)
        ids = {caption: np.asarray(found.ids, np.int32) for caption, found in ids.items()}
        kept, features = None, {}
        if cache or self._cache:
            kept = TextCache(cache or self._cache, self.fingerprint)
            found = {caption: kept.get(caption, len(own), self.width) for caption, own in ids.items()}
            features = {caption: own for caption, own in found.items() if own is not None}
        for caption, own in self._computed({caption: ids[caption] for caption in ids if caption not in features}):
            features[caption] = own
            if kept is not None:
                kept.put(caption, own)
        text = np.zeros((len(captions), self.tokens, self.width), np.float32)
        mask = np.zeros((len(captions), self.tokens), bool)
        for i, caption in enumerate(captions):
            length = len(features[caption])
            text[i, :length], mask[i, :length] = features[caption], True
        return text, mask

    def _computed(self, ids):
        """Yields (caption, features float32 [L, E]) of captions with their ids."""
        buckets = {}
        for caption, own in ids.items():
            buckets.setdefault(self._bucket(len(own)), []).append(caption)
        for length, captions in sorted(buckets.items()):
            for start in range(0, len(captions), BATCH):
                batch = captions[start : start + BATCH]
                size = 1 if len(batch) == 1 else BATCH  # shapes are few, each is compiled once
                padded = np.zeros((size, length), np.int32)
                mask = np.zeros((size, length), bool)
                for i, caption in enumerate(batch):
                    padded[i, : len(ids[caption])], mask[i, : len(ids[caption])] = ids[caption], True
                hidden = np.asarray(last_hidden(self.module, self.params, padded, mask))
                for caption, features in zip(batch, hidden, strict=False):
                    yield caption, features[: len(ids[caption])]

    def _bucket(self, length):
        bucket = SHORTEST
        while bucket < length:
            bucket *= 2
        return min(bucket, self.tokens)


def open_text_encoder(config: TextConfig, folder: str | os.PathLike | None = None) -> TextEncoder:
    """The text encoder of a config; 'words' from the ``folder`` that ``Words.save`` wrote.

    Raises:
        UserError: there is none in the config, or it cannot be opened as the config says.
    """
    if config.encoder == "words":
        if folder is None:
            raise UserError("text.encoder is 'words', and there is no folder of words: a run's workdir has one")
        return Words.load(folder, config.tokens)
    if config.encoder not in FROZEN:
        raise UserError(f"text.encoder is {config.encoder!r}: one of {', '.join(('words', *FROZEN))} would do")
    return FrozenEncoder(config.encoder, config.path, config.tokens, config.cache)


def check_encoder(where, meta: dict, encoder: TextEncoder | None) -> None:
    """Compares a run's text encoder or word list with the one that its checkpoints were trained with.

    Args:
        where: the run, for the message.
        meta: that of a checkpoint, see ``training.kept.meta_of``.

    Raises:
        CheckpointError: it is another one.
    """
    if encoder is None:
        return
    own, saved = of_text(encoder), meta.get("fingerprints")
    saved = None if saved is None else {part: saved[part] for part in own if part in saved}
    place = f"the {FILE} of that run" if encoder.name == "words" else "the text encoder of that run, text.path"
    check_same(where, saved, own, f"put back {place}")


def _check_kind(folder, kind, found, model_types):
    if found in model_types:
        return
    kinds = [name for name, (*_, types) in FROZEN.items() if found in types]
    would = f"kind {kinds[0]!r} would do" if kinds else f"a folder with model_type {model_types[0]!r} would do"
    raise UserError(f"{folder / weights.CONFIG} has model_type {found!r}, which is no {kind!r} encoder: {would}")
