import asyncio
import json
import subprocess
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from aiohttp import ClientSession, WSMsgType, WSServerHandshakeError
from aiohttp.test_utils import TestServer

from causal_diffusion import live
from causal_diffusion.errors import UserError
from causal_diffusion.motion.body import REPRESENTATIONS, Body
from causal_diffusion.motion.humanml import canonical
from causal_diffusion.motion.skeleton import of
from causal_diffusion.nn.autoencoder import Geometry
from causal_diffusion.render import live as page
from causal_diffusion.render.live import three
from tests.walking_stream import NAMES, PARENTS, RAISED, WalkingStream, walk

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    """What stands for three.js."""
    for name in three.FILES:
        (tmp_path / name).write_text(f"// {name}")
    return tmp_path


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


class Page:
    """What a page does, without one."""

    def __init__(self, socket):
        self.socket, self.told, self.frames = socket, [], []

    async def say(self, **message):
        await self.socket.send_str(json.dumps(message))

    async def hear(self, kind):
        """Reads on until there is a message of that kind ('frames': of frames)."""
        while True:
            message = await self.socket.receive()
            if message.type == WSMsgType.BINARY:
                numbers = np.frombuffer(message.data, "<f4")
                index, count, joints = numbers[:3].astype(int)
                assert index == sum(map(len, self.frames))
                self.frames.append(numbers[3:].reshape(count, joints, 3))
                if kind == "frames":
                    return self.frames[-1]
            elif message.type == WSMsgType.TEXT:
                self.told.append(message.json())
                if self.told[-1]["type"] == "start":
                    self.frames = []
                if self.told[-1]["type"] == kind:
                    return self.told[-1]
            else:
                raise ConnectionError(f"{message.type}, before any {kind}")

    async def quiet(self, seconds=0.25):
        """Reads what there is, until nothing comes for so long."""
        while True:
            try:
                await asyncio.wait_for(self.hear("frames"), seconds)
            except TimeoutError:
                return sum(map(len, self.frames))


@asynccontextmanager
async def served(folder, make=WalkingStream, **options):
    server = TestServer(live.application(make, three_folder=folder, **options))
    await server.start_server()
    async with ClientSession() as session:
        yield session, server
    await server.close()


@asynccontextmanager
async def opened(folder, make=WalkingStream, **options):
    async with served(folder, make, **options) as (session, server):
        async with session.ws_connect(server.make_url("/stream")) as socket:
            yield Page(socket)


async def until(true, seconds=5):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        await asyncio.sleep(0.01)


def workers():
    return [t for t in live.threading.enumerate() if isinstance(t, live.Worker)]


def test_the_page_and_three_are_served(folder):
    async def talk():
        async with served(folder) as (session, server):
            kinds = {"": "text/html"} | page.FILES | dict.fromkeys(three.FILES, "text/javascript")
            for name, kind in kinds.items():
                async with session.get(server.make_url(f"/{name}")) as answer:
                    body = await answer.read()
                assert answer.status == 200 and answer.content_type == kind and answer.charset == "utf-8"
                file = folder / name if name in three.FILES else page.PAGE / (name or "index.html")
                assert body == file.read_bytes()
                assert "'self'" in answer.headers["Content-Security-Policy"]
            for name in ("nothing.js", "three.py", "../live.py", "three_core.js"):
                async with session.get(server.make_url(f"/{name}")) as answer:
                    assert answer.status == 404

    run(talk())


def test_the_page_asks_nobody_else():
    for name in page.FILES:
        text = (page.PAGE / name).read_text()
        assert "http:" not in text.replace('"https:"', "") and "//" not in text.replace("// ", "").replace("//\n", "")


def test_frames_arrive_as_they_were_made(folder):
    async def talk():
        async with opened(folder, prompt="  a person\n walks ") as browser:
            start = await browser.hear("start")
            for _ in range(3):
                await browser.hear("frames")
            return start, browser.frames

    start, frames = run(talk())
    assert (start["run"], start["fps"], start["prompt"]) == (1, 30, "a person walks")
    assert start["joints"] == list(NAMES) and start["parents"] == list(PARENTS)
    assert start["sides"][NAMES.index("Hand_L")] == "left" and NAMES[start["head"]] == "Head"
    assert [NAMES[hip] for hip in start["hips"]] == ["UpperLeg_L", "UpperLeg_R"]
    np.testing.assert_array_equal(np.concatenate(frames), walk(18, 30).reshape(3, 6, -1, 3).reshape(18, -1, 3))


