// A key that config.json does not have means what transformers and fla mean by that. The standards
// are those of the configuration classes of transformers 5.24 and of fla 0.6.
#include <functional>

#include "core/error.h"
#include "tests/catch.h"
#include "tests/paths.h"
#include "train/exchange/architecture.h"
#include "train/exchange/draft.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;

namespace {

// The recipe that the config of a model of hub/ means after `change`.
std::string meaning(const std::string& model, const std::function<void(Json&)>& change) {
  Json c = read_config(source_path("tests/oracles/hub/" + model)).all();
  change(c);
  const Config config(c, model);
  return recipe_of(draft_of(config, architecture_of(config)), "f64");
}

struct Standard {
  const char *models, *key;  // models with a space between two
  Json value;
};

const std::vector<Standard>& standards() {
  static const std::vector<Standard> all = {
      {"llama mistral qwen2 qwen3 gemma3_text granite qwen2_moe qwen3_moe jamba qwen3_next",
       "rms_norm_eps", 1e-6},
      {"olmo2 mixtral olmoe minimax", "rms_norm_eps", 1e-5},
      {"olmo_hybrid", "rms_norm_eps", 1e-6},
      {"cohere2", "layer_norm_eps", 1e-5},
      {"gpt2 mamba mamba2", "layer_norm_epsilon", 1e-5},
      {"llama mistral qwen2 qwen3 granite olmo2 mixtral qwen2_moe qwen3_moe olmoe mamba2 jamba "
       "minimax qwen3_next olmo_hybrid delta_net gated_deltanet kda gla retnet hgrn2 linear_attn",
       "tie_word_embeddings", false},
      {"gemma3_text gpt2 cohere2 mamba", "tie_word_embeddings", true},
      {"llama mistral qwen2 gemma3_text gpt2 mixtral jamba gla", "initializer_range", 0.02},
      {"llama granite olmo2 delta_net gla", "max_position_embeddings", 2048},
      {"gpt2", "n_positions", 1024},
      {"llama qwen3 gemma3_text granite olmo2 cohere2 qwen3_moe olmoe qwen3_next olmo_hybrid",
       "attention_bias", false},
      {"llama granite", "mlp_bias", false},
      {"llama mistral qwen2 granite olmo2 cohere2", "hidden_act", "silu"},
      {"gemma3_text", "hidden_activation", "gelu_pytorch_tanh"},
      {"gpt2", "activation_function", "gelu_new"},
      {"gpt2", "n_inner", 32},  // four times the width
      {"qwen2 qwen3", "use_sliding_window", false},
      {"gemma3_text", "query_pre_attn_scalar", 256},
      {"gemma3_text", "final_logit_softcapping", nullptr},
      {"cohere2", "logit_scale", 0.0625},
      {"granite", "embedding_multiplier", 1},
      {"granite", "residual_multiplier", 1},
      {"granite", "attention_multiplier", 1},
      {"granite", "logits_scaling", 1},
      {"qwen2_moe", "qkv_bias", true},
      {"qwen2_moe qwen3_moe olmoe", "norm_topk_prob", false},
      {"qwen3_next_moe", "norm_topk_prob", true},
      {"qwen2_moe qwen3_moe qwen3_next_moe", "decoder_sparse_step", 1},
      {"mixtral jamba minimax", "num_experts_per_tok", 2},
      {"mixtral qwen2_moe qwen3_moe jamba minimax qwen3_next_moe", "router_aux_loss_coef", 0.001},
      {"olmoe", "router_aux_loss_coef", 0.01},
      {"mamba mamba2", "expand", 2},
      {"mamba mamba2", "conv_kernel", 4},
      {"mamba", "time_step_rank", 1},  // a sixteenth of the width, rounded up
      {"mamba2", "n_groups", 8},
      {"jamba", "attn_layer_period", 8},
      {"jamba", "attn_layer_offset", 4},
      {"jamba", "expert_layer_period", 2},
      {"jamba", "expert_layer_offset", 1},
      {"jamba", "mamba_d_state", 16},
      {"jamba", "mamba_d_conv", 4},
      {"jamba", "mamba_expand", 2},
      {"jamba", "mamba_dt_rank", 1},
      {"qwen3_next olmo_hybrid", "linear_conv_kernel_dim", 4},
      {"olmo_hybrid", "linear_allow_neg_eigval", true},
      {"delta_net gated_deltanet kda gla retnet hgrn2 linear_attn", "norm_eps", 1e-6},
      {"delta_net gated_deltanet kda", "use_short_conv", true},
      {"delta_net gated_deltanet kda", "conv_size", 4},
      {"delta_net gated_deltanet kda", "allow_neg_eigval", false},
      {"delta_net", "use_gate", false},
      {"gated_deltanet", "use_gate", true},
      {"delta_net", "expand_k", 1},
      {"delta_net", "expand_v", 1},
      {"gated_deltanet", "expand_v", 2},
      {"kda", "expand_v", 1},
      {"gla", "expand_k", 0.5},
      {"gla", "expand_v", 1},
      {"retnet", "expand_k", 1},
      {"retnet", "expand_v", 2},
      {"linear_attn", "expand_k", 1},
      {"linear_attn", "expand_v", 1}};
  return all;
}

std::vector<std::string> words(const std::string& text) {
  std::vector<std::string> all{""};
  for (const char c : text) {
    if (c != ' ')
      all.back() += c;
    else if (!all.back().empty())
      all.emplace_back();
  }
  return all;
}

Json turns(double base) { return {{"rope_type", "default"}, {"rope_theta", base}}; }

}  // namespace

