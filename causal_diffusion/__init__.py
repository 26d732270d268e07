"""causal_diffusion: train block-causal diffusion transformers, and stream from them.

    import causal_diffusion as cd

    pipe = cd.train(cd.load_config("quickstart"), workdir="runs/quickstart")
    pipe = cd.Pipeline.from_checkpoint("runs/quickstart")
    clip = pipe.generate(seed=0, frames=64, batch=4)
    for block in pipe.stream(seed=0): ...

Names are imported when first used, so that ``import causal_diffusion`` costs nothing and starts no backend.
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "Pipeline": "causal_diffusion.streaming.pipeline",
    "UserError": "causal_diffusion.errors",
    "freeze": "causal_diffusion.config",
    "load_config": "causal_diffusion.config",
    "load_vae": "causal_diffusion.autoencoder",
    "train": "causal_diffusion.training.loop",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__():
    return sorted(__all__)
