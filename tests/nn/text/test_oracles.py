"""Frozen text encoders, number by number against transformers' on random weights."""

import json
import os

import jax
import numpy as np
import pytest

from causal_diffusion.nn.text import clip_text, distilbert, t5, weights
from causal_diffusion.nn.text.encoder import FROZEN, FrozenEncoder
from causal_diffusion.nn.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.oracle

DISTILBERT = dict(vocab_size=50, dim=24, hidden_dim=40, n_layers=3, n_heads=4, max_position_embeddings=40)
CLIP = dict(vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=40, projection_dim=10, bos_token_id=48, eos_token_id=49)  # fmt: skip
T5 = dict(vocab_size=50, d_model=24, d_kv=5, d_ff=40, num_layers=3, num_heads=4)
CASES = {  # name: (our kind, their config, their model, sizes)
    "distilbert": ("distilbert", "DistilBertConfig", "DistilBertModel", DISTILBERT),
    "distilbert with a head": ("distilbert", "DistilBertConfig", "DistilBertForMaskedLM", DISTILBERT),
    "clip": ("clip", "CLIPTextConfig", "CLIPTextModel", CLIP),
    "clip with a projection": ("clip", "CLIPTextConfig", "CLIPTextModelWithProjection", CLIP),
    "clip before 2023": ("clip", "CLIPTextConfig", "CLIPTextModel", CLIP | dict(eos_token_id=2)),
    "clip with gelu": ("clip", "CLIPTextConfig", "CLIPTextModel", CLIP | dict(hidden_act="gelu", layer_norm_eps=1e-3)),
    "t5": ("t5", "T5Config", "T5EncoderModel", T5),
    "t5 with its decoder": ("t5", "T5Config", "T5Model", T5),
    "t5 1.1": ("t5", "T5Config", "T5EncoderModel", T5 | dict(feed_forward_proj="gated-gelu")),
    "t5 of few buckets": (
        "t5", "T5Config", "T5EncoderModel",
        T5 | dict(relative_attention_num_buckets=8, relative_attention_max_distance=20),
    ),
    "umt5": ("umt5", "UMT5Config", "UMT5EncoderModel", T5),
    "umt5 with its decoder": ("umt5", "UMT5Config", "UMT5Model", T5),
}  # fmt: skip


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def transformers(torch):
    os.environ["TQDM_DISABLE"] = "1"  # a bar per file that is written
    module = pytest.importorskip("transformers")
    module.logging.set_verbosity_error()
    return module


