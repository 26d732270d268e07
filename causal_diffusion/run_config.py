"""The sections of a config that say how a run trains, evaluates and logs. Keys are told in ``config``."""

import dataclasses

from causal_diffusion.ranges import (
    BELOW_ONE,
    COUNT,
    COUNT_OR_NONE,
    SHARE,
    SIZE,
    SIZE_OR_NONE,
    WEIGHT,
    WIDTH,
    WIDTH_OR_NONE,
    Range,
    check_numbers,
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimisation. Lengths are in steps."""

    steps: int = 1000
    batch: int = 32  # clips per step, over all devices
    optimizer: str = "adamw"  # or a lighter one: 'adamw_bf16', 'lion', 'muon', 'adafactor' (training.optimizer)
    lr: float = 1e-3  # peak learning rate
    warmup: int = 100  # steps of linear warm-up from zero
    decay: str = "cosine"  # after warm-up, to zero at the last step: 'cosine', 'linear' or 'constant' (no decay)
    betas: tuple[float, ...] = (0.9, 0.99)
    weight_decay: float = 0.01  # decoupled, on matrices only
    clip: float = 1.0  # global gradient norm; 0: no clipping
    ema: float = 0.999  # decay of the averaged parameters, lower in the first steps
    accumulate: int = 1  # micro-batches whose gradients are averaged into one step
    guard: str = "stop"  # where loss or gradient is not finite: no update and 'stop', or 'skip' and go on; 'off'
    spike: float = 0.0  # no update where the gradient norm is that many times its recent median; 0: always one
    own_past: tuple[float, ...] = ()  # share of the clean past that is the network's own guess, from first to last step
    drop: float = 0.1  # share of samples that train without their class and text; of a motion_text, of words
    flip: bool = False  # mirror half of the clips left to right
    compose: float = 0.0  # share of clips that go over into another one and its caption half way
    blend: int = 12  # frames in which they do
    crop: int = 0  # an autoencoder sees a random square of so many pixels of every clip; 0: whole frames
    init_from: str = ""  # checkpoint directory whose averaged parameters start this run

    def __post_init__(self):
        check_numbers(
            self, "train", steps=COUNT, batch=SIZE, lr=Range(0, 1_000, open_low=True), warmup=COUNT_OR_NONE,
            betas=BELOW_ONE, weight_decay=WEIGHT, clip=WEIGHT, ema=BELOW_ONE, accumulate=SIZE, spike=WEIGHT,
            own_past=SHARE, drop=BELOW_ONE, compose=SHARE, blend=SIZE, crop=WIDTH_OR_NONE,
        )  # fmt: skip
        if len(self.betas) != 2:
            raise ValueError(f"train.betas is {self.betas}; it holds two numbers, try train.betas = (0.9, 0.99)")
        if self.batch % self.accumulate:
            fits = max(1, self.batch // self.accumulate) * self.accumulate
            raise ValueError(
                f"train.batch is {self.batch} and train.accumulate is {self.accumulate}: micro-batches have equal "
                f"sizes, try train.batch = {fits}"
            )
        if self.guard not in ("off", "skip", "stop"):
            raise ValueError(f"train.guard is {self.guard!r}; it is one of off, skip, stop")
        if self.spike and not self.spike > 1.0:
            raise ValueError(f"train.spike is {self.spike}: a factor above 1, or 0 for none, train.spike = 10 would do")
        if self.spike and self.guard == "off":
            raise ValueError(
                f"train.spike is {self.spike} and train.guard is 'off': nothing would be skipped, "
                "train.guard = 'skip' would do"
            )
        if len(self.own_past) not in (0, 2):
            raise ValueError(
                f"train.own_past is {self.own_past}; it is () or two shares, try train.own_past = (0.0, 0.5)"
            )


@dataclasses.dataclass(frozen=True)
class ReconstructionConfig:
    """What an autoencoder is trained for (``training.objectives.reconstruction``)."""

    fit: str = "l1"  # 'l1', 'charbonnier', 'mse' or 'likelihood', a Gaussian of the best sigma
    root: int = 0  # first channels that count once more, as the root of a motion does
    root_weight: float = 7.0
    velocity: float = 0.0  # weight of the same fit to differences from frame to frame
    kl: float = 1e-6  # weight of the divergence from N(0, 1)
    kl_warmup: int = 0  # steps over which that weight rises from 0
    perceptual: float = 0.0  # weight of LPIPS, or without its weights of the multi-scale feature distance
    lpips: str = ""  # file of LPIPS weights
    gan: float = 0.0  # weight of the hinge loss of a patch discriminator, times the adaptive one; 0: none is made
    gan_start: int = 0  # step from which on it counts
    gan_width: int = 64  # channels of the discriminator's first layer
    align: float = 0.0  # weight of the alignment of latents with frozen features, times the adaptive one
    align_margins: tuple[float, ...] = (0.5, 0.25)  # of the cosines, of the distances
    features: str = ""  # run of a model of motions and captions whose features latents are aligned with; '': kinematics
    teacher: str = ""  # run of an autoencoder whose encoder is kept and whose decoder is the target

    def __post_init__(self):
        if self.fit not in ("l1", "charbonnier", "mse", "likelihood"):
            raise ValueError(
                f"reconstruction.fit is {self.fit!r}; it is one of l1, charbonnier, mse, likelihood"
            )
        check_numbers(
            self, "reconstruction", root=WIDTH_OR_NONE, root_weight=WEIGHT, velocity=WEIGHT, kl=WEIGHT,
            kl_warmup=COUNT_OR_NONE, perceptual=WEIGHT, gan=WEIGHT, gan_start=COUNT_OR_NONE, gan_width=WIDTH,
            align=WEIGHT, align_margins=SHARE,
        )  # fmt: skip
        if self.lpips and not self.perceptual:
            raise ValueError(
                f"reconstruction.lpips is {self.lpips!r} and reconstruction.perceptual is 0: its weights would not be "
                "used, reconstruction.perceptual = 1.0 would do"
            )
        if len(self.align_margins) != 2:
            raise ValueError(
                f"reconstruction.align_margins is {self.align_margins}; it holds two numbers, (0.5, 0.25) would do"
            )


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Cadence, in steps, and what is kept."""

    every: int = 20  # scalars
    evaluate: int = 500  # held-out loss and a sampled clip; 0: only at the end
    checkpoint: int = 250
    keep: int = 2  # newest checkpoints kept
    keep_every: int = 0  # checkpoints of steps that are multiples of it are kept besides; 0: none
    trace: tuple[int, ...] = ()  # (first, count): steps whose profile goes to the workdir's folder 'trace'; (): none

    def __post_init__(self):
        check_numbers(
            self, "log", every=COUNT, evaluate=COUNT_OR_NONE, checkpoint=COUNT, keep=COUNT, keep_every=COUNT_OR_NONE,
            trace=COUNT,
        )  # fmt: skip
        if self.keep_every % self.checkpoint:
            near = max(1, round(self.keep_every / self.checkpoint)) * self.checkpoint
            raise ValueError(
                f"log.keep_every is {self.keep_every} and log.checkpoint is {self.checkpoint}: steps are kept that are "
                f"saved, 0 or a multiple of log.checkpoint, {near} would do"
            )
        if len(self.trace) not in (0, 2):
            raise ValueError(
                f"log.trace is {self.trace}; it is () or the first step and their number, try log.trace = (10, 3)"
            )


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Held-out evaluation by streaming from given context."""

    clips: int = 64  # held-out clips; 0: no evaluation at the end
    context: int = 4  # frames given
    frames: int = 48  # frames streamed at the end of training, after the context

    def __post_init__(self):
        check_numbers(self, "evaluate", clips=SIZE_OR_NONE, context=SIZE_OR_NONE, frames=SIZE)


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """The compiled rollout."""

    capacity: int = 8  # blocks of one compiled scan

    def __post_init__(self):
        check_numbers(self, "stream", capacity=Range(1, 2**16))
