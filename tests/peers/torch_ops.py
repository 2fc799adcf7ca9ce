"""PyTorch's times for the rows of `weft bench`: causal attention, and the machine's own rates.

    python tests/peers/torch_ops.py [--lengths 512,1024,2048,4096,8192] [--threads 2]

One JSON line a row: {"name", "T", "forward_ms", "both_ms"}; both is forward and backward. The rows
`matmul` (T is n of an n x n x n product) and `copy` (T is the number of floats) add their rate.
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F


def milliseconds(run, budget=1.0, least=3):
    """The median of runs for about `budget` seconds, after one that is not counted."""
    run()
    times = []
    while len(times) < least or sum(times) < budget:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
        if len(times) >= 200:
            break
    return 1e3 * statistics.median(times)


def row(name, T, forward_ms, both_ms=None, **more):
    print(json.dumps({"name": name, "T": T, "forward_ms": round(forward_ms, 4),
                      "both_ms": None if both_ms is None else round(both_ms, 4), **more}), flush=True)


def attention(T, B=1, H=4, D=64):
    q, k, v = (torch.randn(B, H, T, D, requires_grad=True) for _ in range(3))
    dout = torch.randn(B, H, T, D)

    def forward():
        with torch.no_grad():
            F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def both():
        q.grad = k.grad = v.grad = None
        F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(dout)

    row("attention", T, milliseconds(forward), milliseconds(both))


def matmul(n):
    a, b, c = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    ms = milliseconds(lambda: torch.mm(a, b, out=c))
    row("matmul", n, ms, gflops=round(2 * n**3 / ms / 1e6, 1))


def copy(floats):
    a, b = torch.randn(floats), torch.empty(floats)
    ms = milliseconds(lambda: b.copy_(a))
    row("copy", floats, ms, gbytes_per_second=round(8 * floats / ms / 1e6, 2))


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--lengths", default="512,1024,2048,4096,8192")
    options.add_argument("--threads", type=int, default=2)
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    matmul(1024)
    copy(1 << 24)
    for T in map(int, options.lengths.split(",")):
        attention(T)


if __name__ == "__main__":
    main()
