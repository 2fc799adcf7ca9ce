#!/usr/bin/env python3
"""A teacher, and what becomes of it: trains recipes/conversion and prints one table.

    conversion.py                     the whole table, in runs/conversion
    conversion.py --set train.dtype=f32 --seeds 3
    conversion.py --json > rows.jsonl

Each student is shown untrained, trained on the same tokens without a teacher, just converted, and
converted and taught. `recovered` is the part of the gap between the untrained student and the
teacher that is closed. What lies in --out already is not trained again. Python 3's own library is
all that is needed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def weft(args, *words):
    ran = subprocess.run([args.weft, *words], cwd=ROOT, text=True, capture_output=True)
    if ran.returncode:
        sys.exit(f"weft {' '.join(words)}:\n{ran.stdout}{ran.stderr}")
    return ran.stdout


def metrics(out):
    """The last value of each metric of a run; None where there is no run."""
    path = ROOT / out / "metrics.jsonl"
    if not (ROOT / out / "best.h5").exists() or not path.exists():
        return None
    last = {}
    for line in path.read_text().splitlines():
        last.update(json.loads(line))
    return last


def train(args, recipe, out, seed, *more):
    found = metrics(out)
    if found is None or "eval_loss" not in found:
        print(f"{out} ...", file=sys.stderr, flush=True)
        sets = [word for one in [*args.set, f"train.out={out}", f"train.seed={seed}", *more]
                for word in ("--set", one) if not one.startswith("--begin=")]
        begin = [word for one in more if one.startswith("--begin=")
                 for word in one.split("=", 1)]
        weft(args, "train", f"recipes/conversion/{recipe}.toml", "--overwrite", *sets, *begin)
        found = metrics(out)
    return found


def loss_of(args, checkpoint):
    text = weft(args, "eval", checkpoint, "--batches", "20")
    return float(text.split("held-out loss ")[1].split(",")[0])


def rows_of(args, seed):
    at = f"{args.out}/seed-{seed}"
    teacher = train(args, "teacher", f"{at}/teacher", seed)
    taught_by = f"distill.teacher=\"{at}/teacher\""
    yield {"model": "teacher", "seed": seed, "tokens": teacher["tokens"],
           "loss": teacher["eval_loss"]}
    for student in ("hybrid", "pure"):
        start = f"{at}/{student}.h5"
        if not (ROOT / start).exists():
            weft(args, "convert", f"{at}/teacher", f"recipes/conversion/{student}.toml", "--set",
                 taught_by, "--set", f"train.seed={seed}", "--out", start)
        new = train(args, student, f"{at}/{student}-new", seed, "distill={}", "train.steps=1",
                    "optimizer.lr=0")
        plain = train(args, student, f"{at}/{student}-plain", seed, "distill={}",
                      "optimizer.lr=3e-3")
        taught = train(args, student, f"{at}/{student}", seed, taught_by, f"--begin={start}")
        gap = new["eval_loss"] - teacher["eval_loss"]
        for how, loss, tokens, run in (
                ("untrained", new["eval_loss"], 0, {}),
                ("trained on the same tokens", plain["eval_loss"], plain["tokens"], {}),
                ("converted", loss_of(args, start), 0, {}),
                ("converted and taught", taught["eval_loss"], taught["tokens"], taught)):
            row = {"model": f"{student}, {how}", "seed": seed, "tokens": tokens, "loss": loss,
                   "recovered": (new["eval_loss"] - loss) / gap}
            for name in ("ablation_loss_without_softmax", "ablation_loss_without_linear",
                         "ablation_recall_again", "teacher_recall_again"):
                if name in run:
                    row[name] = run[name]
            yield row


def table(rows):
    head = ("| model | seed | tokens | held-out loss | recovered | without softmax "
            "| without linear | recall | the teacher's |")
    lines = [head, "|" + " --- |" * (head.count("|") - 1)]
    for r in rows:
        def number(name, form="{:.3f}"):
            return form.format(r[name]) if name in r else ""
        lines.append("| " + " | ".join([
            r["model"], str(r["seed"]), f"{int(r['tokens']):,}", number("loss"),
            number("recovered", "{:.1%}"), number("ablation_loss_without_softmax"),
            number("ablation_loss_without_linear"), number("ablation_recall_again", "{:.1%}"),
            number("teacher_recall_again", "{:.1%}")]) + " |")
    return "\n".join(lines)


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--weft", default="./weft", help="the program")
    p.add_argument("--out", default="runs/conversion", help="the folder of the runs")
    p.add_argument("--seeds", type=int, default=1)
    p.add_argument("--set", action="append", default=[], help="for every recipe")
    p.add_argument("--json", action="store_true", help="a JSON object a line")
    args = p.parse_args()
    rows = [row for seed in range(1, args.seeds + 1) for row in rows_of(args, seed)]
    print("\n".join(map(json.dumps, rows)) if args.json else table(rows))


if __name__ == "__main__":
    main()
