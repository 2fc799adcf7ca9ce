"""Dense and sliding-window softmax attention.  Oracles: torch's scaled_dot_product_attention (math
backend), torch's FlexAttention in eager form (it alone returns a differentiable log-sum-exp), Gemma 2's
attention for the soft cap and gpt-oss's for the sinks."""

import types

import torch
import torch.nn.attention.flex_attention as flex
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import masking_utils
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss

from common import Random, case, i32, per_document, recorded_softmax, version

# FlexAttention refuses gradients on the CPU, though its eager form has them.
flex._validate_device = lambda *_: None

TORCH, HF = version(torch), version(transformers, torch)
SDPA = f"{TORCH}: torch.nn.functional.scaled_dot_product_attention, math backend"
FLEX = f"{TORCH}: torch.nn.attention.flex_attention.flex_attention, eager"
GEMMA = f"{HF}: transformers.models.gemma2.modeling_gemma2.eager_attention_forward"
SINKS = f"{HF}: transformers.models.gpt_oss.modeling_gpt_oss.eager_attention_forward"


def sample(name, B, T, H, Hk, K, V, S=None, sink=False, large=1.0):
    r, S = Random("attention " + name), S or T
    x = {"q": r.normal(B, T, H, K, scale=large), "k": r.normal(B, S, Hk, K), "v": r.normal(B, S, Hk, V)}
    if sink:
        x["sink"] = r.normal(H, scale=2.0)
    return x


def visible(mask, T, S):
    """The predicate as a table: query row r stands at position S - T + r."""
    i, j = torch.arange(S - T, S)[:, None], torch.arange(S)[None]
    return mask(0, 0, i, j).expand(T, S)


def sdpa(q, k, v, causal=True, scale=None):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = causal_lower_right(q.shape[2], k.shape[2]) if causal and q.shape[2] != k.shape[2] else None
    with sdpa_kernel(SDPBackend.MATH):
        o = scaled_dot_product_attention(
            q, k, v, mask, is_causal=causal and mask is None, scale=scale, enable_gqa=True)
    return {"o": o.transpose(1, 2)}


def flexed(q, k, v, mask, scale=None, softcap=0.0):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    T, S = q.shape[2], k.shape[2]
    shifted = lambda b, h, i, j: mask(b, h, i + (S - T), j)
    capped = lambda s, b, h, i, j: softcap * torch.tanh(s / softcap)
    o, lse = flex.flex_attention(
        q, k, v, capped if softcap else None, flex.create_block_mask(shifted, None, None, T, S, "cpu"),
        scale, True, True)
    return {"o": o.transpose(1, 2), "lse": lse}


