#include "train/same_recipe.h"

#include <algorithm>
#include <map>
#include <utility>

#include "core/text.h"
#include "layers/model.h"
#include "train/source.h"

namespace weft::train {
namespace {

// What is not compared, set to what every version of the program reads. The device is that of this
// machine, which need not have what the checkpoint's had.
std::vector<std::string> left_out(const RunSettings& ours) {
  std::vector<std::string> all = {
      "name=none",          "train.steps=1",           "train.log_every=1",
      "train.eval_every=0", "train.eval_batches=1",    "train.checkpoint_every=0",
      "train.keep=1",       "train.out=none",          "train.device=cpu",
      "train.dtype=f32",    "train.safetensors=false", "model.recompute=false",
      "sample={}"};
  if (!ours.device.is_cuda() || ours.dtype != Dtype::f32) all.push_back("train.tf32=false");
  return all;
}

// Two recipes' values for one key.
struct Fact {
  std::string key;  // as messages name it
  std::string text;
  bool given = false;
};
using Facts = std::map<std::string, Fact>;

// What a run reads of a recipe.
struct Reading {
  layers::LayerNames layers;
  std::string pattern, mlp, norms, data;  // as written
  Facts facts;
};

using Values = std::map<std::string, TomlValue>;

// A key that is read, but does nothing beside another key of its table.
bool has_effect(const Values& values, const std::string& key) {
  struct Rule {
    std::string key, other;
    std::vector<std::string> effective;  // values of the other key
  };
  static const std::vector<Rule> rules = {{"decay", "type", {"\"wsd\""}},
                                          {"final", "type", {"\"cosine\"", "\"wsd\""}},
                                          {"method", "tokenizer", {"\"sentencepiece\""}},
                                          {"rotary_base", "rotary", {"true"}}};
  const size_t dot = key.rfind('.') + 1;  // 0 where there is none
  for (const Rule& rule : rules) {
    if (key.substr(dot) != rule.key) continue;
    const auto other = values.find(key.substr(0, dot) + rule.other);
    if (other != values.end() && !contains(rule.effective, other->second.text)) return false;
  }
  return true;
}

// The keys of a table with their values, each under `prefix` in place of the table's name.
void put(const Values& values, const std::string& table, const std::string& prefix, Facts& facts) {
  const std::string start = table + ".";
  for (auto at = values.lower_bound(start); at != values.end() && at->first.starts_with(start);
       ++at)
    if (has_effect(values, at->first))
      facts[prefix + at->first.substr(table.size())] = {at->first, at->second.text,
                                                        at->second.given};
}

std::string text_of(const Values& values, const std::string& key) {
  const auto found = values.find(key);
  return found == values.end() ? "absent" : found->second.text;
}

// The readers of a run read the recipe; what they took is what it means.
Reading read(const std::string& text, const std::string& name,
             const std::vector<std::string>& settings, int64_t vocabulary) {
  const Recipe recipe = recipe_from_text(text, name, settings);
  const DataSettings data = read_data(recipe.toml);
  const layers::Model plan(recipe.toml, vocabulary, Dtype::f32, kMeta, recipe.train.seed);
  Reading r;
  r.layers = layers::layer_names(recipe.toml);
  const Values values = recipe.toml.values();
  r.pattern = text_of(values, "model.pattern");
  r.mlp = text_of(values, "model.mlp");
  r.norms = text_of(values, "model.norm_position");
  r.data = text_of(values, data.is_task                           ? "data.task"
                           : data::is_token_dataset(data.sources) ? "data.dataset"
                                                                  : "data.source");
  if (!data.domains.empty()) r.data = "";
  for (const data::DomainSources& domain : data.domains)
    r.data += concat(r.data.empty() ? "" : ", ", domain.name, " = ",
                     text_of(values, "domains." + domain.name));
  for (const char* table :
       {"model", "mlp", "moe", "train", "optimizer", "schedule", "data", "distill"})
    put(values, table, table, r.facts);
  for (const char* compared_apart : {"model.pattern", "model.mlp", "model.norm_position",
                                     "data.source", "data.dataset", "distill.teacher"})
    r.facts.erase(compared_apart);
  // The name of a mixer's table has no effect, so its keys stand under the layer.
  for (size_t i = 0; i < r.layers.mixers.size(); ++i)
    put(values, r.layers.mixers[i], concat("layer ", i), r.facts);
  return r;
}

// A dataset was cut and made into tokens before, so it has no keys for that. Its vocabulary may be
// its own, and the shapes of the parameters tell whether that is the same.
void leave_out_text_keys(Reading& a, Reading& b) {
  const auto is_task = [](const Reading& r) { return r.facts.count("data.task") > 0; };
  const auto is_text = [](const Reading& r) { return r.facts.count("data.tokenizer") > 0; };
  if (is_task(a) || is_task(b) || (is_text(a) && is_text(b))) return;
  for (Reading* r : {&a, &b})
    for (const char* key :
         {"data.vocabulary", "data.tokenizer", "data.method", "data.document", "data.field"})
      r->facts.erase(key);
}

// What says nothing of the logits for given parameters.
void leave_out_training(Reading& r) {
  static const std::vector<std::string> tables = {"train.", "optimizer.", "schedule.", "data.",
                                                  "distill."},
                                        keys = {"model.context", "model.init", "model.z_loss",
                                                "moe.balance_loss", "moe.z_loss"};
  std::erase_if(r.facts, [](const auto& fact) {
    return contains(keys, fact.first) ||
           std::any_of(tables.begin(), tables.end(),
                       [&](const std::string& table) { return fact.first.starts_with(table); });
  });
}

class Comparison {
 public:
  Comparison(const std::string& checkpoint, Reading there, Reading here, std::string advice)
      : checkpoint_(checkpoint),
        there_(std::move(there)),
        here_(std::move(here)),
        advice_(std::move(advice)) {
    leave_out_text_keys(there_, here_);
  }

