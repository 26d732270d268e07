"""What a stream keeps of the past: the keys of a config's section ``cache``."""

import dataclasses

from causal_diffusion.ranges import SHARE, SIZE_OR_NONE, Range, check_numbers

CONDITIONS = ("label", "text", "action")


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """What is kept of the past, where it stands, and how a finished block is shown from then on.

    The fields commit_level, commit_data and commit_label* are the sampling side of ``levels.context`` and its
    companions, and mean the same. Sizes are in frames.
    """

    kind: str = "kv"  # see KINDS
    commit: str = "separate"  # a pass of its own, or 'fused' with the first pass of the next block
    commit_level: float = 0.0  # noise level in [0, 1] at which a finished block is shown
    commit_data: str = "noised"  # what that level does to it: 'noised', 'scaled' (no noise) or 'clean' (nothing)
    commit_label: str = "level"  # the level that the network is told: 'level' or 'fixed'
    commit_label_at: float = 0.0  # with 'fixed': the number that is told
    commit_drop: tuple[str, ...] = ()  # conditions that a block being committed is not told
    commit_sinks: bool = True  # whether it sees the sinks after they have left its window
    positions: str = "absolute"  # where kept frames appear to stand: see ``cache.positions``
    sink_overlap: int = 0  # 'adjacent': by how much moved sinks overlap the window
    ahead: int = 0  # 'ahead': first place of the reference frame
    ahead_step: int = 0  # 'ahead': by how much it runs ahead
    budget: int = 0  # what compression leaves: sinks + top tokens + recent frames; 0: there is none
    recent: int = 0  # the last frames, which compression leaves alone
    keys: str = "auto"  # stored 'rotated' at their frame or 'raw', as if at time 0; 'auto': raw where frames move
    dtype: str = "compute"  # storage of keys and values: 'compute' (the model's), 'float32', 'bfloat16' or 'int8'
    latents: bool = True  # keep the frames themselves beside their keys and values, for re-encoding
    recache_sinks: bool = True  # re-encoding the past includes the sinks

    def __post_init__(self):
        choices = {
            "kind": tuple(KINDS),
            "commit": ("separate", "fused"),
            "commit_data": ("noised", "scaled", "clean"),
            "commit_label": ("level", "fixed"),
            "positions": ("absolute", "slot", "adjacent", "ahead"),
            "keys": ("auto", "rotated", "raw"),
            "dtype": ("compute", "float32", "bfloat16", "int8"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"cache.{name} is {getattr(self, name)!r}; it is one of {', '.join(allowed)}")
        for name in self.commit_drop:
            if name not in CONDITIONS:
                raise ValueError(f"cache.commit_drop has {name!r}; conditions are {', '.join(CONDITIONS)}")
        check_numbers(
            self, "cache", commit_level=SHARE, commit_label_at=Range(-1, 1), sink_overlap=SIZE_OR_NONE,
            ahead=SIZE_OR_NONE, ahead_step=SIZE_OR_NONE, budget=SIZE_OR_NONE, recent=SIZE_OR_NONE,
        )  # fmt: skip
        self._check_shown()
        self._check_places()

    def _check_shown(self):
        if self.commit_level and self.commit_data == "clean" and self.commit_label == "fixed":
            raise ValueError(
                f"cache.commit_level is {self.commit_level} and cache.commit_data is 'clean': with a fixed "
                "cache.commit_label nobody would meet that level; cache.commit_level = 0.0 would do"
            )
        if self.commit_label == "level" and self.commit_label_at:
            raise ValueError(
                f"cache.commit_label_at is {self.commit_label_at} and cache.commit_label is 'level': nobody would be "
                "told; cache.commit_label = 'fixed' would do"
            )
        if not self.latents and self.kind in ("none", "two_level"):
            raise ValueError(
                f"cache.latents is False and cache.kind is {self.kind!r}: the past is computed from them; "
                "cache.latents = True would do"
            )
        if self.kind == "kv":
            return
        told = () if self.kind == "state" else ("commit_drop",)
        for name in ("commit", *told, "commit_sinks", "positions", "budget", "keys"):
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default:
                raise ValueError(
                    f"cache.{name} is {getattr(self, name)!r} and cache.kind is {self.kind!r}: it belongs to keys and "
                    f"values that are kept; cache.{name} = {default!r} would do"
                )

    def _check_places(self):
        for name, kind in (("sink_overlap", "adjacent"), ("ahead", "ahead"), ("ahead_step", "ahead")):
            if getattr(self, name) and self.positions != kind:
                raise ValueError(
                    f"cache.{name} is {getattr(self, name)} and cache.positions is {self.positions!r}: it belongs to "
                    f"{kind!r}; cache.{name} = 0 would do"
                )
        moves = self.positions != "absolute"
        if moves and self.keys == "rotated":
            raise ValueError(
                f"cache.keys is 'rotated' and cache.positions is {self.positions!r}: keys that move are turned when "
                "they are read; cache.keys = 'raw' would do"
            )
        if moves and self.commit == "fused":
            raise ValueError(
                f"cache.commit is 'fused' and cache.positions is {self.positions!r}: two blocks in one pass would see "
                "the past at two places; cache.commit = 'separate' would do"
            )
        if not self.commit_sinks and self.commit == "fused":
            raise ValueError(
                "cache.commit_sinks is False and cache.commit is 'fused': the blocks of one pass see the same sinks; "
                "cache.commit = 'separate' would do"
            )
        if self.budget and self.positions != "adjacent":
            raise ValueError(
                f"cache.budget is {self.budget} and cache.positions is {self.positions!r}: kept tokens close up "
                "between sinks and window; cache.positions = 'adjacent' would do"
            )
        if bool(self.recent) and not self.budget:
            raise ValueError(
                f"cache.recent is {self.recent} and cache.budget is 0: nothing is compressed; cache.recent = 0 would do"
            )

    @property
    def opens(self) -> bool:
        """Whether a stream's first pass of a block differs from the others."""
        return self.commit == "fused" or self.kind == "two_level" or self.budget > 0

    @property
    def raw(self) -> bool:
        """Whether keys are stored as if they stood at time 0."""
        return self.keys == "raw" or (self.keys == "auto" and self.positions != "absolute")


KINDS = {
    "kv": "keys and values of every layer",
    "none": "the frames themselves: they are run through the network every time",
    "two_level": "the last frames themselves, run through the network once per block, and keys and values of coarse "
    "tokens of the frames before (FAR, arXiv 2503.19325)",
    "state": "a state of every layer, as the network itself hands it on; nothing is forgotten and nothing has a place",
}
