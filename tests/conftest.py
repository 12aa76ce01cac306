"""For all tests: no network (an audit hook refuses connections and look-ups beyond this machine), and a browser."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

LOCAL = {"localhost", "::1", "", None}


os.environ["HF_HUB_OFFLINE"] = "1"  # a hub says so at once instead of trying
with contextlib.suppress(ImportError):  # the environment of `dev-openai-like` has none
    from hypothesis import HealthCheck, settings

    settings.register_profile("guardkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine
    settings.load_profile("guardkit")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in a shell's background: programs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: torch's threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def refuse_network(event: str, args: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        address = args[1]
        host = address[0] if isinstance(address, tuple) else None  # others are Unix sockets
    elif event == "socket.getaddrinfo":
        host = args[0]
    else:
        return
    if isinstance(host, bytes):
        host = host.decode()
    if host not in LOCAL and not host.startswith("127."):
        raise RuntimeError(f"tests must not touch the network: {event} {host}")


sys.addaudithook(refuse_network)


@pytest.fixture(scope="session")
def chat_model() -> Iterator[tuple[Any, str]]:
    """A real chat model, loaded once, and the address (with /v1) of a server around it."""
    from tests.chat_model_server import ABSENT, FOLDER, ChatModel, ChatServer

    if ABSENT:
        pytest.skip(ABSENT)
    model = ChatModel(FOLDER)
    with ChatServer(model) as url:
        yield model, url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless browser, driven by playwright: `chromium` on the path, or what $GUARDKIT_CHROMIUM names."""
    program = os.environ.get("GUARDKIT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no browser: install Debian's 'chromium', or name one with GUARDKIT_CHROMIUM")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


class Visit:
    """A page in a window of a width; keeps what it asked for and what it complained about."""

    def __init__(self, browser: Any, url: str, width: int, scheme: str = "light"):
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)

    @property
    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def until(self, expression: str) -> None:
        """Wait for it to be true. (playwright's own waiting evaluates strings, which a content policy forbids.)"""
        end = time.monotonic() + 60
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"never: {expression}"
            time.sleep(0.02)

    def barriers(self) -> list[str]:
        """What axe finds that keeps people out: WCAG 2.1 A and AA, and its best practices."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: pip install the dev extra")
        found = axe.Axe().run(self.page).response["violations"]
        return [f"{each['id']}: {each['help']} {[node['target'] for node in each['nodes']]}" for each in found]

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()


@pytest.fixture
def visit(chromium: Any) -> Callable[..., Visit]:
    return functools.partial(Visit, chromium)
