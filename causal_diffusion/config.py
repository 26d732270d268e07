"""Configs: one Python file per system, checked key by key, frozen at the border.

A config file defines ``get_config(variant='') -> ConfigDict`` and sets only what its system decides; everything
else has its default in the dataclass that owns the section. ``load_config`` fills the defaults in and returns a
locked ``ConfigDict`` that a notebook may edit; ``freeze`` turns it into the dataclasses that the code works with.

    config = load_config("quickstart")                    # configs/quickstart.py
    config = load_config("quickstart:tiny")               # get_config('tiny')
    config = load_config("my/own.py", ["train.steps=200"])

Keys are *identity* (part of what a checkpoint is) or *elastic* (free to change when a run goes on): ELASTIC.
"""

import ast
import contextlib
import dataclasses
import difflib
import importlib.util
import json
import types
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import ml_collections

from causal_diffusion.cache import CacheConfig
from causal_diffusion.data.config import DataConfig
from causal_diffusion.diffusion.guidance import Guidance
from causal_diffusion.diffusion.levels import Levels
from causal_diffusion.diffusion.process import Process
from causal_diffusion.diffusion.schedule import Schedule
from causal_diffusion.diffusion.solvers import SolverConfig
from causal_diffusion.errors import UserError
from causal_diffusion.layout import Layout
from causal_diffusion.nn.motion_text import MotionTextConfig
from causal_diffusion.nn.text.config import TextConfig
from causal_diffusion.nn.transformer import TransformerConfig
from causal_diffusion.nn.vae import VAEConfig
from causal_diffusion.parallel.mesh import MeshConfig
from causal_diffusion.ranges import SEED, check_number
from causal_diffusion.run_config import EvaluateConfig, LogConfig, ReconstructionConfig, StreamConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """A system: its six choices, its network, its data, and how it is trained; or the autoencoder of one.

    With ``trains = 'vae'`` the run makes the autoencoder of section ``vae``, with 'motion_text' the model of motions
    and captions of that section. Else it makes the transformer; then
    ``vae``, where it has a form, says whose latents the transformer works on.
    """

    name: str = "unnamed"
    trains: str = "transformer"  # or 'vae', or 'motion_text'
    seed: int = 0
    data: DataConfig = DataConfig()
    vae: VAEConfig = VAEConfig()
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    text: TextConfig = TextConfig()
    motion_text: MotionTextConfig = MotionTextConfig()
    model: TransformerConfig = TransformerConfig()
    layout: Layout = Layout()
    process: Process = Process()
    levels: Levels = Levels()
    schedule: Schedule = Schedule()
    solver: SolverConfig = SolverConfig()
    guidance: Guidance = Guidance()
    cache: CacheConfig = CacheConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    stream: StreamConfig = StreamConfig()
    log: LogConfig = LogConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        check_number("seed", self.seed, SEED)
        if self.trains not in ("transformer", "vae", "motion_text"):
            raise ValueError(f"trains is {self.trains!r}; it is 'transformer', 'vae' or 'motion_text'")


ELASTIC = (
    "mesh",
    "log",
    "stream",
    "evaluate",
    "schedule",
    "solver",
    "guidance",
    "cache",
    "train.steps",
    "train.init_from",
    "train.guard",
    "vae.checkpoint",
    "text.path",
    "text.cache",
    "reconstruction.lpips",
    "reconstruction.features",
    "data.path",
    "data.threads",
    "data.prefetch",
    "model.remat",
    "model.backend",
)


def load_config(name: str, overrides=()) -> ml_collections.ConfigDict:
    """Reads a config file and fills in every default.

    Args:
        name: 'quickstart', 'quickstart:tiny', or a path to a config file, with ':variant' if wanted.
        overrides: 'section.key=value' strings, or a dict {'section.key': value}.

    Returns:
        A locked ConfigDict with every key.

    Raises:
        UserError: no such config, an unknown key (with the nearest known one), or a value of the wrong type.
    """
    path, variant = _find(name)
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        given = module.get_config(variant)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    given = given.to_dict() if isinstance(given, ml_collections.ConfigDict) else dict(given)
    given.setdefault("name", path.stem)
    flat = flatten(given) | _read(overrides)
    config = ml_collections.ConfigDict(_nest(flatten(dataclasses.asdict(Config())) | _checked(flat)))
    return config.lock()


