// Whole released models against those of transformers, in fp64: logits, loss and the gradients of
// every weight (tests/oracles/make_models.py). The recipes are those of recipes/ in small sizes.
#include "layers/model.h"
#include "tests/catch.h"
#include "tests/layers/made.h"
#include "tests/layers/oracle_weights.h"
#include "tests/paths.h"

using namespace weft;
using namespace weft::layers;

namespace {

using Names = std::vector<std::pair<std::string, std::string>>;  // a part of a name, and ours

// What most models of transformers call their parts.
const Names kUsual = {{"model.embed_tokens.weight", "embedding.weight"},
                      {"lm_head.weight", "head.weight"},
                      {"model.", ""},
                      {"self_attn.", "mixer."},
                      {"input_layernorm", "mixer_norm"},
                      {"post_attention_layernorm", "mlp_norm"}};
// Norms after the parts, as Gemma and OLMo name them.
const Names kAfter = {{"post_attention_layernorm", "mixer_post_norm"},
                      {"pre_feedforward_layernorm", "mlp_norm"},
                      {"post_feedforward_layernorm", "mlp_post_norm"}};

std::string renamed(std::string name, const Names& names) {
  for (const auto& [from, to] : names)
    if (const size_t at = name.find(from); at != std::string::npos)
      name.replace(at, from.size(), to);
  return name;
}

// The names of `names` first, then the usual ones; experts' gates and ups apart.
Rename usual(const Names& names = {}) {
  return [names](const Named& in) {
    Named out;
    for (const auto& [name, t] : plain(in)) {
      const std::string ours = renamed(renamed(name, names), kUsual);
      const size_t both = ours.find("gate_up_proj");
      if (both == std::string::npos) {
        out[ours] = t;
        continue;
      }
      const int64_t F = t.size(1) / 2;
      out[ours.substr(0, both) + "gate_proj"] = t.slice(1, 0, F).contiguous();
      out[ours.substr(0, both) + "up_proj"] = t.slice(1, F, 2 * F).contiguous();
    }
    return out;
  };
}

// GPT-2's matrices are [in, out], and q, k and v are one.
Named gpt2(const Named& in) {
  const Names names = {{"transformer.wte.weight", "embedding.weight"},
                       {"transformer.wpe.weight", "positions.weight"},
                       {"transformer.ln_f", "norm"},
                       {"transformer.h.", "layers."},
                       {"ln_1", "mixer_norm"},
                       {"ln_2", "mlp_norm"},
                       {"attn.c_proj", "mixer.o_proj"},
                       {"mlp.c_fc", "mlp.fc1"},
                       {"mlp.c_proj", "mlp.fc2"}};
  Named out;
  for (const auto& [name, given] : in) {
    const bool matrix = name.find(".c_") != std::string::npos && given.dims() == 2;
    const Tensor t = matrix ? given.transpose(0, 1).contiguous() : given;
    const std::string ours = renamed(name, names), fused = "attn.c_attn.";
    const size_t at = ours.find(fused);
    if (at == std::string::npos) {
      out[ours] = t;
      continue;
    }
    const int64_t D = t.size(0) / 3;
    for (int64_t i = 0; i < 3; ++i)
      out[concat(ours.substr(0, at), "mixer.", "qkv"[i], "_proj.",
                 ours.substr(at + fused.size()))] = t.slice(0, i * D, (i + 1) * D).contiguous();
  }
  return out;
}

// OLMo-Hybrid: norms before the parts of its first layer, after those of the second; q, k and v of
// widths 8, 8 and 12 in one convolution.
Named olmo_hybrid(const Named& in) {
  Named rest = plain(in), first, out;
  for (const auto& [name, t] : rest)
    if (name.starts_with("model.layers.0.")) first[name] = t;
  for (const auto& [name, t] : first) rest.erase(name);
  out = usual(kAfter)(rest);
  for (const auto& [name, t] : usual({{"linear_attn.", "mixer."}})(first)) {
    const size_t conv = name.find("conv1d.");
    if (conv == std::string::npos) {
      out[name] = t;
      continue;
    }
    int64_t begin = 0;
    for (const auto& [part, channels] : {std::pair{"q_", 8}, {"k_", 8}, {"v_", 12}}) {
      out[name.substr(0, conv) + part + name.substr(conv)] =
          t.slice(0, begin, begin + channels).contiguous();
      begin += channels;
    }
  }
  return out;
}

// Qwen3-Next: one key head of width 4, two value heads of width 3, projections fused.
Named qwen3_next(const Named& in) {
  Named rest = in, out;
  const std::string from = "model.layers.0.linear_attn.", to = "layers.0.mixer.";
  const auto take = [&](const char* name) {
    const Tensor t = plain(rest).at(from + name);
    rest.erase(from + name);
    return t;
  };
  const Tensor qkvz = take("in_proj_qkvz.weight"), ba = take("in_proj_ba.weight");
  const Tensor conv = take("conv1d.weight");
  const auto rows = [](const Tensor& t, int64_t begin, int64_t end) {
    return t.slice(0, begin, end).contiguous();
  };
  out = {{to + "q_proj.weight", rows(qkvz, 0, 4)},
         {to + "k_proj.weight", rows(qkvz, 4, 8)},
         {to + "v_proj.weight", rows(qkvz, 8, 14)},
         {to + "g_proj.weight", rows(qkvz, 14, 20)},
         {to + "b_proj.weight", rows(ba, 0, 2)},
         {to + "a_proj.weight", rows(ba, 2, 4)},
         {to + "q_conv1d.weight", rows(conv, 0, 4)},
         {to + "k_conv1d.weight", rows(conv, 4, 8)},
         {to + "v_conv1d.weight", rows(conv, 8, 14)},
         {to + "A_log", take("A_log")},
         {to + "dt_bias", take("dt_bias")},
         {to + "o_norm.weight", take("norm.weight")},
         {to + "o_proj.weight", take("out_proj.weight")}};
  out.merge(usual()(rest));
  return out;
}

void compare(const std::string& name, const std::string& recipe, const Rename& ours = usual()) {
  INFO(name);
  const Hdf5Reader file(tests::source_path(concat("tests/oracles/model_", name, ".h5")));
  const Tensor tokens = file.tensor("inputs/tokens"), logits = file.tensor("outputs/logits");
  const Model m(toml_from_text(recipe, name), logits.size(2), Dtype::f64, kCpu, 1);
  Named weights = ours(group_of(file, "weights"));
  for (const Parameter& p : m.parameters()) {
    INFO(p.name);
    REQUIRE(weights.count(p.name) == 1);
    REQUIRE(weights[p.name].shape() == p.var.shape());
    p.var.value().copy_from(weights[p.name]);
    weights.erase(p.name);
  }
  CHECK(weights.empty());
  CHECK(distance(m.logits(tokens), logits) < 1e-10);
  const Loss loss = m.loss({tokens, file.tensor("inputs/targets"), {}});
  CHECK(loss.cross_entropy.item() == Approx(file.tensor("outputs/loss").item()).epsilon(1e-12));
  autograd::backward(loss.total);
  Named gradients;
  for (const auto& [key, t] : group_of(file, "gradients")) gradients[key.substr(1)] = t;
  gradients = ours(gradients);
  for (const Parameter& p : m.parameters()) {
    INFO(p.name);
    // That of a bias of keys is zero: a softmax does not see it.
    CHECK(tests::gap(p.var.grad(), gradients.at(p.name)).relative(/*least=*/1e-3) < 1e-9);
  }
}

// The outer table of a model of width 8 for the 13 tokens of an oracle.
std::string sized(int64_t layers, const std::string& pattern, const std::string& more,
                  const std::string& tables) {
  return concat("[model]\nwidth = 8\ncontext = 13\nlayers = ", layers, "\npattern = ", pattern,
                "\n", more, "\n", tables);
}

std::string llama(const std::string& rotary) {
  return sized(
      2, "[\"attention\"]", "tied_embeddings = false\nnorm_eps = 1e-5",
      "[attention]\nheads = 2\nkey_heads = 1\nhead_dim = 8\n" + rotary + "\n[mlp]\nwidth = 12\n");
}

}  // namespace

