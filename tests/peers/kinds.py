"""The kinds of outputs that saved/*.json keep, and the columns in which benchmarks.py shows them.

A column is a function that gives the text of a row, or "" where the row has nothing for it.
"""


# --- Numbers -------------------------------------------------------------------------------------


def digits(x):
    """Three digits that count, all those of whole numbers."""
    return f"{x:.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def thousands(x):
    return f"{x / 1e6:.3g}M" if x >= 1e6 else f"{x / 1e3:.3g}k" if x >= 1e4 else digits(x)


def size(x):
    unit, name = next((u for u in ((2**30, "GiB"), (2**20, "MiB")) if x >= u[0]), (2**10, "KiB"))
    return f"{digits(x / unit)} {name}"


def percent(x):
    return f"{digits(100 * x)} %"


def hundredths(x):
    return f"{x:.2f}"


# --- Cells ---------------------------------------------------------------------------------------


def of(*keys, form=digits):
    """The first of these keys that the row has. A text stays as it is, a number takes the form."""

    def text(row):
        value = next((row[key] for key in keys if row.get(key) not in (None, "")), "")
        return value if isinstance(value, str) else form(value)

    return text


def milliseconds(row, part):
    """Of a replayed graph where there is one, which `weft bench` takes for its ratios too."""
    return row.get(f"{part}_graph_ms") or row[f"{part}_ms"]


def of_floor(row, part):
    known = row.get(f"of_floor_{part}")
    return known or row.get(f"least_{part}_ms", 0) / milliseconds(row, part) or None


def ratio(row, part):
    """How many times as long as ours the peer's time is; None without a peer."""
    known = row.get(f"peer_{part}_ratio")
    return known or row.get(f"peer_{part}_ms", 0) / milliseconds(row, part) or None


def thousandths(x):
    return f"{x:.3f}"


def made_by(function, part, form=digits):
    return lambda row: of("value", form=form)({"value": function(row, part)})


def state(row):
    return size(row["state_bytes"]) + (", grows" if row.get("grows") else "")


def code(key, end=""):
    return lambda row: "unknown" if row[key] == "unknown" else f"`{row[key]}{end}`"


def rates(machine):
    units = {"gflops": "GFLOP/s", "tflops": "TFLOP/s", "gbytes_per_second": "GB/s",
             "tbytes_per_second": "TB/s"}
    found = [f"{digits(machine[key])} {unit}" for key, unit in units.items() if key in machine]
    return f"The machine's own rates in this run, of products and of copies: {', '.join(found)}."


# --- Kinds: the standard title, and the columns --------------------------------------------------

KINDS = {
    "training": ("Training", {
        "run": of("name", "peer"), "by": of("implementation"),
        "parameters": of("parameters", form=thousands),
        "steps": of("steps"), "tokens a second": of("tokens_per_second", form=thousands),
        "peak memory": lambda row: (f"{digits(row['peak_gib'])} GiB" if "peak_gib" in row
                                    else of("peak_bytes", form=size)(row)),
        "loss": of("loss", "last_loss", form=lambda x: f"{x:.3f}"),
        "bits a byte, held out": of("bits_per_byte", form=hundredths),
        "answers right, held out": of("accuracy", form=hundredths)}),
    "precisions": ("Training in two precisions", {
        "recipe": of("name"), "held out": of("measure"), "fp32": of("f32", form=hundredths),
        "bf16": of("bf16", form=hundredths), "widest gap over 20 steps": of("gap", form=percent)}),
    "generation": ("Generation", {
        "model": of("name"), "draw": of("draw"), "tokens": of("tokens"),
        "tokens a second": of("tokens_per_second", form=thousands)}),
    "cuda-bench": ("Operations, in milliseconds", {
        "operation": of("name"), "forward": made_by(milliseconds, "forward"),
        "forward + backward": made_by(milliseconds, "both"),
        "floor / time, forward": made_by(of_floor, "forward", percent),
        "floor / time, both": made_by(of_floor, "both", percent), "peer": of("peer"),
        "peer's time / ours, forward": made_by(ratio, "forward", hundredths),
        "peer's time / ours, both": made_by(ratio, "both", hundredths)}),
    "cuda-peers": ("Peers' operations, in milliseconds", {
        "operation": of("name"), "peer": of("peer"), "forward": of("forward_ms"),
        "forward + backward": of("both_ms"), "forward, a call": of("forward_call_ms"),
        "forward + backward, a call": of("both_call_ms")}),
    "cpu-bench": ("Operations, in milliseconds", {
        "operation": of("name"), "T": of("T", form=str), "forward": of("forward_ms"),
        "forward + backward": of("both_ms"), "peak memory": of("memory_bytes", form=size),
        "attention's time / this": lambda row: of("x")({"x": row["attention_ratio"] or None})}),
    "cpu-table": ("Weft and PyTorch in turn", {
        "measured": of("name"), "T": of("T", form=str), "Weft": of("weft", form=thousands),
        "PyTorch": of("torch", form=thousands), "times as fast": of("ratio")}),
    "conversion": ("Conversion of a trained model", {
        "model": of("model"), "seed": of("seed"), "tokens": of("tokens", form=thousands),
        "held-out loss": of("loss", form=thousandths),
        "of the gap closed": of("recovered", form=percent),
        "loss without softmax layers": of("ablation_loss_without_softmax", form=thousandths),
        "loss without linear layers": of("ablation_loss_without_linear", form=thousandths),
        "text recalled": of("ablation_recall_again", form=percent),
        "by the teacher": of("teacher_recall_again", form=percent)}),
    "checks": ("Checks", {
        "checked": of("name"), "bound": of("bound"), "checks": of("checks"),
        "failed": of("failed")}),
    "figures": ("Single figures", {
        "measured": of("name"), "steps": of("steps"), "of it": of("part"), "figure": of("figure"),
        "unit": of("unit")}),
}

