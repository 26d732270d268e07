"""Every number of every config, set to values that make no sense: refused in one line, or the system builds."""

import functools
import math
import re

import jax
import pytest

from causal_diffusion.config import Config, _fields, config_folder, freeze, load_config, override
from causal_diffusion.errors import UserError
from causal_diffusion.parallel.mesh import make_mesh
from causal_diffusion.ranges import _number_in
from causal_diffusion.training.optimizer import make_optimizer
from causal_diffusion.training.runs import make_recipe

VALUES = {int: (-1, 0, math.nan, 10**9, 2**31, 2**63), float: (-1.0, 0.0, math.nan, 1e9, math.inf, -math.inf, 1e300)}
KINDS = {key: kind for key, hint in _fields().items() if (kind := _number_in(hint)) is not None}
SHIPPED = sorted(f"{path.stem}:tiny" for path in config_folder().glob("*.py"))
HOMES = (  # where a section counts; the first that fits a key and sets it itself, else the first that fits
    ("vae.motion.", ("motion_vae:tiny",)), ("vae.video.", ("video_vae:tiny", "frame_vae:tiny")),
    ("vae.tokenizer.", ("phenaki_tokenizer:tiny",)), ("vae.cdt.", ("cdt:tiny",)),
    ("motion_text.", ("motion_text:tiny",)),
    ("reconstruction.", ("video_vae:tiny", "motion_vae:tiny")), ("text.", ("cmdm:tiny",)),
    ("", ("quickstart:tiny", "magi1:tiny", "ca2_vdm:tiny", "far_long:tiny", "deep_forcing:tiny")),
)  # fmt: skip


@functools.cache
def base(name) -> Config:
    return freeze(load_config(name))


def value_of(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


def home(key) -> str:
    """A config in which the key counts: one that sets it, where there is one."""
    names = next(names for prefix, names in HOMES if key.startswith(prefix))
    plain = value_of(Config(), key)
    return next((name for name in names if value_of(base(name), key) != plain), names[0])


def changed(name, key, value):
    """The config with one number changed; of a tuple its first entry."""
    there = value_of(base(name), key)
    if isinstance(there, tuple):
        inner = there[0] if there and isinstance(there[0], tuple) else None
        value = ((value, *inner[1:]), *there[1:]) if inner else (value, *there[1:])
        value = ((value[0],),) if not inner and key == "motion_text.parts" else value
    return override(base(name), {key: value})


@functools.cache
def built(network):
    """Shapes of the parameters, traced once for each network."""
    return jax.eval_shape(network.init_params, jax.random.key(0))


class Network:
    """A recipe that equals another one where the parameters do not depend on what differs."""

    def __init__(self, recipe):
        c = recipe.config
        parts = (c.model, c.layout, c.process, c.data) if c.trains == "transformer" else (c.vae, c.motion_text, c.data)
        self.same, self.init_params = (c.trains, *parts, c.reconstruction.gan_width), recipe.init_params

    def __eq__(self, other):
        return self.same == other.same

    def __hash__(self):
        return hash(self.same)


def check(name, key, value):
    """'' where the system builds; else the one line that refuses it."""
    try:
        config = changed(name, key, value)
        recipe = make_recipe(config)
        make_mesh(config.mesh)
        make_optimizer(config.train)
    except UserError as error:
        said = str(error)
        # 0 and -1 may be right by themselves and clash with other keys, which the message then names.
        named = key.rpartition(".")[2] in said or value in (0, -1) and re.search(r"\b[a-z_]+\.[a-z_]+ is ", said)
        assert "\n" not in said and named, said
        return said
    built(Network(recipe))
    return ""


def sections():
    return sorted({key.rpartition(".")[0] for key in KINDS})


@pytest.mark.parametrize("section", sections(), ids=lambda section: section or "top")
def test_numbers_that_make_no_sense(section):
    keys = [key for key in KINDS if key.rpartition(".")[0] == section]
    for key in keys:
        name = home(key)
        for value in VALUES[KINDS[key]]:
            said = check(name, key, value)
            assert said or math.isfinite(value), f"{name}: {key} = {value} is accepted"
            assert said or abs(value) < 2**31 or key.endswith("seed"), f"{name}: {key} = {value} is accepted"


@pytest.mark.full
@pytest.mark.parametrize("name", SHIPPED)
def test_numbers_that_make_no_sense_everywhere(name):
    """Every fourth key of each config, other ones of the next config."""
    for key, kind in list(KINDS.items())[SHIPPED.index(name) % 4 :: 4]:
        for value in VALUES[kind]:
            said = check(name, key, value)
            assert said or math.isfinite(value), f"{key} = {value} is accepted"


@pytest.mark.parametrize(("batch", "accumulate"), [(6, 4), (6, 7), (1, 2)])
def test_micro_batches_have_equal_sizes(batch, accumulate):
    wrong = {"train.batch": batch, "train.accumulate": accumulate}
    with pytest.raises(UserError, match=f"train.batch is {batch} and train.accumulate is {accumulate}: ") as error:
        override(base("quickstart:tiny"), wrong)
    fits = int(re.search(r"try train.batch = (\d+)$", str(error.value))[1])
    override(base("quickstart:tiny"), wrong | {"train.batch": fits})


@pytest.mark.parametrize("key", [key for key, kind in KINDS.items() if kind is float])
def test_an_integer_beyond_every_float_is_refused(key):
    with pytest.raises(UserError, match=key.rpartition(".")[2]):
        changed("quickstart:tiny", key, 10**400)