def theirs_of(torch, transformers, case):
    """Their model with every weight away from 0 and 1."""
    _, config, model, sizes = CASES[case]
    model = getattr(transformers, model)(getattr(transformers, config)(**sizes)).eval()
    rng = np.random.default_rng(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            value = rng.normal(size=tuple(p.shape))
            norm = p.ndim == 1 and name.endswith("weight")
            p.copy_(torch.from_numpy(1 + 0.3 * value if norm else value / np.sqrt(p.shape[-1]) * 1.5))
    return model


def inputs(end):
    """Ids of captions of 5 to 33 tokens, an end token last, padded with 1."""
    rng = np.random.default_rng(4)
    lengths = np.array([33, 5, 17, 20])
    mask = np.arange(33) < lengths[:, None]
    ids = np.where(mask, rng.integers(3, 47, mask.shape), 1).astype(np.int32)
    ids[np.arange(4), lengths - 1] = end
    return ids, mask


@pytest.mark.parametrize("case", CASES)
def test_the_network_equals_theirs(torch, transformers, tmp_path, case):
    kind = CASES[case][0]
    model = theirs_of(torch, transformers, case)
    model.save_pretrained(tmp_path, safe_serialization=True)
    ids, mask = inputs(end=49)
    with torch.no_grad():
        given = dict(input_ids=torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long())
        part = {"distilbert": "distilbert", "clip": "text_model"}.get(kind, "encoder")
        theirs = getattr(model, part, model)(**given)
    Module, Config, names, _ = FROZEN[kind]
    module = Module(Config.read(json.loads((tmp_path / "config.json").read_text())))
    out = jax.jit(module.apply)({"params": weights.load(tmp_path, module, names)}, ids, mask)
    hidden, pooled = out if kind == "clip" else (out, None)
    wanted = theirs.last_hidden_state.numpy()
    assert np.abs(np.asarray(hidden) - wanted)[mask].max() < 1e-4 * np.abs(wanted[mask]).max()
    if kind == "clip":
        wanted = theirs.pooler_output.numpy()
        assert np.abs(np.asarray(pooled) - wanted).max() < 1e-4 * np.abs(wanted).max()
        assert np.array_equal(pooled, np.asarray(hidden)[np.arange(4), mask.sum(1) - 1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_shards_of_half_precision_are_read(torch, transformers, tmp_path, dtype):
    model = theirs_of(torch, transformers, "umt5").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert not (tmp_path / "model.safetensors").exists() and len(list(tmp_path.glob("*.safetensors"))) > 1
    module = t5.T5Encoder(t5.T5Config.read(json.loads((tmp_path / "config.json").read_text())))
    params = weights.load(tmp_path, module, t5.NAMES)
    kernel = model.encoder.block[1].layer[0].SelfAttention.q.weight.detach().float().numpy().T
    assert np.array_equal(params["layer_1"]["attention"]["q"]["kernel"], kernel)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("buckets, most", [(32, 128), (8, 20), (16, 100)])
def test_every_distance_falls_into_their_bucket(transformers, torch, buckets, most):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = np.arange(-3 * most, 3 * most)
    wanted = T5Attention._relative_position_bucket(torch.from_numpy(distance), True, buckets, most)
    assert np.array_equal(t5.buckets_of(distance, buckets, most), wanted.numpy())


def test_defaults_are_theirs(transformers):
    for Config, theirs in (
        (distilbert.DistilBertConfig, transformers.DistilBertConfig), (clip_text.ClipTextConfig,
        transformers.CLIPTextConfig), (t5.T5Config, transformers.T5Config), (t5.T5Config, transformers.UMT5Config),
    ):  # fmt: skip
        said = theirs().to_dict()
        assert Config.read({"model_type": said["model_type"]}) == Config.read(said)


CAPTIONS = ["A person walks.", "Bye-bye! he's WAVING, isn't he?", "", "caf\u00e9 42 \u4f60\u597d  tabs\tand  '!?'s"]


def test_an_encoder_of_a_folder_equals_theirs(torch, transformers, tmp_path, tiny_tokenizer):
    """From captions on, as CMDM's authors use DistilBERT: the hidden states of all tokens, and the mask."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer("distilbert"), pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip
    tokenizer.save_pretrained(tmp_path)
    model = theirs_of(torch, transformers, "distilbert")
    model.save_pretrained(tmp_path)
    captions = ["a person walks forward", "waves", "then turns left and then turns right slowly"]
    given = tokenizer(captions, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        wanted = model(given["input_ids"], given["attention_mask"]).last_hidden_state.numpy()
    text, mask = FrozenEncoder("distilbert", tmp_path, 16).encode(captions)
    assert np.array_equal(mask, given["attention_mask"].numpy() == 1) and mask.sum() == 4 + 2 + 1 + 2 + 8 + 2
    assert np.abs(text - wanted)[mask].max() < 1e-4 * np.abs(wanted[mask]).max() and not text[~mask].any()


def test_bert_words_from_a_vocabulary_alone(transformers, tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "person", "walk", "##s", "cafe", "bye", "-", "!", "he",
              "'", "s", "##n", "t", "wav", "##ing", ",", "?", "4", "##2", "\u4f60", "."]  # fmt: skip
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    tokenizer, files = load_tokenizer(tmp_path, 30)
    theirs = transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    assert [tokenizer.encode(c).ids for c in CAPTIONS] == [theirs(c)["input_ids"] for c in CAPTIONS]
    assert [f.name for f in files] == ["vocab.txt"]


def test_clips_pieces_from_a_vocabulary_alone(transformers, tmp_path):
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges = [("w", "a"), ("p", "e"), ("r", "s"), ("pe", "rs"), ("o", "n</w>"), ("pers", "on</w>"), ("'", "s</w>")]
    pieces = [*letters, *(c + "</w>" for c in letters), *("".join(pair) for pair in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges))
    tokenizer, files = load_tokenizer(tmp_path, 70)
    theirs = transformers.CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=merges)
    assert [tokenizer.encode(c).ids for c in CAPTIONS] == [theirs(c)["input_ids"] for c in CAPTIONS]
    assert len(tokenizer.encode("a person").ids) == 4 and [f.name for f in files] == ["vocab.json", "merges.txt"]
