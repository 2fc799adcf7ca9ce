#!/usr/bin/env python3
"""Makes every table of figures on the pages from the measurements that saved/*.json keep.

    benchmarks.py            writes BENCHMARKS.md and the marked parts of the pages in BLOCKS
    benchmarks.py --check    writes nothing; exits with 1 where a page is not what the files give
    weft bench --device cuda --json > lines.jsonl
    benchmarks.py --save h200-operations --device "NVIDIA H200, 141 GB" --commit 5fe38ca \\
        --command "weft bench --device cuda --json" < lines.jsonl

A saved file holds a captured output, one JSON object a line, as its "rows". Beside them stand
"kind", "title", "device", "date", "commit", "command" and "note", a list of sentences. What nobody
knows is "unknown". A row may hold a device, date, commit or command of its own. The name of a
device up to its first comma is its section of the page. kinds.py has the kinds of outputs. Python
3's own library is all that is needed. Exit status 2: an argument, a file or a page is not right.
"""

import argparse
import datetime
import json
import os
import re
import sys
from pathlib import Path

from kinds import (KINDS, ORIGIN, SIGNS, SPEED, code, hundredths, lines_of, of, rates, speed, state,
                   thousands)

ROOT = Path(__file__).resolve().parents[2]
SAVED = ROOT / "tests" / "peers" / "saved"

HEAD = """# Benchmarks

`tests/peers/benchmarks.py` makes this page from the files in \
[tests/peers/saved](tests/peers/saved); nobody types a figure. A section is a device. A table is a \
saved file: one run of one command, or figures that belong together. Every row names its device, \
date, commit and command. "unknown" means that nobody kept it. "X or before" means that the figure \
was first written down in commit X. `./weft` builds the program `weft` and runs it.

"""


class Stop(Exception):
    """What the user has to mend before a page can be made."""


# --- Saved files ---------------------------------------------------------------------------------


def parse(text, where):
    def refuse(word):
        raise ValueError(f"{word} is no number")

    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError as error:
        raise Stop(f"{where}: not JSON: {error}") from None


def checked(saved, where):
    """The saved file, if a page can be made of it."""
    if not isinstance(saved, dict) or saved.get("kind") not in KINDS:
        raise Stop(f'{where}: "kind" must be one of {", ".join(KINDS)}')
    for key in ("title", *ORIGIN):
        if not isinstance(saved.get(key), str) or not saved[key]:
            raise Stop(f'{where}: "{key}" must be a text ("unknown" where nobody knows it)')
    rows, date, note = saved.get("rows"), saved["date"], saved.get("note", [])
    if date != "unknown" and not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
        raise Stop(f'{where}: date {date}: expected YYYY-MM-DD or "unknown"')
    if not isinstance(note, list) or not all(isinstance(sentence, str) for sentence in note):
        raise Stop(f'{where}: "note" must be a list of sentences')
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise Stop(f'{where}: "rows" must be a list of objects, one at least')
    try:
        part(saved)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise Stop(f"{where}: a row is not of kind {saved['kind']}: {error!r}") from None
    return saved


def load():
    files = sorted(SAVED.glob("*.json"))
    return {f.stem: checked(parse(f.read_text("utf-8"), f.name), f.name) for f in files}


def put(path, text):
    beside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    beside.write_text(text, "utf-8")
    os.replace(beside, path)


def written(saved):
    """The text of a saved file, a row a line."""
    head = {key: value for key, value in saved.items() if key != "rows"}
    head = json.dumps(head, indent=1, ensure_ascii=False)
    rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in saved["rows"])
    return f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n'


def save(options, lines):
    """Wraps a captured output. A line that is no JSON object is a message, and is shown."""
    path = SAVED / f"{options.save}.json"
    if not re.fullmatch(r"[a-z0-9_-]+", options.save):
        raise Stop(f"--save {options.save}: expected small letters, digits, - and _")
    if path.exists():
        raise Stop(f"{path} is there; remove it first, or take another name")
    if lacking := [key for key in ("device", "commit", "command") if not getattr(options, key)]:
        raise Stop(f"--save needs --{lacking[0]} too (\"unknown\" where nobody knows it)")
    rows = []
    for number, line in enumerate(lines, 1):
        if line.startswith("{"):
            rows.append(parse(line, f"line {number}"))
        elif line.strip():
            print(f"benchmarks: line {number} is left out: {line.strip()}", file=sys.stderr)
    machine = next((row for row in rows if row.get("name") == "machine"), None)
    rows = [row for row in rows if row.get("name") != "machine"]
    if not rows:
        raise Stop("the input holds no row; expected one JSON object a line")
    keys = set().union(*rows)
    kind = options.kind or next((kind for kind, signs in SIGNS.items() if signs <= keys), None)
    if kind is None:
        raise Stop("the input's rows are of no known kind; --kind names one")
    saved = {"kind": kind, "title": options.title or KINDS[kind][0]}
    saved |= {key: getattr(options, key) for key in ORIGIN} | {"note": options.note}
    saved |= {"machine": machine} if machine else {}
    put(path, written(checked(saved | {"rows": rows}, "the input")))


