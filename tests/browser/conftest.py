"""Chromium for the browser tests: bare pages with a widget of this process in them, and a real JupyterLab.

Chromium is Debian's (`sudo apt install chromium`); where there is none, all tests here are skipped with one line that
says so. Screenshots are taken where CHAMELEON_SCREENSHOTS names a folder for them.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import queue
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import comm
import comm.base_comm
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need: pip install playwright")
from playwright.sync_api import (  # noqa: E402
    Browser,
    BrowserContext,
    Error,
    Locator,
    Page,
    ViewportSize,
    expect,
    sync_playwright,
)
from playwright.sync_api import TimeoutError as PageTimeout  # noqa: E402
from playwright.sync_api._generated import LocatorAssertions  # noqa: E402
from support import CHROMIUM  # noqa: E402

QUIET = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
    "--renderer-process-limit=1",
]
PATIENCE = 120_000  # milliseconds: for a machine that is busy with other things

LOOKED_AT = os.environ.get("CHAMELEON_SCREENSHOTS")
SIZE: ViewportSize = {"width": 1180, "height": 1000}  # of a page of JupyterLab

expect.set_options(timeout=PATIENCE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if CHROMIUM is None:
                item.add_marker(pytest.mark.skip(reason="no Chromium; install with: sudo apt install chromium"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    flags = [*QUIET, "--no-sandbox"] if os.geteuid() == 0 else QUIET
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


def _only_where_somebody_looks(take: Callable[..., bytes]) -> Callable[..., bytes]:
    """Screenshots that go to a file are not taken where nobody named a folder for them: a hundred take a minute."""

    @functools.wraps(take)
    def screenshot(self: Any, *, path: Path | None = None, **options: Any) -> bytes:
        return b"" if path and not LOOKED_AT else take(self, path=path, **options)

    return screenshot


for shown in (Page, Locator):
    shown.screenshot = _only_where_somebody_looks(shown.screenshot)


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(LOOKED_AT or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# Bare pages


class FakeComm(comm.base_comm.BaseComm):
    """A comm that keeps what a widget sends, for `Bridge` to carry into a page."""

    def __init__(self, **keys: Any) -> None:
        self.sent: queue.Queue[tuple[str, dict[str, Any], list[bytes]]] = queue.Queue()
        super().__init__(**keys)

    def publish_msg(self, msg_type: str, data=None, metadata=None, buffers=None, **keys: Any) -> None:
        self.sent.put((msg_type, data or {}, [bytes(buffer) for buffer in buffers or []]))


PAGE = """<!doctype html><html><head><meta charset=utf-8><style>
body { margin: 16px; font-family: sans-serif } body.dark { background: #111;
--jp-layout-color0:#111; --jp-layout-color1:#1c1c1e; --jp-ui-font-color1:rgba(255,255,255,.87);
--jp-ui-font-color2:rgba(255,255,255,.6); --jp-brand-color1:#42a5f5;
--jp-error-color1:#ef5350; --jp-warn-color1:#ffb74d;
--jp-success-color1:#66bb6a }</style></head><body><main id=el></main></body></html>"""

MOUNT = """async ({esm, css, state}) => {
  const style = document.createElement('style'); style.textContent = css; document.head.append(style);
  const listeners = new Map();
  const call = (event, ...args) => (listeners.get(event) ?? []).slice().forEach(listener => listener(...args));
  const model = {
    get: name => state[name],
    set: (name, value) => { state[name] = value; changed[name] = value; call('change:' + name); },
    save_changes: () => { toKernel('state', JSON.stringify(changed), []); changed = {}; },
    on: (event, listener) => listeners.set(event, [...(listeners.get(event) ?? []), listener]),
    off: (event, listener) => listeners.set(event, (listeners.get(event) ?? []).filter(each => each !== listener)),
    send: async (content, _, buffers = []) => toKernel('custom', JSON.stringify(content), buffers.map(
      buffer => btoa(Array.from(new Uint8Array(buffer), byte => String.fromCharCode(byte)).join('')))),
  };
  let changed = {};
  window.fromKernel = (kind, content, buffers) => {
    if (kind === 'custom') return call('msg:custom', content, buffers.map(
      text => new DataView(Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer)));
    for (const [name, value] of Object.entries(content)) { state[name] = value; call('change:' + name); }
  };
  const module = await import(URL.createObjectURL(new Blob([esm], {type: 'text/javascript'})));
  window.dispose = module.default.render({model, el: document.getElementById('el')});
}"""


@dataclass
class Bridge:
    """A widget of this process shown in a bare page: its messages go over while `until` or `expect` waits.

    `until` looks after each message, so that a test which counts on two that come together fails always, not only where
    a busy machine keeps them apart.
    """

    shown: ClassVar[list[Bridge]] = []  # whose messages `expect` carries

    page: Page
    widget: Any
    errors: list[str] = field(default_factory=list)
    alive: bool = True
    road: str = "fromKernel"  # the page's function that takes what is sent; a second widget there has its own

    def mount(self) -> None:
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.expose_function("toKernel", self._to_kernel)
        self.page.set_content(PAGE)
        state = {name: value for name, value in self.widget.get_state().items() if not name.startswith("_")}
        self.page.evaluate(MOUNT, {"esm": self.widget._esm, "css": getattr(self.widget, "_css", ""), "state": state})
        Bridge.shown.append(self)

    def _to_kernel(self, kind: str, content: str, buffers: list[str]) -> None:
        if not self.alive:
            return
        if kind == "state":
            self.widget.set_state(json.loads(content))
        else:
            self.widget._handle_custom_msg(json.loads(content), [memoryview(base64.b64decode(b)) for b in buffers])

    def deliver(self) -> None:
        """Carries all that waits."""
        while self._deliver_next():
            pass

    def _deliver_next(self) -> bool:
        """Carries one message; False where none waits."""
        try:
            kind, data, buffers = self.widget.comm.sent.get_nowait()
        except queue.Empty:
            return False
        if kind == "comm_msg" and self.alive:
            method = "custom" if data["method"] == "custom" else "state"
            content = data["content"] if method == "custom" else data["state"]
            packed = [base64.b64encode(buffer).decode() for buffer in buffers]
            # Playwright takes a document of 1,000 tokens apart value by value for half a second; as a string, as
            # JupyterLab's socket carries it, for none
            script = f"([kind, text, buffers]) => {self.road}(kind, JSON.parse(text), buffers)"
            self.page.evaluate(script, [method, json.dumps(content), packed])
        return True

    def until(self, condition: Callable[[], object], seconds: float = PATIENCE / 1000) -> None:
        """Carries messages both ways until `condition` holds; what it looks for may not be on the page yet."""
        deadline = time.monotonic() + seconds
        while True:
            carried = self._deliver_next()
            if self._holds(condition):
                break
            assert time.monotonic() < deadline, "the page did not come to the expected state"
            if not carried:
                self.page.wait_for_timeout(15)
        assert not self.errors, self.errors

    def settle(self, idle: Callable[[], object]) -> None:
        """Waits until the widget is `idle`, and the page has heard of all that it had to say."""
        line, sent = self.widget._line, self.widget.comm.sent
        self.until(lambda: idle() and line.settle() and sent.empty())

    def drawn(self) -> None:
        """Waits until the page has drawn what it has asked for: a canvas is drawn in the frame after its words.

        In that frame a canvas of another size may ask once more, for the next.
        """
        frame = "new Promise(requestAnimationFrame)"
        self.page.evaluate(f"async () => {{ await {frame}; await {frame}; }}")

    def _holds(self, condition: Callable[[], object]) -> bool:
        # A locator waits for its element for half a minute, and while it waits nobody brings the message that makes one
        self.page.set_default_timeout(1000)
        try:
            return bool(condition())
        except PageTimeout:
            return False
        finally:
            self.page.set_default_timeout(PATIENCE)


def _carrying(check: Callable[..., None]) -> Callable[..., None]:
    """A check that carries the messages of bare pages while it waits: else it would wait for what nobody brings."""

    @functools.wraps(check)
    def carry(self: LocatorAssertions, *arguments: Any, timeout: float = PATIENCE, **options: Any) -> None:
        if not Bridge.shown:
            return check(self, *arguments, timeout=timeout, **options)
        deadline, look = time.monotonic() + timeout / 1000, 100.0
        while True:
            for bridge in Bridge.shown:
                bridge.deliver()
            try:
                return check(self, *arguments, timeout=look, **options)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
            look = min(2 * look, 4000)  # a busy page answers one look in seconds

    return carry


for name, check in [*vars(LocatorAssertions).items()]:
    if name.startswith(("to_", "not_to_")):
        setattr(LocatorAssertions, name, _carrying(check))


@pytest.fixture(scope="session")
def bare_context(browser: Browser) -> Iterator[BrowserContext]:
    """Bare pages share a renderer, which lives while the first page does: one for each costs a second."""
    context = browser.new_context(viewport={"width": 900, "height": 900}, device_scale_factor=1)
    context.set_default_timeout(PATIENCE)
    context.new_page()
    yield context
    context.close()


@pytest.fixture
def bare_page(bare_context: BrowserContext) -> Iterator[Page]:
    yield bare_context.new_page()
    for page in bare_context.pages[1:]:  # those that a test opened, too
        page.close()


@pytest.fixture
def mounted(bare_page: Page, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], Any]], Bridge]]:
    """`mounted(lambda: ChatCell(...))` shows a widget in a bare page and waits until the two know each other."""
    monkeypatch.setattr(comm, "create_comm", FakeComm)

    def mount(make: Callable[[], Any]) -> Bridge:
        bridge = Bridge(bare_page, make())
        bridge.mount()
        bridge.until(lambda: bare_page.locator(".chm-lamp[data-state=connecting]").count() == 0)
        return bridge

    yield mount
    Bridge.shown.clear()


