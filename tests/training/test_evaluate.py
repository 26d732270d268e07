"""Held-out evaluation, with pipelines that know the future, copy the past, or note what they are asked."""

import json

import av
import numpy as np
import pytest
from PIL import Image

from causal_diffusion.config import freeze
from causal_diffusion.data.array_source import ArraySource
from causal_diffusion.data.sources import make_source
from causal_diffusion.errors import UserError
from causal_diffusion.evaluation.video import psnr
from causal_diffusion.training import evaluate
from causal_diffusion.training.evaluate import HeldOut, curves, final, held_out, mean_psnr, stream_held_out

CONTEXT, FRAMES = 2, 6


@pytest.fixture(scope="module")
def config(small):
    return small("evaluate.clips=16", f"evaluate.context={CONTEXT}", f"evaluate.frames={FRAMES}")


@pytest.fixture(scope="module")
def clips(config):
    return held_out(config)


@pytest.fixture(autouse=True, scope="module")
def one_recogniser():
    """Learning to read takes a second."""
    fit, fitted = evaluate.RECOGNISERS["moving_digits"], []

    def fit_once(config):
        if not fitted:
            fitted.append(fit(config))
        return fitted[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(evaluate.RECOGNISERS, "moving_digits", fit_once)
        yield


class Fake:
    """A pipeline that answers ``future(frames)`` and notes its arguments."""

    def __init__(self, config, future):
        self.config, self.future, self.asked = config, future, None

    def generate(self, seed, frames, batch, cond, context):
        self.asked = dict(seed=seed, frames=frames, batch=batch, cond=cond, context=context)
        return self.future(frames)


def knowing(config, clips):
    return Fake(config, lambda frames: clips.future[:, :frames])


def copying(config, clips):
    last = clips.video[:, clips.context - 1 : clips.context]
    return Fake(config, lambda frames: np.repeat(last, frames, axis=1))


def test_held_out_clips(config, clips):
    assert clips.video.shape == (16, CONTEXT + FRAMES, 16, 16, 1) and clips.future.shape == (16, FRAMES, 16, 16, 1)
    again = held_out(config)
    np.testing.assert_array_equal(clips.video, again.video)
    np.testing.assert_array_equal(clips.condition["label"], again.condition["label"])
    assert len(np.unique(clips.video.reshape(16, -1), axis=0)) == 16
    assert len(set(clips.condition["label"].tolist())) > 4  # from all over the source
    longer = make_source(freeze({"data": dict(frames=CONTEXT + FRAMES, height=16, width=16)}).data, "test")
    chosen = np.random.default_rng(0).choice(len(longer), 16, replace=False)
    np.testing.assert_array_equal(clips.video[5], longer[int(chosen[5])]["video"])


def test_the_pipeline_gets_context_and_conditions(config, clips):
    pipeline = knowing(config, clips)
    stream_held_out(pipeline, clips, 3)
    assert pipeline.asked["frames"] == 3 and pipeline.asked["batch"] == 16 and pipeline.asked["seed"] == 0
    np.testing.assert_array_equal(pipeline.asked["context"], clips.video[:, :CONTEXT])
    assert list(pipeline.asked["cond"]) == ["label"]  # the model takes no actions
    np.testing.assert_array_equal(pipeline.asked["cond"]["label"], clips.condition["label"])
    stream_held_out(pipeline, clips)
    assert pipeline.asked["frames"] == FRAMES


def test_conditions_that_the_model_takes(small):
    config = small("model.classes=0", "model.action=2", "evaluate.clips=3", "evaluate.context=2", "evaluate.frames=5")
    clips = held_out(config)
    pipeline = knowing(config, clips)
    stream_held_out(pipeline, clips)
    assert set(pipeline.asked["cond"]) == {"context_action", "action"}
    assert pipeline.asked["cond"]["context_action"].shape == (3, 2, 2)
    assert pipeline.asked["cond"]["action"].shape == (3, 5, 2)
    assert "label" in clips.condition  # known to the recogniser all the same


def test_who_knows_the_future_scores_the_cap_and_what_the_truth_scores(config, clips):
    pipeline = knowing(config, clips)
    lines = curves(config, clips, stream_held_out(pipeline, clips))
    assert set(lines) == {"psnr", "psnr_copy", "recognised", "recognised_true"}
    np.testing.assert_array_equal(lines["psnr"], np.full(FRAMES, 100.0))
    np.testing.assert_array_equal(lines["recognised"], lines["recognised_true"])
    assert lines["recognised_true"].min() > 0.8
    assert np.all(lines["psnr_copy"] < 30)


def test_who_copies_scores_the_baseline(config, clips):
    pipeline = copying(config, clips)
    lines = curves(config, clips, stream_held_out(pipeline, clips))
    np.testing.assert_array_equal(lines["psnr"], lines["psnr_copy"])
    wanted = [np.mean(psnr(clips.video[:, 1:2], clips.video[:, i : i + 1])) for i in range(CONTEXT, CONTEXT + FRAMES)]
    np.testing.assert_allclose(lines["psnr_copy"], wanted, rtol=1e-6)
    noise = np.random.default_rng(0).uniform(-1, 1, clips.future.shape).astype(np.float32)
    assert curves(config, clips, noise)["recognised"].max() < 0.6


def test_identical_frames_count_as_100_db():
    a = np.zeros((2, 3, 4, 4, 1))
    b = a.copy()
    b[1] += 0.2  # 20 dB below the range of 2
    np.testing.assert_allclose(mean_psnr(a, b), [60.0, 60.0, 60.0], rtol=1e-6)


def test_coloured_digits_are_read_too(small):
    config = small("data.channels=3", "model.channels=3", "evaluate.clips=8", "evaluate.context=2", "evaluate.frames=3")
    clips = held_out(config)
    lines = curves(config, clips, clips.future)
    np.testing.assert_array_equal(lines["recognised"], lines["recognised_true"])
    assert lines["recognised"].min() > 0.6


@pytest.fixture(scope="module")
def written(config, clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("final") / "samples"
    return final(knowing(config, clips), clips, folder), folder


def test_files_are_written_and_play(written):
    _, folder = written
    assert {p.name for p in folder.iterdir()} == {
        "stream.mp4", "stream.png", "psnr.png", "recognised.png", "evaluation.json"}
    with av.open(str(folder / "stream.mp4")) as container:
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    assert len(frames) == CONTEXT + FRAMES
    assert frames[0].std() > 10 and np.any(frames[0] != frames[-1])
    for name in ("stream.png", "psnr.png", "recognised.png"):
        with Image.open(folder / name) as picture:
            assert np.asarray(picture).std() > 5


def test_numbers_are_those_of_the_curves(written, config, clips):
    result, folder = written
    numbers = json.loads((folder / "evaluation.json").read_text())
    lines = curves(config, clips, clips.future)
    for name, curve in lines.items():
        np.testing.assert_allclose(numbers[name], curve, atol=1e-4)
        np.testing.assert_array_equal(result.curves[name], curve)
    assert {name: numbers[name] for name in ("clips", "context", "frames")} == dict(clips=16, context=2, frames=6)
    assert set(result.pictures) == {"stream", "psnr", "recognised"}
    assert result.clip.ndim == 5 and result.clip.shape[1] == CONTEXT + FRAMES


def test_the_table_tells_model_copy_and_gain(written, clips):
    text = written[0].table
    headline, header, *rows = text.splitlines()
    copy = float(headline.split("last frame ")[1].split()[0])
    assert "model 100.00 dB" in headline and f"({100 - copy:+.2f} dB)" in headline and "16 clips" in headline
    assert header.split() == ["streamed", "frame", "1", "2", "4", "6"]
    assert [row.split("  ")[0] for row in rows] == [
        "PSNR, streamed (dB)", "PSNR, last frame copied (dB)", "digit recognised, streamed",
        "digit recognised, true frames"]
    assert rows[0].split()[-4:] == ["100.0"] * 4


def own(frames, clips=6):
    rng = np.random.default_rng(0)
    return ArraySource(rng.uniform(-1, 1, (clips, frames, 16, 16, 1)).astype(np.float32))


@pytest.fixture(scope="module")
def own_config(small):
    return small("data.source=own", "model.classes=0", "evaluate.clips=64", "evaluate.context=2", "evaluate.frames=6")


def test_a_stream_longer_than_what_is_known(own_config, tmp_path):
    """Two frames of truth, six streamed: PSNR for two, blanks in the table, black in the clip."""
    clips = held_out(own_config, own(frames=4))
    assert len(clips.video) == 6 and clips.future.shape[1] == 2
    streamed = np.zeros((6, 6, 16, 16, 1), np.float32)
    streamed[:, :2] = clips.future
    result = final(Fake(own_config, lambda frames: streamed[:, :frames]), clips, tmp_path)
    assert {name: len(curve) for name, curve in result.curves.items()} == {"psnr": 2, "psnr_copy": 2}
    assert "recognised.png" not in {p.name for p in tmp_path.iterdir()}
    with av.open(str(tmp_path / "stream.mp4")) as container:
        assert len(list(container.decode(video=0))) == 8


def test_a_known_future_longer_than_the_stream(own_config, tmp_path):
    clips = held_out(own_config, own(frames=20))
    assert clips.future.shape[1] == 6
    result = final(knowing(own_config, clips), clips, tmp_path)
    assert all(len(curve) == 6 for curve in result.curves.values())


def test_a_video_folder_without_long_clips_falls_back(small, tmp_path, monkeypatch):
    """Clips of context + frames do not exist: those of the training length are taken."""
    asked = []

    def make_source(config, split):
        asked.append((config.frames, split))
        if config.frames > 4:
            raise UserError("too short")
        return own(frames=4)

    monkeypatch.setattr(evaluate, "make_source", make_source)
    config = small("model.classes=0", "evaluate.clips=2", "evaluate.context=2", "evaluate.frames=6")
    assert held_out(config).video.shape[1] == 4
    assert asked == [(8, "test"), (4, "test")]


def test_none_are_wanted(small):
    assert held_out(small("evaluate.clips=0")) is None


@pytest.mark.parametrize(("context", "frames"), [(0, 4), (4, 4), (5, 4)])
def test_impossible_lengths_are_refused(small, context, frames):
    with pytest.raises(UserError) as error:
        held_out(small("evaluate.clips=1", f"evaluate.context={context}", f"evaluate.frames={frames}"))
    assert "\n" not in str(error.value)
    for word in (f"evaluate.context is {context}", f"evaluate.frames is {frames}", "data.frames is 4", "would do"):
        assert word in str(error.value)


@pytest.mark.parametrize(("source", "words"), [
    (ArraySource(np.zeros((3, 8, 8, 8, 1), np.float32)), ("held-out frames are (8, 8, 1)", "(16, 16, 1)")),
    (ArraySource(np.zeros((3, 2, 16, 16, 1), np.float32)), ("held-out clips have 2 frames", "evaluate.context is 2")),
])
def test_held_out_clips_of_another_shape_are_refused_at_once(own_config, source, words):
    with pytest.raises(UserError) as error:
        held_out(own_config, source)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)


def test_held_out_clips_without_the_models_conditions_are_refused_at_once(small):
    sizes = "data.classes=4", "data.action_dim=2", "model.classes=4", "model.action=2", "model.text=3"
    config = small("data.source=own", *sizes, "evaluate.clips=2")
    video = np.zeros((3, 8, 16, 16, 1), np.float32)
    given = dict(label=np.zeros(3, np.int32), action=np.zeros((3, 8, 2)), text=np.zeros((3, 5, 3)))
    assert isinstance(held_out(config, ArraySource(video, **given)), HeldOut)
    for name in given:
        with pytest.raises(UserError, match=f"held-out clips have no {name}"):
            held_out(config, ArraySource(video, **{k: v for k, v in given.items() if k != name}))
