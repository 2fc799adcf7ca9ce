"""Are the models that `weft export` writes those that transformers loads?

    python3 tests/oracles/check_hub.py build/cpu/weft

For each folder of hub/: import, export, load by from_pretrained without a missing or an unexpected
tensor, and compare the logits with those of expected.h5.  No part of the tests."""

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
    import transformers.models.olmo_hybrid.modeling_olmo_hybrid  # noqa: F401
try:
    import fla_on_cpu  # noqa: F401
    import fla.models  # noqa: F401
except ImportError:
    print("fla is not installed: its models are not checked")


def check(weft, name):
    folder = os.path.join(HERE, "hub", name)
    with tempfile.TemporaryDirectory() as d:
        checkpoint, out = os.path.join(d, "m.h5"), os.path.join(d, "out")
        run = lambda *words: subprocess.run([weft, *words], check=True, capture_output=True, text=True)
        run("import", folder, checkpoint, "--dtype", "f64")
        said = run("export", checkpoint, out).stdout.strip().replace(out, name)
        with in_fp64():
            kind = transformers.AutoConfig.from_pretrained(out).architectures[0]  # fla has a Mamba-2 too
            lm, info = getattr(transformers, kind, transformers.AutoModelForCausalLM).from_pretrained(
                out, dtype=torch.float64, attn_implementation="eager",
                experts_implementation="eager", output_loading_info=True)
            with h5py.File(os.path.join(folder, "expected.h5")) as f:
                tokens = torch.tensor(f["inputs/tokens"][:]).long()
                logits = torch.tensor(f["outputs/logits"][:])
            lm.double().train(lm.__module__.startswith("fla"))  # as make_hub.py runs it
            with torch.no_grad():
                got = lm(input_ids=tokens, use_cache=False).logits
    # MiniMax keeps what it computes from its sizes as buffers; these are made when it is loaded.
    info["missing_keys"] = set(info["missing_keys"]) & set(dict(lm.named_parameters()))
    wrong = {k: v for k, v in info.items() if v}
    gap = ((got - logits).abs().max() / logits.abs().max()).item()
    good = gap < 1e-12 and not wrong
    print(f"{'ok  ' if good else 'FAIL'} {gap:.1e}  {said}" + (f"  {wrong}" if wrong else ""), flush=True)
    return good


names = sys.argv[2:] or sorted(os.listdir(os.path.join(HERE, "hub")))
sys.exit(0 if all([check(os.path.abspath(sys.argv[1]), n) for n in names]) else 1)
