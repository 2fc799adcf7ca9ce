"""Does `weft judge` find what is wrong? The published naive forms of fla (PyTorch) answer the cases of
five operations, first as they are, then each with one fault planted in its source text. The text is
read from the installed package, changed, and imported from a temporary folder.

    pip install torch h5py einops && pip install --no-deps fla-core
    python faults.py path/to/weft [--unchanged]

Exits with 1 if an unchanged form fails or a fault is not found.
"""

import argparse
import collections
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile

import torch

from answers import cases

FLA = importlib.util.find_spec("fla").submodule_search_locations[0]
torch.set_num_threads(1)


def load(folder, form, change, wide):
    """fla's file ops/FORM/naive.py with a change (old text, new text), in fp64 where `wide`."""
    with open(os.path.join(FLA, "ops", form, "naive.py")) as f:
        text = f.read()
    for old, new in change or []:
        assert old in text, (form, old)
        text = text.replace(old, new)
    if wide:
        text = re.sub(r"torch\.float(32)?\b", "torch.float64", text).replace(".float()", ".double()")
    path = os.path.join(folder, f"{form}_{len(os.listdir(folder))}.py")
    with open(path, "w") as f:
        f.write(text)
    spec = importlib.util.spec_from_file_location(os.path.basename(path)[:-3], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Declined(Exception):
    pass


def heads(x, H):
    return x.repeat_interleave(H // x.shape[2], 2)


def scale_of(options, q):
    return options["scale"] or q.shape[-1] ** -0.5


# --- Each takes a module of fla, options and the tensors of one document, and returns outputs. -----


def delta(fla, options, q, k, v, beta, g=None, initial_state=None):
    if g is not None:
        raise Declined("the form has no gate")
    H, factor = v.shape[2], scale_of(options, q) * q.shape[-1] ** 0.5
    q, k = heads(q, H) * factor, heads(k, H)
    q, k, v, beta = (x.transpose(1, 2) for x in (q, k, v, beta))
    o, S = fla.delta_rule_recurrence(q, k, v, beta, initial_state)
    return {"o": o.transpose(1, 2), "final_state": S}


def gated_delta(fla, options, q, k, v, beta, g=None, initial_state=None):
    if g is None:
        raise Declined("the form wants a gate")
    H = v.shape[2]
    o, S = fla.naive_recurrent_gated_delta_rule(heads(q, H), heads(k, H), v, beta, g,
                                                scale_of(options, q), initial_state, True)
    return {"o": o, "final_state": S}


def chunked_delta(fla, options, q, k, v, beta, g=None, initial_state=None):
    if g is None:
        raise Declined("the form wants a gate")
    if g.min() < -20:
        raise Declined("strong gates: the form takes differences of their sums")
    H = v.shape[2]
    o, S = fla.naive_chunk_gated_delta_rule(heads(q, H), heads(k, H), v, g, beta, 16,
                                            scale_of(options, q), initial_state, True)
    return {"o": o, "final_state": S}


def kda(fla, options, q, k, v, beta, g, initial_state=None):
    o, S = fla.naive_recurrent_kda(q, k, v, g, beta, scale_of(options, q), initial_state, True)
    return {"o": o, "final_state": S}


def gated_linear(fla, options, q, k, v, g, initial_state=None):
    H, factor = v.shape[2], scale_of(options, q) * q.shape[-1] ** 0.5
    o, S = fla.naive_recurrent_gla(heads(q, H) * factor, heads(k, H), v, g, initial_state, True)
    return {"o": o, "final_state": S}


def linear(fla, options, q, k, v, g=None, log_gamma=None, initial_state=None, initial_z=None):
    if options["normalize"]:
        raise Declined("another number beside the denominator")
    if g is None and log_gamma is None:
        raise Declined("the form wants a gate")
    decay = torch.zeros_like(v[..., 0])
    decay = decay if g is None else decay + g
    decay = decay if log_gamma is None else decay + log_gamma
    H = v.shape[2]
    o, S = fla.naive_recurrent_simple_gla(heads(q, H), heads(k, H), v, decay,
                                          scale_of(options, q), initial_state, True)
    return {"o": o, "final_state": S}


def attention(fla, options, q, k, v, sink=None):
    if options["softcap"]:
        raise Declined("no cap on scores")
    if q.shape[1] != k.shape[1]:
        raise Declined("as many keys as queries")
    if options["window"] and not options["causal"]:
        raise Declined("no window to both sides")
    o, _ = fla.naive_parallel_attn(q, k, v, scale_of(options, q), options["window"] or None,
                                   bool(options["causal"]), sink_bias=sink)
    return {"o": o}


Form = collections.namedtuple("Form", "operation function file")
FORMS = {
    "delta": Form("delta", delta, "delta_rule"),
    "gated delta": Form("delta", gated_delta, "gated_delta_rule"),
    "gated delta, chunks": Form("delta", chunked_delta, "gated_delta_rule"),
    "kda": Form("kda", kda, "kda"),
    "gla": Form("gated_linear", gated_linear, "gla"),
    "simple gla": Form("linear", linear, "simple_gla"),
    "attention": Form("attention", attention, "attn"),
}

# (form, what is wrong, old text, new text)
FAULTS = [
    ("delta", "wrong sign of what is read", "_v = _v - (S", "_v = _v + (S"),
    ("delta", "beta left out", "_v = _v * beta_i", "_v = _v * 1"),
    ("delta", "gradient of beta missing", "beta_i = beta[:, :, i]", "beta_i = beta[:, :, i].detach()"),
    ("delta", "scale lost", "q = q * (d_k ** -0.5)", "q = q * 1"),
    ("delta", "initial state ignored", "if initial_state is not None:", "if False:"),
    ("gated delta", "decay missing", "* g[:, :, i].exp()[..., None, None]", "* 1"),
    ("gated delta", "gate applied after the write",
     ("h = h.clone() * g[:, :, i].exp()[..., None, None]",
      "h = h.clone() + b_k.unsqueeze(-1) * b_v.unsqueeze(-2)"),
     ("pass",
      "h = (h.clone() + b_k.unsqueeze(-1) * b_v.unsqueeze(-2)) * g[:, :, i].exp()[..., None, None]")),
    ("gated delta", "gradient of the gate missing", "g[:, :, i].exp()", "g[:, :, i].detach().exp()"),
    ("gated delta, chunks", "last chunk lost", "range(0, l // chunk_size):\n        q_i, k_i, v_i",
     "range(0, l // chunk_size - 1):\n        q_i, k_i, v_i"),
    ("gated delta, chunks", "state not decayed between chunks",
     "S = S * decay[:, :, i, -1, None, None].exp() +", "S = S +"),
    ("gated delta, chunks", "a token does not see itself",
     "diagonal=1)\n    for i in range(0, l // chunk_size)",
     "diagonal=0)\n    for i in range(0, l // chunk_size)"),
    ("kda", "gate of the token before", "g[:, i], beta", "g[:, max(i - 1, 0)], beta"),
    ("kda", "keys of the wrong head", "k = k.repeat_interleave(G, dim=2)", "k = k.repeat(1, 1, G, 1)"),
    ("kda", "state transposed", "return o.to(dtype), S", "return o.to(dtype), S.transpose(-1, -2)"),
    ("kda", "read before the write",
     ("S = S * g_i[..., None].exp()", "h v', q_i, S)"),
     ("last = S = S * g_i[..., None].exp()", "h v', q_i, last)")),
    ("gla", "decay to another base", "gk_i = gk[:, :, i].exp()", "gk_i = gk[:, :, i].exp2()"),
    ("gla", "gate on what is written, too", "h = h * gk_i[..., None] + kv_i",
     "h = (h + kv_i) * gk_i[..., None]"),
    ("gla", "gradient of the initial state missing", "h += initial_state.float()",
     "h += initial_state.detach().float()"),
    ("simple gla", "state of the token before",
     "        S = S * gate.unsqueeze(-1).unsqueeze(-1) + kv\n",
     "        last, S = S, S * gate.unsqueeze(-1).unsqueeze(-1) + kv\n"
     "        S = last if i == T - 1 else S\n"),
    ("simple gla", "heads share one gate", "gate = g[:, :, i].exp()",
     "gate = g[:, :1, i].exp().expand(B, H)"),
    ("attention", "window one too long", "row_idx - col_idx >= window_size",
     "row_idx - col_idx > window_size"),
    ("attention", "sink without weight", "probs_unnorm.sum(dim=-1) + sink_bias_unnorm",
     "probs_unnorm.sum(dim=-1)"),
    ("attention", "keys of the wrong head", ("q = q.reshape(B, T, H, G, K)", ".reshape(B, T, HQ, V)"),
     ("q = q.reshape(B, T, G, H, K).transpose(2, 3)", ".transpose(2, 3).reshape(B, T, HQ, V)")),
    # Faults of the call around the form: packed documents, of which the forms know nothing.
    ("gated delta", "no reset at a document's border", None, "one document"),
    ("gla", "documents begin with the state of the first", None, "first state"),
]


def outputs_of(form, module, case, x, packing):
    cu = x.pop("cu_seqlens", None)
    states = {name: t for name, t in x.items() if name.startswith("initial")}
    tokens = {name: t for name, t in x.items() if name not in states}
    options = case.options
    if cu is None:
        return form.function(module, options, **x)
    borders, parts = cu.tolist(), []
    N = len(borders) - 1
    if packing == "one document":
        whole = form.function(module, options, **tokens, **{s: t[:1] for s, t in states.items()})
        return {n: y.expand(N, *y.shape[1:]) if n.startswith("final") else y
                for n, y in whole.items()}
    for n, (a, b) in enumerate(zip(borders, borders[1:])):
        mine = {name: t[:, a:b] if t.dim() > 2 else t for name, t in tokens.items()}
        first = 0 if packing == "first state" else n
        mine.update({name: t[first : first + 1] for name, t in states.items()})
        parts.append(form.function(module, options, **mine))
    return {name: torch.cat([p[name] for p in parts], 0 if name.startswith("final") else 1)
            for name in parts[0]}


def answer(case, form, module, packing):
    x = {name: torch.tensor(a) for name, a in case.inputs.items()}
    leaves = {name: t.requires_grad_() for name, t in x.items() if t.is_floating_point()}
    try:
        outputs = outputs_of(form, module, case, dict(x), packing)
    except Declined as why:
        case.decline(str(why))
        return
    if not case.options.get("return_state", True):
        outputs.pop("final_state", None)
    given = {n: torch.tensor(case.grad_outputs["dout" if n == "o" else "d" + n]) for n in outputs}
    total = sum((y * given[n]).sum() for n, y in outputs.items() if y.shape == given[n].shape)
    gradients = (torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
                 if total.requires_grad else [torch.zeros_like(t) for t in leaves.values()])
    case.write({n: y.detach().numpy() for n, y in outputs.items()},
               {"d" + n: d.numpy() for n, d in zip(leaves, gradients)},
               declined="no log-sum-exp" if case.operation == "attention" else None)


def judged(weft, folder, name, change, packing, dtypes, texts):
    form = FORMS[name]
    place = os.path.join(folder, form.operation)
    if not os.path.exists(place):
        subprocess.run([weft, "cases", form.operation, place], check=True, capture_output=True)
    for file in os.listdir(os.path.join(place, "results")):
        os.remove(os.path.join(place, "results", file))
    modules = {wide: load(texts, form.file, change, wide) for wide in (False, True)}
    for case in cases(place):
        if case.dtype in dtypes:
            answer(case, form, modules[case.dtype == "f64"], packing)
    ran = subprocess.run([weft, "judge", place, "--json", "--dtype", ",".join(dtypes)],
                         capture_output=True, text=True)
    return ran.returncode, json.loads(ran.stdout)


def changes(old, new):
    """Pairs of an old and a new text."""
    if old is None:
        return None
    return list(zip(old, new)) if isinstance(old, tuple) else [(old, new)]


def found(j):
    failed = [c["tensor"] for c in j["checks"] if c["failed"]]
    kinds = [f"{c['tensor']}: {k}" for c in j["checks"] for k in c["kinds"]]
    lines = [f["text"] for f in j["faults"]]
    return ", ".join(dict.fromkeys(failed)), (kinds + lines + [""])[0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("weft")
    parser.add_argument("--unchanged", action="store_true", help="no faults")
    a = parser.parse_args()
    weft, wrong = os.path.abspath(a.weft), 0
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as texts:
        print("| form | fault | verdict | fails | of what kind |\n| --- | --- | --- | --- | --- |")
        for name in FORMS:
            status, j = judged(weft, folder, name, None, None, ["f64", "f32", "bf16"], texts)
            counts = f"{j['answered']} of {j['asked']} answers given"
            print(f"| {name} | none | {'passed' if status == 0 else 'FAILED'} | {found(j)[0]} | "
                  f"{counts} |", flush=True)
            wrong += status != 0
        for name, what, old, new in [] if a.unchanged else FAULTS:
            packing = new if old is None else None
            status, j = judged(weft, folder, name, changes(old, new), packing, ["f32"], texts)
            tensors, kind = found(j)
            print(f"| {name} | {what} | {'found' if status == 1 else 'NOT FOUND'} | {tensors} | "
                  f"{kind} |", flush=True)
            wrong += status != 1
    print(f"\n{wrong} wrong verdicts")
    sys.exit(wrong > 0)


main()
