"""How a clash is told."""

import dataclasses

from causal_diffusion.errors import UserError


def refuse(message: str):
    """UserError of one line: the keys that clash, why, and a value that would do."""
    raise UserError(message)


def one_by_one(schedule):
    """The keys that make a schedule denoise block after block."""
    keys = ["schedule.offset = 'autoregressive'"]
    for field in dataclasses.fields(schedule):
        if field.name in ("chunk", "back", "repeats", "guess") and getattr(schedule, field.name) != field.default:
            keys.append(f"schedule.{field.name} = {field.default}")
    return " with ".join(keys)