def eager(forward, q, k, v, mask, sink=None, scale=None, **options):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    allowed = visible(mask, q.shape[2], k.shape[2])
    bias = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)[None, None]
    module = types.SimpleNamespace(num_key_value_groups=q.shape[1] // k.shape[1], training=False, sinks=sink)
    with recorded_softmax() as calls:
        o, _ = forward(module, q, k, v, bias, scaling=scale or q.shape[-1] ** -0.5, **options)
    (logits, p), = calls
    if sink is None:
        lse = logits.logsumexp(-1)
    else:  # the logits were shifted; the sink's own probability is exp(sink - lse)
        lse = sink[:, None] - p[..., -1].log()
    return {"o": o, "lse": lse}


def gemma(q, k, v, mask, softcap, scale=None):
    return eager(modeling_gemma2.eager_attention_forward, q, k, v, mask, scale=scale, softcap=softcap)


def gpt_oss(q, k, v, sink, mask):
    return eager(modeling_gpt_oss.eager_attention_forward, q, k, v, mask, sink)


causal = masking_utils.causal_mask_function
both = masking_utils.bidirectional_mask_function
window = masking_utils.sliding_window_causal_mask_function
window_both = masking_utils.sliding_window_bidirectional_mask_function
WINDOW = ", transformers.masking_utils.sliding_window_causal_mask_function"


def main():
    case("attention", "sdpa_causal", SDPA, sdpa, sample("sdpa_causal", 2, 17, 2, 2, 5, 3))
    case("attention", "sdpa_groups", SDPA, sdpa, sample("sdpa_groups", 1, 33, 4, 2, 4, 3))
    case("attention", "sdpa_long", SDPA, sdpa, sample("sdpa_long", 1, 70, 2, 1, 4, 3))
    case("attention", "sdpa_one", SDPA, sdpa, sample("sdpa_one", 2, 1, 2, 1, 4, 3))
    case("attention", "sdpa_keys_ahead", SDPA + ", causal_lower_right", sdpa,
         sample("sdpa_keys_ahead", 2, 9, 2, 1, 4, 3, S=33))
    case("attention", "sdpa_both", SDPA, lambda **x: sdpa(**x, causal=False),
         sample("sdpa_both", 1, 17, 3, 3, 4, 3, S=33), {"causal": False})
    case("attention", "sdpa_scale_large", SDPA, lambda **x: sdpa(**x, scale=1.5),
         sample("sdpa_scale_large", 1, 17, 2, 2, 4, 3, large=30.0), {"scale": 1.5})

    case("attention", "flex_causal", FLEX, lambda **x: flexed(**x, mask=causal),
         sample("flex_causal", 2, 33, 2, 1, 4, 3))
    case("attention", "flex_one", FLEX, lambda **x: flexed(**x, mask=causal),
         sample("flex_one", 2, 1, 2, 2, 4, 3, S=17))
    case("attention", "flex_window", FLEX + WINDOW, lambda **x: flexed(**x, mask=window(7)),
         sample("flex_window", 1, 70, 2, 1, 4, 3), {"window": 7})
    case("attention", "flex_window_one", FLEX + WINDOW, lambda **x: flexed(**x, mask=window(1)),
         sample("flex_window_one", 1, 17, 2, 1, 4, 3), {"window": 1})
    case("attention", "flex_window_keys_ahead", FLEX + WINDOW, lambda **x: flexed(**x, mask=window(16)),
         sample("flex_window_keys_ahead", 1, 9, 2, 1, 4, 3, S=70), {"window": 16})
    # The source counts the neighbours on one side: its 4 is our 5, |i - j| < 5.
    case("attention", "flex_window_both", FLEX + ", transformers.masking_utils."
         "sliding_window_bidirectional_mask_function(4)", lambda **x: flexed(**x, mask=window_both(4)),
         sample("flex_window_both", 1, 33, 2, 1, 4, 3), {"window": 5, "causal": False})
    case("attention", "flex_softcap", FLEX, lambda **x: flexed(**x, mask=causal, softcap=2.0, scale=1.0),
         sample("flex_softcap", 1, 33, 2, 1, 4, 3), {"softcap": 2.0, "scale": 1.0})

    case("attention", "gemma2", GEMMA, lambda **x: gemma(**x, mask=causal, softcap=1.5),
         sample("gemma2", 2, 17, 4, 2, 4, 3), {"softcap": 1.5})
    case("attention", "gemma2_window", GEMMA + WINDOW,
         lambda **x: gemma(**x, mask=window(8), softcap=3.0, scale=0.7),
         sample("gemma2_window", 1, 33, 2, 1, 4, 3), {"softcap": 3.0, "window": 8, "scale": 0.7})
    case("attention", "sinks", SINKS, lambda **x: gpt_oss(**x, mask=causal),
         sample("sinks", 2, 17, 4, 2, 4, 3, sink=True))
    case("attention", "sinks_window", SINKS + WINDOW, lambda **x: gpt_oss(**x, mask=window(6)),
         sample("sinks_window", 1, 33, 2, 1, 4, 3, sink=True), {"window": 6})
    case("attention", "sinks_one", SINKS, lambda **x: gpt_oss(**x, mask=causal),
         sample("sinks_one", 2, 1, 2, 1, 4, 3, sink=True))

    cu = [0, 1, 18, 21, 54]
    alone = ", each document alone"
    case("attention", "flex_packed", FLEX + WINDOW + alone,
         lambda **x: per_document(lambda **y: flexed(**y, mask=window(5)), cu, x),
         sample("flex_packed", 1, 54, 2, 1, 4, 3), {"window": 5}, {"cu_seqlens": i32(cu)})
    case("attention", "sinks_packed", SINKS + alone,
         lambda sink, **x: per_document(lambda **y: gpt_oss(**y, sink=sink, mask=causal), cu, x),
         sample("sinks_packed", 1, 54, 2, 1, 4, 3, sink=True), index={"cu_seqlens": i32(cu)})
    case("attention", "sdpa_packed_both", SDPA + alone,
         lambda **x: per_document(lambda **y: sdpa(**y, causal=False), cu, x),
         sample("sdpa_packed_both", 1, 54, 2, 1, 4, 3), {"causal": False}, {"cu_seqlens": i32(cu)})


if __name__ == "__main__":
    main()
