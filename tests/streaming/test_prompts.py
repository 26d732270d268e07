"""Text to motion from end to end: autoencoder and transformer trained, then prompts as sentences."""

import json

import jax
import numpy as np
import pytest

import causal_diffusion as cd
from causal_diffusion.config import freeze, override
from causal_diffusion.data.array_source import ArraySource
from causal_diffusion.data.motion_clips import MotionClips
from causal_diffusion.errors import UserError
from causal_diffusion.parallel.mesh import make_mesh
from causal_diffusion.streaming import pipeline
from causal_diffusion.training import kept, loop
from tests.motion_data import write_bodies

TOKENS = 6
WALK, WAVE = "a person does walk, calm style", "a person does wave-left-hand, calm style"
TRAIN = dict(steps=2, batch=4, warmup=1, decay="constant", lr=1e-2)
DATA = dict(source="motion_clips", representation="essential", frames=16, shortest=8, height=0, width=0, channels=64)
VAE = dict(form="motion", motion=dict(channels=64, latent=4, width=8, depth=1, stages=2, align=0))
AUTOENCODER = freeze({
    "name": "small", "trains": "vae", "data": DATA | dict(shortest=0), "vae": VAE,
    "reconstruction": dict(fit="likelihood", root=3), "train": TRAIN, "evaluate": dict(clips=0),
    "log": dict(every=1, evaluate=0, checkpoint=2),
})  # fmt: skip
SYSTEM = freeze({
    "name": "small", "data": DATA, "vae": VAE, "text": dict(encoder="words", tokens=TOKENS),
    "model": dict(width=16, depth=1, heads=2, mlp=32, patch=(1,), channels=4, text=8, vocabulary=40),
    "layout": dict(kind="block_causal", block=1, window=3), "process": dict(predict="velocity"),
    "schedule": dict(steps=4, offset="pyramid", stride=2.0), "guidance": dict(kind="cfg", scale=2.0, drop=("text",)),
    "stream": dict(capacity=2), "train": TRAIN, "evaluate": dict(clips=0),
    "log": dict(every=1, evaluate=0, checkpoint=2),
})  # fmt: skip
TIME = 4  # frames of a latent, which is a block here


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the data, and of the runs in it."""
    root = tmp_path_factory.mktemp("motion")
    write_bodies(root, frames=24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_mesh", lambda config: make_mesh(devices=jax.devices()[:1]))
        patch.setattr(loop, "summary", lambda *arguments, **options: "")
        loop.train(override(AUTOENCODER, {"data.path": str(root)}), root / "vae")
        overrides = {"data.path": str(root), "vae.checkpoint": str(root / "vae")}
        loop.train(override(SYSTEM, overrides), root / "run")
    return root


@pytest.fixture(scope="module")
def pipe(folder):
    """With its parameters far from where they began, so that prompts matter."""
    pipe = cd.Pipeline.from_checkpoint(folder / "run")
    rng = np.random.default_rng(0)
    pipe.params = jax.tree.map(lambda a: a + 0.3 * rng.standard_normal(a.shape).astype(np.float32), pipe.params)
    return pipe


def equal(a, b):
    np.testing.assert_array_equal(a, b)


def test_a_run_carries_words_body_and_autoencoder(folder, pipe):
    source = MotionClips(override(SYSTEM, {"data.path": str(folder)}).data, "train")
    assert pipe.body == source.body and pipe.codec is not None and pipe.text.tokens == TOKENS
    assert set(pipe.text.words.words) == {word for c in source.captions for word in c.replace(",", "").split()}
    assert (folder / "run/text/words.json").is_file() and pipe.config.text.fixed == TOKENS


def test_a_prompt_is_its_tokens(pipe):
    clip = pipe.generate(seed=1, frames=10, batch=2, cond={"text": WALK})
    assert clip.shape == (2, 10, 64) and np.isfinite(clip).all()
    text, mask = pipe.text.encode([WALK])
    equal(pipe.generate(seed=1, frames=10, batch=2, cond={"text": text[0], "text_mask": mask[0]}), clip)
    equal(pipe.generate(seed=1, frames=10, batch=2, cond={"text": [WALK, WALK]}), clip)
    equal(pipe.generate(seed=1, frames=10, batch=2, cond={"text": text[0]}), clip)
    with pytest.raises(UserError, match=r"int32\[1, 6\]; it holds ids of words: \[M\] or \[2, M\]"):
        pipe.generate(batch=2, cond={"text": [WALK]})
    both = pipe.generate(seed=1, frames=10, batch=2, cond={"text": [WALK, WAVE]})
    np.testing.assert_allclose(both[0], clip[0], atol=1e-5)
    assert np.abs(both[1] - clip[1]).max() > 1e-3
    null = pipe.generate(seed=1, frames=10, batch=2)
    assert np.abs(null - clip).max() > 1e-3
    nothing = pipe.generate(seed=1, frames=10, batch=2, cond={"text": ""})
    np.testing.assert_allclose(nothing, null, atol=1e-5 * np.abs(null).max())


def test_generate_and_stream_give_the_same_bits_under_a_prompt(pipe):
    clip = pipe.generate(seed=2, frames=5 * TIME, batch=2, cond={"text": [WALK, WAVE]})
    stream = pipe.stream(seed=2, batch=2, cond={"text": [WALK, WAVE]})
    blocks = [next(stream) for _ in range(5)]
    assert all(block.shape == (2, TIME, 64) for block in blocks)
    equal(np.concatenate(blocks, axis=1), clip)
    context = clip[:, : 2 * TIME]
    ahead = pipe.generate(seed=2, frames=TIME, batch=2, cond={"text": WALK}, context=context)
    stream = pipe.stream(seed=2, batch=2, cond={"text": WALK}, context=context)
    equal(next(stream), ahead)


def test_long_prompts_are_cut_and_unknown_words_named(pipe, caplog):
    start = " ".join(["walk"] * TOKENS)
    cut = pipe.generate(seed=1, frames=TIME, batch=2, cond={"text": f"{start} then a person waves"})
    assert f"is cut to the {TOKENS} tokens that 'words' takes" in caplog.text
    equal(cut, pipe.generate(seed=1, frames=TIME, batch=2, cond={"text": start}))
    assert "has no" not in caplog.text
    pipe.generate(seed=1, frames=TIME, batch=2, cond={"text": "a zebra does walk"})
    assert "has no 'zebra': the model never saw it" in caplog.text


def test_a_new_prompt_changes_later_blocks_only_and_compiles_nothing(pipe, executables):
    def compiled():
        return executables(pipe) | {"condition": pipe.encode_condition._cache_size()}

    stream = pipe.stream(seed=3, batch=2, cond={"text": WALK})
    next(stream)
    twin = stream.fork()
    ahead = twin.take(5)
    before = compiled()
    waiting = pipe.rollout.waiting
    stream.update({"text": WAVE})
    changed = stream.take(5)
    assert changed.shape == ahead.shape
    equal(changed[:, : waiting * TIME], ahead[:, : waiting * TIME])
    assert np.abs(changed[:, waiting * TIME :] - ahead[:, waiting * TIME :]).max() > 1e-3
    text, mask = pipe.text.encode([WALK])
    stream.update({"text": text[0], "text_mask": mask[0]})
    stream.update({"text": ["does walk", "a person"]})
    next(stream)
    assert compiled() == before
    with pytest.raises(UserError, match=rf"has 3 tokens and this stream began with {TOKENS}: its shape stays"):
        stream.update({"text": np.array([2, 3, 4], np.int32)})


def test_compose_is_a_stream_whose_prompt_is_changed_in_time(pipe):
    """A block's prompt is that of its first frame; the blocks that a stream begins with have the first one."""
    lengths, prompts = (3 * TIME, TIME + 1, 2 * TIME), (WALK, WAVE, WALK)
    clip = pipe.compose(list(zip(prompts, lengths, strict=True)), seed=4, batch=2)
    assert clip.shape == (2, sum(lengths), 64)
    ends, waiting = np.cumsum(lengths), pipe.rollout.waiting
    stream, parts = pipe.stream(seed=4, batch=2, cond={"text": prompts[0]}), []
    for block in range(-(-sum(lengths) // TIME)):
        first = (block + waiting) * TIME  # frame of the block that enters now
        stream.update({"text": prompts[min(int((ends <= first).sum()), 2)]})
        parts.append(next(stream))
    equal(np.concatenate(parts, axis=1)[:, : sum(lengths)], clip)
    whole = pipe.generate(seed=4, frames=sum(lengths), batch=2, cond={"text": WALK})
    equal(clip[:, : lengths[0]], whole[:, : lengths[0]])
    assert np.abs(clip - whole).max() > 1e-3
    one = pipe.compose([(WALK, 5)], seed=4, batch=2)
    equal(one, whole[:, :5])
    for bad in ([], [(WALK, 0)], [(WALK, 4), (WAVE, -1)]):
        with pytest.raises(UserError, match="at least 1 frame each"):
            pipe.compose(bad)


def test_a_stream_with_prompts_comes_back_from_a_file(folder, pipe, tmp_path):
    stream = pipe.stream(seed=5, batch=2, cond={"text": [WALK, WAVE]})
    stream.take(2)
    stream.update({"text": [WAVE, WALK]})
    stream.save(tmp_path / "stream.npz")
    wanted = stream.take(3)
    again = pipe.resume(tmp_path / "stream.npz")
    equal(again.take(3), wanted)
    again.update({"text": WALK})
    stream.update({"text": WALK})
    equal(again.take(2), stream.take(2))


def test_frames_are_joints_whole_or_piece_by_piece(pipe):
    clip = pipe.generate(seed=6, frames=6 * TIME, batch=2, cond={"text": WALK})
    whole = pipe.positions(clip)
    assert whole.shape == (2, 6 * TIME, 21, 3)
    stream, at, parts = pipe.stream(seed=6, batch=2, cond={"text": WALK}), None, []
    for _ in range(6):
        joints, at = pipe.body.positions(next(stream), at)
        parts.append(joints)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-4)
    steered = pipe.steered(lambda x0, frame: 0.0)
    assert (steered.text, steered.body, steered.codec) == (pipe.text, pipe.body, pipe.codec)
    plain = cd.Pipeline(pipe.config, pipe.params)
    with pytest.raises(UserError, match="not of human motion: its frames have no joints"):
        plain.positions(clip)
    with pytest.raises(UserError, match="text.encoder is 'none': this system takes condition tokens"):
        plain.stream(cond={"text": WALK})


@pytest.mark.parametrize(("given", "said"), [
    (np.zeros(TOKENS), "cond['text'] is float64[6]; it holds ids of words: [M] or [1, M] integers"),
    (np.zeros((2, TOKENS), int), "cond['text'] is int64[2, 6]; it holds ids of words"),
    (np.full(TOKENS, 40), "cond['text'] has 40 .. 40; ids of words are 0 .. 39"),
    (np.full(TOKENS, -1), "cond['text'] has -1 .. -1; ids of words are 0 .. 39"),
])  # fmt: skip
def test_what_are_no_words_is_told_in_one_line(pipe, given, said):
    with pytest.raises(UserError) as refusal:
        pipe.stream(cond={"text": given})
    assert str(refusal.value).startswith(said) and "\n" not in str(refusal.value)


@pytest.mark.full
def test_a_run_is_evaluated_on_held_out_clips_and_draws_their_prompts(folder, monkeypatch):
    monkeypatch.setattr(loop, "make_mesh", lambda config: make_mesh(devices=jax.devices()[:1]))
    overrides = {"data.path": str(folder), "vae.checkpoint": str(folder / "vae"), "log.evaluate": 1}
    evaluate = {"evaluate.clips": 4, "evaluate.context": 1, "evaluate.frames": 3}
    loop.train(override(SYSTEM, overrides | evaluate), folder / "evaluated")
    assert "held_out/loss" in (folder / "evaluated/metrics.jsonl").read_text()
    numbers = json.loads((folder / "evaluated/samples/evaluation.json").read_text())
    assert numbers["clips"] == 4 and numbers["frames"] == 12 and np.isfinite(numbers["psnr"]).all()
    assert (folder / "evaluated/samples/prompts.png").is_file()


@pytest.mark.full
def test_a_frozen_encoder_is_read_at_the_start_and_again_by_the_stream(folder, monkeypatch, tmp_path):
    """One that others trained; here two letters of a caption stand for it."""

    class Letters:
        name, tokens, width, vocabulary, fingerprint = "clip", TOKENS, 8, 0, "letters"

        def encode(self, captions, cache=None):
            text = np.zeros((len(captions), TOKENS, 8), np.float32)
            for row, caption in zip(text, captions, strict=True):
                row[:2] = np.frombuffer(caption.encode()[:16].ljust(16), np.uint8).reshape(2, 8) / 255
            return text, np.broadcast_to(np.arange(TOKENS) < 2, text.shape[:2])

    monkeypatch.setattr(loop, "make_mesh", lambda config: make_mesh(devices=jax.devices()[:1]))
    for module in (kept, pipeline):
        monkeypatch.setattr(module, "open_text_encoder", lambda *where: Letters())
    overrides = {"data.path": str(folder), "vae.checkpoint": str(folder / "vae"), "text.encoder": "clip"}
    loop.train(override(SYSTEM, overrides | {"model.vocabulary": 0}), tmp_path / "run")
    pipe = cd.Pipeline.from_checkpoint(tmp_path / "run")
    clip = pipe.generate(seed=1, frames=8, cond={"text": WALK})
    text, mask = Letters().encode([WALK])
    equal(pipe.generate(seed=1, frames=8, cond={"text": text[0], "text_mask": mask[0]}), clip)
    stream = pipe.stream(seed=1, cond={"text": WALK})
    stream.save(tmp_path / "stream.npz")
    equal(pipe.resume(tmp_path / "stream.npz").take(2), clip)


def test_training_without_captions_is_refused(folder, tmp_path):
    config = override(SYSTEM, {"data.source": "own", "data.shortest": 0, "vae.checkpoint": str(folder / "vae")})
    source = ArraySource(np.zeros((8, 16, 64), np.float32))
    with pytest.raises(UserError, match="text.encoder reads captions, and ArraySource has none: text.encoder = 'none'"):
        loop.train(config, tmp_path / "run", source=source)