# --- Pages ---------------------------------------------------------------------------------------


def rows_of(saved):
    return [{key: saved[key] for key in ORIGIN} | row for row in saved["rows"]]


def part(saved):
    """A saved file's heading, note and table."""
    sentences = saved.get("note", []) + ([rates(saved["machine"])] if "machine" in saved else [])
    note = " ".join(sentences) + "\n\n" if sentences else ""
    table = lines_of(KINDS[saved["kind"]][1] | ORIGIN, rows_of(saved))
    return f"### {saved['title']}\n\n{note}{table}"


def section(saved):
    return saved["device"].split(",")[0]


def benchmarks(files):
    text = HEAD
    for device in sorted({section(saved) for saved in files.values()}):
        here = [saved for saved in files.values() if section(saved) == device]
        parts = map(part, sorted(here, key=lambda saved: list(KINDS).index(saved["kind"])))
        text += f"## {device}\n\n" + "\n".join(parts) + "\n"
    return text[:-1]


def speeds(files):
    lines = []
    for what, kind, device, keys in SPEED:
        here = [s for s in files.values() if s["kind"] == kind and section(s) == device]
        newest = sorted(here, key=lambda s: s["date"].replace("unknown", ""), reverse=True)
        found = [(rows, match) for rows in map(rows_of, newest)
                 if (match := [row for row in rows if keys.items() <= row.items()])]
        if not found:
            raise Stop(f"saved/ has no {kind} of {keys['name']} on {device}; SPEED asks for it")
        figure, times, row = speed(kind, *found[0])
        lines.append(row | {"what": what, "figure": figure, "times": times})
    return lines_of({"": of("what"), "Weft": of("figure"), "beside a peer": of("times"),
                     "device": ORIGIN["device"], "command": ORIGIN["command"]}, lines)


def reached(files):
    return lines_of({"recipe": code("name", ".toml"),
                     "parameters": of("parameters", form=thousands),
                     "bits a byte": of("bits_per_byte", form=hundredths),
                     "state of a generation": state}, files["cpu-recipes"]["rows"])


def recall(files):
    return lines_of({"recipe": code("name", ".toml"), "steps": of("steps"),
                     "answers right": of("accuracy", form=hundredths)}, files["cpu-recall"]["rows"])


def converted(files):
    return lines_of(KINDS["conversion"][1], files["cpu-conversion"]["rows"])


def transcript(files):
    return "```\n" + "".join(line + "\n" for line in files["cpu-quickstart"]["output"]) + "```\n"


BLOCKS = {"README.md": {"quickstart": transcript, "speed": speeds},
          "recipes/README.md": {"reached": reached, "recall": recall, "converted": converted}}


def pages(files):
    """Each page's path and the text that the files give it."""
    yield ROOT / "BENCHMARKS.md", benchmarks(files)
    for page, blocks in BLOCKS.items():
        text = (ROOT / page).read_text("utf-8")
        for name, make in blocks.items():
            start = f"<!-- {name}: made by tests/peers/benchmarks.py -->"
            end = f"<!-- end of {name} -->"
            if text.count(start) != 1 or text.count(end) != 1:
                raise Stop(f"{page}: expected one line {start} and one line {end}")
            before, after = text.split(start)[0], text.split(end)[1]
            text = f"{before}{start}\n\n{make(files)}\n{end}{after}"
        yield ROOT / page, text


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--check", action="store_true", help="compare the pages, write nothing")
    options.add_argument("--save", metavar="NAME", help="first keep the input as saved/NAME.json")
    options.add_argument("--kind", choices=KINDS, help="standard: what the input looks like")
    options.add_argument("--title", help="heading of the table (standard: the kind's)")
    options.add_argument("--date", default=str(datetime.date.today()), help="standard: today")
    options.add_argument("--note", action="append", default=[], help="a sentence; several times")
    for key in ("device", "commit", "command"):
        options.add_argument(f"--{key}", help="where the output is from")
    options = options.parse_args()
    try:
        if options.save:
            save(options, sys.stdin)
        other = [(path, text) for path, text in pages(load())
                 if not path.exists() or path.read_text("utf-8") != text]
        for path, text in other:
            if options.check:
                print(f"{path}: not what tests/peers/saved gives; run tests/peers/benchmarks.py")
            else:
                put(path, text)
    except (Stop, OSError, UnicodeError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(1 if options.check and other else 0)


if __name__ == "__main__":
    main()
