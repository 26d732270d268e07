"""Byte-order marks, encodings and line ends, in the helper and in every reader of text."""

import codecs
import json
import re
from pathlib import Path

import pytest

from causal_diffusion import text_files
from causal_diffusion.data.captions import read_captions
from causal_diffusion.data.clip_list import CLIP_LIST, Clip, read_actions, read_clip_list
from causal_diffusion.data.motion_folder import read_list
from causal_diffusion.errors import UserError
from causal_diffusion.motion.bvh_text import parse
from causal_diffusion.nn.text.tokenizer import load_tokenizer
from causal_diffusion.nn.text.weights import read_config
from causal_diffusion.nn.text.words import Vocabulary
from tests.motion.bvh_bodies import written

TEXT = "a man kicks \u00fcber\nhe walks\u2028back\n\n\U0001f600 end"
ENCODINGS = {
    "plain": lambda text: text.encode(),
    "marked": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16-le": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "utf-16-be": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "utf-32-le": lambda text: codecs.BOM_UTF32_LE + text.encode("utf-32-le"),
    "utf-32-be": lambda text: codecs.BOM_UTF32_BE + text.encode("utf-32-be"),
    "windows": lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
    "mac": lambda text: text.replace("\n", "\r").encode(),
}
each_encoding = pytest.mark.parametrize("encoded", ENCODINGS.values(), ids=list(ENCODINGS))


@each_encoding
def test_text_is_read_whatever_its_marks_and_line_ends(tmp_path, encoded):
    path = tmp_path / "a.txt"
    path.write_bytes(encoded(TEXT))
    assert text_files.read_text(path) == TEXT
    assert [(line.number, line.text) for line in text_files.read_lines(path)] == list(enumerate(TEXT.split("\n"), 1))
    path.write_bytes(encoded(json.dumps({"a": "\u00fc"}, ensure_ascii=False)))
    assert text_files.read_json(path) == {"a": "\u00fc"}


@pytest.mark.parametrize("content, message", [
    (b"one\ntw\xf6\n", "a.txt is not UTF-8 text: line 2 has the byte 0xF6, which is no UTF-8"),
    (codecs.BOM_UTF8 + b"\xe9t\xe9", "line 1 has the byte 0xE9"),
    (b"a\r\nb\r\n\x80", "line 3 has the byte 0x80"),
    (codecs.BOM_UTF16_LE, "is not UTF-8 text, nor UTF-16"), (codecs.BOM_UTF16_BE + b"\x00", "nor UTF-16"),
    (codecs.BOM_UTF32_LE + b"a", "is not UTF-8 text, nor UTF-32"),
    ("abc".encode("utf-16-le"), "is not UTF-8 text: byte 1 is zero"),
])  # fmt: skip
def test_what_is_no_text_is_named_with_its_line(tmp_path, content, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    for read in (text_files.read_text, text_files.read_json):
        with pytest.raises(UserError, match=re.escape(message)) as error:
            read(path)
        assert "\n" not in str(error.value) and "try saving it as UTF-8" in str(error.value)


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"a":' * 100_000])
def test_json_that_is_nested_too_deeply_is_no_json(tmp_path, deep):
    path = tmp_path / "a.json"
    path.write_text(deep)
    with pytest.raises(ValueError, match="nested too deeply"):
        text_files.read_json(path)


def test_lines_of_another_encoding_are_kept_apart(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntw\xf6\nthree")
    one, two, three = text_files.read_lines(path)
    assert (one.text, one.wrong, three.text, three.wrong) == ("one", "", "three", "")
    assert two.text == "tw\u00f6" and "0xF6" in two.wrong
    with pytest.raises(OSError):
        text_files.read_text(tmp_path / "none.txt")


@pytest.mark.parametrize("wrong, items, few, refused", [
    (1, 3, 0, False), (1, 2, 0, True), (2, 5, 0, True), (1, 1, 0, True), (0, 0, 0, False), (3, 3, 3, False),
    (4, 11, 3, True), (4, 12, 3, False),
])  # fmt: skip
def test_the_share_above_which_a_list_is_refused(wrong, items, few, refused):
    reasons = [f"line {i} is bad" for i in range(wrong)]
    if not refused:
        return text_files.check_share(reasons, items, "lines", few)
    with pytest.raises(
        UserError, match=f"{wrong} of {items} lines cannot be used, more than 33%; the first: line 0 is"
    ):
        text_files.check_share(reasons, items, "lines", few)


def _bvh(path):
    return parse(written(path)).rows.shape


def _words(path):
    path.write_text(json.dumps({"format": 1, "words": ["a", "b"]}))
    return Vocabulary.load(path).words


def _clips(path):
    (path.parent / "a.mp4").touch()
    path.write_text('{"file": "a.mp4", "caption": "x"}\n')
    return read_clip_list(path.parent, 0, 0)


def _actions(path):
    path.write_text("1,2\n3,4\n")
    return read_actions(path.parent, Clip("a.mp4", actions=path.name), 2, 2).tolist()


def _captions(path):
    path.write_text("a man.#a/DET man/NOUN#0.0#0.0\nhe.#he/PRON#0.0#0.0\n")
    return read_captions(path)


def _names(path):
    path.write_text("000001\n000002\n")
    return read_list(path)


def _config(path):
    path.write_text('{"model_type": "t5"}')
    return read_config(path.parent)


def _bert(path):
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "man", "walk", "##s"]) + "\n")
    return load_tokenizer(path.parent, 8)[0].encode("man walks").ids


def _clip(path):
    (path.parent / "vocab.json").write_text(
        json.dumps({word: i for i, word in enumerate(["<|startoftext|>", "<|endoftext|>", "m", "a", "n</w>", "ma"])})
    )
    path.write_text("#version: 0.2\nm a\n")
    return load_tokenizer(path.parent, 8)[0].encode("man").ids


READERS = {
    "walk.bvh": _bvh, "words.json": _words, CLIP_LIST: _clips, "actions.csv": _actions, "000001.txt": _captions,
    "train.txt": _names, "config.json": _config, "vocab.txt": _bert, "merges.txt": _clip,
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("encoding", ["marked", "utf-16-le", "windows"])
def test_every_reader_of_text_reads_marked_files(tmp_path, monkeypatch, name, encoding):
    """What a reader makes of a file is the same after the file was saved by another editor."""
    plain = READERS[name](tmp_path / name)
    write = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda self, text, *_: self.write_bytes(ENCODINGS[encoding](text)))
    assert READERS[name](tmp_path / name) == plain
    assert (tmp_path / name).read_bytes()[:2] in (codecs.BOM_UTF8[:2], codecs.BOM_UTF16_LE)
    monkeypatch.setattr(Path, "write_text", write)


def test_no_reader_of_foreign_text_decodes_by_itself():
    package = Path(text_files.__file__).parent
    rooms = ("data", "motion", "nn", "interop", "motion_import.py")
    files = [path for room in rooms for path in [package / room, *(package / room).rglob("*.py")] if path.is_file()]
    assert len(files) > 50
    assert [path for path in files if re.search(r"\.read_text\(|utf-8-sig", path.read_text())] == []