def test_it_stays_so_far_ahead_of_what_was_shown(folder):
    async def talk():
        async with opened(folder, ahead=1.0) as browser:
            await browser.hear("start")
            assert await browser.quiet() == 30  # a second, in pieces of six
            await browser.say(type="shown", run=1, frames=7)
            assert await browser.quiet() == 42
            await browser.say(type="shown", run=1, frames=3)  # does not go back,
            await browser.say(type="shown", run=9, frames=40)  # is of another run,
            await browser.say(type="shown", run=1, frames="40")  # or nonsense
            assert await browser.quiet() == 42
            await browser.say(type="shown", run=1, frames=10**9)  # no more than there were
            assert await browser.quiet() == 72

    run(talk())


def test_a_prompt_takes_effect_where_it_says(folder):
    async def talk():
        async with opened(folder, ahead=1.0) as browser:
            await browser.hear("start")
            made = await browser.quiet()
            await browser.say(type="prompt", text="jump")
            told = await browser.hear("prompt")  # at once, though nothing has been shown
            assert told == dict(type="prompt", text="jump", frame=made, run=1)
            await browser.say(type="shown", run=1, frames=20)
            return made, (await browser.hear("frames"))

    made, piece = run(talk())
    np.testing.assert_array_equal(piece, walk(6, 30, RAISED, made))


def test_what_is_in_flight_keeps_the_old_prompt(folder):
    class Slow(WalkingStream):
        def update(self, prompt):
            super().update(prompt)
            return 12

    async def talk():
        async with opened(folder, Slow, ahead=1.0) as browser:
            await browser.hear("start")
            made = await browser.quiet()
            await browser.say(type="prompt", text="jump")
            assert (await browser.hear("prompt"))["frame"] == made + 12

    run(talk())


@pytest.mark.parametrize("text, told", [("", "empty"), (" \n\t", "empty"), (None, "empty"), (["jump"], "empty")])
def test_an_empty_prompt_is_refused_and_changes_nothing(folder, text, told):
    async def talk():
        async with opened(folder) as browser:
            await browser.hear("start")
            await browser.say(type="prompt", text=text)
            notice = await browser.hear("notice")
            assert told in notice["text"] and notice["refused"]
            await browser.say(type="prompt", text="jump")
            assert (await browser.hear("prompt"))["text"] == "jump"

    run(talk())


def test_a_long_prompt_is_cut_with_a_message(folder):
    async def talk():
        async with opened(folder) as browser:
            await browser.hear("start")
            await browser.say(type="prompt", text="\u00fc" * 10_000)
            notice, told = await browser.hear("notice"), await browser.hear("prompt")
            assert "10,000" in notice["text"] and str(live.LONGEST) in notice["text"] and not notice["refused"]
            assert told["text"] == "\u00fc" * live.LONGEST

    run(talk())


def test_nonsense_is_told_and_survived(folder):
    async def talk():
        async with opened(folder) as browser:
            await browser.hear("start")
            for data in ("", "{", "[]", "7", "null", '{"kind": 1}', "[" * 50_000):
                await browser.socket.send_str(data)
                assert "understand" in (await browser.hear("notice"))["text"]
            await browser.say(type="dance")
            await browser.socket.send_bytes(b"\x00")
            await browser.say(type="prompt", text="jump")
            await browser.hear("prompt")

    run(talk())


def test_closing_the_tab_ends_the_worker(folder):
    async def talk():
        async with opened(folder) as browser:
            await browser.hear("frames")
            await until(lambda: len(workers()) == 1)  # one that another test left may be about to end
        await until(lambda: not workers())

    run(talk())
    assert not workers()


def test_closing_the_server_ends_them_all(folder):
    async def talk():
        async with served(folder) as (session, server):
            async with session.ws_connect(server.make_url("/stream")) as one:
                async with session.ws_connect(server.make_url("/stream")) as two:
                    for socket in (one, two):
                        await Page(socket).hear("frames")
                    assert len(workers()) == 2
                    await server.close()
                    await until(lambda: not workers())

    run(talk())


def test_every_tab_has_its_own_stream_and_there_are_only_so_many(folder):
    async def talk():
        async with served(folder, tabs=2) as (session, server), AsyncExitStack() as stack:

            async def tab():
                return Page(await stack.enter_async_context(session.ws_connect(server.make_url("/stream"))))

            one, two = await tab(), await tab()
            for browser in (one, two):
                await browser.hear("start")
            await one.say(type="prompt", text="jump")
            await one.hear("prompt")
            assert await two.quiet() and not [m for m in two.told if m["type"] == "prompt"]
            assert "2 tabs" in (await (await tab()).hear("error"))["text"]
            await one.socket.close()
            await until(lambda: len(workers()) == 1)
            await (await tab()).hear("start")

    run(talk())


