"""Times of the peers for the rows of `weft bench --device cuda`, where PyTorch has a GPU.

    python tests/peers/cuda_ops.py --warm [NAME ...]
    python tests/peers/cuda_ops.py [--budget 0.2] [--more] [NAME ...] > peers.jsonl
    weft bench --device cuda --peers peers.jsonl

A NAME is a row's or the start of one ("attention", "linear B4"); without names all rows are timed, with
--more those of longer shapes too. One JSON line a row and peer, milliseconds:
    {"name", "peer", "op", "shape", "forward_ms", "both_ms", "forward_call_ms", "both_call_ms"}
forward_ms and both_ms (forward and backward) are those of a replayed CUDA graph or of single calls,
whichever is the faster (some peers cannot be recorded); the *_call_ms are those of single calls. A peer
that is not installed, or cannot take a shape, is told on stderr and left out. Inputs are bf16, gates f32
where the peer takes them so.

Peers: scaled_dot_product_attention by cuDNN and by FlashAttention, FlexAttention, cuBLAS and the
functions of torch (eager, and torch.compile for those that only that fuses), the chunkwise operations of
fla, and mamba_ssm. Their code is called, none of it is here.

fla's tuners try some 1300 configurations for these rows, most of whose time is the compiler's. --warm
compiles them with all cores, a process a row, and times nothing; the kernels stay in Triton's cache
(TRITON_CACHE_DIR), and the run after it compiles nothing and tunes on an idle card.

fla-core and einops from the package index are enough; the backward pass of its gated operations needs
Triton 3.7.1 on a Hopper card (before that fla refuses it: wrong results). If torch came with an older one,
put a newer Triton before it on PYTHONPATH for the rows of fla and mamba_ssm alone: torch.compile and
FlexAttention want their own. Lines of several runs may stand in one file. mamba_ssm builds its scan from
source, against the torch that is installed.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F

DEVICE = "cuda"
CALLS = 10  # in a graph

ROWS = """
attention B4 T4096 H16 K128
attention B32 T1024 H12 K64
attention B1 T16384 H16 K128
attention B4 T4096 H16 K128 window512
attention B1 T16384 H16 K128 window1024
block_sparse B1 T16384 H16 K128 strided8
linear B4 T4096 H16 K128 V128
retention B4 T4096 H16 K128 V128
simple_gla B4 T4096 H16 K128 V128
mamba2 B4 T4096 H64 K128 V64
gated_linear B4 T4096 H16 K128 V128
delta B4 T4096 H16 K128 V128
gated_delta B4 T4096 H16 K128 V128
kda B4 T4096 H16 K128 V128
selective_scan B4 T4096 E4096 K16
rms_norm R32768 D768
layer_norm R32768 D768
gated_norm R131072 D128
l2_norm R262144 D128
activation R32768 D3072
gated_activation R32768 D2048
short_conv B8 T4096 D3072 W4
rotary B4 T4096 H16 K128
embedding R32768 V50304 D768
cross_entropy R32768 V50304 D768
matmul R32768 I768 O2304
matmul R32768 I768 O3072
matmul R32768 I3072 O768
""".strip().splitlines()
MORE = """
attention B8 T2048 H16 K64
attention B1 T65536 H16 K128
""".strip().splitlines()


# --- Timing ------------------------------------------------------------------------------------------


def by_call(run, budget):
    """Milliseconds a call, each between two events."""
    run()
    run()
    torch.cuda.synchronize()
    times = []
    while len(times) < 5 or (sum(times) < 1e3 * budget and len(times) < 200):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def by_graph(run, budget):
    """Milliseconds a call of a graph of several; None where it cannot be recorded."""
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(CALLS):
                run()
    except Exception as error:  # what cannot be recorded says so in many ways
        print(f"  no graph: {str(error).splitlines()[0]}", file=sys.stderr)
        torch.cuda.synchronize()
        return None
    return by_call(graph.replay, budget) / CALLS


def measured(name, peer, run, inputs, budget):
    """The line of one peer. run() gives the output; `inputs` are what it is differentiated by."""
    y = run()
    dy = torch.randn_like(y)
    del y

    def forward():
        with torch.no_grad():
            run()

    def both():
        torch.autograd.grad(run(), inputs, dy)

    op, *shape = name.split()
    line = {"name": name, "peer": peer, "op": op, "shape": " ".join(shape)}
    for what, pass_ in (("forward", forward), ("both", both)):
        call = by_call(pass_, budget)
        graph = by_graph(pass_, budget)
        line[f"{what}_ms"] = round(min(call, graph or call), 5)
        line[f"{what}_call_ms"] = round(call, 5)
    return line


def once(run, inputs):
    y = run()
    torch.autograd.grad(y, inputs, torch.randn_like(y))
    torch.cuda.synchronize()


# --- Inputs ------------------------------------------------------------------------------------------


def noise(*shape, dtype=torch.bfloat16, scale=1.0):
    return (scale * torch.randn(*shape, device=DEVICE)).to(dtype).requires_grad_()


def uniform(low, high, *shape):
    t = torch.empty(*shape, device=DEVICE).uniform_(low, high)
    return t.requires_grad_()


def constant(value, *shape):
    return torch.full(shape, value, device=DEVICE, requires_grad=True)


# --- Peers by operation: lists of (peer, maker); maker(sizes) gives (run, inputs) ------------------------


def sdpa(backend):
    def make(s):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        q, k, v = (noise(s["B"], s["H"], s["T"], s["K"]) for _ in range(3))

        def run():
            with sdpa_kernel([getattr(SDPBackend, backend)]):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        return run, (q, k, v)

    return make


def flex(mask_of, block=128):
    def make(s):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        T = s["T"]
        q, k, v = (noise(s["B"], s["H"], T, s["K"]) for _ in range(3))
        mask = create_block_mask(mask_of(s), None, None, T, T, device=DEVICE, BLOCK_SIZE=block)
        compiled = torch.compile(flex_attention, dynamic=False)
        return lambda: compiled(q, k, v, block_mask=mask), (q, k, v)

    return make


def window_mask(s):
    window = s["window"]
    return lambda b, h, i, j: (j <= i) & (i - j < window)


def strided_mask(s):
    """Blocks of 64, of which a query sees its own and every strided-th one before it."""
    stride = s["strided"]
    return lambda b, h, i, j: (j <= i) & ((i // 64 - j // 64) % stride == 0)


def attention_peers(s):
    if "window" in s:
        return [("FlexAttention", flex(window_mask))]
    return [("cuDNN", sdpa("CUDNN_ATTENTION")), ("FlashAttention", sdpa("FLASH_ATTENTION"))]


def block_sparse_peers(s):
    return [("FlexAttention", flex(strided_mask)), ("FlexAttention 64", flex(strided_mask, 64))]


def fla(module, function, extra, key_scale=1.0, **settings):
    """One of fla's chunkwise operations; extra(s) gives its gates by name."""

    def make(s):
        op = getattr(__import__(f"fla.ops.{module}", fromlist=[function]), function)
        B, T, H, K, V = (s[x] for x in "BTHKV")
        x = {"q": noise(B, T, H, K), "k": noise(B, T, H, K, scale=key_scale or K**-0.5),
             "v": noise(B, T, H, V)}
        x.update(extra(s))
        leaves = tuple(t for t in x.values() if isinstance(t, torch.Tensor) and t.requires_grad)
        return lambda: op(**x, **settings)[0], leaves

    return make


