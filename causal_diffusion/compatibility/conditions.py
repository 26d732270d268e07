"""Is there something to guide with, and was the network trained without it?"""

from causal_diffusion.compatibility.refusal import refuse
from causal_diffusion.data.sources import condition_sizes


def check_conditions(config):
    model, guidance = config.model, config.guidance
    check_text(config.text, model)
    check_compose(config)
    if config.train.flip and condition_sizes(config.data)[1]:
        refuse(
            f"train.flip is True and data.source {config.data.source!r} has actions, which a mirrored clip would "
            "contradict; train.flip = False would do"
        )
    if len(guidance.branches()) == 1:
        return
    takes = {"label": model.classes, "text": model.text, "action": model.action}
    hidden = {name for branch in guidance.branches() for name in branch.drop}
    check_history(config)
    if not hidden:
        return
    if not any(takes[name] for name in hidden):
        refuse(
            f"guidance.kind is {guidance.kind!r} and the model takes none of {', '.join(guidance.drop)}: there is "
            "nothing to leave out; guidance.kind = 'none' would do"
        )
    if not config.train.drop:
        refuse(
            f"guidance.kind is {guidance.kind!r} and train.drop is 0: the model never trains without its "
            "conditions; train.drop = 0.1 would do"
        )


def check_text(text, model):
    """Does the transformer take what the text encoder gives?"""
    if text.encoder != "none" and not model.text:
        refuse(
            f"text.encoder is {text.encoder!r} and model.text is 0: nothing would listen to prompts, model.text = "
            f"{model.width if text.encoder == 'words' else 768} would do"
        )
    if text.encoder != "none" and (text.encoder == "words") != bool(model.vocabulary):
        wanted = 1000 if text.encoder == "words" else 0
        refuse(
            f"text.encoder is {text.encoder!r} and model.vocabulary is {model.vocabulary}: the model embeds ids of "
            f"words, and only them, model.vocabulary = {wanted} would do"
        )


def check_history(config):
    """Was the network trained on the pasts that guidance shows it?"""
    guidance, levels, layout = config.guidance, config.levels, config.layout
    noisiest = max(branch.level for branch in guidance.branches())
    if noisiest and (layout.separate_clean or levels.has_context) and levels.context < noisiest:
        refuse(
            f"guidance.level is {guidance.level} and levels.context is {levels.context}: no past was so noisy in "
            f"training; guidance.level = {levels.context} would do"
        )
    hides = any(branch.past >= 0 for branch in guidance.branches())
    if hides and config.cache.kind == "none" and (levels.has_context or levels.kind not in ("independent", "sorted")):
        refuse(
            f"guidance.kind is {guidance.kind!r} and levels.kind is {levels.kind!r}: without a cache the past is "
            "hidden by noise, of which training shows none before a cleaner block; levels.kind = 'independent' would do"
        )


def check_compose(config):
    """Can clips go over into one another, caption and all?"""
    train, geometry, layout = config.train, None, config.layout
    if not train.compose:
        return
    if config.text.encoder == "none" or config.data.height or not config.data.shortest:
        refuse(
            f"train.compose is {train.compose}, text.encoder is {config.text.encoder!r}, data.height is "
            f"{config.data.height} and data.shortest is {config.data.shortest}: what goes over into one another are "
            "series with captions, of any length; train.compose = 0.0 would do"
        )
    if config.vae.form != "none" and config.data.source != "latents":
        geometry = config.vae.geometry
    time = geometry.time if geometry else 1
    if train.blend % time or (geometry and geometry.apart) or layout.pad or layout.knot or config.model.registers:
        refuse(
            f"train.compose is {train.compose} and train.blend is {train.blend}: a fade is a whole number of latents "
            f"of {time} frames, among blocks of one length without knots and registers; train.compose = 0.0 would do"
        )
