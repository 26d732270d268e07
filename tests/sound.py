"""A config that is sound, and changes that several tests make to it."""

# Clips of 12 grey frames of 16 x 16 with 10 classes and 2 numbers per action, cut into patches of 8 x 8.
SOUND = {
    "data.source": "video_folder", "data.frames": 12, "data.classes": 10, "data.action_dim": 2,
    "model.width": 16, "model.heads": 2, "model.depth": 2, "model.mlp": 16, "evaluate.clips": 0,
}  # fmt: skip
CAUSAL = {"layout.kind": "block_causal"}
WINDOW = CAUSAL | {"cache.kind": "none"}
TOGETHER = {"schedule.offset": "full", "schedule.chunk": 3}
PYRAMID = {"schedule.offset": "pyramid", "schedule.stride": 5.0}
ONE_BY_ONE = {"schedule.offset": "autoregressive"}
