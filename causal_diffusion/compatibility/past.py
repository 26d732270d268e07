"""Can the past be kept as the cache keeps it, and does training show it as the stream does?"""

import jax.numpy as jnp

from causal_diffusion.compatibility.refusal import refuse


def check_past(config):
    """Can the past be kept as the cache keeps it?"""
    layout, cache, model, levels = config.layout, config.cache, config.model, config.levels
    shortest = config.data.shortest
    for name, clash in (("kind", not layout.cacheable), ("reference", layout.reference)):
        if shortest and clash:
            refuse(
                f"data.shortest is {shortest} and layout.{name} is {getattr(layout, name)!r}: frames of a clip would "
                "see what pads it; data.shortest = 0 would do"
            )
    if cache.kind == "kv" and not layout.cacheable:
        refuse(
            f"cache.kind is 'kv' and layout.kind is {layout.kind!r}: later frames change what was computed of earlier "
            "ones; cache.kind = 'none' would do"
        )
    if layout.separate_clean and cache.kind == "none":
        refuse(
            "cache.kind is 'none' and layout.kind is 'teacher_forcing': its past is made to be cached; "
            "cache.kind = 'kv' would do"
        )
    if not layout.separate_clean:
        for key, value, plain, clash in (
            ("model.head", model.head, "linear", model.head == "diffusion"),
            ("train.own_past", config.train.own_past, (), bool(config.train.own_past)),
        ):
            if clash:
                refuse(
                    f"{key} is {value!r} and layout.kind is {layout.kind!r}: it takes a clean past beside the noisy "
                    f"frames; {key} = {plain!r} would do"
                )
    if config.train.own_past and (layout.copies > 1 or layout.knot):
        name = "copies" if layout.copies > 1 else "knot"
        refuse(
            f"train.own_past is {config.train.own_past} and layout.{name} is {getattr(layout, name)}: a past has one "
            f"guess of every frame; layout.{name} = {int(name == 'copies')} would do"
        )
    if layout.separate_clean or levels.has_context:
        return
    for name, plain in (("prefix", 0), ("mask_channel", False), ("modulate_clean", True)):
        if getattr(model, name) != plain:
            refuse(
                f"model.{name} is {getattr(model, name)} and levels.kind is {levels.kind!r}: in training no frame "
                f"would be clean, in the stream the past is; model.{name} = {plain} would do"
            )


def check_shown(config):
    """Is a finished block shown at a level, and with a label, that training has?"""
    layout, cache, levels, process = config.layout, config.cache, config.levels, config.process
    # A single stream shows blocks at every level, but where its kind says which ones are the past.
    past = levels.has_context and not levels.clean
    if (layout.separate_clean or past) and cache.commit_level > levels.context:
        refuse(
            f"cache.commit_level is {cache.commit_level} and levels.context is {levels.context}: the past was never "
            f"shown at that level in training; cache.commit_level = {levels.context} would do"
        )
    if layout.range_levels and (layout.separate_clean or cache.kind == "none"):
        last = layout.range_levels[-1]
        if cache.commit_level > last:
            refuse(
                f"cache.commit_level is {cache.commit_level} and layout.range_levels is {layout.range_levels}: in "
                f"training the past is of the last stage; cache.commit_level = {last} would do"
            )
    if (layout.separate_clean or past) and levels.context_label == "fixed":
        # Training tells the network nothing else of the past.
        at = levels.context_label_at
        told = cache.commit_label_at if cache.commit_label == "fixed" else float(process.label(cache.commit_level))
        if abs(told - at) > 1e-6:
            refuse(
                f"cache.commit_label is {cache.commit_label!r}, which tells the network {told:g} of the past, and "
                f"levels.context_label is 'fixed': training tells it {at:g} and nothing else; "
                f"cache.commit_label = 'fixed' with cache.commit_label_at = {at} would do"
            )
    elif cache.commit_label == "fixed":
        told = sorted(round(float(process.label(jnp.float32(t))), 6) for t in (0.0, 1.0))
        proposed = min(max(cache.commit_label_at, told[0]), told[1])
        if levels.has_context and levels.context_label == "fixed":
            told, proposed = [*told, levels.context_label_at], levels.context_label_at
        low, high = min(told[:2]), max(told[:2])
        if not low - 1e-6 <= cache.commit_label_at <= high + 1e-6 and cache.commit_label_at not in told:
            refuse(
                f"cache.commit_label_at is {cache.commit_label_at} and levels.context_label_at is "
                f"{levels.context_label_at}: training never tells the network so; "
                f"cache.commit_label_at = {proposed} would do"
            )


def check_places(config, slots, view):
    """Do the frames in sight stand at places of their own, as in training?"""
    layout, model, frames = config.layout, config.model, config.data.frames
    flying = view.in_flight * layout.block + layout.knot
    if model.prefix > slots:
        refuse(
            f"model.prefix is {model.prefix} and layout.window is {layout.window}: a stream remembers {slots} frames, "
            f"model.prefix = {slots} would do"
        )
    if model.positions == "additive" and not model.period:
        refuse(
            "model.period is 0 and model.positions is 'additive': a stream goes on beyond every place that training "
            f"knows; model.period = {max(frames, slots + flying)} would do"
        )
    if not model.period:
        return
    slots = slots + layout.coarse  # all that stands before the blocks in flight
    if layout.sinks:
        refuse(
            f"model.period is {model.period} and layout.sinks is {layout.sinks}: others would come to stand at their "
            "places; layout.sinks = 0 would do"
        )
    if layout.reference:
        refuse(
            f"model.period is {model.period} and layout.reference is {layout.reference}: others would come to stand at "
            "its place; layout.reference = 0 would do"
        )
    if model.period < frames:
        refuse(
            f"model.period is {model.period} and data.frames is {frames}: two frames of a clip would stand at the same "
            f"place; model.period = {max(frames, slots + flying)} would do"
        )
    if slots + flying > model.period:
        fitting = (model.period - flying) // layout.block * layout.block
        proposed = f"layout.window = {fitting}" if fitting > 0 else f"model.period = {slots + flying}"
        refuse(
            f"model.period is {model.period} and layout.window is {layout.window}: of {slots} frames remembered and "
            f"{flying} in flight two would stand at the same place; {proposed} would do"
        )


def approximations(config) -> tuple[str, ...]:
    """Why cached streaming differs from the uncached forward pass; empty: it does not."""
    cache, layout, reasons = config.cache, config.layout, []
    if cache.kind == "none":
        return ()
    if layout.sinks and cache.positions in ("slot", "adjacent"):
        reasons.append("sinks follow the window: they stand elsewhere than when they were encoded")
    if cache.positions == "ahead":
        reasons.append("the reference frame runs ahead of the stream")
    if cache.budget:
        reasons.append("of the frames between sinks and recent ones only the tokens that are looked at most are kept")
    if layout.sinks and not cache.commit_sinks:
        reasons.append("a finished block is encoded without the sinks that it was denoised with")
    if cache.dtype == "int8":
        reasons.append("keys and values are stored in 8 bits")
    elif cache.dtype != "compute":
        stored, computed = cache.dtype, jnp.dtype(config.model.compute_dtype).name
        if jnp.finfo(stored).bits < jnp.finfo(computed).bits:
            reasons.append(f"keys and values are computed in {computed} and stored in {stored}")
    return tuple(reasons)
