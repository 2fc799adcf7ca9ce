"""PyTorch's speed at what `weft bench` trains: a small GPT in eager mode, fp32, on the CPU.

    python tests/peers/torch_gpt.py [--steps 200] [--threads 2]

Prints one JSON line; `tokens_per_second` is of the middle of the measured blocks of ten steps.
"""

import argparse
import json
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, LAYERS, CONTEXT, BATCH, VOCABULARY = 128, 4, 4, 64, 12, 256


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        B, T, _ = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(B, T, WIDTH))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
        self.attention = Attention()
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight
        for name, p in self.named_parameters():
            if p.dim() > 1:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * LAYERS) if last else 0.02)

    def forward(self, ids, targets):
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        logits = self.head(self.norm(self.blocks(x)))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--threads", type=int, default=2)
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)

    model = GPT()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=1e-3, betas=(0.9, 0.99))
    text = torch.randint(VOCABULARY, (100_000,))

    def step():
        start = torch.randint(len(text) - CONTEXT - 1, (BATCH,))
        rows = torch.stack([text[i : i + CONTEXT + 1] for i in start])
        loss = model(rows[:, :-1], rows[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    for _ in range(10):
        step()
    blocks = []
    for _ in range(max(1, options.steps // 10)):
        began = time.perf_counter()
        for _ in range(10):
            loss = step()
        blocks.append(10 * BATCH * CONTEXT / (time.perf_counter() - began))
    print(json.dumps({
        "name": "gpt", "implementation": f"torch {torch.__version__}", "threads": options.threads,
        "parameters": sum(p.numel() for p in model.parameters()), "layers": LAYERS, "heads": HEADS,
        "width": WIDTH, "context": CONTEXT, "batch": BATCH, "vocabulary": VOCABULARY,
        "loss": round(loss.item(), 4), "tokens_per_second": round(statistics.median(blocks)),
        "tokens_per_second_best": round(max(blocks))}))


if __name__ == "__main__":
    main()
