#!/usr/bin/env python3
"""Makes a page of each kind and looks at it in a headless Chromium.

    tests/pages/check.py [--program build/cpu/weft] [--timed] [--lessons all]

Prints each fault, and how much was checked. The exit status is 1 where there was a fault, and 77
where there is no Chromium. --timed also holds each page to a second of a processor's work. Needs
Python alone.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from browser import Browser, find_browser

ROOT = pathlib.Path(__file__).resolve().parents[2]
WIDTHS = (400, 800, 1600)
MOST_BYTES = 3_000_000
TEXT = "In the beginning <b>"
RECIPE = """[model]
width = 16
layers = 4
pattern = ["attention", "gated_delta", "mamba", "router"]
context = 32
mlp = "none"
[attention]
heads = 2
[gated_delta]
heads = 2
[router]
heads = 2
block = 8
window_blocks = 1
top_k = 1
[data]
source = "text.txt"
[train]
device = "cpu"
steps = 12
batch = 2
eval_every = 4
eval_batches = 1
log_every = 1
out = "run"
[schedule]
final = 0.9
[sample]
tokens = 0
"""

# What a page must hold at any width and colour. Each entry of the list is a fault.
LOOK = r"""(() => {
  const faults = [], name = e => e.textContent.trim().slice(0, 60);
  const wide = document.documentElement.scrollWidth - innerWidth;
  if (wide > 0) faults.push(`is ${wide} pixels wider than the window`);
  for (const chart of document.querySelectorAll('svg')) {
    const box = chart.getBoundingClientRect();
    if (!box.width) continue;
    for (const text of chart.querySelectorAll('text')) {
      const t = text.getBoundingClientRect();
      if (t.left < box.left - 2 || t.right > box.right + 2 || t.top < box.top - 2 ||
          t.bottom > box.bottom + 2) faults.push(`“${name(text)}” is cut off`);
    }
    if (chart.matches('.chart') && !chart.querySelector('[data-name]'))
      faults.push(`the chart “${chart.getAttribute('aria-label')}” is empty`);
    if (!chart.closest('svg svg, button') && !chart.getAttribute('aria-label'))
      faults.push('a picture has no name');
  }
  for (const e of document.querySelectorAll('td, th, p, li, output, figcaption')) {
    if (/\b(NaN|undefined|nan|inf)\b/.test(e.textContent)) faults.push(`says ${name(e)}`);
  }
  const colour = e => getComputedStyle(document.body)[e].match(/[\d.]+/g).map(Number);
  const light = c => c.slice(0, 3).map(v => (v /= 255) <= .03928 ? v / 12.92
    : ((v + .055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
  const [a, b] = [light(colour('color')), light(colour('backgroundColor'))].sort((x, y) => y - x);
  if ((a + .05) / (b + .05) < 7) faults.push('text and paper are too alike');
  return faults;
})()"""


class Checks:
    def __init__(self):
        self.count, self.faults = 0, []

    def that(self, good, what):
        self.count += 1
        if not good:
            self.faults.append(what)

    def near(self, got, want, within, what):
        self.that(abs(got - want) <= within, f"{what}: {got}, expected {want} within {within}")


def faults_of(page, timed=True):
    """What is wrong with a page as it stands, whatever it shows."""
    faults = page.faults + page.run(LOOK)
    size = os.path.getsize(page.path)
    if size > MOST_BYTES:
        faults.append(f"has {size} bytes")
    if timed and page.work() > 1:
        faults.append(f"took {page.work():.2f} s of a processor to open")
    return faults


def look_at(browser, path, checks, timed):
    """The page in each width and colour, and on paper."""
    papers, loads, work = set(), [], []
    for width in WIDTHS:
        for dark in (False, True):
            page = browser.open(path, width, dark=dark)
            for fault in faults_of(page, timed):
                checks.that(False, f"{path.name} at {width}{', dark' * dark}: {fault}")
            checks.count += 1
            papers.add(page.run("getComputedStyle(document.body).backgroundColor"))
            loads.append(page.milliseconds())
            work.append(page.work())
            page.close()
    if timed:
        print(f"{path.name}: {os.path.getsize(path) / 1024:.0f} KiB, loads in {min(loads):.0f} to "
              f"{max(loads):.0f} ms, {max(work):.2f} s of a processor at most")
    checks.that(len(papers) == 2, f"{path.name}: light and dark are {papers}")
    page = browser.open(path, 800)
    page.on_paper()
    for fault in page.run(LOOK):
        checks.that(False, f"{path.name} on paper: {fault}")
    checks.that(page.pdf().startswith(b"%PDF"), f"{path.name}: is not printed")
    page.close()


def number(text):
    return float(text.replace("−", "-").replace(",", ""))


def check_lesson(browser, path, checks):
    page = browser.open(path)
    said = page.run("document.getElementById('check').textContent")
    bad = page.run("document.getElementById('check').classList.contains('bad')")
    checks.that(not bad and "computed" in said, f"{path.name}: {said}")
    # The last step of each form, reached by the keyboard, is the program's number.
    forms = page.run("lesson.forms.length")
    for form in range(forms):
        page.run(f"document.querySelectorAll('.form .on')[{form}].focus()")
        steps = page.run(f"Number(document.querySelectorAll('.form .step')[{form}].max)")
        for _ in range(3):
            page.key("Enter")
        at = page.run(f"Number(document.querySelectorAll('.form .step')[{form}].value)")
        checks.that(at == min(3, steps), f"{path.name}: Enter went to step {at} of form {form}")
        shown = page.run(f"""(() => {{
          const box = document.querySelectorAll('.form')[{form}], step = box.querySelector('.step');
          const want = lesson.checks[0].want[{form}], found = [];
          for (let i = 0; i <= +step.max; ++i) {{
            step.value = i;
            step.dispatchEvent(new Event('input'));
            const label = box.querySelector('.shown p span');
            const at = label.querySelector('sub')?.textContent ?? '';
            const name = label.firstChild.textContent;
            const value = want[name]?.[at.replaceAll(', ', ',')];
            if (value === undefined) continue;
            const cells = [...box.querySelectorAll('.shown td')].map(e => e.textContent);
            found.push([name + "_" + at, cells, Array.isArray(value) ? value.flat(9) : [value]]);
          }}
          return found;
        }})()""")
        checks.that(len(shown) > 0, f"{path.name}: form {form} steps to no number of the program")
        last = {name: (cells, values) for name, cells, values in shown}  # a sum grows by steps
        for name, (cells, values) in last.items():
            for cell, value in zip(cells, values):
                if cell not in ("∞", "−∞"):
                    checks.near(number(cell), value, 1e-3 * abs(value) + 1e-12,
                                f"{path.name}, form {form}, {name}")
    # A slider moves the numbers, and the button puts it back.
    moved = page.run("""(() => {
      const s = document.querySelector('#sliders [data-knob]');
      if (!s) return null;
      const step = document.querySelector('.form .step');  // the number of steps may change
      step.value = 0;
      step.dispatchEvent(new Event('input'));
      const before = document.querySelector('.shown').textContent, was = s.value;
      s.value = s.value === s.max ? s.min : s.max;
      s.dispatchEvent(new Event('input'));
      const at = s.closest('label').querySelector('.at').textContent;
      document.getElementById('reset').click();
      return [at, s.max, s.min, s.value === was,
              document.querySelector('.shown').textContent === before];
    })()""")
    if moved:
        checks.that(number(moved[0]) in (float(moved[1]), float(moved[2])),
                    f"{path.name}: the slider says {moved[0]}")
        checks.that(moved[3] and moved[4], f"{path.name}: the button does not put sliders back")
    checks.that(not page.faults, f"{path.name}: {page.faults}")
    page.close()


def check_show(browser, path, said, checks):
    page = browser.open(path)
    matrices = said["matrices"]
    checks.that(page.run("document.querySelectorAll('[data-matrix]').length") == len(matrices),
                f"{path.name}: has not {len(matrices)} matrices")
    page.run("document.querySelector('[data-matrix]').focus()")
    page.key("Enter")
    checks.that(page.run("box.open"), "Enter opens no matrix")
    T = len(said["texts"][0])
    for index, m in enumerate(matrices):
        largest = max(abs(x) for row in m["rows"] for x in row)
        checks.that(page.run("box.querySelector('h2').textContent") == m["label"],
                    f"matrix {index} has another name")
        t, s = T - 1, T - 1
        for key, dt, ds in (("ArrowLeft", 0, -1), ("ArrowLeft", 0, -1), ("ArrowUp", -1, 0)):
            page.key(key)
            t, s = t + dt, s + ds
        told = page.run("box.querySelector('output').textContent")
        start = f"token {t + 1} “{said['texts'][0][t]}” takes "
        checks.that(told.startswith(start) and told.endswith(f"token {s + 1} “"
                    f"{said['texts'][0][s]}”"), f"{m['label']}: says {told}")
        checks.near(number(told[len(start):].split(" of ")[0]), m["rows"][t][s],
                    largest / 30000 + 1e-4 * abs(m["rows"][t][s]), m["label"])
        page.run("box.querySelector('.after').click()")
    page.key("Escape")
    checks.that(not page.run("box.open"), "Escape closes no matrix")
    legends = page.run("document.querySelectorAll('.legend .key').length")
    checks.that(legends >= 4, "the choices of a router have no legend")
    page.close()


def check_plot(browser, path, said, checks):
    page = browser.open(path)
    series = said["runs"][0]["metrics"]["lr"]  # one curve alone, so the arrows walk its points
    page.run("document.querySelector('svg.chart[aria-label^=\"learning rate\"]').focus()")
    span = page.run("numbers(document.activeElement.dataset.y)")
    for step, value in zip(series["step"][:3], series["value"]):
        page.key("ArrowRight")
        told = page.run("document.activeElement.parentNode.querySelector('output').textContent")
        name, rest = told.split(": ")
        got, at = rest.split(" at ")
        checks.that(name.endswith(", lr") and at == f"{step:g} steps", f"plot says {told}")
        checks.near(number(got), value, (span[1] - span[0]) / 1e5 + 1e-4 * value, f"lr of step {step:g}")
    shown = "getComputedStyle(document.querySelector('.against-%s')).display !== 'none'"
    page.run("document.getElementById('against-steps').focus()")
    page.key("ArrowRight")
    checks.that(page.run(shown % "tokens") and not page.run(shown % "steps"),
                "an arrow key does not switch to tokens")
    row = page.run("[...document.querySelectorAll('tr:nth-child(2) td')].map(e => e.textContent)")
    loss = said["runs"][0]["metrics"]["loss"]["value"][-1]
    checks.near(number(row[3]), loss, 1e-4, "loss in the table")
    page.close()


def check_compare(browser, path, said, checks):
    page = browser.open(path)
    text = page.run("document.body.innerText")
    for recipe in said["recipes"]:
        checks.that(recipe["name"] in text, f"{path.name}: no {recipe['name']}")
        loss = recipe["eval_loss"]["mean"]
        checks.that(f"{loss:.4f}" in text, f"{path.name}: no held-out loss {loss:.4f}")
    page.close()


def check_table(browser, path, said, checks):
    page = browser.open(path)
    text = page.run("document.body.innerText")
    for row in said["recipes"]:
        for cell in row["cells"]:
            checks.that(f"{cell['mean']:.3f}" in text, f"{path.name}: no {cell} of {row['name']}")
    page.close()


def main():
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--program", default=str(ROOT / "build/cpu/weft"))
    words.add_argument("--timed", action="store_true")
    words.add_argument("--lessons", default="attention,mamba,parallel")
    given = words.parse_args()
    found = find_browser()
    if not found:
        print("skipped: there is no Chromium")
        return 77
    checks = Checks()
    with tempfile.TemporaryDirectory() as name, Browser(found) as browser:
        folder = pathlib.Path(name)

        def weft(*arguments):
            return subprocess.run([str(pathlib.Path(given.program).resolve()), *arguments],
                                  cwd=folder, check=True, stdout=subprocess.PIPE, text=True,
                                  env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}).stdout

        (folder / "text.txt").write_text("".join(f"line {i * i % 97}\n" for i in range(400)))
        (folder / "recipe.toml").write_text(RECIPE)
        (folder / "other.toml").write_text(
            RECIPE.replace(RECIPE.split("\n")[3], 'pattern = ["attention"]')
            .replace("[gated_delta]\nheads = 2\n", "").split("[router]")[0] + "[data]"
            + RECIPE.split("[data]")[1])
        weft("train", "recipe.toml", "--page")
        weft("plot", "run")
        weft("show", "run", "--text", TEXT)
        for name, steps in (("short", 2), ("long", 4)):
            (folder / f"{name}.toml").write_text(f"[train]\nsteps = {steps}\n")
        weft("compare", "recipe.toml", "other.toml", "--seeds", "2", "--with", "short.toml",
             "long.toml", "--out", "compared")
        weft("lesson")
        lessons = given.lessons.split(",")
        if lessons == ["all"]:
            lessons = [p.split()[0] for p in weft("lesson").splitlines()[:-1]]
        for lesson in lessons:
            weft("lesson", lesson, "--budget", "0")
            check_lesson(browser, folder / f"lesson-{lesson}.html", checks)
        check_show(browser, folder / "show.html",
                   json.loads(weft("show", "run", "--text", TEXT, "--json")), checks)
        plotted = json.loads(weft("plot", "run", "--json"))
        check_plot(browser, folder / "plot.html", plotted, checks)
        check_plot(browser, folder / "run" / "plot.html", plotted, checks)
        compared = folder / "compared"
        check_compare(browser, compared / "long/compare.html",
                      json.loads((compared / "long/compare.json").read_text()), checks)
        check_table(browser, compared / "table.html",
                    json.loads((compared / "table.json").read_text()), checks)
        pages = sorted(folder.glob("*.html")) + [compared / "long/compare.html",
                                                 compared / "table.html"]
        for path in pages:
            look_at(browser, path, checks, given.timed)
    print(*checks.faults, sep="\n")
    print(f"{checks.count} checks of {len(pages)} pages, {len(checks.faults)} faults")
    return len(checks.faults) > 0


if __name__ == "__main__":
    sys.exit(main())
