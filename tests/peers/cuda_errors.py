"""How far fla and we are from the definition in bf16, on the same inputs, where PyTorch has a GPU.

    python tests/peers/cuda_errors.py build/release/weft [NAME ...]

Per tensor: relative RMS error, as `weft op --check` takes it, of fla's chunkwise operation and of ours
against the definition in f64 (`weft op --form naive` on the CPU, which results of others hold to 1e-10, see
tests/oracles). Inputs and output gradients are rounded to bf16 before, where they are bf16; gates, beta and
states are f32 for both. A NAME is a case's or the start of one. What fla needs: see cuda_ops.py.
"""

import pathlib
import subprocess
import sys
import tempfile

import h5py
import numpy as np
import torch

WIDE = {"beta", "g", "log_gamma", "initial_state", "final_state"}  # f32 beside bf16
CASES = ["linear", "retention", "simple_gla", "gated_linear", "delta", "gated_delta", "kda"]
SIZES = [(1, 1024, 2, 128, False), (1, 512, 2, 64, True)]  # B, T, H, K = V, with states


def operation_of(case):
    """The operation's name with us."""
    return {"retention": "linear", "simple_gla": "linear", "gated_delta": "delta"}.get(case, case)


def rounded(name, x):
    t = torch.from_numpy(x)
    return t.to(torch.float32 if name in WIDE else torch.bfloat16).double()


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def tensors(case, B, T, H, K, state, seed):
    """Inputs and output gradients by name, f64 that bf16 (or f32) holds."""
    random = np.random.default_rng(seed).standard_normal
    x = {name: random((B, T, H, K)) for name in "qkv"}
    if operation_of(case) in ("delta", "kda"):
        for name in "qk":
            x[name] /= np.linalg.norm(x[name], axis=-1, keepdims=True)
        x["beta"] = 1 / (1 + np.exp(-random((B, T, H))))
    if case in ("simple_gla", "gated_delta"):
        x["g"] = log_sigmoid(random((B, T, H)) + 2)
    if case in ("gated_linear", "kda"):
        x["g"] = log_sigmoid(random((B, T, H, K)) + 3)
    if case == "retention":
        x["log_gamma"] = np.log(1 - 2.0 ** (-5 - np.arange(H)))
    if state:
        x["initial_state"] = 0.3 * random((B, H, K, K))
    dy = {"out": random((B, T, H, K)), "final_state": state * random((B, H, K, K))}
    return ({n: rounded(n, t) for n, t in x.items()}, {n: rounded(n, t) for n, t in dy.items()})


def fla_results(case, x, dy):
    """Outputs and gradients of fla's operation under our names."""
    op = operation_of(case)
    x = {n: t.to("cuda", torch.float32 if n in WIDE else torch.bfloat16) for n, t in x.items()}
    leaves = {n: t.requires_grad_() for n, t in x.items() if n != "log_gamma"}
    settings = {"initial_state": x.get("initial_state"), "output_final_state": True}
    q, k, v = (x[n] for n in "qkv")
    if case == "linear":
        from fla.ops.linear_attn import chunk_linear_attn

        o, state = chunk_linear_attn(q, k, v, normalize=False, **settings)
    elif op == "linear":
        from fla.ops.simple_gla import chunk_simple_gla

        o, state = chunk_simple_gla(q, k, v, x.get("g"), x.get("log_gamma"), **settings)
    elif case == "gated_linear":
        from fla.ops.gla import chunk_gla

        o, state = chunk_gla(q, k, v, x["g"], **settings)
    elif case == "delta":
        from fla.ops.delta_rule import chunk_delta_rule

        o, state = chunk_delta_rule(q, k, v, x["beta"], **settings)
    elif case == "gated_delta":
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        o, state = chunk_gated_delta_rule(q, k, v, x["g"], x["beta"], **settings)
    else:
        from fla.ops.kda import chunk_kda

        o, state = chunk_kda(q, k, v, x["g"], x["beta"], **settings)
    dy = [dy["out"].to("cuda", o.dtype), dy["final_state"].to("cuda", state.dtype)]
    gradients = torch.autograd.grad([o, state], list(leaves.values()), dy)
    results = {"o": o, "final_state": state, **{"d" + n: g for n, g in zip(leaves, gradients)}}
    return {n: t.detach().double().cpu().numpy() for n, t in results.items()}


def weft_results(weft, op, path, *flags):
    out = path.with_suffix(".out.h5")
    subprocess.run([weft, "op", op, path, out, "--backward", *flags], check=True,
                   stdout=subprocess.DEVNULL)
    with h5py.File(out) as file:
        return {n: t[()] for group in ("outputs", "gradients") for n, t in file[group].items()}


def error(got, expected):
    rms = lambda x: np.sqrt((x.astype(np.float64) ** 2).mean())
    return rms(got - expected) / max(rms(expected), 1e-2)


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    weft, names = sys.argv[1], tuple(sys.argv[2:]) or ("",)
    print(f"{'case':26} {'tensor':14} {'fla':>8} {'ours':>8} ours/fla")
    with tempfile.TemporaryDirectory() as folder:
        for seed, (case, size) in enumerate((c, s) for c in CASES for s in SIZES):
            B, T, H, K, state = size
            name = f"{case} T{T} K{K}{' state' if state else ''}"
            if not name.startswith(names):
                continue
            x, dy = tensors(case, *size, seed)
            path = pathlib.Path(folder) / "case.h5"
            with h5py.File(path, "w") as file:
                for n, t in x.items():
                    file[f"inputs/{n}"] = t.numpy()
                for n, t in dy.items():
                    file[f"grad_outputs/d{n}"] = t.numpy()
            op = operation_of(case)
            exact = weft_results(weft, op, path, "--form", "naive", "--dtype", "f64")
            ours = weft_results(weft, op, path, "--dtype", "bf16", "--device", "cuda")
            fla = fla_results(case, x, dy)
            for n in (n for n in exact if n in fla):
                a, b = error(fla[n], exact[n]), error(ours[n], exact[n])
                print(f"{name:26} {n:14} {a:8.1e} {b:8.1e} {b / a:8.2f}", flush=True)


if __name__ == "__main__":
    main()
