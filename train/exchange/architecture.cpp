#include "train/exchange/architecture.h"

#include <algorithm>
#include <cstdio>

#include "core/text.h"

namespace weft::train {
namespace {

std::vector<Architecture>& list() {
  static std::vector<Architecture> all;
  return all;
}

// What says nothing of the mathematics.
const std::vector<std::string> kNoMatter = {"architectures",
                                            "model_type",
                                            "transformers_version",
                                            "torch_dtype",
                                            "dtype",
                                            "use_cache",
                                            "bos_token_id",
                                            "eos_token_id",
                                            "pad_token_id",
                                            "pretraining_tp",
                                            "_name_or_path",
                                            "_attn_implementation",
                                            "auto_map",
                                            "output_attentions",
                                            "output_hidden_states",
                                            "output_router_logits",
                                            "return_dict",
                                            "chunk_size_feed_forward",
                                            "id2label",
                                            "label2id",
                                            "problem_type",
                                            "cache_implementation",
                                            "task_specific_params",
                                            "tie_encoder_decoder",
                                            "tokenizer_class",
                                            "unsloth_version",
                                            "keys_to_ignore_at_inference"};

void tell_unread(const Config& c) {
  const std::vector<std::string> rest = c.unread();
  if (!rest.empty())
    std::fprintf(stderr, "%s: keys that are not known here were left out: %s\n", c.where().c_str(),
                 joined(rest).c_str());
}

}  // namespace

RegisteredArchitecture::RegisteredArchitecture(Architecture a) { list().push_back(std::move(a)); }

std::vector<const Architecture*> architectures() {
  std::vector<const Architecture*> all;
  for (const Architecture& a : list()) all.push_back(&a);
  std::sort(all.begin(), all.end(), [](const Architecture* a, const Architecture* b) {
    return std::pair(a->order, a->type) < std::pair(b->order, b->type);
  });
  return all;
}

std::vector<std::string> architecture_names() {
  std::vector<std::string> names;
  for (const Architecture* a : architectures()) names.push_back(a->type);
  return names;
}

const Architecture& architecture(const std::string& type) {
  for (const Architecture& a : list())
    if (a.type == type) return a;
  fail(unknown_name("architecture", type, architecture_names()));
}

const Architecture& architecture_of(const Config& config) {
  const std::string type = config.text("model_type", "");
  std::vector<std::string> classes;
  if (config.has("architectures")) classes = config.texts("architectures");
  for (const Architecture& a : list())
    if (a.type == type || (type.empty() && contains(classes, a.class_name))) return a;
  if (type.empty())
    fail(config.where(),
         ": neither model_type nor architectures names a model that is known here; "
         "known: ",
         joined(architecture_names()));
  fail(config.where(), ": ", unknown_name("model_type", type, architecture_names()));
}

Draft draft_of(const Config& config, const Architecture& a) {
  Draft d;
  d.name = a.type;
  config.ignore(kNoMatter);
  const Keys k = Keys::reading(config, d);
  k.fixed("quantization_config", Json(), "quantised weights are not read");
  k.fixed("is_encoder_decoder", false, "a model here is a decoder");
  k.fixed("add_cross_attention", false, "a model here is a decoder");
  a.keys(k);
  tell_unread(config);
  return d;
}

Json config_of(const Draft& draft, const Architecture& a) {
  Json config = {{"architectures", {a.class_name}}, {"model_type", a.type}};
  // Those of a class may lie outside the vocabulary, and a recipe knows none.
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) config[key] = nullptr;
  Draft copy = draft;
  a.keys(Keys::writing(config, copy));
  return config;
}

std::string inexpressible(const Draft& draft, const Architecture& a) {
  try {
    const Json config = config_of(draft, a);
    const Draft again = draft_of(Config(config, a.type), a);
    const TomlTable recipe = toml_from_text(recipe_of(again, "f32"), a.type);
    const layers::Model model(recipe, draft.vocabulary, Dtype::f32, kMeta, 1);
    const std::vector<Difference> all = differences(draft, draft_of(recipe, model));
    if (all.empty()) return "";
    return concat(all[0].key, " is ", all[0].one, "; the format has ", all[0].other);
  } catch (const Error& e) {
    return e.what();
  } catch (const nlohmann::json::exception& e) {
    return e.what();
  }
}

}  // namespace weft::train
