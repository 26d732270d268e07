"""Headless Chromium, driven through its DevTools protocol."""

import asyncio
import base64
import contextlib
import itertools
import shutil
import tempfile
from pathlib import Path

from aiohttp import ClientSession

PROGRAMS = ("chromium", "chromium-browser")
FLAGS = ("--headless=new", "--no-sandbox", "--remote-debugging-port=0", "--enable-unsafe-swiftshader",
         "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", "--mute-audio",
         "--disable-background-networking", "--disable-component-update")  # fmt: skip


def program() -> str | None:
    """Its path; None: it is not here."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Browser:
    """One page. ``async with Browser(width, height) as page``.

    Attributes:
        troubles: what the page wrote to its console as a warning or an error, and exceptions in it.
        requests: addresses that it asked for.
    """

    def __init__(self, width=1280, height=800):
        self._size, self._ids, self._waiting = (width, height), itertools.count(1), {}
        self.troubles, self.requests = [], []

    async def __aenter__(self):
        self._stack = stack = contextlib.AsyncExitStack()
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        size = f"--window-size={self._size[0]},{self._size[1]}"
        command = [program(), *FLAGS, size, f"--user-data-dir={folder}", "about:blank"]
        null = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(*command, stdout=null, stderr=null)
        stack.push_async_callback(process.wait)
        stack.callback(process.kill)
        session = await stack.enter_async_context(ClientSession())
        async with asyncio.timeout(60):
            self._socket = await self._connect(session, Path(folder) / "DevToolsActivePort")
        stack.push_async_callback(self._socket.close)
        reader = asyncio.create_task(self._read())
        stack.callback(reader.cancel)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        view = dict(width=self._size[0], height=self._size[1], deviceScaleFactor=1, mobile=False)
        await self.call("Emulation.setDeviceMetricsOverride", **view)
        return self

    async def __aexit__(self, *exception):
        await self._stack.aclose()

    async def _connect(self, session, file):
        while not (file.exists() and "/devtools/" in file.read_text()):
            await asyncio.sleep(0.05)
        port = file.read_text().split()[0]
        while True:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = [target for target in await answer.json() if target["type"] == "page"]
            if pages:
                return await session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
            await asyncio.sleep(0.05)

    async def _read(self):
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                self._waiting.pop(said["id"]).set_result(said)
                continue
            kind, detail = said["method"], said["params"]
            if kind == "Runtime.exceptionThrown":
                self.troubles.append(str(detail["exceptionDetails"].get("exception", detail)))
            elif kind == "Runtime.consoleAPICalled" and detail["type"] in ("warning", "error"):
                self.troubles.append(" ".join(str(part.get("value", "")) for part in detail["args"]))
            elif kind == "Log.entryAdded" and detail["entry"]["level"] in ("warning", "error"):
                self.troubles.append(f"{detail['entry']['text']} {detail['entry'].get('url', '')}")
            elif kind == "Network.requestWillBeSent":
                self.requests.append(detail["request"]["url"])

    async def call(self, method, **parameters):
        number = next(self._ids)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json(dict(id=number, method=method, params=parameters))
        said = await asyncio.wait_for(answer, 60)
        if "error" in said:
            raise RuntimeError(f"{method}: {said['error']}")
        return said["result"]

    async def open(self, address):
        await self.call("Page.navigate", url=address)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def value(self, expression):
        """What JavaScript evaluates to, as Python has it."""
        said = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in said:
            raise RuntimeError(f"{expression}: {said['exceptionDetails']}")
        return said["result"].get("value")

    async def until(self, expression, seconds=60):
        """Waits until it is true."""
        end = asyncio.get_running_loop().time() + seconds
        while not await self.value(expression):
            if asyncio.get_running_loop().time() > end:
                raise TimeoutError(f"{expression} did not come true within {seconds} s; troubles: {self.troubles}")
            await asyncio.sleep(0.05)

    async def type(self, text):
        """As a keyboard would, into what has the focus."""
        await self.call("Input.insertText", text=text)

    async def press(self, key, code=0):
        text = dict(text="\r") if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                            **(text if kind == "keyDown" else {}))  # fmt: skip

    async def picture(self) -> bytes:
        """What it shows, as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])
