"""Weft and PyTorch in turn on this machine, in one table: operations, and training a small GPT.

    python tests/peers/table.py [--lengths 512,2048,8192] [--steps 300] [--threads 2] [--json]

`ratio` is how many times faster Weft is. PyTorch has no counterpart of the linear-time mechanisms: they
stand beside its attention. Without torch (pip install torch) Weft stands alone. Needs a built program:
./weft version builds it. --json prints a line a row, which benchmarks.py saves.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
RECIPE = os.path.join(ROOT, "recipes", "gpt.toml")


def say(text):
    print(f"table: {text}", file=sys.stderr, flush=True)


def lines_of(command, environment):
    """The JSON objects that a command prints, one a line; what it says on stderr is passed on."""
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"table: {' '.join(command)} ended with status {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def train_weft(program, steps, environment):
    """Tokens a second of the recipe, the median of the second half of its log."""
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "train", RECIPE, "--set", f"train.steps={steps}",
                   "--set", "train.log_every=10", "--set", f"train.out={folder}/run"]
        # A byte model's sample is no UTF-8 at first.
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
        if done.returncode:
            sys.exit(f"table: {' '.join(command)} ended with status {done.returncode}:\n{done.stdout}")
        with open(f"{folder}/run/metrics.jsonl") as file:
            rows = [json.loads(line) for line in file]
    rates = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
    return statistics.median(rates[len(rates) // 2:])


def measure(options, environment, torch):
    weft = os.path.abspath(options.weft)
    say("weft bench")
    ours = lines_of([weft, "bench", "--json", "--lengths", options.lengths,
                     "--budget", str(options.budget)], environment)
    theirs = []
    if torch:
        say("torch_ops.py")
        theirs = lines_of([sys.executable, f"{HERE}/torch_ops.py", "--lengths", options.lengths,
                           "--threads", str(options.threads)], environment)
    rates = {"weft": [], "torch": []}
    for turn in range(options.turns if os.path.exists(RECIPE) and options.steps else 0):
        say(f"training a GPT, turn {turn + 1} of {options.turns}")
        rates["weft"].append(train_weft(weft, options.steps, environment))
        if torch:
            row, = lines_of([sys.executable, f"{HERE}/torch_gpt.py", "--steps", str(options.steps),
                             "--threads", str(options.threads)], environment)
            rates["torch"].append(row["tokens_per_second"])
    return ours, theirs, rates


def rows_of(ours, theirs, rates):
    """(what, T, ours, PyTorch's, how many times faster ours is)"""
    peer = {(row["name"], row["T"]): row for row in theirs}
    machine = next(row for row in ours if row["name"] == "machine")
    product = next((row["gflops"] for row in theirs if row["name"] == "matmul"), None)
    copy = next((row["gbytes_per_second"] for row in theirs if row["name"] == "copy"), None)

    def row(what, T, mine, other, more_is_better):
        ratio = None
        if mine and other:
            ratio = mine / other if more_is_better else other / mine
        return what, T, mine, other, ratio

    if rates["weft"]:
        torch_rate = statistics.median(rates["torch"]) if rates["torch"] else None
        yield row("training a GPT, tokens/s", "", statistics.median(rates["weft"]), torch_rate, True)
    yield row("matrix product, GFLOP/s", 1024, machine["gflops"], product, True)
    yield row("copy, GB/s", "", machine["gbytes_per_second"], copy, True)
    for mine in ours:
        if mine["name"] == "machine":
            continue
        other = peer.get(("attention", mine["T"]), {})
        for part, key in (("forward", "forward_ms"), ("both", "both_ms")):
            yield row(f"{mine['name']}, {part} ms", mine["T"], mine[key], other.get(key), False)


def print_table(rows):
    def number(value):
        if value is None:
            return "-"
        return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"

    table = [("", "T", "Weft", "PyTorch", "ratio")]
    table += [(what, str(T), number(mine), number(other), "-" if ratio is None else f"{ratio:.2f}")
              for what, T, mine, other, ratio in rows]
    widths = [max(len(line[i]) for line in table) for i in range(5)]
    for line in table:
        print("  ".join(cell.ljust(widths[i]) if i == 0 else cell.rjust(widths[i])
                        for i, cell in enumerate(line)).rstrip())


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--weft", default=os.path.join(ROOT, "build", "release", "weft"))
    options.add_argument("--lengths", default="512,1024,2048,4096,8192")
    options.add_argument("--budget", type=float, default=0.5, help="seconds a figure of weft bench")
    options.add_argument("--steps", type=int, default=300, help="of training; 0: none")
    options.add_argument("--turns", type=int, default=2, help="of training, Weft then PyTorch")
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--json", action="store_true", help="one JSON object a row")
    options = options.parse_args()
    if not os.path.exists(options.weft):
        sys.exit(f"table: {options.weft} is not there; ./weft version builds it")
    torch = importlib.util.find_spec("torch") is not None
    if not torch:
        say("torch is not installed (pip install torch): Weft stands alone")
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    ours, theirs, rates = measure(options, environment, torch)
    if options.json:
        for row in rows_of(ours, theirs, rates):
            print(json.dumps(dict(zip(("name", "T", "weft", "torch", "ratio"), row))))
        return
    print(f"{options.threads} threads, f32; attention-like operations: 4 heads of width 64\n")
    print_table(rows_of(ours, theirs, rates))
    print("\nratio: how many times faster Weft is; of operations that PyTorch lacks, over its attention")


if __name__ == "__main__":
    main()
