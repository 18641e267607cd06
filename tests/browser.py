"""A real browser for tests: Debian's chromium without a window, spoken to over its DevTools pipe, so that nothing else is needed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), "Space": (32, " ")}
WITHOUT_BROWSER = "no chromium here; scripts/chromium.sh installs it on Debian"


def find_browser() -> str | None:
    """The command of a Chromium or Chrome that is installed."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


needs_browser = pytest.mark.skipif(find_browser() is None, reason=WITHOUT_BROWSER)


class Page:
    """One open page. Sizes are CSS pixels."""

    def __init__(self, commands: Any, answers: Any) -> None:
        self._commands, self._answers, self._count, self._session = commands, answers, 0, ""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def open(self, place: Path | str, *, width: int, height: int = 844) -> None:
        """Load a file or an address in a window of that size; comes back when it is drawn."""
        self.resize(width, height)
        self._events.clear()
        self._ask("Page.navigate", url=place if isinstance(place, str) else place.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._read()

    def resize(self, width: int, height: int) -> None:
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def run(self, script: str) -> Any:
        """What the JavaScript expression `script` gives; the page's own policy does not hold for it."""
        found = self._ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def click(self, selector: str) -> None:
        """Press the middle of the first element that fits, of its first line, as a finger would."""
        box = f"(e => (e.scrollIntoView({{block: 'center'}}), e.getClientRects()[0]))(document.querySelector({json.dumps(selector)}))"
        x, y = self.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})")
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.run("document.body.offsetHeight")

    def press(self, key: str) -> None:
        """Press and release Tab, Enter or Space."""
        code, text = _KEYS[key]
        known = {"key": text if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code}
        self._ask("Input.dispatchKeyEvent", type="keyDown", text=text, **known)
        self._ask("Input.dispatchKeyEvent", type="keyUp", **known)

    def choose_file(self, selector: str, path: Path) -> None:
        """Give the file to a file input, as its dialog would."""
        element = self._ask("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")["result"]["objectId"]
        self._ask("DOM.setFileInputFiles", files=[str(path.resolve())], objectId=element)

    def keep_dialogs_closed(self) -> None:
        """File dialogs do not open from here on, but count as `num_dialogs`."""
        self._ask("Page.setInterceptFileChooserDialog", enabled=True)

    @property
    def num_dialogs(self) -> int:
        """File dialogs that the page has asked for since it was opened."""
        return sum(event["method"] == "Page.fileChooserOpened" for event in self._events)

    def wait_for(self, script: str, timeout_s: float = 30.0) -> None:
        """Wait until the JavaScript expression `script` is true."""
        deadline = time.monotonic() + timeout_s
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < deadline, (
                f"not within {timeout_s:g} s: {script}\n{self.run('document.body.innerText')}\n{self.complaints()}"
            )
            time.sleep(0.02)

    def complaints(self) -> list[str]:
        """What the console says: resources that are refused, violations of the page's policy."""
        return [event["params"]["entry"]["text"] for event in self._events if event["method"] == "Log.entryAdded"]

    def as_printed(self, is_printed: bool = True) -> None:
        """Show the page as it would be on paper from here on, or no longer."""
        self._ask("Emulation.setEmulatedMedia", media="print" if is_printed else "")

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """A PNG file of the page, or of what is in the window."""
        shot = self._ask("Page.captureScreenshot", captureBeyondViewport=whole, **({"clip": self._whole()} if whole else {}))
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self) -> bytes:
        """The page on A4 paper."""
        return base64.b64decode(self._ask("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False)["data"])

    def _whole(self) -> dict[str, float]:
        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters} | ({"sessionId": self._session} if self._session else {})
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    def _read(self) -> dict[str, Any]:
        content = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            content += byte
        message: dict[str, Any] = json.loads(content)
        if "method" in message and self._session:
            self._events.append(message)
        return message


@contextlib.contextmanager
def browser_page(profile: Path) -> Iterator[Page]:
    """A page of a browser of its own, whose profile is kept in the folder `profile`; it ends with the block."""
    browser = find_browser()
    assert browser is not None, WITHOUT_BROWSER
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    # The browser wants its two ends as descriptors 3 and 4.
    script = f'exec "$@" 3<&{to_read} 4>&{from_write}'
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        ["bash", "-c", script, "browser", browser, *options],
        pass_fds=(to_read, from_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    with os.fdopen(to_write, "wb") as commands, os.fdopen(from_read, "rb") as answers:
        try:
            yield Page(commands, answers)
        finally:
            process.terminate()
            process.wait(10)
