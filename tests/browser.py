"""A real browser for tests: JupyterLab without a window and Chromium driven through its DevTools
protocol, both shut off from the network.

`python tests/browser.py NOTEBOOK OUT` runs a notebook in it and writes screenshots to OUT.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WINDOW = (1500, 1100)
# no questions on the first start, and every cell in the page, whether in sight or not
SETTINGS = {
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
}


def chromium() -> str | None:
    """The browser's command, or None where none is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _wait(what: str, test: Any, seconds: float, pause: float = 0.3) -> Any:
    """What ``test`` returns once that is true. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := test():
            return answer
        time.sleep(pause)
    raise TimeoutError(f"{what}: not within {seconds:.0f} s")


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def jupyterlab(folder: Path, home: Path, **environment: str) -> Iterator[str]:
    """JupyterLab on ``folder``; yields its address with the token. ``home`` takes settings and
    logs.
    """
    for name, values in SETTINGS.items():
        path = home / "settings" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    port = _free_port()
    token = secrets.token_hex(16)
    folders = {
        "JUPYTER_CONFIG_DIR": home / "config",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": home / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": home / "workspaces",
        "IPYTHONDIR": home / "ipython",
        **environment,
    }
    options = [
        f"--ServerApp.root_dir={folder}",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--ServerApp.ip=127.0.0.1",
        f"--IdentityProvider.token={token}",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.extension_manager=readonly",
        "--no-browser",
        "--allow-root",
    ]
    with (home / "jupyterlab.log").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        env = os.environ | {name: str(value) for name, value in folders.items()}
        server = subprocess.Popen(command, stdout=log, stderr=log, env=env)
    try:

        def answers() -> bool:
            if server.poll() is not None:
                log = (home / "jupyterlab.log").read_text()
                raise RuntimeError(f"JupyterLab ended: {log[-800:]}")
            try:
                address = f"http://127.0.0.1:{port}/api?token={token}"
                return urllib.request.urlopen(address, timeout=5).status == 200
            except OSError:
                return False

        _wait("JupyterLab's start", answers, 120)
        yield f"http://127.0.0.1:{port}/lab/tree/{{name}}?token={token}&reset"
    finally:
        _end(server)


class Page:
    """One page of the browser, spoken to over its DevTools socket."""

    def __init__(self, address: str) -> None:
        import websocket  # of websocket-client, which jupyter_server brings

        self.socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self.count = 0  # of commands
        self.failed: list[str] = []  # addresses outside this machine that the page asked for

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a DevTools command. Raises RuntimeError with the browser's message."""
        self.count += 1
        number = self.count
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("method") == "Network.requestWillBeSent":
                address = message["params"]["request"]["url"]
                if address.startswith("http") and "//127.0.0.1" not in address:
                    self.failed.append(address)
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message.get("result", {})

    def js(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are waited for."""
        result = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            exception = result["exceptionDetails"].get("exception", {})
            raise RuntimeError(exception.get("description", str(result)))
        return result["result"].get("value")

    def wait(self, what: str, expression: str, seconds: float) -> Any:
        """Wait until the expression is true; its value."""
        return _wait(what, lambda: self.js(expression), seconds)

    def mouse(self, kind: str, x: float, y: float, button: str = "none") -> None:
        self.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=y,
            button=button,
            buttons=int(button == "left"),
            clickCount=int(button == "left"),
        )

    def screenshot(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(picture["data"]))
        return path


@contextmanager
def browser(home: Path) -> Iterator[Page]:
    """Chromium without a window, a GPU or a network: every name but this machine's is unknown to
    it.
    """
    profile = home / "chromium"
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        "--hide-scrollbars",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--disable-dev-shm-usage",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        f"--window-size={WINDOW[0]},{WINDOW[1]}",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    ]
    with (home / "chromium.log").open("w") as log:
        process = subprocess.Popen([chromium(), *options, "about:blank"], stdout=log, stderr=log)
    try:
        port_file = profile / "DevToolsActivePort"

        def ports() -> list[str]:
            return port_file.read_text().split()[:1] if port_file.is_file() else []

        (port,) = _wait("Chromium's start", ports, 60)
        answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10)
        pages = json.loads(answer.read())
        page = Page(next(p["webSocketDebuggerUrl"] for p in pages if p["type"] == "page"))
        for domain in ("Page", "Runtime", "Network"):
            page.call(f"{domain}.enable")
        yield page
    finally:
        _end(process)


# --- JupyterLab in the page ---------------------------------------------------------------------

CELLS = "[...document.querySelectorAll('.jp-Notebook .jp-CodeCell')]"
PROMPTS = f"{CELLS}.map(c => c.querySelector('.jp-InputPrompt').textContent.trim())"
FIGURE = ".jp-OutputArea-output.jp-RenderedPlotly"
PANEL = "[...window.jupyterapp.shell.widgets('main')].find(w => w.sessionContext)"
KERNEL = f"{PANEL}?.sessionContext.session?.kernel"
ERRORS = (
    '[...document.querySelectorAll(\'[data-mime-type="application/vnd.jupyter.error"], '
    '[data-mime-type="application/vnd.jupyter.stderr"]\')]'
)


def run_all(page: Page, address: str, seconds: float = 400) -> dict[str, Any]:
    """Open the notebook, run all cells by JupyterLab's own command, and say what came of it."""
    page.call("Page.navigate", url=address)
    there = f"window.jupyterapp !== undefined && {CELLS}.length > 0"
    page.wait("the notebook in JupyterLab", there, 120)
    idle = f"{KERNEL}?.connectionStatus === 'connected' && {KERNEL}.status === 'idle'"
    page.wait("the kernel", idle, 120)
    page.js(f"window.jupyterapp.shell.activateById({PANEL}.id)")
    page.js("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    started = f"{PROMPTS}.some(p => p.startsWith('[*') || /\\d/.test(p))"
    page.wait("the first cell", started, 60)
    failed = f"{ERRORS}.some(e => e.dataset.mimeType.endsWith('error'))"
    finished = f"!{PROMPTS}.some(p => !/\\d/.test(p))"
    page.wait("the last cell", f"{failed} || {finished}", seconds)
    time.sleep(2)
    return {
        "prompts": page.js(PROMPTS),
        "errors": page.js(f"{ERRORS}.map(e => e.textContent.slice(0, 300))"),
        "figures": page.js(f"document.querySelectorAll('{FIGURE}').length"),
    }


def show(page: Page, number: int) -> dict[str, float]:
    """Scroll figure ``number`` into sight and wake it with the mouse.

    Returns the place of its interactive form: x, y, width, height.
    """
    where = f"document.querySelectorAll('{FIGURE}')[{number}]"
    place = "(({x, y, width, height}) => ({x, y, width, height}))"
    page.js(f"{where}.scrollIntoView({{block: 'center'}})")
    time.sleep(1)
    box = page.js(f"{place}({where}.getBoundingClientRect())")
    page.mouse("mouseMoved", box["x"] + 5, box["y"] + 5)
    page.mouse("mouseMoved", box["x"] + min(box["width"], 400) / 2, box["y"] + box["height"] / 2)
    page.wait("the interactive figure", f"{where}.querySelector('.main-svg') !== null", 60)
    time.sleep(2)
    return page.js(f"{place}({where}.querySelector('.svg-container').getBoundingClientRect())")


def drag(page: Page, box: dict[str, float], by: float = 120) -> None:
    """Turn what is drawn in ``box`` by dragging from its middle."""
    x = box["x"] + box["width"] / 2
    y = box["y"] + box["height"] / 2
    page.mouse("mouseMoved", x, y)
    page.mouse("mousePressed", x, y, "left")
    for step in range(1, 11):
        page.mouse("mouseMoved", x + by * step / 10, y + by * step / 30, "left")
        time.sleep(0.05)
    page.mouse("mouseReleased", x + by, y + by / 3, "left")
    time.sleep(1.5)


if __name__ == "__main__":
    notebook = Path(sys.argv[1]).resolve()
    out = Path(sys.argv[2]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "lab").mkdir(exist_ok=True)
    shutil.copy(notebook, out / "lab")
    runs = {
        "POTKIT_FIGURES": str(out / "figures"),
        "POTKIT_RUNS": str(out / "runs"),
        "POTKIT_PROFILE": os.environ.get("POTKIT_PROFILE", "smoke"),
    }
    with jupyterlab(out / "lab", out, **runs) as address, browser(out) as page:
        try:
            print(json.dumps(run_all(page, address.format(name=notebook.name)), indent=1))
        finally:
            page.screenshot(out / "end.png")
        for i in range(page.js(f"document.querySelectorAll('{FIGURE}').length")):
            show(page, i)
            page.screenshot(out / f"figure-{i:02d}.png")
        print("asked for from outside:", page.failed)
