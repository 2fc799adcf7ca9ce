// Whole mixers against modules that are not ours: transformers' and fla's, in fp64, with the
// gradients of input and weights (tests/oracles/make_layers.py).
#include <utility>

#include "tests/catch.h"
#include "tests/layers/made.h"
#include "tests/layers/oracle_weights.h"
#include "tests/paths.h"

using namespace weft;
using namespace weft::layers;

namespace {

void compare(const std::string& name, const Layer& layer, const std::vector<Parameter>& parameters,
             const Rename& ours = plain) {
  const Hdf5Reader file(tests::source_path(concat("tests/oracles/layer_", name, ".h5")));
  Named weights = ours(group_of(file, "weights"));
  for (const Parameter& p : parameters) {
    INFO(p.name);
    REQUIRE(weights.count(p.name) == 1);
    REQUIRE(weights[p.name].shape() == p.var.shape());
    p.var.value().copy_from(weights[p.name]);
    weights.erase(p.name);
  }
  CHECK(weights.empty());
  const Var x = Var::leaf(file.tensor("inputs/x"));
  const Var y = run(layer, x);
  CHECK(distance(y.value(), file.tensor("outputs/y")) < 1e-10);
  autograd::backward({{y, file.tensor("grad_outputs/dy")}});
  Named gradients;
  for (const auto& [key, t] : group_of(file, "gradients")) gradients[key.substr(1)] = t;
  CHECK(distance(x.grad(), gradients.at("x")) < 1e-10);
  gradients.erase("x");
  gradients = ours(gradients);
  for (const Parameter& p : parameters) {
    INFO(p.name);
    CHECK(distance(p.var.grad(), gradients.at(p.name)) < 1e-10);
  }
}

void compare(const std::string& name, const MixerCase& c, const Rename& ours = plain) {
  INFO(name);
  const Made m = made(c);
  compare(name, *m.layer, m.parameters, ours);
}

// Rows [begin, begin + size) of each of `blocks` equal blocks of rows, one behind the other.
Tensor rows_of_blocks(const Tensor& t, int64_t blocks, int64_t begin, int64_t size) {
  const int64_t step = t.size(0) / blocks;
  std::vector<Var> parts;
  for (int64_t b = 0; b < blocks; ++b)
    parts.emplace_back(t.slice(0, b * step + begin, b * step + begin + size));
  return autograd::concat(parts, 0).value();
}

}  // namespace

TEST_CASE("oracles: attention is Llama's and, in a window with norms, Gemma 3's") {
  compare("llama_attention", {"", "attention", "heads = 4\nkey_heads = 2\nhead_dim = 4", 12});
  const auto one_plus = [](const Named& in) {  // its norms multiply by 1 + weight
    Named out = in;
    for (auto& [name, t] : out) {
      const bool norm = name.find("norm") != std::string::npos;
      if (norm) t = t.clone();
      if (norm) t.add_from(full(t.shape(), 1, t.dtype()));
    }
    return out;
  };
  // The gradients of weights go through the same names, but not through 1 + weight.
  const MixerCase gemma{"", "attention",
                        "heads = 4\nkey_heads = 2\nhead_dim = 4\nwindow = 5\nqk_norm = true", 12};
  bool first = true;
  compare("gemma3_sliding_attention", gemma,
          [&](const Named& in) { return std::exchange(first, false) ? one_plus(in) : in; });
}

TEST_CASE("oracles: latent attention is DeepSeek-V3's, with queries of low rank and without") {
  const std::string sizes =
      "heads = 3\nhead_dim = 4\nshared_width = 6\nvalue_width = 5\nlatent_width = 7\n"
      "rotary_base = 100\nrotary_interleaved = true\n";
  compare("deepseek_v3_attention", {"", "latent_attention", sizes});
  compare("deepseek_v3_attention_query_rank", {"", "latent_attention", sizes + "query_rank = 5\n"});
}

