#!/usr/bin/env python3
"""Trains every recipe and prints one table of what came out; draws the curves of the losses.

    tests/peers/recipes.py [--program build/release/weft] [--runs DIR] [--svg recipes/losses.svg] [NAME ...]

A run that is finished already is not repeated. Needs Python alone.
"""
import argparse
import json
import math
import pathlib
import subprocess

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


def row(program, recipe, out):
    steps, evals = read(out)
    plan = json.loads(subprocess.run([program, "inspect", str(recipe), "--json"], check=True,
                                     capture_output=True, text=True).stdout)
    last, held = steps[-1], evals[-1]
    speed = sorted(x["tokens_per_second"] for x in steps)[len(steps) // 2]
    result = (f"{held['bits_per_byte']:.3f} bits/byte" if "bits_per_byte" in held
              else f"{100 * held['accuracy']:.1f} % right")
    peak = max(x["peak_bytes"] for x in steps)
    exact = "yes" if peak == plan["peak_bytes"] else f"NO: planned {plan['peak_bytes']}"
    return [recipe.stem, f"{plan['parameters'] / 1e6:.2f} M", str(last["step"]),
            f"{last['loss']:.3f}", f"{held['eval_loss']:.3f}", result, f"{speed / 1e3:.1f} k",
            f"{peak / 2**20:.1f} MiB", exact]


COLOURS = ["#1b6ca8", "#c0392b", "#1e8449", "#8e44ad", "#b9770e", "#148f77", "#7f8c8d", "#d81b60",
           "#5d4037", "#283593", "#689f38", "#ef6c00", "#00838f", "#6a1b9a"]


def draw(curves, path):
    """Training loss over tokens, smoothed over five logged steps, one line a recipe."""
    width, height, left, top, right, bottom = 900, 460, 60, 20, 190, 50
    longest = max(x for _, points in curves for x, _ in points)
    low, high = 1.0, 3.5
    def place(x, y):
        px = left + (width - left - right) * x / longest
        py = top + (height - top - bottom) * (high - min(max(y, low), high)) / (high - low)
        return f"{px:.1f},{py:.1f}"
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
           'font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/>']
    for i in range(6):
        y = low + (high - low) * i / 5
        _, py = place(0, y).split(",")
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{py}" y2="{py}" stroke="#ddd"/>')
        out.append(f'<text x="{left - 8}" y="{float(py) + 4:.1f}" text-anchor="end">{y:.1f}</text>')
    for i in range(5):
        x = longest * i / 4
        px, _ = place(x, low).split(",")
        out.append(f'<text x="{px}" y="{height - bottom + 18}" text-anchor="middle">'
                   f'{x / 1e3:.0f} k</text>')
    out.append(f'<text x="{(left + width - right) / 2}" y="{height - 12}" text-anchor="middle">'
               'bytes of the King James Bible read</text>')
    out.append(f'<text x="16" y="{height / 2}" text-anchor="middle" '
               f'transform="rotate(-90 16 {height / 2})">training loss, nats a byte</text>')
    order = sorted(curves, key=lambda c: c[1][-1][1])
    for i, (name, points) in enumerate(order):
        colour = COLOURS[i % len(COLOURS)]
        path_text = " ".join(place(x, y) for x, y in points)
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" '
                   f'points="{path_text}"/>')
        y = top + 14 + 20 * i
        out.append(f'<line x1="{width - right + 14}" x2="{width - right + 38}" y1="{y - 4}" '
                   f'y2="{y - 4}" stroke="{colour}" stroke-width="3"/>')
        out.append(f'<text x="{width - right + 44}" y="{y}">{name} {points[-1][1]:.2f}</text>')
    out.append("</svg>")
    pathlib.Path(path).write_text("\n".join(out) + "\n")


def smooth(steps):
    points = []
    for i, s in enumerate(steps):
        near = steps[max(0, i - 4):i + 1]
        points.append((s["tokens"], math.fsum(x["loss"] for x in near) / len(near)))
    return points


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--program", default=str(ROOT / "build/release/weft"))
    p.add_argument("--runs", default=str(ROOT / "runs/recipes"))
    p.add_argument("--svg")
    p.add_argument("names", nargs="*")
    a = p.parse_args()
    recipes = sorted((ROOT / "recipes").glob("*.toml"))
    if a.names:
        recipes = [r for r in recipes if r.stem in a.names]
    print("| recipe | parameters | steps | loss | held-out loss | result | tokens/s | peak | "
          "peak as planned |\n|---|---|---|---|---|---|---|---|---|")
    curves = []
    for recipe in recipes:
        out = pathlib.Path(a.runs) / recipe.stem
        train(a.program, recipe, out)
        print("| " + " | ".join(row(a.program, recipe, out)) + " |", flush=True)
        if not recipe.stem.startswith("mqar"):
            curves.append((recipe.stem, smooth(read(out)[0])))
    if a.svg:
        draw(curves, a.svg)


if __name__ == "__main__":
    main()
