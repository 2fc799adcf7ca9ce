"""NCCL's own reduce-scatter of P sums in f32, and its all-gather of P weights in bf16.

    torchrun --standalone --nproc-per-node 2 tests/peers/reduce_scatter.py 124475904

Rank 0 prints one JSON object: milliseconds of each, the median of ten repeats of five calls.
"""

import json
import sys

import torch
import torch.distributed as dist


def milliseconds(call):
    for _ in range(5):
        call()
    torch.cuda.synchronize()
    dist.barrier()
    times = []
    for _ in range(10):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(5):
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 5)
    return sorted(times)[5]


dist.init_process_group("nccl")
rank, ranks = dist.get_rank(), dist.get_world_size()
torch.cuda.set_device(rank)
unit = 64 * ranks
P = -(-int(sys.argv[1]) // unit) * unit
sums, own_sums = torch.ones(P, device="cuda"), torch.empty(P // ranks, device="cuda")
own_weights = torch.ones(P // ranks, device="cuda", dtype=torch.bfloat16)
weights = torch.empty(P, device="cuda", dtype=torch.bfloat16)
scatter = milliseconds(lambda: dist.reduce_scatter_tensor(own_sums, sums))
gather = milliseconds(lambda: dist.all_gather_into_tensor(weights, own_weights))
if rank == 0:
    print(json.dumps({"P": P, "ranks": ranks, "reduce_scatter_ms": round(scatter, 3),
                      "all_gather_ms": round(gather, 3)}))
dist.destroy_process_group()