  // Keys that a recipe gives come first: standards often follow from them.
  void require_equal(bool same_data) const {
    require_equal_layers();
    for (const bool given : {true, false}) {
      require_equal_in(there_, here_, given, /*swapped=*/false);
      require_equal_in(here_, there_, given, /*swapped=*/true);
    }
    if (!same_data && there_.data != here_.data)
      differ("data.source", there_.data, concat(here_.data, ", which holds other data,"));
  }

 private:
  [[noreturn]] void differ(const std::string& key, const std::string& there,
                           const std::string& here) const {
    fail(checkpoint_, ": the checkpoint is of another recipe: ", key, " is ", there, " there and ",
         here, " here; ", advice_);
  }

  void require_equal_layers() const {
    const layers::LayerNames &there = there_.layers, &here = here_.layers;
    if (there.mixers.size() != here.mixers.size())
      differ("model.layers", concat(there.mixers.size()), concat(here.mixers.size()));
    if (there.mlps != here.mlps) differ("model.mlp", there_.mlp, here_.mlp);
    if (there.norms != here.norms) differ("model.norm_position", there_.norms, here_.norms);
    for (size_t i = 0; i < here.mixers.size(); ++i) {
      const std::string type = concat("layer ", i, ".type");
      const Fact &a = there_.facts.at(type), &b = here_.facts.at(type);
      if (a.text == b.text) continue;
      if (there_.pattern == here_.pattern) differ(b.key, a.text, b.text);
      differ("model.pattern", there_.pattern, here_.pattern);
    }
  }

  void require_equal_in(const Reading& one, const Reading& other, bool given, bool swapped) const {
    for (const auto& [id, fact] : one.facts) {
      const auto found = other.facts.find(id);
      const bool both = found != other.facts.end();
      if (both && found->second.text == fact.text) continue;
      if (given && !fact.given && !(both && found->second.given)) continue;
      const Fact absent{fact.key, "absent", false};
      const Fact& second = both ? found->second : absent;
      const Fact &there = swapped ? second : fact, &here = swapped ? fact : second;
      const bool renamed = there.key != here.key;  // another table is the layer's mixer
      differ(here.key, there.text + (renamed ? concat(" (", there.key, ")") : ""), here.text);
    }
  }

  const std::string& checkpoint_;
  Reading there_, here_;
  std::string advice_;
};

Reading read_there(const std::string& checkpoint, const std::string& theirs,
                   const std::vector<std::string>& settings, int64_t vocabulary) {
  try {
    return read(theirs, "its recipe", settings, vocabulary);
  } catch (const Error& e) {
    fail(checkpoint, ": the checkpoint is of a recipe that this program does not take: ", e.what());
  }
}

}  // namespace

void require_same_recipe(const std::string& checkpoint, const std::string& theirs,
                         const Recipe& ours, int64_t vocabulary, bool same_data) {
  const std::string text = ours.toml.to_text();
  if (text == theirs) return;
  const std::vector<std::string> settings = left_out(ours.train);
  Reading there = read_there(checkpoint, theirs, settings, vocabulary);
  Comparison(checkpoint, std::move(there), read(text, ours.name, settings, vocabulary),
             "resume with the recipe it was made with, or start anew with another train.out")
      .require_equal(same_data);
}

void require_same_model(const std::string& checkpoint, const std::string& theirs,
                        const Recipe& ours, int64_t vocabulary) {
  const std::vector<std::string> settings = left_out(ours.train);
  Reading there = read_there(checkpoint, theirs, settings, vocabulary),
          here = read(ours.toml.to_text(), ours.name, settings, vocabulary);
  leave_out_training(there);
  leave_out_training(here);
  Comparison(checkpoint, std::move(there), std::move(here), "begin with a recipe of the same model")
      .require_equal(/*same_data=*/true);
}

}  // namespace weft::train
