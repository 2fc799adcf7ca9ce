"""Makes foreign.safetensors beside it, for tests/core/safetensors_test.cpp: every dtype that Weft reads, and one that it
does not, written by the Python package `safetensors` (0.8.0)."""
import pathlib

import torch
from safetensors.torch import save_file

tensors = {
    "f64": torch.tensor([1 / 3, -2.0, 1e300], dtype=torch.float64),
    "f32": (torch.arange(6, dtype=torch.float32) / 7).reshape(2, 3),
    "f16": torch.tensor([0.0, -0.0, 1 / 3, 65504.0, 6e-8, 6e-5, float("inf"), float("nan")], dtype=torch.float16),
    "bf16": torch.tensor([1 / 3, -3e38, 1e-40], dtype=torch.bfloat16),
    "i64": torch.tensor([2**62, -1]),
    "i32": torch.tensor([-(2**31), 7], dtype=torch.int32),
    "i16": torch.tensor([-32768, 5], dtype=torch.int16),
    "u16": torch.tensor([65535], dtype=torch.uint16),
    "u32": torch.tensor([2**32 - 1], dtype=torch.uint32),
    "u64": torch.tensor([2**63 - 1], dtype=torch.uint64),
    "i8": torch.tensor([-128, 127], dtype=torch.int8),
    "u8": torch.tensor([255, 0], dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "f8": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "layers.0.wq caf\u00e9": torch.ones(1, dtype=torch.float32),
}
save_file(tensors, pathlib.Path(__file__).with_name("foreign.safetensors"), {"format": "pt", "made by": "safetensors"})