def head_gate(s):
    return {"g": constant(-0.05, s["B"], s["T"], s["H"])}


def key_gate(s):
    return {"g": constant(-0.05, s["B"], s["T"], s["H"], s["K"])}


def head_beta(s):
    return {"beta": torch.full((s["B"], s["T"], s["H"]), 0.5, device=DEVICE,
                               dtype=torch.bfloat16).requires_grad_()}


def linear_peers(s):
    return [("fla", fla("linear_attn", "chunk_linear_attn", lambda s: {}, normalize=False))]


def retention_peers(s):
    return [("fla", fla("retention", "chunk_retention", lambda s: {}))]


def simple_gla_peers(s):
    return [("fla", fla("simple_gla", "chunk_simple_gla", head_gate))]


def mamba2_peers(s):
    return [("fla simple_gla", fla("simple_gla", "chunk_simple_gla", head_gate)),
            ("mamba_ssm", mamba_ssd)]


def gated_linear_peers(s):
    return [("fla", fla("gla", "chunk_gla", key_gate))]


def delta_peers(s):
    return [("fla", fla("delta_rule", "chunk_delta_rule", head_beta, key_scale=None))]


def gated_delta_peers(s):
    gates = lambda s: {**head_gate(s), **head_beta(s)}
    return [("fla", fla("gated_delta_rule", "chunk_gated_delta_rule", gates, key_scale=None))]


