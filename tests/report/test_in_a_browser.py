"""The report in a real browser: nothing fails, nothing is fetched, the slider moves the picture."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from zarrmask.report import read_views, write_report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed to open the page in")
# Chromium reads from descriptor 3 and writes to 4.
PIPED = """
import os, sys
read, write = (os.dup(os.dup(os.dup(int(number)))) for number in sys.argv[1:3])
os.dup2(read, 3), os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Browser:
    """Headless Chromium, spoken to by its own protocol over a pipe: one page, and what it does.

    Attributes
    ----------
    events : list of (method, parameters)
    """

    def __init__(self):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        self._profile = TemporaryDirectory(ignore_cleanup_errors=True)
        profile = f"--user-data-dir={self._profile.name}"
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                PIPED,
                str(to_browser),
                str(from_browser),
                CHROMIUM,
                *OPTIONS,
                profile,
                "about:blank",
            ],
            pass_fds=(to_browser, from_browser),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.events, self._said, self._number, self._session = [], b"", 0, None
        (page,) = [
            target
            for target in self.call("Target.getTargets")["targetInfos"]
            if target["type"] == "page"
        ]
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Ask for something, and wait for the answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self):
        while b"\0" not in self._said:
            part = os.read(self._read, 1 << 20)
            assert part, "Chromium is gone"
            self._said += part
        message, _, self._said = self._said.partition(b"\0")
        message = json.loads(message)
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message

    def open(self, path: Path):
        """Open a file and wait until all of it is there."""
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            self._next()

    def run(self, script):
        """Value of an expression; of a promise what it comes to."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key, code):
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)

    def close(self):
        """End it."""
        self._session = None
        self.call("Browser.close")
        self._process.wait(timeout=30)
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def opened(browser, tmp_path, fake_run):
    """Open the report of a run; its parameters are those of `fake_run`."""

    def open_report(name="run", change=lambda record: None, **run):
        out = tmp_path / name
        record = fake_run(out, **{"shape": (48, 60, 80), **run})
        change(record)
        browser.open(write_report(out, record, read_views(out, record)))
        return browser

    return open_report


def complaints(browser):
    """What a page wrote to the console, or did that it must not."""
    bad = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    bad += ("Page.javascriptDialogOpening",)
    return [event for event in browser.events if event[0] in bad]


def asked_for(browser):
    """Addresses that a page asked for, but what it holds itself."""
    urls = [
        told["request"]["url"]
        for kind, told in browser.events
        if kind == "Network.requestWillBeSent"
    ]
    return [url for url in urls if not url.startswith("data:image/jpeg;base64,")]


DECODE = "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))"


def test_nothing_fails_nothing_is_fetched_and_every_picture_is_one(opened):
    browser = opened(missed=(8, 24))
    widths = browser.run(DECODE)
    assert len(widths) > 48
    assert all(width > 0 for width in widths)
    assert len(asked_for(browser)) == 1
    assert complaints(browser) == []


def test_the_slider_moves_the_picture(opened):
    browser = opened()
    frames = "[...document.querySelectorAll('#leaf figure')]"
    shown = f"{frames}.filter(f => f.offsetHeight).map(f => f.dataset.name)"
    source = "[...document.querySelectorAll('#leaf img')].find(i => i.offsetHeight).src"
    told = "[document.querySelector('#leaf output').value, document.activeElement.ariaValueText]"
    assert browser.run(shown) == ["z 124"]
    before = browser.run(source)
    browser.run("document.getElementById('leaf-z').focus()")
    browser.press("ArrowRight", 39)
    assert browser.run(shown) == ["z 125"]
    assert browser.run(source) != before
    browser.press("Home", 36)
    assert browser.run(shown) == [
        browser.run("document.querySelector('#leaf figure').dataset.name")
    ]
    browser.run("document.getElementById('leaf-back').click()")  # there is none before
    browser.run("document.getElementById('leaf-on').click()")
    assert browser.run(shown) == ["z 102"]
    assert browser.run(told) == ["z 102", "z 102"]
    assert complaints(browser) == []


def test_the_outline_can_be_taken_away(opened):
    browser = opened()
    lines = (
        "[...document.querySelectorAll('.plane svg')].filter(s => s.getClientRects().length).length"
    )
    assert browser.run(lines) > 8
    browser.run("document.getElementById('outline').click()")
    assert browser.run(lines) == 0


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_a_desk_by_day_and_by_night(opened, width, scheme):
    long = "name" * 50  # in which nothing can be broken

    def change(record):
        record |= {"command": long, "warnings": [long]}
        record["input"] |= {"path": f"/{long}", "name": long}
        record["checkpoint"] = {"path": f"/{long}"}
        record["keyframes"] = {"replaced": [{"z": 104, "why": long, "between": [100, 108]}]}

    browser = opened(long, change, missed=(8,))
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.call("Emulation.setEmulatedMedia", features=[feature])
    assert browser.run("document.documentElement.scrollWidth") <= width
    colours = browser.run(
        "['color', 'backgroundColor'].map(c => getComputedStyle(document.body)[c])"
    )
    text, page = (sum(map(int, colour[4:-1].split(","))) for colour in colours)
    assert (text < page) == (scheme == "light")
    assert abs(text - page) > 450


def test_without_scripts_all_but_the_slider_is_there(browser, opened):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        opened()
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    seen = "!!document.querySelector('{}').getClientRects().length"
    assert not browser.run(seen.format("#leaf-control"))
    for part in ("#leaf figure:not([hidden]) img", ".sections img", ".pictures img", ".chart"):
        assert browser.run(seen.format(part))


def test_all_that_can_be_used_has_a_name(opened):
    browser = opened(missed=(8,))
    things = "input, button, img, svg:not([aria-hidden]), output"
    nameless = f"""[...document.querySelectorAll('{things}')]
        .filter(e => !(e.alt || e.ariaLabel || e.labels?.length))
        .map(e => e.outerHTML.slice(0, 80))"""
    assert browser.run(nameless) == []


@pytest.mark.parametrize(
    "name",
    [
        "<img src=x onerror=document.title='hacked'>",
        "\"'><script>document.title='hacked'",
        "<!--<script>]]>\u202egnp.exe\n&lt;",
    ],
    ids=range(3),
)
def test_a_hostile_name_is_shown_and_nothing_else(opened, name):
    def change(record):
        record |= {"command": name, "warnings": [name], "zarrmask": f"{name}</script>"}
        record["input"] |= {"path": f"/data/{name}", name: f"</style>{name}"}
        record["checkpoint"] = {"path": f"/a/</title>{name}"}
        record["stages"] = [{"name": name, "seconds": 1, "items": 1, "unit": name}]
        record["keyframes"] = {"replaced": [{"z": 104, "why": name, "between": [100, name]}]}

    browser = opened(name.replace("/", "_"), change)
    assert browser.run("document.querySelector('h1').textContent").startswith(name)
    assert "hacked" not in browser.run("document.title").removeprefix(name)
    assert browser.run("document.scripts.length") == 1
    assert name in browser.run("document.getElementById('suspects').textContent")
    assert len(asked_for(browser)) == 1
    assert complaints(browser) == []


def test_only_the_pages_own_script_may_run(opened):
    browser = opened()
    browser.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=hacked=1>');"
        "document.body.append(Object.assign(document.createElement('script'), {text: 'hacked=1'}))"
    )
    assert browser.run("typeof hacked") == "undefined"
    assert complaints(browser)  # the policy says that it refused