TEST_CASE("oracles: native sparse attention is fla's") {
  const std::string sizes = "heads = 4\nkey_heads = 2\nhead_dim = 4\nblock = 4\n";
  compare("fla_nsa", {"", "nsa", sizes + "top_k = 4\nwindow = 5"});
  compare("fla_nsa_few_blocks", {"", "nsa", sizes + "top_k = 3\nwindow = 64"});
}

// The source has no projection behind its heads: ours is the identity, and its gradient follows.
TEST_CASE("oracles: a window with global tokens is Longformer's, each as the last of its text") {
  for (const int64_t leading : {1, 3}) {
    const std::string name = concat("longformer_", leading);
    const Hdf5Reader file(tests::source_path(concat("tests/oracles/layer_", name, ".h5")));
    const auto columns = [&](const char* tensor) {  // [12, tokens]
      return Var(file.tensor(tensor).reshape({-1, 12}).transpose(0, 1).contiguous());
    };
    bool weights = true;
    const MixerCase c{"", "token_sparse",
                      concat("heads = 3\nwindow = 5\nstride = 1\nrotary = false\nglobal_tokens = ",
                             leading, "\nglobal_projections = true")};
    compare(name, c, [&](const Named& in) {
      Named out;
      for (const char* part : {"query", "key", "value"})
        for (const char* global : {"", "_global"})
          out[concat(part[0], global, "_proj.weight")] =
              in.at(concat("attention.", part, global, ".weight"));
      Tensor o = product(columns("grad_outputs/dy"), columns("outputs/y")).value();
      if (std::exchange(weights, false)) {
        o = zeros({12, 12}, Dtype::f64);
        for (int64_t i = 0; i < 12; ++i) view<double>(o)(i, i) = 1;
      }
      out["o_proj.weight"] = o;
      return out;
    });
  }
}

TEST_CASE("oracles: attention and Mamba-2 side by side are the mixers of a Falcon-H1 block") {
  compare("falcon_h1",
          {"", "side_by_side",
           "parts = [\"mamba\", \"self_attn\"]\n"
           "[mamba]\ntype = \"mamba2\"\nhead_dim = 4\nstate = 3\ngroups = 2\n"
           "output_scale = 0.7\n[self_attn]\ntype = \"attention\"\nheads = 4\nkey_heads = 2\n"
           "input_scale = 0.5\noutput_scale = 1.5",
           8});
}

TEST_CASE("oracles: linear attention, retention and GLA are fla's") {
  compare("fla_linear_attention",
          {"", "linear_attention", "heads = 2\noutput_norm = true\neps = 1e-10", 12});
  compare("fla_retention", {"", "retention", "heads = 2", 8});
  compare("fla_gated_linear_attention", {"", "gated_linear", "heads = 2\ngate_rank = 3", 12});
}

TEST_CASE("oracles: linear transformer, cosFormer and fast weights are their quadratic forms") {
  compare("linear_transformer", {"", "linear_attention", "heads = 2"});
  compare("linear_transformer_relu",
          {"", "linear_attention", "heads = 2\nfeature_map = \"relu\"\neps = 1e-2"});
  Made cosine = made({"", "linear_attention", "heads = 2\nfeature_map = \"cosine\"\nhorizon = 40"},
                     Dtype::f64, kCpu, 40);
  compare("cosformer", *cosine.layer, cosine.parameters);
  compare("fast_weights", {"", "fast_weights", "heads = 2"});
}

TEST_CASE("oracles: Lightning attention is MiniMax's, in the first layer and in the last") {
  const int64_t H = 4, K = 3;
  for (const int64_t layer : {0, 1})
    compare(concat("minimax_lightning_", layer), {"", "lightning", "heads = 4", 12, layer},
            [&](const Named& in) {
              Named out = in;
              const Tensor qkv = in.at("qkv_proj.weight");
              out.erase("qkv_proj.weight");
              out["q_proj.weight"] = rows_of_blocks(qkv, H, 0, K);
              out["k_proj.weight"] = rows_of_blocks(qkv, H, K, K);
              out["v_proj.weight"] = rows_of_blocks(qkv, H, 2 * K, K);
              return out;
            });
}