TEST_CASE("released: Llama is transformers', plain and with its own scaling of positions") {
  compare("llama", llama("rotary_base = 500"));
  compare("llama3_scaling", llama("rotary_base = 100\nrotary_scaling = \"llama3\"\n"
                                  "rotary_factor = 8\nrotary_context = 16"));
}

TEST_CASE("released: YaRN is transformers', its ramp rounded or not") {
  const std::string yarn =
      "rotary_base = 20\nrotary_scaling = \"yarn\"\nrotary_factor = 4\nrotary_context = 16\n";
  compare("llama_yarn", llama(yarn));
  compare("llama_yarn_between", llama(yarn + "rotary_fast = 2\nrotary_slow = 0.5\n"
                                             "rotary_truncate = false\nrotary_magnitude = 1.3"));
}

TEST_CASE("released: GPT-2 is transformers', biases included") {
  compare("gpt2",
          sized(2, "[\"attention\"]",
                "norm = \"layer\"\nnorm_bias = true\nmlp = \"gelu_tanh\"\npositions = \"learned\"",
                "[attention]\nheads = 2\nrotary = false\nbias = true\n[mlp]\nbias = true\n"),
          gpt2);
}

TEST_CASE("released: Jamba is transformers', its experts' weights not adding up to one") {
  compare("jamba",
          sized(6, "[\"mamba*2\", \"attention\", \"mamba\"]",
                "mlp = [\"swiglu\", \"moe\"]\ntied_embeddings = false",
                "[mamba]\nstate = 3\ndt_rank = 2\ninner_norms = true\n"
                "[attention]\nheads = 2\nkey_heads = 1\nrotary = false\n"
                "[mlp]\nwidth = 6\n"
                "[moe]\nexperts = 3\nwidth = 6\nnormalize = false\nbalance_loss = 0\nz_loss = 0\n"),
          usual({{"final_layernorm", "norm"},
                 {"pre_ff_layernorm", "mlp_norm"},
                 {"feed_forward.", "mlp."},
                 {"mamba.", "mixer."}}));
}

