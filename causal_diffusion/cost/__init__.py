"""What a config costs: floating-point operations and bytes, counted from its sizes before anything runs.

``training_cost`` of a training step, ``step_cost`` of a streaming one, ``condition_cost`` of a new condition,
``vae_encode_cost`` and ``vae_decode_cost`` of a piece of a clip; ``peaks`` has what devices can do, and
``Cost.seconds`` what follows. Pure Python and NumPy.
"""

from causal_diffusion.cost.count import Cost
from causal_diffusion.cost.stream import condition_cost, step_cost
from causal_diffusion.cost.transformer import training_cost
from causal_diffusion.cost.vae import vae_decode_cost, vae_encode_cost

__all__ = ["Cost", "condition_cost", "step_cost", "training_cost", "vae_decode_cost", "vae_encode_cost"]