# The keys by which the lines of a captured output are known.
SIGNS = {"cuda-bench": {"least_both_ms"}, "cuda-peers": {"peer", "both_call_ms"},
         "cpu-bench": {"both_best_ms"}, "cpu-table": {"weft", "ratio"},
         "conversion": {"model", "recovered"}, "training": {"tokens_per_second"}}

ORIGIN = {"device": of("device"), "date": of("date"), "commit": of("commit"),
          "command": code("command")}


def lines_of(columns, rows):
    """A Markdown table, without the columns that are empty in every row."""
    cells = {head: [of_row(row).replace("|", "\\|") for row in rows]
             for head, of_row in columns.items()}
    cells = {head: column for head, column in cells.items() if any(column)}
    lines = [list(cells), ["---"] * len(cells), *zip(*cells.values())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# --- The speeds on README.md ---------------------------------------------------------------------

# A row is taken from the newest saved file of its kind and section that has it.
GPU = "NVIDIA H100"
SPEED = [
    ("Training GPT-2 124M, bf16", "training", GPU, {"name": "gpt2_124m"}),
    ("Training a hybrid of Gated DeltaNet, 125M, bf16", "training", GPU,
     {"name": "gated_delta_hybrid_125m"}),
    ("Generation by this hybrid", "generation", GPU, {"name": "gated_delta_hybrid_125m"}),
    ("Attention, 4 × 4096 tokens, 16 heads of 128", "cuda-bench", GPU,
     {"name": "attention B4 T4096 H16 K128"}),
    ("Gated delta rule, the same shape", "cuda-bench", GPU,
     {"name": "gated_delta B4 T4096 H16 K128 V128"}),
    ("Selective scan, 4 × 4096 tokens, 4096 channels of 16", "cuda-bench", GPU,
     {"name": "selective_scan B4 T4096 E4096 K16"}),
    ("Training a GPT of 4 layers, fp32", "cpu-table", "CPU", {"name": "training a GPT, tokens/s"}),
    ("Attention, 8192 tokens, 4 heads of 64, fp32", "cpu-table", "CPU",
     {"name": "attention, both ms", "T": 8192}),
]


def compared(times, peer):
    return f"{digits(times)} times as fast as {peer}" if times and peer else ""


def speed(kind, rows, found):
    """(figure, comparison, row) of the first of the rows `found` among those of a file."""
    row = found[0]
    if kind == "cuda-bench":  # of several peers the fastest
        row = min(found, key=lambda r: ratio(r, "both") or float("inf"))
        figure = f"{digits(milliseconds(row, 'both'))} ms"
        return figure, compared(ratio(row, "both"), row.get("peer")), row
    if kind == "cpu-table":
        unit = "tokens a second" if "tokens/s" in row["name"] else "ms"
        return f"{thousands(row['weft'])} {unit}", compared(row.get("ratio"), "PyTorch"), row
    figure = f"{thousands(row['tokens_per_second'])} tokens a second"
    peer = next((r for r in rows if "peer" in r), None)
    times = row["tokens_per_second"] / peer["tokens_per_second"] if peer else None
    return figure, compared(times, peer and peer["peer"]), row
