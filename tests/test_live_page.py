"""The page in a real browser: headless Chromium, Debian's package ``chromium``."""

import asyncio
import io

import numpy as np
import pytest
from aiohttp.test_utils import TestServer
from PIL import Image

from causal_diffusion import live
from causal_diffusion.errors import UserError
from causal_diffusion.render.live.three import find_three
from tests.browser import Browser, program
from tests.walking_stream import WalkingStream

pytestmark = pytest.mark.full

PROMPT = "document.body.dataset.prompt"


@pytest.fixture(scope="module")
def three():
    if program() is None:
        pytest.skip("chromium is not on the path")
    try:
        return find_three()
    except UserError as error:
        pytest.skip(str(error))


def visit(three, what, make=WalkingStream, size=(640, 480), **options):
    """Opens the page and does ``what(browser, address)``."""

    async def talk():
        server = TestServer(live.application(make, three_folder=three, prompt="a person walks", **options))
        await server.start_server()
        try:
            async with Browser(*size) as browser:
                await browser.open(str(server.make_url("/")))
                await what(browser, str(server.make_url("/")))
        finally:
            await server.close()

    asyncio.run(asyncio.wait_for(talk(), 240))


async def write(browser, text):
    await browser.value("document.getElementById('prompt').focus()")
    await browser.type(text)
    await browser.press("Enter", 13)


def limbs(png):
    """Where the left and the right limbs are, rows [N] each, by their colours."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    red, blue = pixels[..., 0], pixels[..., 2]
    return np.nonzero(blue > red + 60)[0], np.nonzero(red > blue + 60)[0]


def test_frames_arrive_a_prompt_takes_effect_and_the_buttons_work(three):
    async def what(browser, address):
        await browser.until("document.body.dataset.shown > 10")
        assert await browser.value(PROMPT) == "a person walks"
        assert all(len(rows) > 100 for rows in limbs(await browser.picture()))
        await write(browser, "now jump")
        await browser.until(f"{PROMPT} === 'now jump'")
        chips = "[...document.querySelectorAll('#prompts li')].map(item => item.className + ': ' + item.title)"
        assert await browser.value(chips) == [": a person walks", "now: now jump"]
        assert await browser.value("document.getElementById('prompt').value") == ""

        await browser.value("document.getElementById('pause').click()")
        await browser.until("document.body.dataset.state === 'paused'")
        before = await browser.value("[document.body.dataset.shown, document.body.dataset.received]")
        await asyncio.sleep(1.0)
        after = await browser.value("[document.body.dataset.shown, document.body.dataset.received]")
        assert after[0] == before[0] and int(after[1]) - int(after[0]) <= 0.75 * 30 + 6  # generation has stopped, too
        await browser.value("document.getElementById('pause').click()")
        await browser.until(f"document.body.dataset.shown > {int(after[0]) + 5}")

        await browser.value("document.getElementById('restart').click()")
        await browser.until("document.body.dataset.run === '2' && document.body.dataset.shown > 5")
        assert await browser.value(PROMPT) == "now jump"
        assert all(asked.startswith((address, "data:")) for asked in browser.requests)
        drivers = [line for line in browser.troubles if "GL Driver Message" not in line]
        assert drivers == []

    visit(three, what)


def test_what_is_wrong_is_told(three):
    async def what(browser, address):
        notice, cover = (f"document.getElementById('{name}').textContent" for name in ("notice", "cover"))
        await browser.until("document.body.dataset.shown > 0")
        await write(browser, "   ")
        await browser.until(f"{notice}.includes('type what')")
        await write(browser, "walk " * 2000)
        await browser.until(f"{notice}.includes('cut to')")
        await browser.until(f"{PROMPT}.length === {live.LONGEST - 1}")  # ends in a space, which goes
        await write(browser, "break")
        await browser.until(f"{cover}.includes('it broke')")
        await browser.value("document.getElementById('restart').click()")
        await browser.until("document.body.dataset.run === '2' && document.body.dataset.state === 'live'")

    visit(three, what)


def test_it_fits_a_phone(three):
    async def what(browser, address):
        await browser.until("document.body.dataset.shown > 20")
        await write(browser, "a rather long prompt that does not fit the width of a phone in any way at all, and jump")
        await browser.until(f"{PROMPT}.startsWith('a rather')")
        assert await browser.value("document.documentElement.scrollWidth") == 390
        for name in ("prompt", "send", "pause", "restart", "buffer"):
            box = await browser.value(f"document.getElementById('{name}').getBoundingClientRect().toJSON()")
            assert 0 <= box["left"] < box["right"] <= 390 and 0 <= box["top"] < box["bottom"] <= 780, name
        picture = await browser.picture()
        assert all(len(rows) > 100 for rows in limbs(picture))

    visit(three, what, size=(390, 780))