def kda_peers(s):
    """safe_gate: gates known to lie in [-5, 0); kept: nothing is computed again in the backward pass."""
    gates = lambda s: {**key_gate(s), **head_beta(s)}
    kda = lambda **settings: fla("kda", "chunk_kda", gates, key_scale=None, **settings)
    return [("fla", kda()), ("fla safe_gate", kda(safe_gate=True)),
            ("fla safe_gate kept", kda(safe_gate=True, disable_recompute=True))]


def mamba_ssd(s):
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    B, T, H, K, V = (s[x] for x in "BTHKV")
    x, b, c = noise(B, T, H, V), noise(B, T, 1, K), noise(B, T, 1, K)
    dt, A = uniform(0.001, 0.1, B, T, H), uniform(-16, -1, H)
    return lambda: mamba_chunk_scan_combined(x, dt, A, b, c, chunk_size=256), (x, dt, A, b, c)


def mamba_scan(s):
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    B, T, E, K = (s[x] for x in "BTEK")
    u, dt, z = (noise(B, E, T) for _ in range(3))
    A, D, bias = uniform(-16, -1, E, K), uniform(0, 1, E), uniform(-6, -2, E)
    b, c = noise(B, K, T), noise(B, K, T)
    return (lambda: selective_scan_fn(u, dt, A, b, c, D, z, bias, delta_softplus=True),
            (u, dt, A, b, c, D, z, bias))


def selective_scan_peers(s):
    return [("mamba_ssm", mamba_scan)]


def of_rows(function, *others, compiled=False):
    """function(x, *weights or rows): `others` name what follows x, "w" [D] or "x" [R, D]."""

    def make(s):
        x = noise(s["R"], s["D"])
        more = [noise(s["D"]) if o == "w" else noise(s["R"], s["D"]) for o in others]
        f = torch.compile(function, dynamic=False) if compiled else function
        return lambda: f(x, *more), (x, *more)

    return make


def rms_norm(x, w):
    return F.rms_norm(x, (x.shape[-1],), w, 1e-6)


def gated_norm(x, z, w):
    return rms_norm(x, w) * F.silu(z)


def swiglu(a, b):
    return F.silu(a) * b


def unit(x):
    return x * torch.rsqrt((x.float() ** 2).sum(-1, keepdim=True) + 1e-6).to(x.dtype)


def rms_norm_peers(s):
    return [("torch", of_rows(rms_norm, "w")), ("torch.compile", of_rows(rms_norm, "w", compiled=True))]


def layer_norm_peers(s):
    norm = lambda x, w: F.layer_norm(x, (x.shape[-1],), w, None, 1e-5)
    return [("torch", of_rows(norm, "w")), ("torch.compile", of_rows(norm, "w", compiled=True))]


def gated_norm_peers(s):
    def fla_gated(s):
        from fla.modules.fused_norm_gate import rms_norm_gated

        x, z, w = noise(s["R"], s["D"]), noise(s["R"], s["D"]), noise(s["D"])
        return lambda: rms_norm_gated(x, z, w, None), (x, z, w)

    return [("fla", fla_gated), ("torch.compile", of_rows(gated_norm, "x", "w", compiled=True))]


def l2_norm_peers(s):
    def fla_l2(s):
        from fla.modules.l2norm import l2norm

        x = noise(s["R"], s["D"])
        return lambda: l2norm(x), (x,)

    return [("fla", fla_l2), ("torch.compile", of_rows(unit, compiled=True))]


def activation_peers(s):
    return [("torch", of_rows(F.gelu))]


def gated_activation_peers(s):
    return [("torch", of_rows(swiglu, "x")),
            ("torch.compile", of_rows(swiglu, "x", compiled=True))]


def short_conv_peers(s):
    def fla_conv(s):
        from fla.modules.conv.causal_conv1d import causal_conv1d

        x, w = noise(s["B"], s["T"], s["D"]), noise(s["D"], s["W"])
        return lambda: causal_conv1d(x, w, activation="silu")[0], (x, w)

    def dao_conv(s):
        from causal_conv1d import causal_conv1d_fn

        x, w = noise(s["B"], s["T"], s["D"]), noise(s["D"], s["W"])
        return lambda: causal_conv1d_fn(x.transpose(1, 2), w, activation="silu"), (x, w)

    return [("fla", fla_conv), ("causal_conv1d", dao_conv)]