def freeze(config) -> Config:
    """ConfigDict (or nested dict) -> frozen dataclasses. UserError on an unknown or ill-typed key or value."""
    if isinstance(config, Config):
        return config
    nested = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    flat = _checked(flatten(nested))
    try:
        return _build(Config, _nest(flat))
    except ValueError as error:
        raise UserError(str(error)) from error


def override(config: Config, overrides) -> Config:
    """A config with some keys changed; ``overrides`` as in ``load_config``."""
    return freeze(_nest(flatten(dataclasses.asdict(config)) | _checked(_read(overrides))))


def thaw(config: Config) -> ml_collections.ConfigDict:
    """Frozen dataclasses -> a locked, editable ConfigDict."""
    return ml_collections.ConfigDict(dataclasses.asdict(config)).lock()


def flatten(nested: dict, prefix: str = "") -> dict[str, Any]:
    """{'train': {'steps': 1}} -> {'train.steps': 1}."""
    flat = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat


def to_json(config: Config) -> str:
    """Readable and exact: ``freeze(json.loads(to_json(c))) == c``."""
    return json.dumps(dataclasses.asdict(config), indent=1)


def differences(old: Config, new: Config) -> tuple[dict, dict]:
    """Keys whose values differ, as {key: (old, new)}: (identity keys, elastic keys)."""
    a, b = flatten(dataclasses.asdict(old)), flatten(dataclasses.asdict(new))
    changed = {key: (a[key], b[key]) for key in b if a.get(key) != b[key]}
    elastic = {key: pair for key, pair in changed.items() if _is_elastic(key)}
    return {key: pair for key, pair in changed.items() if key not in elastic}, elastic


def _is_elastic(key):
    return any(key == prefix or key.startswith(prefix + ".") for prefix in ELASTIC)


def config_folder() -> Path:
    """Where the shipped configs are: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _find(name):
    path, _, variant = str(name).partition(":")
    file = Path(path).expanduser()
    if file.suffix != ".py" and len(file.parts) == 1:
        folder = config_folder()
        file = folder / f"{path}.py"
        if not file.is_file():
            known = sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))
            raise UserError(f"no config is named {path!r}; {_nearest(path, known)}")
    if not file.is_file():
        raise UserError(f"there is no config file {file}")
    return file, variant


def _read(overrides):
    """'section.key=value' strings, or a dict, -> {'section.key': value}."""
    if isinstance(overrides, dict):
        return overrides
    flat = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"{item!r} is not an override; write section.key=value")
        flat[key] = text
    return flat


def _fields(cls=Config, prefix=""):
    """Flat key -> type of every leaf of the schema."""
    hints, leaves = get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            leaves |= _fields(kind, f"{prefix}{field.name}.")
        else:
            leaves[prefix + field.name] = kind
    return leaves


def _checked(flat):
    fields = _fields()
    out = {}
    for key, value in flat.items():
        if key not in fields:
            raise UserError(f"unknown config key {key!r}; {_nearest(key, fields)}")
        out[key] = _cast(key, value, fields[key])
    return out


def _nearest(word, known):
    known = list(known)
    tail = [k for k in known if k.rpartition(".")[2] == word.rpartition(".")[2]]
    close = difflib.get_close_matches(word, tail or known, n=1, cutoff=0.0)
    hint = close[0] if close else ""
    return f"the nearest is {hint!r}" if hint else "there is none"


def _cast(key, value, kind):
    """The value as ``kind``; strings (from a command line) are read as Python literals where that is not a str."""
    given = value
    if isinstance(value, str) and kind is not str:
        try:
            value = ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
        except (ValueError, SyntaxError):
            value = None
    if get_origin(kind) is tuple:
        element = get_args(kind)[0]
        value = (value,) if get_origin(element) is None and isinstance(value, element) else value
        if isinstance(value, (tuple, list)):
            return tuple(_cast(key, item, element) for item in value)
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer beyond every float
            return float(value)
    elif type(value) is kind:
        return value
    name = kind.__name__ if isinstance(kind, type) and not isinstance(kind, types.GenericAlias) else str(kind)
    raise UserError(f"config key {key!r} is {given!r}; it takes {name}")


def _nest(flat):
    nested = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return nested


def _build(cls, nested):
    hints = get_type_hints(cls)
    return cls(
        **{k: _build(hints[k], v) if dataclasses.is_dataclass(hints[k]) else v for k, v in nested.items()}
    )