def test_restart_begins_anew_under_the_last_prompt(folder):
    async def talk():
        async with opened(folder) as browser:
            await browser.hear("start")
            await browser.say(type="prompt", text="jump")
            await browser.hear("prompt")
            await browser.say(type="restart")
            start = await browser.hear("start")
            assert (start["run"], start["prompt"]) == (2, "jump")
            np.testing.assert_array_equal(await browser.hear("frames"), walk(6, 30, RAISED))
            assert (await browser.hear("made"))["run"] == 2
            await until(lambda: len(workers()) == 1)

    run(talk())


@pytest.mark.parametrize("prompt, told", [("break", "RuntimeError: it broke"), ("bend", "not finite"),
                                          ("lack", "6, 17")])  # fmt: skip
def test_a_stream_that_fails_says_so_and_can_start_again(folder, prompt, told, caplog):
    class Broken(WalkingStream):
        def next(self):
            piece = super().next()
            return piece * np.nan if self.prompt == "bend" else piece[:, 1:] if self.prompt == "lack" else piece

    async def talk():
        async with opened(folder, Broken, ahead=60) as browser:
            await browser.hear("start")
            await browser.say(type="prompt", text=prompt)
            assert told in (await browser.hear("error"))["text"]
            await until(lambda: not workers())
            await browser.say(type="prompt", text="walk")
            await browser.say(type="restart")
            assert (await browser.hear("start"))["prompt"] == "walk"

    run(talk())


def test_another_sites_page_is_refused(folder):
    async def talk():
        async with served(folder) as (session, server):
            url = server.make_url("/stream")
            with pytest.raises(WSServerHandshakeError) as refused:
                await session.ws_connect(url, origin="http://elsewhere.example")
            assert refused.value.status == 403
            async with session.ws_connect(url, origin=str(server.make_url("")).rstrip("/")) as socket:
                await Page(socket).hear("start")

    run(talk())


@pytest.mark.parametrize("wrong, said", [(dict(ahead=0.1), "ahead is 0.1"), (dict(tabs=0), "tabs is 0"),
                                         (dict(prompt=" "), "prompt is empty")])  # fmt: skip
def test_wrong_settings_are_told(folder, wrong, said):
    with pytest.raises(UserError, match=said):
        live.application(WalkingStream, three_folder=folder, **wrong)


def test_serve_says_where_and_a_taken_port_is_told(folder):
    async def talk():
        app, addresses = live.application(WalkingStream, three_folder=folder), []
        task = asyncio.create_task(live.serve(app, "127.0.0.1", 0, addresses.append))
        await until(lambda: addresses)
        port = int(addresses[0].rpartition(":")[2])
        async with ClientSession() as session, session.get(addresses[0]) as answer:
            assert answer.status == 200
        again = live.application(WalkingStream, three_folder=folder)
        with pytest.raises(UserError, match=f"127.0.0.1:{port}.*--port={port + 1}") as error:
            await live.serve(again, "127.0.0.1", port, print)
        assert "\n" not in str(error.value)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(talk())


def test_a_wrong_command_line_is_told_in_one_line(tmp_path):
    command = [sys.executable, "-m", "causal_diffusion.live", "--checkpoint=x", f"--three={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --three is") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("representation", ["joints", "humanml"])
def test_a_pipeline_is_a_stream(representation):
    """Pieces of a decoded clip go on where the one before ended; what is in flight counts in frames."""
    x = walk(33, 30).astype(np.float64)
    kind, clean = REPRESENTATIONS[representation], canonical(x, of(NAMES, PARENTS))
    numbers = kind.encode(clean, of(NAMES, PARENTS))[:32]
    mean, std = numbers.mean(axis=0), np.full(numbers.shape[1], 0.5)
    seen = []

    class Pipeline:
        body = Body(representation, NAMES, PARENTS, 30.0, tuple(mean), tuple(std))
        codec = SimpleNamespace(geometry=Geometry(4, False, 1, 0, len(mean), 8))
        rollout = SimpleNamespace(waiting=3)

        def stream(self, seed, batch, cond):
            seen.append((seed, batch, cond))
            pieces = iter(np.split(self.body.normalise(numbers)[None], 4, axis=1))
            return SimpleNamespace(next=lambda: next(pieces), update=seen.append)

    stream = live.PipelineStream(Pipeline(), seed=7)
    stream.start("walk")
    found = np.concatenate([stream.next() for _ in range(4)])
    assert found.dtype == np.float32 and found.shape == (32, len(NAMES), 3)
    np.testing.assert_allclose(found - found[0, 0] * [1, 0, 1], clean[:32] - clean[0, 0] * [1, 0, 1], atol=2e-4)
    assert stream.update("jump") == 12  # three latents of four frames
    assert seen == [(7, 1, {"text": "walk"}), {"text": "jump"}]
    assert (stream.fps, stream.joint_names, stream.parents) == (30.0, NAMES, PARENTS)
    with pytest.raises(UserError, match="not of human motion"):
        live.PipelineStream(SimpleNamespace(body=None))