TEST_CASE("released: Gemma 3 is transformers'") {
  const std::string table =
      "type = \"attention\"\nheads = 2\nkey_heads = 1\nhead_dim = 6\n"
      "qk_norm = true\nscale = 0.4472135954999579\n";
  compare("gemma3",
          sized(6, "[\"local*5\", \"global\"]",
                "norm_position = \"both\"\nnorm_plus_one = true\nmlp = \"geglu\"\n"
                "embedding_scale = true",
                "[local]\n" + table + "window = 4\nrotary_base = 10\n[global]\n" + table +
                    "rotary_base = 100\nrotary_scaling = \"linear\"\nrotary_factor = 8\n"
                    "[mlp]\nwidth = 12\n"),
          usual(kAfter));
}

TEST_CASE("released: Command A's Cohere 2 is transformers'") {
  const std::string table = "type = \"attention\"\nheads = 2\nkey_heads = 1\nhead_dim = 6\n";
  compare("cohere2", sized(4, "[\"local*3\", \"global\"]",
                           "norm = \"layer\"\nparallel = true\nlogit_scale = 0.25",
                           "[local]\n" + table +
                               "window = 4\nrotary_base = 50\nrotary_interleaved = true\n"
                               "[global]\n" +
                               table + "rotary = false\n[mlp]\nwidth = 12\n"));
}

TEST_CASE("released: Granite, with a factor on every path, is transformers'") {
  compare("granite", sized(2, "[\"attention\"]",
                           "embedding_scale = 12.0\nlogit_scale = 0.25\nbranch_scale = 0.22",
                           "[attention]\nheads = 2\nkey_heads = 1\nscale = 0.3\nrotary_base = 50\n"
                           "[mlp]\nwidth = 12\n"));
}

TEST_CASE("released: MiniMax, whose residual is the normalised one, is transformers'") {
  compare("minimax",
          sized(2, "[\"attention\"]",
                "norm_position = \"residual\"\nskip_scale = 3.5\nbranch_scale = 0.75\n"
                "mlp = \"moe\"\ntied_embeddings = false\nnorm_eps = 1e-5",
                "[attention]\nheads = 2\nkey_heads = 1\nrotary_base = 50\n"
                "[moe]\nexperts = 3\nwidth = 6\nbalance_loss = 0\nz_loss = 0\n"),
          usual({{"mlp.gate.", "mlp.router."}}));
}

TEST_CASE("released: OLMo 2, with norms after its parts and over all heads, is transformers'") {
  compare("olmo2",
          sized(2, "[\"attention\"]",
                "norm_position = \"post\"\ntied_embeddings = false\nnorm_eps = 1e-5",
                "[attention]\nheads = 2\nkey_heads = 1\nrotary_base = 50\nqk_norm = true\n"
                "qk_norm_whole = true\n[mlp]\nwidth = 12\n"),
          usual(kAfter));
}

TEST_CASE(
    "released: OLMo-Hybrid, whose layers differ in the place of their norms, is transformers'") {
  compare("olmo_hybrid",
          sized(2, "[\"gated_delta\", \"attention\"]",
                "norm_position = [\"pre\", \"post\"]\ntied_embeddings = false",
                "[gated_delta]\nheads = 2\nkey_width = 4\nvalue_width = 6\n"
                "negative_eigenvalues = true\n"
                "[attention]\nheads = 2\nkey_heads = 1\nrotary = false\nqk_norm = true\n"
                "qk_norm_whole = true\n[mlp]\nwidth = 12\n"),
          olmo_hybrid);
}

TEST_CASE("released: Qwen3-Next, gated attention after Gated DeltaNet, is transformers'") {
  compare(
      "qwen3_next",
      sized(2, "[\"gated_delta\", \"attention\"]", "norm_plus_one = true\ntied_embeddings = false",
            "[gated_delta]\nheads = 2\nkey_heads = 1\nkey_width = 4\nvalue_width = 3\n"
            "norm_eps = 1e-6\n"
            "[attention]\nheads = 2\nkey_heads = 1\nhead_dim = 8\nqk_norm = true\n"
            "output_gate = true\nrotary_fraction = 0.25\nrotary_base = 50\n"
            "[mlp]\nwidth = 12\n"),
      qwen3_next);
}
