"""What is remembered of the past: which frames, where in time they appear to stand, and how they are stored.

``config`` says what is kept, ``slots`` which frame each slot holds, ``positions`` where in time a kept frame appears to
stand when it is read, ``compaction`` which tokens survive where not all do, ``storage`` how numbers are kept. Arrays
only: what the keys and values of a network look like is not known here.
"""

from causal_diffusion.cache.compaction import Compaction, compact, compacted, plan_compaction
from causal_diffusion.cache.config import CacheConfig
from causal_diffusion.cache.positions import positions
from causal_diffusion.cache.slots import EMPTY, Slots, commit, empty, write
from causal_diffusion.cache.storage import HeadsFirst, Int8, heads_first, lay, load, store, unlay

__all__ = [
    "EMPTY",
    "CacheConfig",
    "Compaction",
    "HeadsFirst",
    "Int8",
    "Slots",
    "commit",
    "compact",
    "compacted",
    "empty",
    "heads_first",
    "lay",
    "load",
    "plan_compaction",
    "positions",
    "store",
    "unlay",
    "write",
]
