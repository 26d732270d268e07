"""Can what is kept of the past be kept, moved and compressed as the cache says?"""

from causal_diffusion.compatibility.refusal import one_by_one, refuse


def kept_frames(config) -> int:
    """Frames of slots that no commit fills: the reference, or those of tokens that compression keeps."""
    layout, cache = config.layout, config.cache
    if cache.budget:
        return cache.budget - layout.sinks - cache.recent
    return layout.reference


def check_kept(config, slots, view):
    """Of ``slots`` frames in the ring; ``view`` is the schedule as a stream sees it."""
    _check_sizes(config, slots, view)
    _check_moves(config)
    _check_beyond(config, view)
    _check_far(config, view)
    _check_told(config)


def _check_sizes(config, slots, view):
    layout, cache, b = config.layout, config.cache, config.layout.block
    if slots < layout.sinks and not cache.budget:  # compression keeps what lies between them in another way
        refuse(
            f"layout.window is {layout.window} and layout.sinks is {layout.sinks}: a stream would see more of its "
            f"beginning than of what has just been, {slots} frames; layout.sinks = {slots} would do"
        )
    if not cache.budget:
        return
    if config.model.attention != "joint":
        refuse(
            f"cache.budget is {cache.budget} and model.attention is {config.model.attention!r}: tokens are ranked by "
            "the queries of a joint attention; cache.budget = 0 with cache.recent = 0 would do"
        )
    if layout.reference:
        refuse(
            f"cache.budget is {cache.budget} and layout.reference is {layout.reference}: a reference frame does not "
            "compete; layout.reference = 0 would do"
        )
    if view.emit > 1:
        refuse(
            f"cache.budget is {cache.budget} and schedule.offset is {config.schedule.offset!r}: a chunk would overflow "
            f"the window between two compressions; {one_by_one(config.schedule)} would do"
        )
    if cache.recent % b:
        refuse(
            f"cache.recent is {cache.recent} and layout.block is {b}: whole blocks are left alone; "
            f"cache.recent = {cache.recent // b * b} would do"
        )
    if cache.recent > slots - b:
        refuse(
            f"cache.recent is {cache.recent} and layout.window is {layout.window}: nothing of {slots} frames is left "
            f"to compress; cache.recent = {slots - b} with cache.budget = {layout.sinks + slots} would do"
        )
    least, most = layout.sinks + cache.recent + 1, layout.sinks + slots
    if not least <= cache.budget <= most:
        proposed = most if cache.budget > most else min(most, least - 1 + b)
        refuse(
            f"cache.budget is {cache.budget}, layout.sinks is {layout.sinks} and cache.recent is {cache.recent}: the "
            f"tokens that are kept lie between sinks and recent frames of a window of {slots}; "
            f"cache.budget = {proposed} would do"
        )


def _check_moves(config):
    layout, cache, model = config.layout, config.cache, config.model
    if cache.raw and model.positions == "additive":
        name, value = ("positions", "absolute") if cache.positions != "absolute" else ("keys", "auto")
        refuse(
            f"cache.{name} is {getattr(cache, name)!r} and model.positions is 'additive': only rotary keys can be "
            f"turned to another place; cache.{name} = {value!r} would do"
        )
    if cache.positions == "adjacent" and not layout.sinks:
        refuse(
            "cache.positions is 'adjacent' and layout.sinks is 0: there is nothing to move; "
            "cache.positions = 'absolute' would do"
        )
    if cache.positions == "slot" and layout.reference:
        refuse(
            f"cache.positions is 'slot' and layout.reference is {layout.reference}: all but the reference would move; "
            "cache.positions = 'absolute' would do"
        )
    if cache.positions != "ahead":
        return
    if not layout.reference:
        refuse(
            "cache.positions is 'ahead' and layout.reference is 0: only a reference frame runs ahead; "
            "layout.reference = 1 would do"
        )
    if cache.ahead_step < layout.block:
        refuse(
            f"cache.ahead_step is {cache.ahead_step} and layout.block is {layout.block}: the stream would overtake the "
            f"reference frame; cache.ahead_step = {layout.block} would do"
        )


