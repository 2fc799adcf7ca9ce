#!/usr/bin/env python3
"""Trains every recipe and prints one table of what came out; draws the curves of the losses.

    tests/peers/recipes.py [--program build/release/weft] [--runs DIR] [--svg losses.svg] [--json] [NAME ...]

A run that is finished already is not repeated. Needs Python alone.
"""
import argparse
import json
import math
import pathlib
import subprocess
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]


def train(program, recipe, out):
    done = out / "best.h5"
    if done.exists():
        return
    command = [program, "train", str(recipe), "--set", f"train.out={out}", "--overwrite"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def read(out):
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [x for x in lines if "loss" in x]
    evals = [x for x in lines if "eval_loss" in x]
    return steps, evals


def planned(program, recipe, *more):
    command = [program, "inspect", str(recipe), "--json", *more]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def figures(program, recipe, out):
    """What came out, as benchmarks.py saves it."""
    steps, evals = read(out)
    plan = planned(program, recipe)
    context = tomllib.loads(recipe.read_text())["model"]["context"]
    longer = planned(program, recipe, "--set", f"model.context={2 * context}")
    last, held = steps[-1], evals[-1]
    quality = "bits_per_byte" if "bits_per_byte" in held else "accuracy"
    return {"name": recipe.stem, "parameters": plan["parameters"], "steps": last["step"],
            "loss": last["loss"], "eval_loss": held["eval_loss"], quality: held[quality],
            "tokens_per_second": sorted(x["tokens_per_second"] for x in steps)[len(steps) // 2],
            "peak_bytes": max(x["peak_bytes"] for x in steps), "planned_bytes": plan["peak_bytes"],
            "state_bytes": plan["decode_state_bytes"],
            "grows": longer["decode_state_bytes"] > plan["decode_state_bytes"]}


def row(f):
    result = (f"{f['bits_per_byte']:.3f} bits/byte" if "bits_per_byte" in f
              else f"{100 * f['accuracy']:.1f} % right")
    exact = "yes" if f["peak_bytes"] == f["planned_bytes"] else f"NO: planned {f['planned_bytes']}"
    return [f["name"], f"{f['parameters'] / 1e6:.2f} M", str(f["steps"]), f"{f['loss']:.3f}",
            f"{f['eval_loss']:.3f}", result, f"{f['tokens_per_second'] / 1e3:.1f} k",
            f"{f['peak_bytes'] / 2**20:.1f} MiB", exact]


COLOURS = ["#1b6ca8", "#c0392b", "#1e8449", "#8e44ad", "#b9770e", "#148f77", "#7f8c8d", "#d81b60",
           "#5d4037", "#283593", "#689f38", "#ef6c00", "#00838f", "#6a1b9a"]


def draw(curves, path):
    """Bits a byte over bytes read, one line a recipe; held-out losses as dots.

    A curve is (name, [(bytes, training loss)], [(bytes, held-out loss)]), losses in nats.
    """
    width, height, left, top, right, bottom = 860, 400, 60, 20, 170, 50
    bits = 1 / math.log(2)
    longest = max(points[-1][0] for _, points, _ in curves)
    low, high = 1.0, 6.0

    def place(x, y):
        px = left + (width - left - right) * x / longest
        py = top + (height - top - bottom) * (high - min(max(y * bits, low), high)) / (high - low)
        return px, py

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
           'font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/>']
    for y in range(int(low), int(high) + 1):
        _, py = place(0, y / bits)
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{py:.1f}" y2="{py:.1f}" '
                   f'stroke="#ddd"/><text x="{left - 8}" y="{py + 4:.1f}" text-anchor="end">{y}</text>')
    for i in range(5):
        x = longest * i / 4
        out.append(f'<text x="{place(x, low)[0]:.1f}" y="{height - bottom + 18}" '
                   f'text-anchor="middle">{x / 1e6:.1f} M</text>')
    out.append(f'<text x="{(left + width - right) / 2}" y="{height - 12}" text-anchor="middle">'
               'bytes of the King James Bible read</text>')
    out.append(f'<text x="16" y="{height / 2}" text-anchor="middle" '
               f'transform="rotate(-90 16 {height / 2})">bits a byte</text>')
    for i, (name, points, held) in enumerate(sorted(curves, key=lambda c: c[2][-1][1])):
        colour = COLOURS[i % len(COLOURS)]
        line = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.4" points="{line}"/>')
        for x, y in held:
            px, py = place(x, y)
            out.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{colour}"/>')
            if len(curves) == 1:
                out.append(f'<text x="{px:.1f}" y="{py - 10:.1f}" text-anchor="middle">'
                           f'{y * bits:.2f}</text>')
        y = top + 14 + 20 * i
        out.append(f'<line x1="{width - right + 12}" x2="{width - right + 32}" y1="{y - 4}" '
                   f'y2="{y - 4}" stroke="{colour}" stroke-width="3"/>')
        out.append(f'<text x="{width - right + 38}" y="{y}">{name} {held[-1][1] * bits:.2f}</text>')
    y = height - bottom
    out.append(f'<circle cx="{width - right + 22}" cy="{y - 4}" r="4" fill="#444"/>'
               f'<text x="{width - right + 38}" y="{y}">held-out text</text>')
    out.append("</svg>")
    pathlib.Path(path).write_text("\n".join(out) + "\n")


def curve(name, out):
    steps, evals = read(out)
    at = {x["step"]: x["tokens"] for x in steps}
    return (name, [(x["tokens"], x["loss"]) for x in steps],
            [(at[x["step"]], x["eval_loss"]) for x in evals if x["step"] in at])


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--program", default=str(ROOT / "build/release/weft"))
    p.add_argument("--runs", default=str(ROOT / "runs/recipes"))
    p.add_argument("--svg")
    p.add_argument("--json", action="store_true", help="one JSON object a recipe")
    p.add_argument("names", nargs="*")
    a = p.parse_args()
    recipes = sorted((ROOT / "recipes").glob("*.toml"))
    if a.names:
        recipes = [r for r in recipes if r.stem in a.names]
    if not a.json:
        print("| recipe | parameters | steps | loss | held-out loss | result | tokens/s | peak | "
              "peak as planned |\n|---|---|---|---|---|---|---|---|---|")
    curves = []
    for recipe in recipes:
        out = pathlib.Path(a.runs) / recipe.stem
        train(a.program, recipe, out)
        f = figures(a.program, recipe, out)
        print(json.dumps(f) if a.json else "| " + " | ".join(row(f)) + " |", flush=True)
        if not recipe.stem.startswith("mqar"):
            curves.append(curve(recipe.stem, out))
    if a.svg:
        draw(curves, a.svg)


if __name__ == "__main__":
    main()
