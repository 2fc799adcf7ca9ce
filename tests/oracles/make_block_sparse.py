"""Block-sparse attention.  Oracles: FlexAttention in eager form with a table of blocks, and the modules
that patterns are known from: BigBird's and Longformer's attention in transformers."""

import torch
import transformers
from transformers import BigBirdConfig, LongformerConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from common import Random, case, i32, in_fp64, per_document, version
from make_attention import FLEX, causal, flexed

HF = version(transformers, torch) + ": transformers.models."


def sample(name, B, T, H, Hk, K, V, block, S=None, heads=1, density=0.5, full=False):
    r, S = Random("block_sparse " + name), S or T
    n = -(-S // block)
    mask = torch.ones(heads, n, n) if full else (r.uniform(heads, n, n) < density).double()
    x = {"q": r.normal(B, T, H, K), "k": r.normal(B, S, Hk, K), "v": r.normal(B, S, Hk, V)}
    return x, mask.to(torch.uint8)


def blocks(mask, block, causal=True):
    """Visible: the key is not in the future, and its block is set in the row of the query's block."""
    heads = mask.shape[0]

    def predicate(b, h, i, j):
        seen = mask[h if heads > 1 else 0, i // block, j // block] != 0
        return seen & (j <= i) if causal else seen

    return predicate


def flex_case(name, *shape, source=FLEX + ", a table of blocks", causal=True, softcap=0.0, **more):
    x, mask = sample(name, *shape, **more)
    options = {"block": more["block"]}
    if not causal:
        options["causal"] = False
    if softcap:
        options["softcap"] = softcap
    case("block_sparse", name, source,
         lambda **x: flexed(**x, mask=blocks(mask, more["block"], causal), softcap=softcap), x, options,
         {"block_mask": mask})


def bigbird(attention, q, k, v):
    """The kernel of the module: [B, H, T, *], a padding mask that hides nothing."""
    B, T = q.shape[:2]
    b = attention.block_size
    ones = torch.ones(B, T)
    blocked = ones.view(B, T // b, b)
    exact = torch.cat([blocked[:, 1:-3], blocked[:, 2:-2], blocked[:, 3:-1]], 2)
    band = torch.einsum("blq,blk->blqk", blocked[:, 2:-2], exact)[:, None]
    o, p = attention.bigbird_block_sparse_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), band, ones[:, None, :, None], ones[:, None, None, :],
        blocked, blocked, attention.num_attention_heads, attention.num_random_blocks,
        attention.attention_head_size, b, b, B, T, T, seed=7, plan_from_length=None, plan_num_rand_blocks=None)
    return o.reshape(*q.shape), p


def bigbird_case(block=4, T=44, H=2, K=3):
    config = BigBirdConfig(hidden_size=H * K, num_attention_heads=H, block_size=block, num_random_blocks=2)
    attention = BigBirdBlockSparseAttention(config, seed=7).train()  # in training the random blocks are drawn
    x = {n: Random("bigbird " + n).normal(1, T, H, K) for n in "qkv"}
    with in_fp64(), torch.no_grad():
        _, p = bigbird(attention, **x)
    n = T // block
    seen = p.view(1, H, n, block, n, block).sum((0, 3, 5)) > 0
    case("block_sparse", "bigbird", HF + "big_bird.modeling_big_bird.BigBirdBlockSparseAttention "
         "in training mode, seed 7; the blocks are those that it gave weight to",
         lambda **x: {"o": bigbird(attention, **x)[0]}, x, {"block": block, "causal": False},
         {"block_mask": seen.to(torch.uint8)})


def longformer(module, q, k, v, far):
    """The module projects hidden states: with the identity as hidden states the weights are q, k, v."""
    T = q.shape[1]
    weights = {}
    for name, x in (("query", q), ("key", k), ("value", v)):
        for suffix in ("", "_global"):
            weights[f"{name}{suffix}.weight"] = x.reshape(T, T).T
            weights[f"{name}{suffix}.bias"] = torch.zeros(T)
    arguments = {"attention_mask": 10000.0 * far, "is_index_masked": far < 0,
                 "is_index_global_attn": far > 0, "is_global_attn": True}
    o, = torch.func.functional_call(module, weights, (torch.eye(T)[None],), arguments)
    return {"o": o.view(*q.shape)}


def longformer_case(window=8, H=4, K=6):
    T = H * K  # so that the identity is a sequence of hidden states
    config = LongformerConfig(hidden_size=T, num_attention_heads=H, attention_window=[window],
                              attention_probs_dropout_prob=0.0)
    module = LongformerSelfAttention(config, 0)
    far = torch.zeros(1, T)
    far[0, [0, 13]] = 1.0  # the tokens that see all and are seen by all
    i, j = torch.arange(T)[:, None], torch.arange(T)[None]
    mask = ((i - j).abs() <= window // 2) | (far[0, i] > 0) | (far[0, j] > 0)
    case("block_sparse", "longformer", HF + "longformer.modeling_longformer.LongformerSelfAttention, "
         "global projections equal to the local ones; blocks of one token",
         lambda **x: longformer(module, **x, far=far),
         {n: Random("longformer " + n).normal(1, T, H, K) for n in "qkv"},
         {"block": 1, "causal": False}, {"block_mask": mask[None].to(torch.uint8)})


flex_case("random", 2, 33, 2, 1, 4, 3, block=8)
flex_case("random_heads", 1, 70, 2, 2, 4, 3, block=16, heads=2)
flex_case("both", 1, 33, 2, 1, 4, 3, block=8, heads=2, causal=False)
flex_case("softcap", 1, 33, 2, 1, 4, 3, block=4, softcap=1.5)
flex_case("full", 1, 33, 2, 1, 4, 3, block=16, full=True)
flex_case("keys_ahead", 1, 9, 2, 1, 4, 3, block=8, S=35)
flex_case("sparse_dead", 1, 33, 2, 2, 4, 3, block=4, density=0.15, heads=2)
flex_case("one", 2, 1, 2, 1, 4, 3, block=64, full=True)
bigbird_case()
longformer_case()

# Borders on blocks and a mask of distances alone: blocks counted from the start of the document or of
# the pack are then the same.
cu = [0, 8, 24, 32, 41]
x, _ = sample("packed", 1, 41, 2, 1, 4, 3, block=8)
distance = torch.arange(6)[:, None] - torch.arange(6)[None]
mask = ((distance == 0) | (distance == 1)).to(torch.uint8)[None]
case("block_sparse", "packed", FLEX + ", a table of blocks, each document alone",
     lambda **x: per_document(lambda **d: flexed(**d, mask=blocks(mask, 8)), cu, x), x, {"block": 8},
     {"block_mask": mask, "cu_seqlens": i32(cu)})
