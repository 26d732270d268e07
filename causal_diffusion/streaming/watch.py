"""Where the time of a stream goes.

Devices work while the host goes on, so a phase is what the *host* waits for, one after the other: they add up to the
time that a stream takes, and nothing is waited for that would not be waited for anyway::

    condition    encoding what steers the stream; compiling that
    beginning    the state that a stream begins with, its given frames committed; compiling that
    compiling    until the programs that make blocks are there
    steps        until blocks are denoised and committed
    decoding     until their frames are decoded: what of it the next steps do not hide
    fetching     until they are in the host's memory
"""

import contextlib
import time

PHASES = ("condition", "beginning", "compiling", "steps", "decoding", "fetching")


class Watch:
    """Seconds by phase, of one stream.

    Attributes:
        seconds: phase -> how long it took until now.
        blocks: that were returned; frames: of one sample.
        first: seconds until the first of them were; None before that.
    """

    def __init__(self):
        self.seconds, self.blocks, self.frames, self.first = dict.fromkeys(PHASES, 0.0), 0, 0, None
        self._begun = time.perf_counter()

    @contextlib.contextmanager
    def phase(self, name: str):
        """Adds the time that passes inside to a phase."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begun

    def returned(self, blocks: int, frames: int) -> None:
        """Counts what the user gets."""
        self.blocks, self.frames = self.blocks + blocks, self.frames + frames
        if self.first is None:
            self.first = time.perf_counter() - self._begun

    def per_block(self) -> dict[str, float]:
        """Milliseconds by phase and block, of the phases that blocks take; nan before the first one."""
        return {name: 1e3 * self.seconds[name] / self.blocks if self.blocks else float("nan") for name in PHASES[3:]}

    def __str__(self):
        """One line."""
        begin = ", ".join(f"{name} {self.seconds[name]:.2f} s" for name in PHASES[:3])
        blocks = ", ".join(f"{name} {ms:.1f}" for name, ms in self.per_block().items())
        return f"{begin}; ms a block: {blocks}"
