"""A headless Chromium, spoken to over a pipe by the DevTools protocol. Needs Python alone.

    with Browser(find_browser()) as browser:
        page = browser.open("page.html", width=400, dark=True)
        page.run("document.title")        the value of an expression of the page's script
        page.key("ArrowRight")            a key, as if pressed
        page.faults                       errors of its scripts, and requests that it made
"""
import base64
import json
import os
import pathlib
import select
import shutil
import subprocess
import tempfile

WAIT = 60  # seconds for which an answer is waited for


def find_browser():
    """The path of a Chromium, or an empty text."""
    for name in ("chromium", "chromium-browser"):
        if shutil.which(name):
            return shutil.which(name)
    return ""


class Browser:
    def __init__(self, program):
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self.out = os.pipe()
        self.inp, from_browser = os.pipe()
        # The protocol is on descriptors 3 and 4 of the browser; the shell puts them there.
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   "--no-first-run", "--disable-background-networking", "--disable-sync",
                   "--disable-dev-shm-usage", "--remote-debugging-pipe",
                   f"--user-data-dir={self.folder.name}"]
        self.child = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "browser", *command],
            pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True)
        os.close(to_browser)
        os.close(from_browser)
        os.set_blocking(self.inp, False)
        self.rest, self.count, self.pages = b"", 0, {}

    def __enter__(self):
        return self

    def __exit__(self, *what):
        try:
            self.call("Browser.close")
            self.child.wait(10)
        except (OSError, RuntimeError, subprocess.TimeoutExpired):
            self.child.kill()
            self.child.wait()
        os.close(self.out)
        os.close(self.inp)
        self.folder.cleanup()

    def call(self, method, session=None, **parameters):
        """One command of the protocol, and its result."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        number = self.count
        while True:
            answer = self.read()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.tell(answer)

    def read(self):
        while b"\0" not in self.rest:
            if not select.select([self.inp], [], [], WAIT)[0]:
                raise RuntimeError(f"the browser said nothing for {WAIT} seconds")
            piece = os.read(self.inp, 1 << 20)
            if not piece:
                raise RuntimeError("the browser ended")
            self.rest += piece
        one, self.rest = self.rest.split(b"\0", 1)
        return json.loads(one)

    def tell(self, event):
        page = self.pages.get(event.get("sessionId"))
        if page:
            page.hear(event["method"], event["params"])

    def open(self, file, width=800, height=1000, dark=False):
        """The page of a file, loaded, at a width in pixels."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(domain + ".enable")
        page.resize(width, height)
        page.dark(dark)
        page.load(file)
        return page


class Page:
    def __init__(self, browser, session, target):
        self.browser, self.session, self.target = browser, session, target
        self.faults, self.path, self.file, self.loaded = [], "", "", 0

    def call(self, method, **parameters):
        return self.browser.call(method, self.session, **parameters)

    def hear(self, method, p):
        if method == "Runtime.exceptionThrown":
            d = p["exceptionDetails"]
            self.faults.append("script: " + d.get("exception", d).get("description", d["text"]))
        elif method == "Runtime.consoleAPICalled" and p["type"] in ("error", "warning", "assert"):
            self.faults.append("console: " + json.dumps(p["args"]))
        elif method == "Log.entryAdded" and p["entry"]["level"] in ("error", "warning"):
            self.faults.append("log: " + p["entry"]["text"])
        elif method == "Network.requestWillBeSent" and p["request"]["url"] != self.file:
            self.faults.append("asks for " + p["request"]["url"][:200])
        elif method == "Page.loadEventFired":
            self.loaded += 1

    def load(self, file):
        self.path = str(file)
        self.file = pathlib.Path(file).resolve().as_uri()
        before = self.loaded
        self.call("Page.navigate", url=self.file)
        while self.loaded == before:
            self.browser.tell(self.browser.read())

    def resize(self, width, height=1000):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)

    def dark(self, on):
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if on else "light"}])

    def run(self, expression):
        got = self.call("Runtime.evaluate", expression=expression, returnByValue=True,
                        awaitPromise=True)
        if "exceptionDetails" in got:
            d = got["exceptionDetails"]
            raise RuntimeError(d.get("exception", d).get("description", d["text"]))
        return got["result"].get("value")

    def key(self, name, text=""):
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9,
                 "Enter": 13, "Escape": 27, " ": 32}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name.strip() or "Space",
                      text=text or {"Enter": "\r", " ": " "}.get(name, "") if kind == "keyDown"
                      else "", windowsVirtualKeyCode=codes[name])

    def milliseconds(self):
        """From the start of loading to its end, the scripts' work included."""
        return self.run("performance.getEntriesByType('navigation')[0].loadEventEnd")

    def work(self):
        """Seconds of a processor that the page's process took: what a busy machine cannot spoil."""
        self.call("Performance.enable")
        return next(m["value"] for m in self.call("Performance.getMetrics")["metrics"]
                    if m["name"] == "ProcessTime")

    def screenshot(self, file, whole=True):
        got = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        pathlib.Path(file).write_bytes(base64.b64decode(got["data"]))

    def on_paper(self):
        self.call("Emulation.setEmulatedMedia", media="print")

    def pdf(self):
        got = self.call("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.7)
        return base64.b64decode(got["data"])

    def close(self):
        self.browser.call("Target.closeTarget", targetId=self.target)
        self.browser.pages.pop(self.session, None)
