"""What may be seen: one predicate over the ids of a query and a key.

``ids`` says what every frame carries, ``clauses`` who sees whom (drawn there), ``layout`` holds a config's choice, and
what follows from it in training. ``static_mask`` is a mask that a program is made for.
"""

from causal_diffusion.layout.clauses import CLAUSES
from causal_diffusion.layout.ids import CLEAN, COARSE, CONTEXT, NOISY, REFERENCE, Ids, concatenate
from causal_diffusion.layout.layout import Layout
from causal_diffusion.layout.static_mask import StaticMask

__all__ = ["CLAUSES", "CLEAN", "COARSE", "CONTEXT", "NOISY", "REFERENCE", "Ids", "Layout", "StaticMask", "concatenate"]