def _check_beyond(config, view):
    """Reference frames and knots."""
    layout, cache, model, schedule = config.layout, config.cache, config.model, config.schedule
    if layout.reference and cache.kind != "kv":
        refuse(
            f"layout.reference is {layout.reference} and cache.kind is {cache.kind!r}: its keys and values are kept; "
            "layout.reference = 0 would do"
        )
    if layout.reference and model.attention != "joint":
        refuse(
            f"layout.reference is {layout.reference} and model.attention is {model.attention!r}: a frame would see "
            "its own cell of it alone; layout.reference = 0 would do"
        )
    if not layout.knot:
        return
    if view.in_flight > 1 or view.repeat:
        refuse(
            f"layout.knot is {layout.knot} and schedule.offset is {schedule.offset!r}: what follows a block must not "
            f"be in flight itself; {one_by_one(schedule)} would do"
        )
    if cache.kind != "kv":
        refuse(
            f"layout.knot is {layout.knot} and cache.kind is {cache.kind!r}: the past would be computed with it; "
            "layout.knot = 0 would do"
        )
    if cache.commit == "fused":
        refuse(
            f"layout.knot is {layout.knot} and cache.commit is 'fused': two blocks of one pass are alike; "
            "cache.commit = 'separate' would do"
        )
    if config.guidance.observe != "none":
        refuse(
            f"layout.knot is {layout.knot} and guidance.observe is {config.guidance.observe!r}: a knot is half of what "
            "was made before its values were known; layout.knot = 0 would do"
        )
    if config.process.weight.startswith("fused_snr"):
        refuse(
            f"layout.knot is {layout.knot} and process.weight is {config.process.weight!r}: it runs along frames in "
            "time, some of which a knot shows twice; process.weight = 'min_snr' would do"
        )


def _check_far(config, view):
    """Coarse history, and states."""
    layout, cache, model, schedule = config.layout, config.cache, config.model, config.schedule
    if bool(layout.coarse) != bool(model.coarse):
        value = "layout.coarse = 0" if layout.coarse else "model.coarse = 0"
        refuse(
            f"layout.coarse is {layout.coarse} and model.coarse is {model.coarse}: coarse frames need patches, and "
            f"patches frames; {value} would do"
        )
    if bool(layout.coarse) != (cache.kind == "two_level"):
        value = "two_level" if layout.coarse else "kv"
        refuse(
            f"layout.coarse is {layout.coarse} and cache.kind is {cache.kind!r}: a stream keeps coarse history in two "
            f"levels, and only that; cache.kind = {value!r} would do"
        )
    if cache.kind == "state":
        refuse(
            f"cache.kind is 'state' and model.attention is {model.attention!r}: no attention of this network leaves a "
            "state; cache.kind = 'kv' would do"
        )
    if not layout.coarse:
        return
    if layout.sinks:
        refuse(
            f"layout.sinks is {layout.sinks} and layout.coarse is {layout.coarse}: what is far is coarse; "
            "layout.sinks = 0 would do"
        )
    if view.in_flight > 1:
        refuse(
            f"schedule.offset is {schedule.offset!r} and layout.coarse is {layout.coarse}: blocks in flight would part "
            f"fine from coarse at different frames; {one_by_one(schedule)} would do"
        )
    if any(branch.past >= 0 or branch.level for branch in config.guidance.branches()):
        refuse(
            f"guidance.kind is {config.guidance.kind!r} and layout.coarse is {layout.coarse}: far tokens are neither "
            "hidden nor noised; guidance.kind = 'none' would do"
        )


def _check_told(config):
    cache, model = config.cache, config.model
    takes = {"label": model.classes, "text": model.text, "action": model.action}
    if cache.commit_drop and not any(takes[name] for name in cache.commit_drop):
        refuse(
            f"cache.commit_drop is {cache.commit_drop} and the model takes none of these: there is nothing to leave "
            "out; cache.commit_drop = () would do"
        )
    if "action" in cache.commit_drop and model.action and "action" not in config.guidance.drop:
        drop = (*config.guidance.drop, "action")
        refuse(
            f"cache.commit_drop is {cache.commit_drop} and guidance.drop is {config.guidance.drop}: training never "
            f"hides the actions; guidance.drop = {drop} would do"
        )
    if cache.commit_drop and not config.train.drop:
        refuse(
            f"cache.commit_drop is {cache.commit_drop} and train.drop is 0: the model never trains without its "
            "conditions; train.drop = 0.1 would do"
        )
