"""A page on this machine that shows motion while it is generated, and takes new prompts.

    python -m causal_diffusion.live --checkpoint=runs/cmdm
    python -m causal_diffusion.live --checkpoint=runs/cmdm --prompt='a person walks forward' --port=8000

It needs ``pip install 'causal_diffusion[live]'``, and three.js, which ``render/live/three.py`` finds or fetches once;
after that it works without a network.

    page    --- prompt, shown, restart ------->   Tab (asyncio)   --- prompt, shown, stop --->   Worker (a thread)
            <-- start, prompt, made, frames ---                   <-- pieces as they come ----   owns a Stream

Every tab of a browser has a stream and a worker of its own, so that two people do not steer one body; it ends when the
tab closes. A worker makes a piece only while fewer than ``ahead`` seconds wait to be shown: a tab that is paused, or
that nobody looks at, stops its worker. A new prompt is handed to the stream at once and shows after what waits.
"""

import asyncio
import contextlib
import errno
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from causal_diffusion.errors import UserError
from causal_diffusion.file_access import parse_json
from causal_diffusion.motion.skeleton import of
from causal_diffusion.ranges import SEED, Range, check_number
from causal_diffusion.render import live
from causal_diffusion.render.live import three

try:
    from aiohttp import WSMsgType, web
except ModuleNotFoundError:  # an extra, and main says so
    web = None

log = logging.getLogger(__name__)

PROMPT = "a person walks forward"
LONGEST = 300  # characters of a prompt
LARGEST = 2**17  # bytes of a message from the page
AHEAD = 0.75  # seconds
LEAST_AHEAD = 0.5  # the page waits for 0.25 before it begins
_POLICY = "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; base-uri 'none'; form-action 'self'"


class Stream(Protocol):
    """Where motion comes from. A worker calls it from one thread."""

    fps: float
    joint_names: tuple[str, ...]
    parents: tuple[int, ...]  # -1 for the root

    def start(self, prompt: str) -> None:
        """Begins a motion."""

    def next(self) -> np.ndarray:
        """The next piece, float32 [T, J, 3]: joints in the world, metres, y up and the floor at 0. T may be 0."""

    def update(self, prompt: str) -> int | None:
        """Changes the prompt; returns how many of the frames to come are still made under the old one (None: 0)."""


class PipelineStream:
    """A ``Pipeline`` of human motion as a Stream."""

    def __init__(self, pipeline, seed: int = 0):
        if pipeline.body is None:
            raise UserError("this checkpoint is not of human motion: there are no joints to show")
        self._pipeline, self._seed, self._session, self._before = pipeline, seed, None, None
        body = pipeline.body
        self.fps, self.joint_names, self.parents = body.fps, body.names, body.parents
        self._in_flight = pipeline.rollout.waiting
        if pipeline.codec is not None:
            self._in_flight = pipeline.codec.geometry.frames(self._in_flight, start=False)

    def start(self, prompt):
        self._session, self._before = self._pipeline.stream(self._seed, 1, {"text": prompt}), None

    def next(self):
        positions, self._before = self._pipeline.body.positions(self._session.next(), self._before)
        return np.asarray(positions[0], np.float32)

    def update(self, prompt):
        self._session.update({"text": prompt})
        return self._in_flight


def clean_prompt(text: Any) -> tuple[str, str]:
    """(the prompt in one line, what to tell the user about it or '').

    Raises:
        UserError: there are no words in it.
    """
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split()) if isinstance(text, str) else ""
    if not words:
        raise UserError(f"the prompt is empty: {PROMPT!r} would do")
    if len(words) > LONGEST:
        return words[:LONGEST].rstrip(), f"the prompt has {len(words):,} characters and was cut to {LONGEST}"
    return words, ""


class _Prompt(NamedTuple):
    text: str


