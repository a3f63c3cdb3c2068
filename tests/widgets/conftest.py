"""JupyterLab in a headless Chromium: `lab(notebook)` opens a notebook, runs it, and gives the page."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
TOKEN = "tracks"
SHELL = "window.jupyterapp.shell.currentWidget"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def chromium() -> str:
    """The browser's program; the test is skipped, saying so, where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs Chromium (on Debian: apt-get install chromium)")
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address and folder of a JupyterLab that sees a copy of the notebooks and fetches nothing."""
    chromium()
    home = tmp_path_factory.mktemp("lab")
    folder = home / "notebooks"
    shutil.copytree(NOTEBOOKS, folder)
    quiet = home / "settings" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    settings = {"fetchNews": "false", "checkForUpdates": False}
    (quiet / "notification.jupyterlab-settings").write_text(json.dumps(settings))
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command += [f"--port={port}", f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={TOKEN}"]
    places = {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTER_CONFIG_DIR": str(home / "config")}
    places["HEPATTN_LESSON_STEPS"] = "60"  # of 600
    log = (home / "log").open("w")
    process = subprocess.Popen(
        command, env={**os.environ, **places, "JUPYTER_RUNTIME_DIR": str(home / "runtime")}, stdout=log, stderr=log
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (home / "log").read_text()
                time.sleep(0.5)
        yield address, folder
    finally:
        process.terminate()
        process.wait(30)
        log.close()


@pytest.fixture(scope="module")
def browser(server: tuple[str, Path]) -> Iterator[Any]:
    """A headless Chromium; `server` comes first, so that both end in the right order."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture
def lab(server: tuple[str, Path], browser: Any) -> Iterator[Callable[[str], Any]]:
    """`lab(name)` opens a notebook and starts all its cells; afterwards the browser's console must be clean."""
    errors: list[str] = []
    pages: list[Any] = []

    def opened(name: str) -> Any:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        pages.append(page)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{server[0]}/lab/tree/{name}?reset&token={TOKEN}", wait_until="domcontentloaded")
        page.wait_for_selector(".jp-NotebookPanel .jp-Notebook", timeout=120_000)
        page.wait_for_function(f"() => window.jupyterapp && {SHELL}?.sessionContext?.session?.kernel", timeout=120_000)
        page.evaluate(
            f"async () => {{ await {SHELL}.sessionContext.ready; "
            "window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
        )
        return page

    yield opened
    for page in pages:
        page.evaluate(f"async () => {{ await {SHELL}.sessionContext.shutdown(); }}")
        page.close()
    assert errors == []
