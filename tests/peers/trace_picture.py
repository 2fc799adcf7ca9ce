#!/usr/bin/env python3
"""Draws one step of all ranks as a picture, from what `weft train --gpus N --profile FILE` wrote.

    trace_picture.py trace.json train/parallel.svg

The upper part is the whole step, the lower part its end: from the first transfer between the ranks
to the last. Python 3's own library is all that is needed.
"""

import json
import sys
from pathlib import Path

WIDTH, LEFT, ROW = 880, 70, 26
KINDS = [("compute", "forward and backward"), ("transfer", "transfer"), ("add", "sum of slices"),
         ("update", "norm and update")]
STYLE = """<style>
:root{color-scheme:light dark;--paper:#fff;--ink:#1c1f23;--soft:#5b636d;--line:#d5dae0;
--compute:#a9b8c9;--transfer:#c2410c;--add:#187a3c;--update:#8e44ad}
@media screen and (prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e6e9ed;--soft:#a3acb7;
--line:#363d46;--compute:#53657a;--transfer:#ff9a6b;--add:#5fd38a;--update:#d5a0f0}}
text{font:12px system-ui,sans-serif;fill:var(--ink)}.soft{fill:var(--soft)}
.axis{stroke:var(--line)}.paper{fill:var(--paper)}
.compute{fill:var(--compute)}.transfer{fill:var(--transfer)}.add{fill:var(--add)}
.update{fill:var(--update)}
</style>"""


def steps_of(bars):
    """The steps of a rank: [begin of the work, first transfer, end], by its transfers."""
    ends, transfers = [], [b for b in bars if b["kind"] == "transfer"]
    for before, after in zip(transfers, transfers[1:] + [None]):
        if after is None or after["ts"] - before["ts"] > 3000:  # microseconds without a transfer
            ends.append(before["ts"] + before["dur"])
    steps = []
    for begin, end in zip(ends, ends[1:]):
        first = min(b["ts"] for b in transfers if begin < b["ts"] < end)
        steps.append((begin, first, end))
    return steps


def read(path):
    """The GPU's bars by rank, each with its kind."""
    ranks = {}
    for e in json.loads(Path(path).read_text())["traceEvents"]:
        if e["ph"] == "X" and e["tid"] == 1:
            e["kind"] = "transfer" if "nccl" in e["name"].lower() else "compute"
            ranks.setdefault(e["pid"], []).append(e)
    for bars in ranks.values():
        bars.sort(key=lambda b: b["ts"])
        for _, first, end in steps_of(bars):
            inside = [b for b in bars if first <= b["ts"] < end]
            # The last three transfers are the norm's sums and losses, flags, and weights.
            left = sum(b["kind"] == "transfer" for b in inside) - 3
            for b in inside:
                left -= b["kind"] == "transfer"
                if b["kind"] != "transfer":
                    b["kind"] = "add" if left >= 0 else "update"
    return ranks


def row(bars, begin, end, y, label):
    scale = (WIDTH - LEFT - 10) / (end - begin)
    out = [f'<text x="8" y="{y + 17}">{label}</text>']
    merged = []
    for b in bars:  # neighbours of a kind are one bar
        if b["ts"] + b["dur"] <= begin or b["ts"] >= end:
            continue
        if merged and merged[-1][0] == b["kind"] and b["ts"] - merged[-1][2] < 0.4 / scale:
            merged[-1][2] = b["ts"] + b["dur"]
        else:
            merged.append([b["kind"], b["ts"], b["ts"] + b["dur"]])
    for kind, first, last in merged:
        x = LEFT + (max(first, begin) - begin) * scale
        w = max(0.3, (min(last, end) - max(first, begin)) * scale)
        out.append(f'<rect x="{x:.1f}" y="{y}" width="{w:.1f}" height="{ROW - 4}" '
                   f'class="{kind}"/>')
    return out


def axis(begin, end, y):
    scale, span = (WIDTH - LEFT - 10) / (end - begin), (end - begin) / 1000
    tick = next(t for t in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if span / t <= 8)
    out = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - 10}" y1="{y}" y2="{y}"/>']
    for i in range(int(span / tick) + 1):
        x = LEFT + i * tick * 1000 * scale
        out.append(f'<text class="soft" x="{x:.1f}" y="{y + 15}" text-anchor="middle">'
                   f'{i * tick:g}{" ms" if i == 0 else ""}</text>')
    return out


def picture(ranks):
    begin, first, end = steps_of(ranks[min(ranks)])[-2]
    out, y = [], 24
    for title, at in (("one step", begin), ("its end: slices of gradients, update, weights",
                                            first - 50)):
        out.append(f'<text x="{LEFT}" y="{y - 8}">{title}</text>')
        for rank, bars in sorted(ranks.items()):
            out += row(bars, at, end, y, f"rank {rank}")
            y += ROW
        out += axis(at, end, y + 2)
        y += 52
    x = LEFT
    for kind, name in KINDS:
        out.append(f'<rect x="{x}" y="{y - 24}" width="12" height="12" class="{kind}"/>'
                   f'<text x="{x + 17}" y="{y - 14}">{name}</text>')
        x += 60 + 7 * len(name)
    label = "what the GPUs of all ranks do in one step"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" '
            f'role="img" aria-label="{label}">{STYLE}'
            f'<rect class="paper" width="{WIDTH}" height="{y}"/>\n'
            + "\n".join(out) + "\n</svg>\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    Path(sys.argv[2]).write_text(picture(read(sys.argv[1])))
