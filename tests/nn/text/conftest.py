"""Folders of tiny text encoders, written as transformers lays them out but without it."""

import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from causal_diffusion.nn.text.encoder import FROZEN

WORDS = "a person walks forward and waves left right hand slowly then turns".split()
SIZES = {
    "distilbert": dict(
        model_type="distilbert", vocab_size=24, dim=8, hidden_dim=12, n_layers=2, n_heads=2, max_position_embeddings=20
    ),
    "clip": dict(
        model_type="clip_text_model", vocab_size=24, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=20, eos_token_id=2,
    ),
    "t5": dict(model_type="t5", vocab_size=24, d_model=8, d_kv=3, d_ff=12, num_layers=2, num_heads=2),
    "umt5": dict(model_type="umt5", vocab_size=24, d_model=8, d_kv=3, d_ff=12, num_layers=2, num_heads=2),
}  # fmt: skip
SPECIAL = {
    "distilbert": ["[PAD]", "[CLS]", "[SEP]", "[UNK]"], "clip": ["<pad>", "<start>", "<end>", "<unk>"],
    "t5": ["<pad>", "</s>", "<unk>"], "umt5": ["<pad>", "</s>", "<unk>"],
}  # fmt: skip


def make_tokenizer(kind):
    """A word-level tokenizer that puts a kind's special tokens around a caption."""
    special = SPECIAL[kind]
    vocabulary = {token: i for i, token in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special[-1]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    around = special[1:-1]
    template = " ".join([*around[:-1], "$A", around[-1]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, vocabulary[token]) for token in around]
    )
    return tokenizer


def random_params(kind, said):
    """The network of a config.json with every parameter away from 0 and 1."""
    Module, Config, *_ = FROZEN[kind]
    rng = np.random.default_rng(0)
    shaped = jax.eval_shape(
        Module(Config.read(said)).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
    )
    return jax.tree_util.tree_map_with_path(
        lambda path, s: (0.5 * rng.normal(size=s.shape) + (path[-1].key == "scale")).astype(np.float32),
        shaped["params"],
    )


def their_weights(kind, params, prefix=""):
    """Our parameters under the keys and in the layout of the files."""
    names = FROZEN[kind][2]
    return {
        prefix + names.keys(path)[0]: np.ascontiguousarray(value.T if path[-1] == "kernel" else value)
        for path, value in flax.traverse_util.flatten_dict(params).items()
    }


def write(folder, kind, prefix="", tokenizer=True, **sizes):
    """Writes the folder of a tiny encoder with random weights; returns its parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    said = SIZES[kind] | sizes
    params = random_params(kind, said)
    (folder / "config.json").write_text(json.dumps(said))
    save_file(their_weights(kind, params, prefix), folder / "model.safetensors")
    if tokenizer:
        make_tokenizer(kind).save(str(folder / "tokenizer.json"))
    return params


@pytest.fixture(scope="session")
def tiny_folder():
    """``write``: the function that writes a folder."""
    return write


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """The function that makes a tokenizer of a kind."""
    return make_tokenizer


@pytest.fixture(scope="session")
def theirs():
    """The function that gives our parameters the names of files."""
    return their_weights


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """{kind: a folder that no test changes}."""
    root = tmp_path_factory.mktemp("encoders")
    for kind in SIZES:
        write(root / kind, kind)
    return {kind: root / kind for kind in SIZES}