# JupyterLab


@dataclass
class Lab:
    """A running JupyterLab whose files lie in `folder`."""

    url: str
    token: str
    folder: Path


SERVER = "import sys; sys.modules['rfc3987_syntax'] = None; from jupyterlab.labapp import main; main()"
"""`-m jupyterlab` without the three seconds of the other conftest.py."""


def _free_port() -> int:
    """One below those that connections and kernels get: these are given away while the server starts."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", 20_000 + secrets.randbelow(12_000)))
            return probe.getsockname()[1]


OTHERS = (
    *("celltags", "console", "csvviewer", "debugger", "extensionmanager", "fileeditor", "help", "htmlviewer", "hub"),
    *("imageviewer", "inspector", "javascript", "json", "launcher", "logconsole", "lsp", "markdownviewer", "mermaid"),
    *("metadataform", "pdf", "pluginmanager", "running", "settingeditor", "terminal", "toc", "tooltip"),
    "vega5",
)
"""Of JupyterLab's extensions those that have nothing to do with a notebook's cells: a page opens sooner without."""


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, quick_kernels: Path) -> Iterator[Lab]:
    """One JupyterLab server for all tests, with nothing of the user's configuration."""
    home, folder = tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("notebooks")
    settings = {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "notebook-extension/tracker": {"windowingMode": "none"},
    }
    for plugin, values in settings.items():
        path = home / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    off = home / "config" / "labconfig" / "page_config.json"
    off.parent.mkdir(parents=True)
    off.write_text(json.dumps({"disabledExtensions": {f"@jupyterlab/{name}-extension": True for name in OTHERS}}))
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    root = Path(__file__).parents[2]
    (folder / "data").symlink_to(root / "data")  # where notebooks look for it
    env = {**os.environ, **{name: str(home / place) for name, place in places.items()}, "JUPYTER_PLATFORM_DIRS": "1"}
    env["JUPYTER_CONFIG_PATH"] = str(root / ".ci" / "jupyter")  # what `make lab` starts with, too
    env["JUPYTER_PATH"] = str(quick_kernels)
    env["CHAMELEON_QUICK"] = os.environ.get("CHAMELEON_QUICK", "1")  # cuts long trainings of the notebooks short
    env["PYTHONPATH"] = os.pathsep.join(
        [str(root), str(root / "widgets"), str(Path(__file__).parent), env.get("PYTHONPATH", "")]
    )
    port, token = _free_port(), secrets.token_hex(16)
    command = [
        *(sys.executable, "-c", SERVER, "--no-browser", "--ip=127.0.0.1", f"--port={port}"),
        *("--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"),
        *("--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly", "--allow-root"),
    ]
    log = (home / "server.log").open("w")
    server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                with urllib.request.urlopen(f"{url}/api/status?token={token}", timeout=60):
                    break
            except OSError as error:
                assert server.poll() is None and time.monotonic() < deadline, (home / "server.log").read_text()[-3000:]
                del error
                time.sleep(0.3)
        yield Lab(url, token, folder)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(15)
        log.close()


