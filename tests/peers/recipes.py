#!/usr/bin/env python3
"""Trains every recipe and prints one table of what came out.
`weft plot runs/recipes/*` draws the curves of the losses.

    tests/peers/recipes.py [--program build/release/weft] [--runs DIR] [--json] [NAME ...]

A run that is finished already is not repeated. Needs Python alone.
"""
import argparse
import json
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


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--program", default=str(ROOT / "build/release/weft"))
    p.add_argument("--runs", default=str(ROOT / "runs/recipes"))
    p.add_argument("--json", action="store_true", help="one JSON object a recipe")
    p.add_argument("names", nargs="*")
    a = p.parse_args()
    recipes = sorted((ROOT / "recipes").glob("*.toml"))
    if a.names:
        recipes = [r for r in recipes if r.stem in a.names]
    if not a.json:
        print("| recipe | parameters | steps | loss | held-out loss | result | tokens/s | peak | "
              "peak as planned |\n|---|---|---|---|---|---|---|---|---|")
    for recipe in recipes:
        out = pathlib.Path(a.runs) / recipe.stem
        train(a.program, recipe, out)
        f = figures(a.program, recipe, out)
        print(json.dumps(f) if a.json else "| " + " | ".join(row(f)) + " |", flush=True)


if __name__ == "__main__":
    main()