TEST_CASE("import: a key that is absent means what its own library means by it") {
  for (const Standard& s : standards())
    for (const std::string& model : words(s.models)) {
      INFO(model << ": " << s.key);
      const std::string given = meaning(model, [&](Json& c) { c[s.key] = s.value; });
      CHECK(meaning(model, [&](Json& c) { c.erase(s.key); }) == given);
      CHECK(meaning(model, [&](Json& c) { c[s.key] = nullptr; }) == given);
    }
}

TEST_CASE("import: without num_key_value_heads each head has keys of its own") {
  for (const char* model : {"llama", "qwen2", "gemma3_text", "olmo2", "mixtral", "jamba"}) {
    INFO(model);
    CHECK(meaning(model, [](Json& c) { c.erase("num_key_value_heads"); }) ==
          meaning(model, [](Json& c) { c["num_key_value_heads"] = c["num_attention_heads"]; }));
    if (std::string(model) == "jamba") continue;  // it has no head_dim
    CHECK(meaning(model, [](Json& c) { c.erase("head_dim"); }) == meaning(model, [](Json& c) {
            c["head_dim"] = c["hidden_size"].get<int>() / c["num_attention_heads"].get<int>();
          }));
  }
}

TEST_CASE("import: without positions in the file they are those of the format") {
  const auto bare = [](Json& c) {
    for (const char* key : {"rope_parameters", "rope_theta", "rope_scaling"}) c.erase(key);
  };
  const std::vector<std::pair<const char*, double>> bases = {
      {"llama", 1e4},   {"mistral", 1e4},   {"qwen2", 1e4},    {"qwen3", 1e4},
      {"cohere2", 1e4}, {"granite", 1e4},   {"olmo2", 1e4},    {"olmoe", 1e4},
      {"mixtral", 1e6}, {"qwen2_moe", 1e4}, {"qwen3_moe", 1e4}};
  for (const auto& [model, base] : bases) {
    INFO(model);
    CHECK(meaning(model, bare) == meaning(model, [&, b = base](Json& c) {
            bare(c);
            c["rope_parameters"] = turns(b);
          }));
    CHECK(meaning(model, bare) == meaning(model, [&, b = base](Json& c) {
            bare(c);
            c["rope_theta"] = b;
          }));
  }
  // Gemma 3 has two kinds, Qwen3-Next turns a quarter of a head.
  CHECK(
      meaning("gemma3_text", bare) == meaning("gemma3_text", [](Json& c) {
        c["rope_parameters"] = {{"sliding_attention", turns(1e4)}, {"full_attention", turns(1e6)}};
      }));
  CHECK(meaning("qwen3_next", bare) == meaning("qwen3_next", [](Json& c) {
          c["rope_parameters"] = turns(1e4);
          c["rope_parameters"]["partial_rotary_factor"] = 0.25;
        }));
}