ERRORS = """() => {
  const cells = jupyterapp.shell.currentWidget.context.model.cells;
  const errors = [];
  for (let at = 0; at < cells.length; at += 1) {
    const outputs = cells.get(at).outputs;
    for (let index = 0; index < (outputs?.length ?? 0); index += 1) {
      const output = outputs.get(index).toJSON();
      if (output.output_type === 'error' || output.name === 'stderr')
        errors.push([at, output.evalue ?? output.text]);
    }
  }
  return errors;
}"""
"""(cell, what it says), of each error and warning."""


CLOSE = "() => { for (const widget of [...jupyterapp.shell.widgets('main')]) widget.dispose(); }"
"""Closes all documents of a page, changed ones too."""


@dataclass
class Notebook:
    """A notebook open in JupyterLab."""

    page: Page
    path: Path
    address: str  # its path below JupyterLab's root
    errors: list[str]
    has_ended: bool = False  # its kernel, once at least

    def note(self, error: Error) -> None:
        """Takes down an error of the page's scripts.

        What a kernel says while it ends may reach the page with parts of two messages in one, which JupyterLab drops.
        """
        if not (self.has_ended and "Kernel message validation error" in str(error)):
            self.errors.append(f"{error} {error.stack}")

    def run_all(self, wait: bool = True) -> None:
        """Runs all cells; `wait`: until the last of them is done."""
        run = "jupyterapp.commands.execute('notebook:run-all-cells')"
        self.page.evaluate(f"() => {run}" if wait else f"() => {{ {run}; }}")

    def assert_all_ran(self) -> None:
        """Asserts that all cells have run without an error or a warning, and that each widget has its kernel."""
        assert self.page.evaluate(ERRORS) == []
        unconnected = ".chm-lamp[data-state=connecting], .chm-lamp[data-state=disconnected]"
        expect(self.page.locator(unconnected)).to_have_count(0)
        expect(self.page.locator(".jp-InputPrompt", has_text="[ ]:")).to_have_count(0)

    def save(self) -> None:
        self.page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")

    def interrupt(self) -> None:
        """Interrupts the cell that runs."""
        self.page.evaluate("() => jupyterapp.commands.execute('notebook:interrupt-kernel')")

    def restart(self) -> None:
        """Restarts the kernel."""
        self.has_ended = True
        self.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")

    def shutdown(self) -> None:
        """Ends the kernel."""
        self.has_ended = True
        self.page.evaluate("() => jupyterapp.shell.currentWidget?.sessionContext?.shutdown()")

    def open(self) -> None:
        """Opens it in a page of JupyterLab that is there."""
        self.page.evaluate("(path) => jupyterapp.commands.execute('docmanager:open', {path})", self.address)
        self.ready()

    def reopen(self) -> Page:
        """Closes it and opens it again, with a kernel that knows nothing of the last one, which has been ended."""
        self.page.evaluate(CLOSE)
        self.open()
        return self.page

    def leave(self) -> bool:
        """Closes it, and puts its page back into the state of a new one; whether that came about."""
        self.page.evaluate(CLOSE)
        self.page.set_viewport_size(SIZE)
        self.page.mouse.move(0, 0)
        return not self.errors and self.page.locator(".jp-Dialog, .jp-Document").count() == 0

    def reload(self) -> None:
        """Loads the page again; the kernel goes on."""
        self.page.reload()
        self.ready()

    def ready(self) -> None:
        """Waits until the notebook is open and its kernel idle.

        A second window of one browser gets a workspace of its own from JupyterLab, which loads the page once more.
        """
        for _ in range(3):
            try:
                return self._ready()
            except Error as error:
                if "context was destroyed" not in str(error):
                    raise
        return self._ready()

    def _ready(self) -> None:
        self.page.wait_for_function("() => window.jupyterapp !== undefined")
        self.page.evaluate("async () => { await jupyterapp.restored; }")
        document = "jupyterapp.shell.currentWidget?.context"
        shown = f"(name) => {document}?.isReady && {document}.path.endsWith(name)"
        self.page.wait_for_function(shown, arg=self.path.name)
        kernel = "jupyterapp.shell.currentWidget.sessionContext.session?.kernel"
        # The first kernel waits until those libraries are imported that all begin with
        self.page.wait_for_function(f"() => {kernel}?.status === 'idle'", timeout=2 * PATIENCE)

    def theme(self, name: str) -> None:
        """Changes the theme: "JupyterLab Dark" or "JupyterLab Light"."""
        self.page.evaluate("(theme) => jupyterapp.commands.execute('apputils:change-theme', {theme})", name)
        light = str(name.endswith("Light")).lower()
        self.page.wait_for_function("(light) => document.body.dataset.jpThemeLight === light", arg=light)
        self.page.wait_for_timeout(500)  # JupyterLab draws anew, and stumbles where it is disturbed

    def kernel(self, code: str) -> Any:
        """Runs code silently in the kernel's main shell; the value of its last expression, `_`, by JSON."""
        lines = code.strip().splitlines()
        ask = """async ([code, value]) => {
          const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
          for (let attempt = 0; attempt < 5; attempt += 1) {
            const future = kernel.requestExecute({code, silent: true, store_history: false,
              user_expressions: {value: `__import__('json').dumps(${value})`}});
            const late = new Promise((_, fail) => setTimeout(() => fail(new Error('the kernel is busy')), 120_000));
            const content = (await Promise.race([future.done, late])).content;
            if (content.status === 'aborted') continue;
            if (content.status !== 'ok') throw new Error(content.ename + ': ' + content.evalue);
            return content.user_expressions.value.status === 'ok'
              ? JSON.parse(eval(content.user_expressions.value.data['text/plain']))
              : null;
          }
        }"""
        return self.page.evaluate(ask, ["\n".join(lines[:-1]), lines[-1]])

    def expect(self, code: str, value: Any, seconds: float = PATIENCE / 1000) -> None:
        """Waits until the kernel answers `code` with `value`: what is changed in a page comes in several messages."""
        deadline = time.monotonic() + seconds
        while (answer := self.kernel(code)) != value:
            assert time.monotonic() < deadline, f"{code!r} stays {answer!r} instead of {value!r}"
            self.page.wait_for_timeout(100)


