"""Text files that users and other programs write, decoded in one place.

    UTF-8                  with or without a byte-order mark (Notepad, Excel and PowerShell write one)
    UTF-16, UTF-32         with a byte-order mark, of either byte order
    any other encoding     refused, or named line by line (``read_lines``)

Line ends of Windows and old Macs become '\\n'. No other character ends a line: a caption may hold U+2028.
"""

import codecs
import os
from typing import Any, NamedTuple

from causal_diffusion.errors import UserError
from causal_diffusion.file_access import parse_json, read_bytes

# UTF-32 first: its mark of one byte order begins with that of UTF-16.
_WIDE = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
MOST = 2**31  # bytes of a text file
SHARE = 1 / 3  # of the items of a list: where more of them cannot be used, the list is refused


class Line(NamedTuple):
    """A line of a file: its number from 1, its text, and what is wrong if it is not text ('' otherwise)."""

    number: int
    text: str
    wrong: str = ""


def read_text(path: str | os.PathLike) -> str:
    """The content of a text file, without a byte-order mark.

    Raises:
        OSError: it is absent or no file. UnreadableError: it cannot be read now.
        UserError: it is neither UTF-8 nor marked UTF-16 or UTF-32; the message names the file and the first such line.
    """
    lines = read_lines(path)
    for line in lines:
        if line.wrong:
            raise UserError(f"{path} is not UTF-8 text: line {line.number} {line.wrong}, try saving it as UTF-8")
    return "\n".join(line.text for line in lines)


def read_lines(path: str | os.PathLike) -> list[Line]:
    """The lines of a text file; those that are not UTF-8 say why, and are decoded as Latin-1.

    Raises:
        OSError: it is absent or no file. UnreadableError: it cannot be read now.
        UserError: the file as a whole is no text: damaged UTF-16 or UTF-32, or zero bytes.
    """
    data = read_bytes(path, MOST)
    if wide := next((encoding for mark, encoding in _WIDE if data.startswith(mark)), None):
        try:
            text = data.decode(wide)
        except UnicodeDecodeError as error:
            text, reason = "", error.reason
        else:
            reason = "it ends after its byte-order mark"
        if not text:
            raise UserError(f"{path} is not UTF-8 text, nor {wide.upper()} ({reason}): try saving it as UTF-8")
        return [Line(number, line) for number, line in enumerate(_lines(text), 1)]
    if b"\0" in data:
        raise UserError(f"{path} is not UTF-8 text: byte {data.index(0)} is zero, try saving it as UTF-8")
    parts = _lines(data.removeprefix(codecs.BOM_UTF8))
    return [_line(number, part) for number, part in enumerate(parts, 1)]


def read_json(path: str | os.PathLike) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no JSON; UserError: it is no text.
    """
    return parse_json(read_text(path))


def check_share(wrong: list[str], items: int, what: str, few: int = 0) -> None:
    """Refuses a list of which more than SHARE cannot be used.

    Args:
        wrong: why items cannot be used, one entry per item.
        items: how many there are, usable or not.
        what: names the items in the message, 'captions of a.jsonl'.
        few: so many unusable items are allowed whatever their share.

    Raises:
        UserError: the counts, the allowed share, and the first reason.
    """
    if len(wrong) > max(few, SHARE * items):
        raise UserError(f"{len(wrong)} of {items} {what} cannot be used, more than {SHARE:.0%}; the first: {wrong[0]}")


def _lines(content):
    """str or bytes -> its lines."""
    crlf, cr, lf = ("\r\n", "\r", "\n") if isinstance(content, str) else (b"\r\n", b"\r", b"\n")
    return content.replace(crlf, lf).replace(cr, lf).split(lf)


def _line(number: int, data: bytes) -> Line:
    try:
        return Line(number, data.decode("utf-8"))
    except UnicodeDecodeError as error:
        wrong = f"has the byte 0x{data[error.start]:02X}, which is no UTF-8 (Latin-1 has it)"
        return Line(number, data.decode("latin-1"), wrong)
