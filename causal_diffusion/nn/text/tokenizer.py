"""Captions to token ids, by the ``tokenizers`` library and the files of an encoder's folder.

    tokenizer.json                     any encoder
    vocab.txt                          DistilBERT's WordPiece; lower case unless tokenizer_config.json says otherwise
    vocab.json and merges.txt          CLIP's byte-pair encoding

Models that keep their parts in folders side by side have text_encoder/ and tokenizer/, and are read too.
"""

from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.implementations import BertWordPieceTokenizer

from causal_diffusion.checkpoint.leaves import reason_of
from causal_diffusion.errors import UserError
from causal_diffusion.text_files import read_json, read_text

FILE = "tokenizer.json"
# Contractions, runs of letters, single digits, and runs of anything else but spaces.
CLIP_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"


def load_tokenizer(folder: Path, tokens: int) -> tuple[Tokenizer, list[Path]]:
    """(tokenizer, the files that it was made of). It cuts captions to ``tokens``, special ones included.

    A caption that was cut has ``overflowing`` encodings.

    Raises:
        UserError: the folder has none of the files, they cannot be read, or ``tokens`` leaves no room for a word.
    """
    homes = [folder, folder.parent / folder.name.replace("text_encoder", "tokenizer")]
    for home in dict.fromkeys(homes):
        for make, names in ((_of_json, (FILE,)), (_bert, ("vocab.txt",)), (_clip, ("vocab.json", "merges.txt"))):
            files = [home / name for name in names]
            if all(file.is_file() for file in files):
                tokenizer = _made(make, files)
                return _cutting(tokenizer, tokens), files
    spiece = next((p for home in homes for p in sorted(home.glob("*.model")) if home.is_dir()), None)
    if spiece is not None:
        raise UserError(
            f"{spiece.parent} has {spiece.name} and no {FILE}: transformers.AutoTokenizer.from_pretrained("
            f"{str(spiece.parent)!r}).save_pretrained({str(spiece.parent)!r}) writes one"
        )
    raise UserError(f"{folder} has no {FILE}: the folder of a text encoder has one")


def _made(make, files):
    try:
        return make(*files)
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"cannot read {files[0]}: {reason_of(error)}") from error


def _cutting(tokenizer, tokens):
    special = tokenizer.num_special_tokens_to_add(False)
    if tokens <= special:
        raise UserError(f"tokens is {tokens}, of which {special} are special ones: {special + 32} would do")
    tokenizer.no_padding()
    tokenizer.enable_truncation(tokens)
    return tokenizer


def _of_json(path):
    return Tokenizer.from_str(read_text(path))


def _bert(path):
    said = path.with_name("tokenizer_config.json")
    said = read_json(said) if said.is_file() else {}
    lines = read_text(path).removesuffix("\n").split("\n")
    vocabulary = {line.rstrip(): i for i, line in enumerate(lines)}
    return BertWordPieceTokenizer(vocabulary, lowercase=bool(said.get("do_lower_case", True)))._tokenizer


def _clip(vocabulary, merges):
    lines = read_text(merges).removesuffix("\n").split("\n")
    pairs = [tuple(line.split(" ")) for line in lines if not line.startswith("#version")]
    model = models.BPE(
        read_json(vocabulary), pairs, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=CLIP_END
    )
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([CLIP_START, CLIP_END])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    start, end = (tokenizer.token_to_id(token) for token in (CLIP_START, CLIP_END))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLIP_START} $A {CLIP_END}", special_tokens=[(CLIP_START, start), (CLIP_END, end)]
    )
    return tokenizer