def _notebook_of(sources: list[str]) -> dict[str, Any]:
    cells = [
        {"cell_type": "code", "id": f"cell-{n}", "metadata": {}, "source": text, "outputs": [], "execution_count": None}
        for n, text in enumerate(sources)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture(scope="session")
def lab_context(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """The browser of one person, who has been to JupyterLab before: its scripts are neither fetched nor compiled anew
    for each page, which a context without a profile on the disk does."""
    flags = [*QUIET, "--no-sandbox"] if os.geteuid() == 0 else QUIET
    profile = tmp_path_factory.mktemp("profile")
    launch = browser.browser_type.launch_persistent_context
    context = launch(profile, executable_path=CHROMIUM, args=flags, viewport=SIZE)
    context.set_default_timeout(PATIENCE)
    yield context
    context.close()


@pytest.fixture(scope="session")
def idle_pages() -> list[Page]:
    """Pages of JupyterLab in which nothing is open: to start one takes five times what it takes to open a notebook."""
    return []


@pytest.fixture
def open_notebook(lab: Lab, lab_context: BrowserContext, idle_pages: list[Page]) -> Iterator[Callable[..., Notebook]]:
    """`open_notebook(path)` opens a copy of a notebook in JupyterLab, in a `folder` of its root where one is named.

    A list of cells' sources makes a new one. Pages serve one test after the other: what a test's scripts observe lies
    in the notebook, and ends with it.
    """
    notebooks: list[Notebook] = []

    def open_(source: Path | list[str], folder: str = "") -> Notebook:
        name = source.name if isinstance(source, Path) else f"{secrets.token_hex(4)}.ipynb"
        target = lab.folder / folder / name
        target.parent.mkdir(exist_ok=True)
        if isinstance(source, list):
            target.write_text(json.dumps(_notebook_of(source)))
        elif source != target:
            shutil.copy(source, target)
        page = idle_pages.pop() if (is_used := bool(idle_pages)) else lab_context.new_page()
        # Words of a kernel that has ended in this page may still come
        notebook = Notebook(page, target, str(target.relative_to(lab.folder)), [], has_ended=is_used)
        notebooks.append(notebook)
        page.on("pageerror", notebook.note)
        if is_used:
            notebook.open()
        else:
            page.goto(f"{lab.url}/doc/tree/{notebook.address}?token={lab.token}")
            notebook.ready()
        return notebook

    yield open_
    for notebook in notebooks:
        notebook.shutdown()
        notebook.page.remove_listener("pageerror", notebook.note)
        if notebook.leave():
            idle_pages.append(notebook.page)
    for page in lab_context.pages:  # those that a test opened, too
        if page not in idle_pages:
            page.close()
    errors = [error for notebook in notebooks for error in notebook.errors]
    assert not errors, errors
