import math

import pytest

from causal_diffusion.data.captions import Caption, parse_caption, read_captions
from causal_diffusion.errors import UserError


def test_a_file_of_captions(tmp_path):
    path = tmp_path / "000001.txt"
    path.write_text(
        "a man kicks.#a/DET man/NOUN kick/VERB#0.0#0.0\n\n"
        "he walks\u2028back #he/PRON walk/VERB back/ADV#1.5#4.25\nhe waves#he/PRON wave/VERB#nan#nan\n",
        encoding="utf-8",
    )
    kick, walk, wave = read_captions(path)
    assert kick == Caption("a man kicks.", ("a/DET", "man/NOUN", "kick/VERB"), 0.0, 0.0) and kick.whole
    assert walk == Caption("he walks\u2028back", ("he/PRON", "walk/VERB", "back/ADV"), 1.5, 4.25) and not walk.whole
    assert wave.whole and not math.isnan(wave.start)


@pytest.mark.parametrize("start, end, count, frames", [
    (0.0, 0.0, 90, (0, 90)),
    (1.5, 4.26, 90, (30, 85)),
    (1.0, 9.0, 90, (20, 90)),
    (7.0, 9.0, 90, (90, 90)),
])  # fmt: skip
def test_which_frames_a_caption_describes(start, end, count, frames):
    assert Caption("", (), start, end).frames(20.0, count) == frames


@pytest.mark.parametrize("line, message", [
    ("a man kicks", "here is no caption: four fields, text#words#start#end, not 1 or"),
    ("a#b/NOUN#0.0#0.0#1", "not 5 or without text"),
    ("#b/NOUN#0.0#0.0", "not 4 or without text"),
    ("a#b/NOUN#0.0#soon", "here has times '0.0' and 'soon': seconds"),
    ("a#b/NOUN#3.0#2.0", "here describes seconds 3 to 2: the end must be after the start"),
    ("a#b/NOUN#2.0#2.0", "describes seconds 2 to 2"),
    ("a#b/NOUN#-1.0#2.0", "describes seconds -1 to 2"),
    ("a#b/NOUN#1.0#inf", "describes seconds 1 to inf"),
])  # fmt: skip
def test_a_line_that_is_no_caption_is_refused(line, message):
    with pytest.raises(UserError, match=message) as error:
        parse_caption(line, "here")
    assert "\n" not in str(error.value)


def test_a_file_that_is_wrong_is_named(tmp_path):
    path = tmp_path / "000002.txt"
    with pytest.raises(UserError, match="000002.txt cannot be read"):
        read_captions(path)
    for content, message in ((b"a#b#0#0\nno caption\n", "000002.txt line 2 is no caption"),
                             (b"\n \n", "000002.txt holds no caption: one a line"),
                             (b"\xff\xfe", "000002.txt is not UTF-8 text")):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_captions(path)
