"""Configs: checked key by key, overridden from a command line, written and read back, and their variants."""

import dataclasses
import json

import ml_collections
import pytest

from causal_diffusion.config import (
    ELASTIC,
    Config,
    config_folder,
    differences,
    flatten,
    freeze,
    load_config,
    override,
    thaw,
    to_json,
)
from causal_diffusion.errors import UserError

SHIPPED = sorted(path.stem for path in config_folder().glob("*.py"))

def write(folder, body):
    path = folder / "own.py"
    path.write_text(f"def get_config(variant=''):\n    return {body}\n")
    return str(path)


@pytest.mark.parametrize("name", SHIPPED)
def test_json_goes_there_and_back(name):
    for variant in ("", ":tiny"):
        config = freeze(load_config(name + variant))
        assert freeze(json.loads(to_json(config))) == config
        assert freeze(thaw(config)) == config and freeze(config) is config
        assert differences(config, freeze(json.loads(to_json(config)))) == ({}, {})


def test_a_config_is_found_by_name_and_by_path(tmp_path):
    path = write(tmp_path, "{'train': {'steps': 5}}")
    assert freeze(load_config(path)).name == "own" and freeze(load_config(path)).train.steps == 5
    path = write(tmp_path, "{'name': 'mine', 'train': {'steps': 7 if variant == 'long' else 5}}")
    assert load_config(f"{path}:long").train.steps == 7 and load_config(path).name == "mine"
    with pytest.raises(UserError, match="no config is named 'quickstrat'; the nearest is 'quickstart'"):
        load_config("quickstrat")
    with pytest.raises(UserError, match="there is no config file .*absent.py"):
        load_config(str(tmp_path / "absent.py"))


@pytest.mark.parametrize("name", SHIPPED)
def test_an_unknown_variant_names_those_there_are(name):
    with pytest.raises(UserError, match=f"{name}.py: {name} has no variant 'huge'.*'tiny'"):
        load_config(f"{name}:huge")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train.step", "train.steps"),
        ("model.dept", "model.depth"),
        ("steps", "train.steps"),  # of the sections with that last word, the one spelt most alike
        ("optimizer.warmup", "train.warmup"),
        ("trian.batch", "train.batch"),
        ("layout.blok", "layout.block"),
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path, key, nearest):
    said = f"^unknown config key '{key}'; the nearest is '{nearest}'$"
    with pytest.raises(UserError, match=said):
        load_config("quickstart", [f"{key}=1"])
    with pytest.raises(UserError, match=said):
        override(Config(), {key: 1})
    nested = {key.split(".")[0]: {key.split(".")[1]: 1}} if "." in key else {key: 1}
    with pytest.raises(UserError, match=said):
        load_config(write(tmp_path, repr(nested)))
    with pytest.raises(UserError, match=said):
        freeze(nested)


def test_an_edited_config_is_checked_again():
    config = load_config("quickstart:tiny")
    config.train.steps = 3
    assert freeze(config).train.steps == 3
    with pytest.raises(AttributeError, match="steps"):
        config.train.step = 3  # locked: a new key is refused at once
    config.layout.kind = "causal"
    with pytest.raises(UserError, match="layout.kind is 'causal'; it is one of"):
        freeze(config)
    nested = ml_collections.ConfigDict({"train": {"steps": "many"}})
    with pytest.raises(UserError, match="config key 'train.steps' is 'many'; it takes int"):
        freeze(nested)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.steps=200", 200),
        ("train.steps=1_000", 1000),
        ("train.lr=3e-4", 3e-4),
        ("train.lr=1", 1.0),  # a float may be written as an integer
        ("train.flip=true", True),
        ("train.flip=False", False),
        ("layout.kind=block_causal", "block_causal"),
        ("data.path=/videos/a=b", "/videos/a=b"),
        ("data.path=2024", "2024"),  # a text may look like a number
        ("train.init_from=", ""),
        ("model.patch=(1, 4, 4)", (1, 4, 4)),
        ("model.patch=1,4,4", (1, 4, 4)),
        ("model.patch=[1, 4, 4]", (1, 4, 4)),
        ("model.patch=1", (1,)),
        ("train.betas=(0.9, 0)", (0.9, 0.0)),
        ("guidance.drop=('label', 'action')", ("label", "action")),
    ],
)
def test_overrides_are_read_as_what_the_key_takes(text, value):
    section, name = text.partition("=")[0].split(".")
    read = getattr(getattr(freeze(load_config("quickstart", [text])), section), name)
    assert read == value and type(read) is type(value)
    if isinstance(value, tuple):
        assert [type(item) for item in read] == [type(item) for item in value]


@pytest.mark.parametrize(
    ("text", "takes"),
    [
        ("train.steps=1.5", "int"),
        ("train.steps=true", "int"),
        ("train.steps=many", "int"),
        ("train.steps=", "int"),
        ("train.lr=fast", "float"),
        ("train.lr=True", "float"),
        ("train.flip=1", "bool"),
        ("train.flip=yes", "bool"),
        ("model.patch=(1, 4.5)", "int"),
        ("model.patch=wide", "tuple"),
        ("guidance.drop=(1, 2)", "str"),
    ],
)
def test_values_of_the_wrong_type_are_refused(text, takes):
    key = text.partition("=")[0]
    with pytest.raises(UserError, match=rf"^config key '{key}' is .*; it takes {takes}[^\n]*$"):
        load_config("quickstart", [text])


def test_an_override_has_a_key_and_a_value():
    with pytest.raises(UserError, match="'train.steps' is not an override; write section.key=value"):
        load_config("quickstart", ["train.steps"])


def test_overrides_come_as_a_dict_too_and_change_nothing_else():
    config = freeze(load_config("quickstart"))
    changed = override(config, {"train.steps": 5000, "model.patch": [1, 4, 4]})
    assert changed == dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, steps=5000),
        model=dataclasses.replace(config.model, patch=(1, 4, 4)),
    )


def test_keys_are_identity_or_elastic():
    config = Config()
    changed = override(config, {"model.width": 64, "model.remat": "full", "train.steps": 5, "log.keep": 7, "seed": 1})
    identity, elastic = differences(config, changed)
    assert identity == {"model.width": (256, 64), "seed": (0, 1)}
    assert elastic == {"model.remat": ("none", "full"), "train.steps": (1000, 5), "log.keep": (2, 7)}
    assert differences(changed, config)[0] == {"model.width": (64, 256), "seed": (1, 0)}


def test_elastic_keys_exist():
    keys = flatten(dataclasses.asdict(Config()))
    for name in ELASTIC:
        assert name in keys or any(key.startswith(f"{name}.") for key in keys), name
    for key in ("model.width", "layout.block", "process.predict", "levels.kind", "data.source", "train.lr", "seed"):
        assert not any(key == name or key.startswith(f"{name}.") for name in ELASTIC)  # what a checkpoint is


@pytest.mark.parametrize(("every", "near"), [(300, 250), (900, 1000)])
def test_checkpoints_that_are_kept_are_checkpoints_that_are_saved(every, near):
    with pytest.raises(UserError) as error:
        freeze(load_config("quickstart", {"log.keep_every": every, "log.checkpoint": 250}))
    assert f"log.keep_every is {every} and log.checkpoint is 250" in str(error.value)
    assert str(error.value).endswith(f"0 or a multiple of log.checkpoint, {near} would do")
    assert freeze(load_config("quickstart", {"log.keep_every": near, "log.checkpoint": 250})).log.keep_every == near
