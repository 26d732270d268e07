"""What an encoded set holds."""

import json

from causal_diffusion.data.record_shards import Records, Shard


def contents(folder):
    """{file: its bytes}."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records(folder):
    """(meta, the records) of an encoded set."""
    meta = json.loads((folder / "meta.json").read_text())
    shards = [Shard(*(shard[key] for key in Shard._fields)) for shard in meta["shards"]]
    return meta, list(Records(folder, shards))