TEST_CASE("import: what YaRN's table does not say is what its paper and transformers take for it") {
  const auto with = [](const char* key, const Json& value) {
    return meaning("llama_yarn", [&](Json& c) { c["rope_parameters"][key] = value; });
  };
  const std::string bare = meaning("llama_yarn", [](Json&) {});
  const std::vector<std::tuple<const char*, Json, Json>> standards = {
      {"beta_slow", 1, 2}, {"beta_fast", 32, 16}, {"truncate", true, false}};
  for (const auto& [key, standard, other] : standards) {
    INFO(key);
    CHECK(with(key, standard) == bare);
    CHECK(with(key, other) != bare);
  }
}

TEST_CASE("import: without layer_types the kinds of layers follow from the older keys") {
  const auto types = [](const std::string& pattern) {
    Json all = Json::array();
    for (const char c : pattern)
      all.push_back(c == 's'   ? "sliding_attention"
                    : c == 'l' ? "linear_attention"
                               : "full_attention");
    return all;
  };
  struct Case {
    const char *model, *key;
    int value;  // 0: absent
    const char* pattern;
  };
  const std::vector<Case> cases = {{"gemma3_text", "sliding_window_pattern", 0, "sssssfsss"},
                                   {"gemma3_text", "sliding_window_pattern", 3, "ssfssfssf"},
                                   {"cohere2", "sliding_window_pattern", 0, "sssfsssfs"},
                                   {"cohere2", "sliding_window_pattern", 2, "sfsfsfsfs"},
                                   {"cohere2", "layer_switch", 3, "ssfssfssf"},
                                   {"qwen2", "max_window_layers", 4, "ffffsssss"},
                                   {"qwen2", "max_window_layers", 0, "fffffffff"},
                                   {"minimax", "attn_type_list", 0, "flflflflf"},
                                   {"qwen3_next", "full_attention_interval", 0, "lllflllfl"},
                                   {"qwen3_next", "full_attention_interval", 3, "llfllfllf"},
                                   {"olmo_hybrid", "layer_types", 0, "lllflllfl"}};
  for (const Case& one : cases) {
    INFO(one.model << ", " << one.key << " = " << one.value);
    const auto with = [&](const Json& list) {
      return meaning(one.model, [&](Json& c) {
        c["num_hidden_layers"] = 9;
        c["layer_types"] = list;
        if (one.value == 0)
          c.erase(one.key);
        else
          c[one.key] = one.value;
      });
    };
    const std::string given = with(types(one.pattern));
    if (std::string(one.key) == "layer_types")
      CHECK(with(Json()) == meaning(one.model, [&](Json& c) {
              c["num_hidden_layers"] = 9;
              c["layer_types"] = types(one.pattern);
            }));
    else
      CHECK(with(Json()) == given);
  }
}

TEST_CASE("export: numbers differ unless it is in their last bits, however small they are") {
  const auto apart = [](double a, double b) {
    Draft one, other;
    one.model["norm_eps"] = a;
    other.model["norm_eps"] = b;
    return differences(one, other).size();
  };
  for (const double size : {1e-12, 1e-6, 1.0, 1e6}) {
    CHECK(apart(size, size) == 0);
    CHECK(apart(size / 3, size * (1 / 3.0)) == 0);
    CHECK(apart(size, size * 10) == 1);
    CHECK(apart(size, size * (1 + 1e-9)) == 1);
  }
  CHECK(apart(0, 1e-12) == 1);
}