TEST_CASE("oracles: HGRN2 is GLA under its own gates, with the bound of each layer") {
  for (const int64_t layer : {0, 1})  // of two: the second keeps at least a half
    compare(concat("fla_hgrn2_", layer), {"", "hgrn2", "heads = 2", 12, layer});
}

TEST_CASE("oracles: DeltaNet and Gated DeltaNet are fla's") {
  compare("fla_delta_net", {"", "delta", "heads = 2", 12});
  compare("fla_gated_delta_net",
          {"", "gated_delta", "heads = 2\nkey_width = 4\nvalue_width = 8", 12});
  compare(
      "fla_gated_delta_net_groups",
      {"", "gated_delta",
       "heads = 2\nkey_heads = 1\nkey_width = 4\nvalue_width = 4\nnegative_eigenvalues = true", 8});
}

TEST_CASE("oracles: Kimi Delta Attention is fla's") {
  compare("fla_kda", {"", "kda", "heads = 2\nkey_width = 4\nvalue_width = 6", 12});
  compare(
      "fla_kda_groups",
      {"", "kda",
       "heads = 2\nkey_heads = 1\nkey_width = 4\nvalue_width = 4\nnegative_eigenvalues = true", 8});
}

TEST_CASE("oracles: Gated DeltaNet is Qwen3-Next's, whose projections are fused by key head") {
  const int64_t Hk = 2, K = 4, V = 3, r = 2;
  compare("qwen3_next_gated_delta_net",
          {"", "gated_delta",
           "heads = 4\nkey_heads = 2\nkey_width = 4\nvalue_width = 3\nnorm_eps = 1e-6", 8},
          [&](const Named& in) {
            const Tensor qkvz = in.at("in_proj_qkvz.weight"), ba = in.at("in_proj_ba.weight");
            const Tensor conv = plain(in).at("conv1d.weight");
            return Named{{"q_proj.weight", rows_of_blocks(qkvz, Hk, 0, K)},
                         {"k_proj.weight", rows_of_blocks(qkvz, Hk, K, K)},
                         {"v_proj.weight", rows_of_blocks(qkvz, Hk, 2 * K, r * V)},
                         {"g_proj.weight", rows_of_blocks(qkvz, Hk, 2 * K + r * V, r * V)},
                         {"b_proj.weight", rows_of_blocks(ba, Hk, 0, r)},
                         {"a_proj.weight", rows_of_blocks(ba, Hk, r, r)},
                         {"q_conv1d.weight", conv.slice(0, 0, Hk * K)},
                         {"k_conv1d.weight", conv.slice(0, Hk * K, 2 * Hk * K)},
                         {"v_conv1d.weight", conv.slice(0, 2 * Hk * K, conv.size(0))},
                         {"A_log", in.at("A_log")},
                         {"dt_bias", in.at("dt_bias")},
                         {"o_norm.weight", in.at("norm.weight")},
                         {"o_proj.weight", in.at("out_proj.weight")}};
          });
}

TEST_CASE("oracles: the blocks of Mamba and Mamba-2 are those of transformers") {
  compare("mamba", {"", "mamba", "state = 3\ndt_rank = 2", 8});
  compare("mamba2", {"", "mamba2", "head_dim = 4\nstate = 3", 8});
  compare("mamba2_groups", {"", "mamba2", "head_dim = 4\nstate = 3\ngroups = 2", 8});
}

TEST_CASE("oracles: the mixture of experts is Mixtral's") {
  Spec spec;
  spec.width = 6;
  std::vector<Parameter> parameters;
  const auto moe = make_moe(spec, toml_from_text("experts = 4\ntop_k = 2\nwidth = 5", "moe"),
                            Builder(Dtype::f64, kCpu, 1, &parameters));
  compare("mixtral_moe", *moe, parameters, [](const Named& in) {
    const Tensor both = in.at("experts.gate_up_proj");
    return Named{{"router.weight", in.at("gate.weight")},
                 {"experts.gate_proj", both.slice(1, 0, 5)},
                 {"experts.up_proj", both.slice(1, 5, 10)},
                 {"experts.down_proj", in.at("experts.down_proj")}};
  });
}
