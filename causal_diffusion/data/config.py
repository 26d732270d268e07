"""What a user may set about data: one flat record, checked the moment it is made."""

import dataclasses

from causal_diffusion.errors import UserError
from causal_diffusion.motion.body import REPRESENTATIONS
from causal_diffusion.ranges import (
    BELOW_ONE,
    COUNT,
    SEED,
    SIZE,
    SIZE_OR_NONE,
    WIDTH,
    WIDTH_OR_NONE,
    Range,
    check_numbers,
)

SPLITS = ("train", "test")
ANY_CHANNELS = ("own", "latents", "motion_clips", "humanml3d", "snapmogen")  # sources whose clips need not be pictures


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data of an experiment.

    Raises:
        UserError: a value no source can use; the message names the key.
    """

    source: str = "moving_digits"  # a key of sources.SOURCES
    path: str = ""                 # video_folder: the folder, searched recursively
    frames: int = 12               # length of a clip
    height: int = 16               # pixels, or cells of latents; height = width = 0: a series, without space
    width: int = 16                # likewise
    channels: int = 1              # 1 grey, 3 RGB; of latents, a series or one's own clips any number
    fps: float = 0.0               # frames per second after resampling; 0 keeps the files' own
    stride: int = 1                # frames between the starts of neighbouring clips
    shortest: int = 0              # motion, latents: clips of so many frames are padded to data.frames; 0: none is
    representation: str = "joints" # motion_clips: what a frame's numbers are, a key of motion.body.REPRESENTATIONS
    mirror: bool = False           # motion_clips: training also has every clip with left and right exchanged
    unseen: float = 0.0            # motion_clips: share of (content, style) pairs that are kept from training
    classes: int = 0               # video_folder: labels 0 .. classes-1 in clips.jsonl; 0 = no labels
    action_dim: int = 0            # video_folder: numbers per action of clips.jsonl; 0 = no actions
    digits: int = 1                # moving_digits: digits in a clip
    speed: float = 1.25            # moving_digits: top speed, pixels per frame
    holdout: float = 0.1           # share of the digits or files (of a single file's time) kept for tests
    seed: int = 0                  # moving_digits: which endless stream of clips
    threads: int = 2               # threads that load batches, and the fewest that decode videos at the start; 0 = none
    prefetch: int = 4              # batches loaded ahead; 0 = none

    def __post_init__(self):
        pictures = self.source not in ANY_CHANNELS
        side = Range(int(pictures), 2**14)
        check_numbers(
            self, "data", UserError, frames=SIZE, height=side, width=side, channels=WIDTH, fps=Range(0, 10_000),
            stride=COUNT, shortest=SIZE_OR_NONE, unseen=BELOW_ONE, classes=Range(0, 10_000_000),
            action_dim=WIDTH_OR_NONE, digits=Range(1, 1_000), speed=Range(0, 10_000, open_low=True), holdout=BELOW_ONE,
            seed=SEED, threads=Range(0, 1_000), prefetch=Range(0, 10_000),
        )  # fmt: skip
        if bool(self.height) != bool(self.width):
            raise UserError(f"data.height is {self.height} and data.width is {self.width}: a series has neither, "
                            "data.height = data.width = 0 would do")
        if self.channels not in (1, 3) and pictures:
            raise UserError(f"data.channels must be 1 (grey) or 3 (RGB), got {self.channels}")
        if self.representation not in REPRESENTATIONS:
            raise UserError(f"data.representation is {self.representation!r}: it is one of "
                            f"{', '.join(REPRESENTATIONS)}")
        if self.shortest > self.frames:
            raise UserError(f"data.shortest is {self.shortest} and data.frames is {self.frames}: it is at most an "
                            f"element, data.shortest={self.frames} would do")

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """(height, width, channels) of a frame, or (channels,) of a series."""
        return (self.height, self.width, self.channels) if self.height else (self.channels,)


def check_split(config: DataConfig, split: str) -> None:
    """Refuses an unknown split (ValueError) and a held-out split of nothing (UserError)."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if split == "test" and config.holdout == 0:
        raise UserError("data.holdout is 0, so nothing is held out: set it above 0, 0.1 for a tenth")


def held_out_count(items: int, holdout: float) -> int:
    """How many of `items` belong to the held-out split: never none and never all, unless holdout is 0."""
    return min(items - 1, max(1, round(holdout * items))) if holdout > 0 else 0