def rotary_peers(s):
    angles = lambda s: torch.outer(torch.arange(s["T"], device=DEVICE),
                                   10000.0 ** (-torch.arange(0, s["K"], 2, device=DEVICE) / s["K"]))

    def fla_rotary(s):
        from fla.modules.rotary import rotary_embedding

        x = noise(s["B"], s["T"], s["H"], s["K"])
        cos, sin = angles(s).cos().bfloat16(), angles(s).sin().bfloat16()
        return lambda: rotary_embedding(x, cos, sin), (x,)

    def compiled(s):
        x = noise(s["B"], s["T"], s["H"], s["K"])
        cos, sin = (f(angles(s)).bfloat16()[:, None] for f in (torch.cos, torch.sin))

        def turn(x):
            a, b = x.chunk(2, -1)
            return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

        f = torch.compile(turn, dynamic=False)
        return lambda: f(x), (x,)

    return [("fla", fla_rotary), ("torch.compile", compiled)]


def ids(s):
    return torch.randint(0, s["V"], (s["R"],), device=DEVICE)


def embedding_peers(s):
    def make(s):
        weight, index = noise(s["V"], s["D"], scale=0.02), ids(s)
        return lambda: F.embedding(index, weight), (weight,)

    return [("torch", make)]


def cross_entropy_peers(s):
    def whole(compiled):
        def make(s):
            x, w, target = noise(s["R"], s["D"]), noise(s["V"], s["D"], scale=0.02), ids(s)
            loss = lambda x, w: F.cross_entropy((x @ w.T).float(), target)
            f = torch.compile(loss, dynamic=False) if compiled else loss
            return lambda: f(x, w), (x, w)

        return make

    def fla_fused(s):
        from fla.modules.fused_linear_cross_entropy import fused_linear_cross_entropy_loss

        x, w, target = noise(s["R"], s["D"]), noise(s["V"], s["D"], scale=0.02), ids(s)
        return lambda: fused_linear_cross_entropy_loss(x, target, w), (x, w)

    return [("torch", whole(False)), ("torch.compile", whole(True)), ("fla", fla_fused)]


def matmul_peers(s):
    def make(s):
        x, w = noise(s["R"], s["I"]), noise(s["O"], s["I"], scale=0.02)
        return lambda: F.linear(x, w), (x, w)

    return [("cuBLAS", make)]


# --- The rows ----------------------------------------------------------------------------------------


def sizes_of(name):
    """"attention B4 T4096 window512" -> {"B": 4, "T": 4096, "window": 512}."""
    return {letters: int(n) for letters, n in re.findall(r"([A-Za-z]+)(\d+)(?!\S)", name.split(" ", 1)[1])}


def warm(names):
    """Compiles what the rows need, a process a row at once. The card is shared meanwhile, so what the
    tuners choose must not be kept."""
    unkept = {**os.environ, "FLA_CACHE_RESULTS": "0", "TRITON_CACHE_AUTOTUNING": "0"}

    def row(name):
        print(f"{name}: compiling", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, __file__, "--once", name], env=unkept, check=False,
                       stdout=subprocess.DEVNULL)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(row, names))


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("names", nargs="*", help="rows, or how they begin (standard: all)")
    options.add_argument("--budget", type=float, default=0.2, help="seconds a time is taken over")
    options.add_argument("--more", action="store_true", help="the longer shapes too")
    options.add_argument("--warm", action="store_true", help="compile all in parallel, time nothing")
    options.add_argument("--once", action="store_true", help="call each once, time nothing")
    options = options.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no GPU that PyTorch can use")
    torch.manual_seed(1)
    rows = ROWS + (MORE if options.more else [])
    rows += [n for n in options.names if " " in n and n not in rows]
    rows = [r for r in rows if not options.names or any(r.startswith(n) for n in options.names)]
    if options.warm:
        return warm(rows)
    for name in rows:
        sizes = sizes_of(name)
        for peer, make in globals()[name.split()[0] + "_peers"](sizes):
            print(f"{name}: {peer}", file=sys.stderr, flush=True)
            try:
                run, inputs = make(sizes)
                if options.once:
                    once(run, inputs)
                else:
                    line = measured(name, peer, run, inputs, options.budget)
                    print(json.dumps(line), flush=True)
            except Exception as error:  # not installed, or not for this shape or card
                reason = (str(error).splitlines() or [""])[0]
                print(f"  left out: {type(error).__name__}: {reason}", file=sys.stderr)
            run = inputs = None
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
