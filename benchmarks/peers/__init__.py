"""The other side of a comparison: minimal eager PyTorch with the very same weights. Needs the extra ``bench``."""
