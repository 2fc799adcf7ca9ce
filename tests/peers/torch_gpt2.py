"""GPT-2 124M in PyTorch, with the weights and the batches of a run of ours.

    weft replay recipes/gpu/gpt2_124m.toml --steps 500 --out gpt2.h5
    python tests/peers/torch_gpt2.py gpt2.h5 [--steps 500] [--eager] [--f32] [--losses FILE]

Trains as the recipe does (AdamW, warm-up and cosine, clipping) under bfloat16 autocast, or with --f32
in float32 without TF32, compiled unless --eager. Prints one JSON line: tokens a second in the middle of
the steps, peak memory, first and last loss. --losses writes the loss of every step, a line each.
"""

import argparse
import json
import math
import statistics
import time
import tomllib

import h5py
import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    def __init__(self, width, heads, inner):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, bias=False)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, vocabulary, width, layers, heads, inner, context):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, inner) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)

    def forward(self, tokens, targets):
        x = self.tokens(tokens) + self.positions.weight[: tokens.size(1)]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1).long())


def load(model, file):
    """Our names to the modules above; q, k and v are one matrix there."""
    get = lambda name: torch.tensor(file["parameters/" + name][...])
    with torch.no_grad():
        model.tokens.weight.copy_(get("embedding.weight"))
        model.positions.weight.copy_(get("positions.weight"))
        model.norm.weight.copy_(get("norm.weight"))
        for i, block in enumerate(model.blocks):
            at = f"layers.{i}."
            block.norm1.weight.copy_(get(at + "mixer_norm.weight"))
            block.norm2.weight.copy_(get(at + "mlp_norm.weight"))
            qkv = [get(at + f"mixer.{p}_proj.weight") for p in "qkv"]
            block.attention.qkv.weight.copy_(torch.cat(qkv))
            block.attention.out.weight.copy_(get(at + "mixer.o_proj.weight"))
            block.up.weight.copy_(get(at + "mlp.fc1.weight"))
            block.down.weight.copy_(get(at + "mlp.fc2.weight"))


def rate(step, steps, lr, warmup, final=0.1):
    if step < warmup:
        return lr * (step + 1) / warmup
    part = min(1.0, (step - warmup) / max(1, steps - warmup))
    return lr * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * part)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--f32", action="store_true")
    parser.add_argument("--losses")
    a = parser.parse_args()
    torch.set_float32_matmul_precision("highest" if a.f32 else "high")
    file = h5py.File(a.file, "r")
    text = file.attrs["recipe"]
    recipe = tomllib.loads(text if isinstance(text, str) else text.decode())
    m, t, o = recipe["model"], recipe["train"], recipe.get("optimizer", {})
    vocabulary, width = file["parameters/embedding.weight"].shape
    model = GPT(vocabulary, width, m["layers"], recipe["attention"]["heads"],
                recipe["mlp"]["width"], m["context"])
    load(model, file)
    model.cuda()
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decay, "weight_decay": o.get("weight_decay", 0.1)},
              {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(o.get("beta1", 0.9), o.get("beta2", 0.95)),
                                  eps=o.get("eps", 1e-8), fused=True)
    run = model if a.eager else torch.compile(model)
    tokens, targets = file["tokens"], file["targets"]
    steps = a.steps or tokens.shape[0]
    losses, times = [], []
    torch.cuda.reset_peak_memory_stats()
    for step in range(steps):
        x = torch.from_numpy(tokens[step]).cuda()
        y = torch.from_numpy(targets[step]).cuda()
        start = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=not a.f32):
            loss = run(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.get("clip", 1.0))
        for group in optimizer.param_groups:
            group["lr"] = rate(step, t["steps"], o.get("lr", 1e-3), recipe["schedule"]["warmup"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        if step % 10 == 9:
            torch.cuda.synchronize()
            times.append((step, time.perf_counter()))
    losses = [float(x) for x in losses]
    if a.losses:
        with open(a.losses, "w") as out:
            out.writelines(f"{x:.6f}\n" for x in losses)
    rates = [10 * x.numel() / (b[1] - a_[1]) for a_, b in zip(times[1:], times[2:])]
    print(json.dumps({"peer": "PyTorch " + torch.__version__ + ("" if a.eager else " compiled"),
                      "tokens_per_second": round(statistics.median(rates)) if rates else None,
                      "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
                      "first_loss": losses[0], "last_loss": losses[-1]}))


if __name__ == "__main__":
    main()
