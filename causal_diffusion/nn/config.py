"""Sizes and forms of the transformer, and which of them exclude each other."""

import dataclasses

from causal_diffusion.nn.attention_backends import NAMES
from causal_diffusion.nn.dtypes import compute_dtype
from causal_diffusion.nn.remat import POLICIES
from causal_diffusion.nn.rope import axis_widths
from causal_diffusion.ranges import DEPTH, SIZE_OR_NONE, WIDTH, WIDTH_OR_NONE, Range, check_numbers

WORDS = Range(0, 10_000_000)  # classes, or words: rows of an embedding


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and forms. Data are [B, T, *space, channels] with len(patch) - 1 spatial axes."""

    width: int = 256  # D
    depth: int = 6  # blocks
    heads: int = 4  # H; the head width D / H is even
    mlp: int = 1024  # hidden width of the feed-forward
    patch: tuple[int, ...] = (1, 8, 8)  # frames, then one entry per spatial axis
    channels: int = 1  # of the data
    outputs: int = 1  # numbers predicted per channel; 2 with a learned variance, which comes out last
    positions: str = "rotary"  # 'rotary' on all axes; 'additive'; 'both': rotary, and additive on space alone
    theta: float = 10000.0  # base of the position frequencies
    rope_split: tuple[int, ...] = ()  # shares of the head width per axis, time first; (): about equal ones
    period: int = 0  # frames after which additive time positions repeat; 0: they do not
    attention: str = "joint"  # over space and time at once, or 'factorised': inside each frame, then along time
    axial_mlp: bool = False  # factorised: space and time each with modulation and MLP of their own
    time_every: int = 1  # factorised: attention along time in every n-th layer only
    prefix: int = 0  # factorised: last clean frames that a noisy frame also sees in space; 0: no such attention
    mask_channel: bool = False  # factorised: the first attention along time is told which frames are clean
    registers: int = 0  # learned context tokens, seen by every frame
    label_tokens: bool = False  # the class goes to the registers instead of the modulation
    coarse: int = 0  # factor by which patches of the stream 'coarse' are larger in space; 0: no such stream
    qk_norm: str = "full"  # RMS norm of q and k: 'full' width, per 'head', 'none'
    modulation: str = "linear"  # adaLN: 'linear' per block, or 'table' on a shared projection
    modulate_clean: bool = True  # whether frames marked clean are modulated too
    head: str = "linear"  # modulation of the last norm: 'linear', 'table' or 'none'; 'diffusion': a network per token
    head_width: int = 512  # of the diffusion head
    head_depth: int = 3  # its blocks
    frequencies: int = 256  # width of the time sinusoid
    classes: int = 0  # 0: no class condition
    action: int = 0  # numbers per action; 0: no actions
    text: int = 0  # width of condition tokens; 0: no cross-attention
    vocabulary: int = 0  # word ids that the transformer embeds itself, each as ``text`` numbers; 0: tokens come as such
    text_layers: int = 1  # Linear layers that embed them, 1 or 2
    layers: str = "unrolled"  # or 'scan': shorter compilation for deep models
    remat: str = "none"  # what the backward pass keeps of a block, a key of remat.POLICIES
    backend: str = "auto"  # how attention is computed, see attention_backends
    dtype: str = "auto"  # of matmuls: 'float32', 'bfloat16'; 'auto' is float32 on CPU, else bfloat16

    def __post_init__(self):
        choices = {
            "positions": ("rotary", "additive", "both"),
            "attention": ("joint", "factorised"),
            "qk_norm": ("full", "head", "none"),
            "modulation": ("linear", "table"),
            "head": ("linear", "table", "none", "diffusion"),
            "text_layers": (1, 2),
            "layers": ("unrolled", "scan"),
            "remat": tuple(POLICIES),
            "backend": NAMES,
            "dtype": ("auto", "float32", "bfloat16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                names = ", ".join(map(str, allowed))
                raise ValueError(f"model.{name} is {getattr(self, name)!r}; it is one of {names}")
        check_numbers(
            self, "model", width=WIDTH, depth=DEPTH, heads=WIDTH, mlp=Range(1, 2**20), patch=WIDTH, channels=WIDTH,
            outputs=Range(1, 2), theta=Range(1, 1e9), rope_split=WIDTH_OR_NONE, period=SIZE_OR_NONE, time_every=DEPTH,
            prefix=SIZE_OR_NONE, registers=WIDTH_OR_NONE, coarse=WIDTH_OR_NONE, head_width=WIDTH, head_depth=DEPTH,
            frequencies=Range(2, 2**16), classes=WORDS, action=WIDTH_OR_NONE, text=WIDTH_OR_NONE, vocabulary=WORDS,
            text_layers=Range(1, 2),
        )  # fmt: skip
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"model.width is {self.width} and model.heads is {self.heads}: the width per head must be a whole "
                f"even number, model.width = {2 * self.heads * max(1, round(self.width / (2 * self.heads)))} would do"
            )
        if not 1 <= len(self.patch) <= 3:
            raise ValueError(f"model.patch is {self.patch}: one entry for time and up to two for space")
        if self.head == "diffusion" and self.coarse:
            raise ValueError(
                f"model.head is 'diffusion' and model.coarse is {self.coarse}: coarse tokens are never predicted; "
                "model.coarse = 0 would do"
            )
        if self.vocabulary and not self.text:
            raise ValueError(
                f"model.vocabulary is {self.vocabulary} and model.text is 0: words become that many numbers, "
                f"model.text = {self.width} would do"
            )
        self._check_attention()
        self._check_positions()

    def _check_attention(self):
        """Which forms of attention go together."""
        if self.attention == "joint":
            for name, off in dict(axial_mlp=False, time_every=1, prefix=0, mask_channel=False).items():
                self._exclude(name, off, "attention", "joint", "it belongs to attention in space, then in time")
        else:
            for name in ("registers", "coarse"):
                self._exclude(name, 0, "attention", "factorised", "a token of a frame sees its own cell along time")
        if self.time_every > self.depth:
            raise ValueError(
                f"model.time_every is {self.time_every} and model.depth is {self.depth}: no layer would see along "
                f"time; model.time_every = {self.depth} would do"
            )
        if self.time_every > 1:
            self._exclude("prefix", 0, "time_every", self.time_every, "it is cached with the attention along time")
            self._exclude("mask_channel", False, "time_every", self.time_every, "the first layer must see along time")
        if self.layers == "scan":
            for name, off in dict(time_every=1, mask_channel=False).items():
                self._exclude(name, off, "layers", "scan", "scanned layers are all alike", "layers", "unrolled")
        if len(self.patch) == 1:
            self._exclude("coarse", 0, "patch", self.patch, "without space no patch is larger than another")
        if self.label_tokens and not (self.registers and self.classes):
            lacking = "classes" if self.registers else "registers"
            raise ValueError(
                f"model.label_tokens is True and model.{lacking} is 0: a class is added to the registers; "
                "model.label_tokens = False would do"
            )

    def _check_positions(self):
        if self.period:
            self._exclude("positions", "additive", "period", self.period, "rotated keys stay where they are")
        if not self.rope_split:
            return
        why = "nothing is rotated by several axes"
        self._exclude("rope_split", (), "positions", "additive", why)
        self._exclude("rope_split", (), "attention", "factorised", why)
        if len(self.rope_split) != len(self.patch):
            raise ValueError(
                f"model.rope_split is {self.rope_split} and model.patch is {self.patch}: one share for every axis, "
                "model.rope_split = () would do"
            )
        try:
            axis_widths(self.width // self.heads, len(self.patch), self.rope_split)
        except ValueError as error:
            raise ValueError(
                f"model.rope_split is {self.rope_split} and model.width / model.heads is "
                f"{self.width // self.heads}: {error}; model.rope_split = () would do"
            ) from None

    def _exclude(self, name, off, other, when, why, change=None, to=None):
        """Refuses model.``name`` unless it is ``off``, where model.``other`` is ``when``."""
        given = getattr(self, name)
        if getattr(self, other) != when or given == off:
            return
        change, to = (name, off) if change is None else (change, to)
        raise ValueError(
            f"model.{name} is {given!r} and model.{other} is {when!r}: {why}; model.{change} = {to!r} would do"
        )

    @property
    def compute_dtype(self):
        """The dtype of matmuls on the backend at hand."""
        return compute_dtype(self.dtype)

    @property
    def modulations(self) -> int:
        """Modulation vectors per block: shift, scale and gate of each modulated half."""
        return 12 if self.axial_mlp else 6
