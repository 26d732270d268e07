"""Save, verify, restore: ``manager`` for the checkpoints of a run, ``single_file`` for one small pytree."""

from causal_diffusion.checkpoint.manager import Checkpoints, Restored
from causal_diffusion.checkpoint.readers import beside, folder_of, read_ema, read_meta
from causal_diffusion.checkpoint.single_file import load_tree, save_tree

__all__ = ["Checkpoints", "Restored", "beside", "folder_of", "load_tree", "read_ema", "read_meta", "save_tree"]
