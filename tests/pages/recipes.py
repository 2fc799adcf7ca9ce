#!/usr/bin/env python3
"""Runs each verb on each small recipe, a few steps at a small size, and looks at the pages.

    tests/pages/recipes.py [--program build/cpu/weft] [--folder DIR] [NAME ...]

Prints a line for each recipe, and what a page does wrong in the browser. With --folder everything
stays there, with a screenshot of each page at 400, 800 and 1600 pixels. Exits with 1 if a verb or a
page failed. Takes a few minutes. Without Chromium the verbs alone are tried.
"""
import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from browser import Browser, find_browser
from check import faults_of

ROOT = pathlib.Path(__file__).resolve().parents[2]
WIDTHS = (400, 800, 1600)
TEXT = "In the beginning God created the heaven and the earth."
SMALL = ["data.source=text.txt", "data.held_out=0.05", "model.context=64", "train.batch=2",
         "train.steps=4", "train.eval_batches=1", "train.eval_every=2", "train.log_every=1",
         "schedule.warmup=1", "sample.tokens=0", "train.device=cpu"]
ROWS = SMALL + ["data.packed=false"]  # what replays and comparisons have in common
TASK = ["train.batch=2", "train.steps=4", "train.eval_batches=1", "train.eval_every=2",
        "train.log_every=1", "schedule.warmup=1", "train.device=cpu"]


class Tried:
    """The verbs of one folder, and what went wrong."""

    def __init__(self, program, folder):
        self.program, self.folder, self.faults = program, folder, []

    def weft(self, *words, status=0, says=""):
        ran = subprocess.run([self.program, *words], cwd=self.folder, capture_output=True,
                             text=True, errors="replace",
                             env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
        told = (ran.stdout + ran.stderr).strip()
        if ran.returncode != status or says not in told:
            self.faults.append(f"weft {' '.join(words)}: {ran.returncode}: {told[-400:]}")
        return ran.stdout


def settings(list_):
    return [word for one in list_ for word in ("--set", one)]


def write_tokens(folder):
    """A file of tokens for `weft logits`; False where h5py is missing."""
    try:
        import h5py
    except ImportError:
        return False
    with h5py.File(folder / "tokens.h5", "w") as f:
        f.create_dataset("tokens", data=[list(TEXT[:32].encode())], dtype="i4")
    return True


def try_pair(tried, one, other):
    """The comparison of two recipes of text. Returns its page."""
    out = f"compared/{one.stem}-{other.stem}"
    tried.weft("compare", str(one), str(other), *settings(ROWS), "--tokens", "384", "--out", out)
    return f"{out}/compare.html"


def try_recipe(tried, recipe):
    """All verbs that take a recipe or a run. Returns the pages that were made."""
    name = recipe.stem
    task = "task" in recipe.read_text().split("[data]")[-1].split("\n[")[0].split()
    sets = settings(TASK if task else SMALL)
    run = f"runs/{name}"
    tried.weft("inspect", str(recipe), *sets)
    tried.weft("inspect", str(recipe), *sets, "--json")
    tried.weft("train", str(recipe), *sets, "--set", f"train.out={run}", "--page")
    tried.weft("train", str(recipe), *sets, "--set", f"train.out={run}", "--set", "train.steps=5",
               "--resume", "--page")
    rows = settings(TASK if task else ROWS)
    tried.weft("replay", str(recipe), *rows, "--out", f"{name}.replay.h5")
    tried.weft("eval", run)
    tried.weft("plot", run, "--out", f"{name}.plot.html")
    for more in ("--svg", "--csv", "--json"):
        tried.weft("plot", run, more, "--out", f"{name}.plot{more}")
    pages = [f"{run}/plot.html", f"{name}.plot.html"]
    if task:
        tried.weft("generate", run, "--prompt", "a", status=2, says="task")
        tried.weft("show", run, "--text", "a", status=2, says="task")
        return pages
    tried.weft("generate", run, "--prompt", "In the", "--tokens", "8")
    tried.weft("show", run, "--text", TEXT, "--out", f"{name}.show.html")
    tried.weft("show", run, "--text", TEXT, "--layer", "0", "--head", "0", "--svg", "--out",
               f"{name}.show.svg")
    tried.weft("show", run, "--text", "In", "--json")
    tried.weft("eval", run, "--data", "text.txt", "--batches", "2")
    if (tried.folder / "tokens.h5").exists():
        tried.weft("logits", run, "tokens.h5", f"{name}.logits.h5")
    return pages + [f"{name}.show.html"]


def look(browser, folder, pages, kept):
    found = []
    for page in pages:
        if not (folder / page).exists():
            continue
        for width in WIDTHS:
            for dark in (False, True):
                opened = browser.open(folder / page, width, dark=dark)
                found += [f"{page} at {width}: {f}" for f in faults_of(opened)]
                if kept:
                    name = page.replace("/", "-").removesuffix(".html")
                    opened.screenshot(folder / "shots" / f"{name}-{width}{'d' * dark}.png")
                    if width == 800 and not dark:
                        (folder / "shots" / f"{name}.pdf").write_bytes(opened.pdf())
                opened.close()
    return found


def main():
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--program", default=str(ROOT / "build/cpu/weft"))
    words.add_argument("--folder")
    words.add_argument("names", nargs="*")
    given = words.parse_args()
    kept = given.folder is not None
    folder = pathlib.Path(given.folder or tempfile.mkdtemp(prefix="weft-pages-")).resolve()
    (folder / "shots").mkdir(parents=True, exist_ok=True)
    verse = "In the beginning God created the heaven and the earth. And the earth was without form"
    (folder / "text.txt").write_text("".join(f"{verse} {i * i % 97}.\n" for i in range(400)))
    recipes = [p for p in sorted((ROOT / "recipes").glob("*.toml"))
               if not given.names or p.stem in given.names]
    program = find_browser()
    browser = Browser(program) if program else None
    write_tokens(folder)
    bad, last = 0, None
    for recipe in recipes:
        began = time.time()
        tried = Tried(str(pathlib.Path(given.program).resolve()), folder)
        pages = try_recipe(tried, recipe)
        if f"{recipe.stem}.show.html" in pages:
            pages += [try_pair(tried, last, recipe)] if last else []
            last = recipe
        if browser:
            tried.faults += look(browser, folder, pages, kept)
        print(f"{recipe.stem:20} {len(pages)} pages, {time.time() - began:.0f} s, "
              f"{len(tried.faults)} faults", *tried.faults, sep="\n    ", flush=True)
        bad += bool(tried.faults)
    if browser:
        browser.__exit__()
    print(f"{len(recipes) - bad} of {len(recipes)} recipes without fault")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
