"""Zip archives (.npz, and torch's .pth), compared with their own checksums before anything is made of them.

A zip archive has a CRC-32 of every member. NumPy compares it with what it has read when it has read all; torch never
does, so that a .pth with a flipped byte loads without a word.
"""

import logging
import zipfile

from causal_diffusion.file_access import open_file, retried

log = logging.getLogger(__name__)

PIECE = 2**20  # bytes read at a time


def check_archive(path) -> list[str]:
    """The names of the members, each of which has the content that was written.

    An archive in which every CRC is 0 was written without any, as ``torch.serialization.set_crc32_options(False)``
    does: it is read, with a warning.

    Raises:
      ValueError: it is no zip archive, cut off, or a member does not match its checksum or has more bytes than fit.
      FileNotFoundError, NotAFileError, UnreadableError: see ``file_access``.
    """
    return retried(path, lambda: _check(path))


def _check(path):
    with open_file(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                without = bool(members) and not any(member.CRC for member in members)
                for member in members:
                    _check_member(archive, member, without)
        except OSError:
            raise
        except Exception as error:  # a damaged zip archive fails in a dozen ways
            if isinstance(error, ValueError):
                raise
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"it is a damaged or cut-off archive ({reason})") from error
    if without:
        log.warning("%s has no checksums: damage in it cannot be found", path)
    return [member.filename for member in members]


def _check_member(archive, member, without):
    if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
        raise ValueError(f"its member {member.filename} has two sizes: it is damaged")
    if without:
        member.CRC = None  # not compared
    with archive.open(member) as content:
        try:
            while content.read(PIECE):
                pass
        except zipfile.BadZipFile as error:
            raise ValueError(f"its member {member.filename} does not match its checksum: it is damaged") from error


def starts_as_archive(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a zip archive."""
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))