class Worker(threading.Thread):
    """Makes the frames of one run.

    Args:
        make: gives the Stream; called in the worker's thread.
        send: takes what is for the page, a dict or bytes; called in the worker's thread.
        ahead: seconds that may wait to be shown.
    """

    def __init__(self, make: Callable[[], Stream], send: Callable, prompt: str, ahead: float = AHEAD):
        super().__init__(name="live", daemon=True)
        self._make, self._send, self._first, self._ahead = make, send, prompt, ahead
        self._changed = threading.Condition()
        self._prompt, self._shown, self._made, self._stopped = None, 0, 0, False

    def update(self, prompt: str) -> None:
        """The prompt from now on."""
        self._set(_prompt=_Prompt(prompt))

    def shown(self, frames: int) -> None:
        """So many frames have been shown since the start."""
        self._set(_shown=max(self._shown, min(frames, self._made)))

    def stop(self) -> None:
        """Ends it, after the piece that it is making; nothing is sent from now on."""
        self._set(_stopped=True)

    def run(self):
        try:
            stream = self._make()
            stream.start(self._first)
            names, parents = list(stream.joint_names), [int(parent) for parent in stream.parents]
            skeleton = of(names, parents)
            hips = [skeleton.roles.get(f"{side}_hip", -1) for side in ("left", "right")]
            self._tell(type="start", fps=float(stream.fps), joints=names, parents=parents, prompt=self._first,
                       sides=[side or "middle" for side in skeleton.sides], hips=hips,
                       head=skeleton.roles.get("head", -1))  # fmt: skip
            while (due := self._due(stream.fps)) != "stop":
                if due == "piece":
                    self._piece(stream, len(parents))
                else:
                    frame = self._made + (stream.update(due.text) or 0)
                    self._tell(type="prompt", text=due.text, frame=frame)
        except UserError as error:
            self._tell(type="error", text=str(error))
        except Exception as error:  # whatever a stream raises must reach the page
            log.exception("a live stream ended")
            self._tell(type="error", text=f"the stream ended: {type(error).__name__}: {error}")

    def _piece(self, stream, joints):
        began = time.perf_counter()
        piece = np.ascontiguousarray(stream.next(), "<f4")
        took = time.perf_counter() - began
        if piece.shape[1:] != (joints, 3) or not np.isfinite(piece).all():
            raise UserError(f"the stream gave {piece.shape}, or numbers that are not finite: it is to give finite "
                            f"[frames, {joints}, 3]")  # fmt: skip
        if not len(piece):
            return
        header = np.array([self._made, len(piece), joints], "<f4")
        self._made += len(piece)
        self._put(header.tobytes() + piece.tobytes())
        self._tell(type="made", fps=len(piece) / max(took, 1e-6))

    def _due(self, fps):
        """Waits until there is something to do: 'stop', 'piece', or a _Prompt to go over to."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or self._prompt is not None or self._made - self._shown < self._ahead * fps
            )
            prompt, self._prompt = self._prompt, None
            return "stop" if self._stopped else prompt or "piece"

    def _set(self, **values):
        with self._changed:
            for name, value in values.items():
                setattr(self, name, value)
            self._changed.notify()

    def _tell(self, **message):
        self._put(message)

    def _put(self, item):
        if not self._stopped:
            self._send(item)


class Tab:
    """One connection of a page: its worker, and what goes back and forth."""

    def __init__(self, socket, make, prompt, ahead):
        self._socket, self._make, self._prompt, self._ahead = socket, make, prompt, ahead
        self._loop, self._out = asyncio.get_running_loop(), asyncio.Queue()
        self._run, self._worker = 0, None

    async def talk(self):
        """Until the page goes away."""
        sender = asyncio.create_task(self._send())
        try:
            self._start()
            async for message in self._socket:
                if message.type == WSMsgType.TEXT:
                    self._told(message.data)
        finally:
            self._worker.stop()
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sender

    def _start(self):
        if self._worker:
            self._worker.stop()
        self._run += 1
        run, loop, out = self._run, self._loop, self._out

        def send(item):
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the page
                loop.call_soon_threadsafe(out.put_nowait, (run, item))

        self._worker = Worker(self._make, send, self._prompt, self._ahead)
        self._worker.start()

    async def _send(self):
        with contextlib.suppress(ConnectionError):  # the page has gone, which talk() sees
            while True:
                run, item = await self._out.get()
                if run not in (self._run, None):
                    continue
                if isinstance(item, bytes):
                    await self._socket.send_bytes(item)
                else:
                    await self._socket.send_json(item if run is None else {**item, "run": run})

    def _notice(self, text, refused=False):
        self._out.put_nowait((None, dict(type="notice", text=text, refused=refused)))

    def _told(self, data):
        try:
            message = parse_json(data)
            kind = message["type"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return self._notice("the server did not understand the page")
        if kind == "prompt":
            try:
                self._prompt, cut = clean_prompt(message.get("text"))
            except UserError as error:
                return self._notice(str(error), refused=True)
            if cut:
                self._notice(cut)
            self._worker.update(self._prompt)
        elif kind == "shown" and message.get("run") == self._run and isinstance(message.get("frames"), int):
            self._worker.shown(message["frames"])
        elif kind == "restart":
            self._start()


def application(make: Callable[[], Stream], *, prompt: str = PROMPT, ahead: float = AHEAD, tabs: int = 4, three_folder):
    """The server, an ``aiohttp.web.Application``.

    Args:
        make: gives a Stream for every tab, each time the page starts.
        prompt: with which a tab begins.
        ahead: seconds that may wait to be shown.
        tabs: at most so many at a time.
        three_folder: holds three.js (``three.find_three``).
    """
    if web is None:
        raise UserError("the live page needs aiohttp: pip install 'causal_diffusion[live]'")
    check_number("ahead", ahead, Range(LEAST_AHEAD, 3_600), default=AHEAD, kind=float, error=UserError)
    check_number("tabs", tabs, Range(1, 1_000), default=4, error=UserError)
    prompt, _ = clean_prompt(prompt)
    bodies = {name: ((live.PAGE / name).read_bytes(), kind) for name, kind in live.FILES.items()}
    bodies |= {name: ((three_folder / name).read_bytes(), "text/javascript") for name in three.FILES}
    sockets = set()

    async def file(request):
        body, kind = bodies[request.match_info.get("name") or "index.html"]
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)

    async def stream(request):
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:  # another site's page
            raise web.HTTPForbidden(text=f"a page from {origin} may not use this stream")
        socket = web.WebSocketResponse(heartbeat=20, max_msg_size=LARGEST)
        await socket.prepare(request)
        if len(sockets) >= tabs:
            full = f"{tabs} tabs show streams already: close one and load this page again"
            await socket.send_json(dict(type="error", text=full))
            await socket.close()
            return socket
        sockets.add(socket)
        try:
            await Tab(socket, make, prompt, ahead).talk()
        finally:
            sockets.discard(socket)
        return socket

    async def end(_):
        for socket in list(sockets):
            await socket.close(code=1001)

    app = web.Application()
    app.router.add_get("/", file)
    app.router.add_get("/stream", stream)
    app.router.add_get("/{name:" + "|".join(name.replace(".", r"\.") for name in bodies) + "}", file)
    app.on_shutdown.append(end)
    return app


async def serve(app, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves until it is cancelled; ``ready`` is told the address."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
                raise
            advice = f"--port={port + 1 if 1023 < port < 65535 else 8000}"
            raise UserError(f"cannot serve at {host}:{port}: {error.strerror}; {advice} might do") from None
        name, number = runner.addresses[0][:2]
        ready(f"http://{f'[{name}]' if ':' in name else name}:{number}")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main(arguments=None) -> None:
    """The command: see the module's docstring."""
    from causal_diffusion.cli import Parser, parse_options

    parser = Parser(prog="python -m causal_diffusion.live", description="Shows a stream of motion in the browser.")
    parser.add_argument("--checkpoint", required=True, help="a run's workdir")
    parser.add_argument("--prompt", default=PROMPT, help="with which every tab begins")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: other machines can see the page, too")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--ahead", type=float, default=AHEAD, help="seconds that may wait to be shown")
    parser.add_argument("--tabs", type=int, default=4, help="at most so many at a time, each with its own stream")
    parser.add_argument("--seed", type=int, default=0, help="of the first tab; later ones count on")
    parser.add_argument("--step", type=int, help="a certain checkpoint instead of the newest")
    parser.add_argument("--three", help="folder of three.js (build of the npm package 'three')")
    options, overrides = parse_options(parser, arguments)
    check_number("--port", options.port, Range(0, 2**16 - 1), default=8000, error=UserError)
    check_number("--seed", options.seed, SEED, default=0, error=UserError)
    folder, seeds = three.find_three(options.three), itertools.count(options.seed)

    def make():
        return PipelineStream(pipeline, next(seeds))

    settings = dict(prompt=options.prompt, ahead=options.ahead, tabs=options.tabs, three_folder=folder)
    app = application(make, **settings)  # before the seconds of imports: a wrong option is told at once
    from causal_diffusion.streaming.pipeline import Pipeline

    pipeline = Pipeline.from_checkpoint(options.checkpoint, step=options.step, overrides=overrides)
    first = PipelineStream(pipeline)
    first.start(clean_prompt(options.prompt)[0])
    first.next()  # compiles, so that no tab waits for it
    first.update(clean_prompt(options.prompt)[0])

    def ready(address):
        print(f"open {address} in a browser; Ctrl-C ends it", flush=True)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(app, options.host, options.port, ready))


if __name__ == "__main__":
    from causal_diffusion.cli import run

    run(main)
