"""The video files below a folder, and an account of what else lies there.

A file is a video if FFmpeg finds one in it, whatever its ending.
"""

import os
from pathlib import Path

from causal_diffusion.data.clip_list import CLIP_LIST
from causal_diffusion.data.folder_files import Unused, files_below

_COMPANION = "of other kinds, by their endings"

# Files that nobody takes for videos: they are not opened.
_COMPANIONS = {
    ".ass", ".bmp", ".cfg", ".csv", ".db", ".gz", ".h5", ".hdf5", ".html", ".ini", ".jpeg", ".jpg", ".json", ".jsonl",
    ".log", ".md", ".nfo", ".npy", ".npz", ".parquet", ".pdf", ".pickle", ".pkl", ".pt", ".pth", ".py", ".safetensors",
    ".sh", ".srt", ".tar", ".toml", ".tsv", ".txt", ".vtt", ".xml", ".yaml", ".yml", ".zip",
}  # fmt: skip


def find_files(folder: Path) -> tuple[list[str], Unused]:
    """Files below the folder that may be videos, relative to it with '/', in order; and what is left out."""
    unused = Unused(_COMPANION)
    return [name for name in files_below(folder, unused, _why_not) if name != CLIP_LIST], unused


def _why_not(name: str, size: int) -> str:
    if name == CLIP_LIST:
        return ""
    if os.path.splitext(name)[1].lower() in _COMPANIONS:
        return _COMPANION
    return "" if size else "empty"
