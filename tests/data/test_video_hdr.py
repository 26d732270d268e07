"""HDR against numbers of the standards, and whole files against numbers computed once in double precision."""

import av
import numpy as np
import pytest

from causal_diffusion.data.video_decode import decode_video
from causal_diffusion.data.video_hdr import PEAK, WHITE, compress, hlg_to_scene, nits_to_pq, pq_to_nits, to_sdr


@pytest.mark.parametrize("nits, code", [  # SMPTE ST 2084's formula
    (0, 0), (0.1, 0.0623), (1, 0.1499), (10, 0.2997), (26, 0.3800), (100, 0.5081), (203, 0.5807), (1000, 0.7518),
    (4000, 0.9026), (10000, 1)])  # fmt: skip
def test_pq_has_the_standards_numbers(nits, code):
    assert nits_to_pq(nits) == pytest.approx(code, abs=5e-5)
    assert pq_to_nits(nits_to_pq(np.float64(nits))) == pytest.approx(nits, rel=1e-9, abs=1e-5)


@pytest.mark.parametrize("code, light", [(0, 0), (0.25, 1 / 48), (0.5, 1 / 12), (0.75, 0.26496), (1, 1)])  # BT.2100
def test_hlg_has_the_standards_numbers(code, light):
    assert hlg_to_scene(np.float64(code)) == pytest.approx(light, abs=5e-6)


@pytest.mark.parametrize("peak", [150, 203, 400, 1000, 4000, 10000])
def test_the_tone_curve_rises_to_white_and_leaves_the_dark_alone(peak):
    nits = np.linspace(0, peak, 2000)
    shown = compress(nits, peak)
    assert (np.diff(shown) >= -1e-9).all() and (shown <= nits + 1e-6).all()
    assert shown[-1] == pytest.approx(min(peak, WHITE), rel=1e-6)
    knee = 1.5 * nits_to_pq(WHITE) - 0.5 * nits_to_pq(peak)
    dark = nits_to_pq(nits) < knee
    np.testing.assert_allclose(shown[dark], nits[dark], rtol=1e-9, atol=1e-9)


def code16(value):
    return np.full((1, 1, 3), round(value * 65535), np.uint16)


@pytest.mark.parametrize("code, sdr", [(0, 0), (0.2997, 73), (0.3800, 108), (0.5081, 189), (0.5807, 230), (0.7518, 255),
                                       (1, 255)])  # fmt: skip
def test_grey_of_pq(code, sdr):
    """Below the knee 255 (nits / 203)^(1 / 2.4); above it BT.2390's curve."""
    assert np.abs(to_sdr(code16(code), "pq").astype(int) - sdr).max() <= 1


@pytest.mark.parametrize("code, sdr", [(0, 0), (0.25, 72), (0.38, 109), (0.5, 143), (0.75, 230), (1, 255)])
def test_grey_of_hlg(code, sdr):
    """Display light 1000 E^1.2, then as PQ."""
    assert np.abs(to_sdr(code16(code), "hlg").astype(int) - sdr).max() <= 1


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_more_light_is_never_darker_and_grey_stays_grey(transfer):
    ramp = np.repeat(np.linspace(0, 65535, 1000).astype(np.uint16)[None, :, None], 3, axis=-1)
    shown = to_sdr(ramp, transfer)[0].astype(int)
    assert (np.diff(shown, axis=0) >= 0).all() and np.ptp(shown, axis=1).max() <= 1


def test_bt709_red_in_bt2020_primaries_becomes_red():
    """100 nits of BT.709's red: (0.6274, 0.0691, 0.0164) of BT.2020's primaries."""
    code = nits_to_pq(np.array([62.74, 6.91, 1.64]))
    red = to_sdr(np.rint(code * 65535).astype(np.uint16)[None, None], "pq")[0, 0].astype(int)
    assert abs(red[0] - round(255 * (100 / WHITE) ** (1 / 2.4))) <= 2 and red[1:].max() <= 12


@pytest.mark.parametrize("trc, transfer, full", [(16, "pq", False), (16, "pq", True), (18, "hlg", False)])
def test_hdr_files_are_tone_mapped(tmp_path, trc, transfer, full):
    path, code = tmp_path / "a.mkv", 0.58
    luma = round(1023 * code) if full else round(64 + 876 * code)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = trc, 9, 9, 1 + full
        frame = av.VideoFrame(64, 48, "yuv444p10le")
        for plane, value in zip(frame.planes, (luma, 512, 512), strict=True):
            plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
        frame.color_range, frame.colorspace, frame.color_trc, frame.color_primaries = 1 + full, 9, trc, 9
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    video = decode_video(path, 24, 32, 3)
    wanted = to_sdr(code16(code), transfer, PEAK)[0, 0].astype(int)
    assert np.abs(video.frames.astype(int) - wanted).max() <= 2 and video.notes == ()
    assert np.abs(decode_video(path, 2, 2, 1).frames.astype(int) - wanted[0]).max() <= 2  # averaged first
