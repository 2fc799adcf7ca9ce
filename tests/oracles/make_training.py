"""Ten steps of training that go on from models of hub/, by transformers and torch's AdamW, on the batches that
`weft replay` draws: the losses before each step, in training.json.  The tests train the same with weft.

    python3 tests/oracles/make_training.py build/cpu/weft"""

import json
import os
import subprocess
import sys
import tempfile

import h5py
import torch

from common import HERE, in_fp64, without_fla

with without_fla():
    import transformers
    import transformers.models.qwen3_next.modeling_qwen3_next  # noqa: F401

NAMES = ["llama", "cohere2", "gemma3_text", "mixtral", "mamba2", "qwen3_next", "bamba", "falcon_h1",
         "granite_hybrid", "lfm2", "gpt_oss"]
SETTINGS = ["data.task=induction", "data.vocabulary=11", "model.context=12", "train.batch=2",
            "train.steps=10", "optimizer.lr=0.01", "optimizer.clip=0", "optimizer.weight_decay=0.1",
            "schedule.type=constant"]
STEPS, LR, BETAS, DECAY = 10, 0.01, (0.9, 0.95), 0.1
BARE = ("A_log", "dt_bias", ".D", "mlp.gate.weight", "router.weight", "_bias")  # beside vectors, those that do not decay


def batches(weft, folder, d):
    more = [word for s in SETTINGS for word in ("--set", s)]
    recipe, checkpoint, out = (os.path.join(d, f) for f in ("m.toml", "m.h5", "b.h5"))
    run = lambda *words: subprocess.run([weft, *words], check=True, capture_output=True)
    run("import", folder, checkpoint, "--recipe", recipe, "--dtype", "f64")
    run("replay", recipe, *more, "--steps", str(STEPS), "--out", out)
    with h5py.File(out) as f:
        return [tuple(torch.tensor(f[f"{kind}"][i]).long() for kind in ("tokens", "targets"))
                for i in range(STEPS)]


def losses(weft, name):
    folder = os.path.join(HERE, "hub", name)
    with tempfile.TemporaryDirectory() as d, in_fp64():
        lm = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager").double()
        lm.eval()  # without dropout
        decays = lambda n, p: p.dim() > 1 and not n.endswith(BARE)
        named = list(lm.named_parameters())
        groups = [dict(params=[p for n, p in named if decays(n, p) == yes], weight_decay=yes * DECAY)
                  for yes in (True, False)]
        optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=1e-8)
        for tokens, targets in batches(weft, folder, d):
            logits = lm(input_ids=tokens, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            yield loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    weft = os.path.abspath(sys.argv[1])
    found = {name: list(losses(weft, name)) for name in NAMES}
    with open(os.path.join(HERE, "training.json"), "w") as f:
        json.dump({"settings": SETTINGS, "losses": found}, f, indent=1)
        f.write("\n")
    for name, values in found.items():
        print(name, *(f"{v:.4f}" for v in values))
