"""At time t the last frame that has begun: the clock and the slots alone, and whole files."""

import math
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from causal_diffusion.data.video_decode import decode_video
from causal_diffusion.data.video_time import LONGEST_HOLD, Clock, has_slot, slots
from tests.data.footage import encode, flat


@pytest.mark.parametrize("seed", range(20))
def test_slots_are_what_a_loop_finds(seed):
    rng = np.random.default_rng(seed)
    begins = np.cumsum(rng.choice([0.01, 0.04, 0.1, 1.0, 2.5], 12)) - 0.01
    ends = np.append(begins[1:], begins[-1] + 0.3)
    ends = np.where(rng.random(12) < 0.3, begins + 0.02, ends).clip(max=np.append(begins[1:], math.inf))
    fps = rng.choice([1, 8, 12.5, 24, 29.97])
    wanted = [(k / fps, f) for k in range(int(ends[-1] * fps) + 2) for f in range(12)
              if begins[f] <= k / fps + 1e-6 and k / fps < ends[f] - 1e-6]  # fmt: skip
    times, shown = slots(begins, ends, fps)
    assert [f for _, f in wanted] == shown.tolist()
    np.testing.assert_allclose(times, [t for t, _ in wanted])
    assert [has_slot(b, e, fps) for b, e in zip(begins, ends, strict=True)] == np.isin(range(12), shown).tolist()


def clock(stamps, tick=1e-3, rate=None, usual=0.04, holds=False, lasts=0.0):
    made = Clock(tick, rate, usual, holds)
    for stamp in stamps:
        made.place(stamp, lasts)
    return made


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(25), Fraction(30), Fraction(60000, 1001)])
@pytest.mark.parametrize("tick", [1 / 1000, 1 / 600, 1 / 90000])
@pytest.mark.parametrize("rounded", [round, math.floor])
def test_rounded_time_stamps_of_a_constant_rate_are_put_back(rate, tick, rounded):
    stamps = [7 + rounded(i / rate / tick) * tick for i in range(500)]
    np.testing.assert_allclose(clock(stamps, tick, rate).begins, np.arange(500) / float(rate), atol=1e-9)


def test_a_variable_rate_is_left_alone():
    stamps = np.cumsum(np.random.default_rng(0).integers(5, 4000, 100)) / 1000
    np.testing.assert_allclose(clock(stamps).begins, stamps - stamps[0])


@pytest.mark.parametrize("stamps, begins", [
    ([None] * 4, [0, 0.04, 0.08, 0.12]),
    ([1.0, None, None, 1.12], [0, 0.04, 0.08, 0.12]),
    ([1.0, 1.04, 1.04, 1.12], [0, 0.04, 0.08, 0.12]),    # stands still
    ([1.0, 1.04, 1.039, 1.12], [0, 0.04, 0.08, 0.12]),   # trembles
])  # fmt: skip
def test_missing_and_trembling_time_stamps(stamps, begins):
    made = clock(stamps, rate=Fraction(25))
    np.testing.assert_allclose(made.begins, begins)
    assert made.jumps == []


REGULAR = [i / 25 for i in range(30)]


def test_a_gap_in_a_constant_rate_is_cut():
    made = clock(REGULAR + [6 + t for t in REGULAR], rate=Fraction(25))
    (jump,) = made.jumps
    assert (jump.frame, str(jump)) == (30, "it has no frames from 1.200 s to 6.000 s")
    assert made.durations[29] == pytest.approx(0.04) and made.begins[30] == 6


@pytest.mark.parametrize("rate, holds", [(None, False), (Fraction(25), True)])
def test_a_declared_hold_is_no_gap_unless_it_never_ends(rate, holds):
    made = clock(REGULAR + [6.0, 6.04], rate=rate, holds=holds)
    assert made.jumps == [] and made.durations[29] == pytest.approx(6 - REGULAR[-1])
    made = clock(REGULAR + [95_443.7, 95_443.74], rate=rate, holds=holds)  # MPEG's clock goes round in 26.5 hours
    assert len(made.jumps) == 1 and made.durations[29] < LONGEST_HOLD
    _, shown = slots(made.begins, np.add(made.begins, made.durations), 25)
    assert len(shown) == 32


def test_a_clock_that_steps_back_goes_on():
    made = clock([100 + t for t in REGULAR] + [3 + t for t in REGULAR], rate=Fraction(25))
    np.testing.assert_allclose(made.begins, np.arange(60) / 25, atol=1e-9)
    (jump,) = made.jumps
    assert jump.frame == 30 and str(jump) == "its clock steps back by 98.200 s at 1.200 s"


DELAYS = [1000, 100, 100, 2000, 100]  # milliseconds


@pytest.mark.parametrize("suffix", [".gif", ".png", ".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize("fps", [10, 30])
def test_held_frames_of_a_file(tmp_path, suffix, fps):
    """The last frame's delay is in images alone; of a video it is that of the encoder's rate."""
    path, frames = tmp_path / ("a" + suffix), flat(5, step=40)
    begins = np.cumsum([0, *DELAYS]) / 1000
    if suffix in (".gif", ".png"):
        first, *others = (Image.fromarray(frame) for frame in frames)
        first.save(path, save_all=True, append_images=others, duration=DELAYS, disposal=1)
    else:
        codec = "libvpx" if suffix == ".webm" else "libx264"
        encode(path, frames, codec, rate=10, times=(1000 * begins[:-1]).astype(int).tolist())
    video = decode_video(path, 16, 16, 1, fps)
    slot = np.arange(math.ceil(3.3 * fps - 1e-6)) / fps
    np.testing.assert_allclose(video.times, slot)
    np.testing.assert_array_equal(video.shown, np.searchsorted(begins[:-1], slot + 1e-6, side="right") - 1)
    assert len(video.pictures) == 5 and video.damage == ()  # each is in memory once


def test_no_frame_is_shown_before_its_time(tmp_path):
    path = encode(tmp_path / "a.mkv", flat(6), rate=10, times=[0, 100, 4200, 4300, 4400, 4500])
    video = decode_video(path, 16, 16, 1, 30)
    assert video.times[np.argmax(video.shown == 2)] == pytest.approx(4.2)


@pytest.mark.parametrize("jump", [5_000, 3_600_000])
def test_a_gap_of_a_file_is_cut_and_fills_no_memory(tmp_path, jump):
    times = [40 * i + jump * (i >= 30) for i in range(60)]
    path = encode(tmp_path / "a.ts", flat(60, step=4), "mpeg2video", times=times)
    video = decode_video(path, 16, 16, 1, 25)
    np.testing.assert_array_equal(video.shown, np.arange(60))
    np.testing.assert_array_equal(video.section, np.arange(60) >= 30)
    assert video.damage == (f"it has no frames from 1.200 s to {1.2 + jump / 1000:.3f} s",)


def test_two_recordings_in_one_file(tmp_path):
    """Their clocks both begin at the same time, so it steps back at the seam."""
    parts = [encode(tmp_path / f"{i}.ts", flat(30, step=8), "mpeg2video").read_bytes() for i in range(2)]
    (tmp_path / "a.ts").write_bytes(parts[0] + parts[1])
    video = decode_video(tmp_path / "a.ts", 16, 16, 1)
    seam = np.argmax(video.shown == 30)
    assert video.section[seam] > video.section[seam - 1] and (np.diff(video.times) > 0).all()
    np.testing.assert_allclose(video.times, video.shown / 25)
    assert any("steps back" in words for words in video.damage)
