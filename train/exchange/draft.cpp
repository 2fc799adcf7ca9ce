#include "train/exchange/draft.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "core/text.h"

namespace weft::train {
namespace {

std::pair<std::string, std::string> halves(const std::string& path) {
  const size_t dot = path.find('.');
  return {path.substr(0, dot), path.substr(dot + 1)};
}

// The table of that name, of a draft that may be const; null for a mixer.
auto* table_of(auto& d, const std::string& name) {
  return name == "model" ? &d.model : name == "mlp" ? &d.mlp : name == "moe" ? &d.moe : nullptr;
}

bool is_dense(const DraftLayer& layer) { return layer.mlp != "moe" && layer.mlp != "none"; }

// A value as TOML writes it. Texts, numbers, truth and lists of them read alike in JSON.
Json value_of(const std::string& toml) {
  const Json value = Json::parse(toml, nullptr, /*allow_exceptions=*/false);
  return value.is_discarded() ? Json(toml) : value;
}

// Numbers that stand for a standard, by what they stand for.
void spell_out(Json& table, const std::string& key, double in_effect) {
  const auto found = table.find(key);
  if (found == table.end()) return;
  const bool standard = found->is_boolean() ? found->get<bool>() : *found == 0;
  if (standard) *found = in_effect;
  if (found->is_boolean()) *found = 1;
}

// The keys of a mixer, or those of a part of it, which begin with its name and a dot.
void spell_out_part(Json& keys, const std::string& part, int64_t width) {
  const auto is = [&](const char* key) { return keys.contains(part + key); };
  if (is("head_dim"))
    spell_out(keys, part + "scale", 1 / std::sqrt(keys.at(part + "head_dim").get<double>()));
  if (is("rotary_factor"))
    spell_out(keys, part + "rotary_magnitude",
              0.1 * std::log(keys.at(part + "rotary_factor").get<double>()) + 1);
  // Mamba-2 that counts its heads, where a multiple of the width says the same.
  if (!is("groups") || !is("state") || !is("heads") || keys.at(part + "heads") == 0) return;
  const int64_t inner =
      keys.at(part + "heads").get<int64_t>() * keys.at(part + "head_dim").get<int64_t>();
  if (keys.contains("shares") || inner % width != 0) return;
  keys[part + "heads"] = 0;
  keys[part + "expand"] = inner / width;
}

void spell_out_layer(Json& keys, int64_t width) {
  std::set<std::string> parts = {""};
  for (const auto& [key, value] : keys.items()) parts.insert(key.substr(0, key.find('.') + 1));
  for (const std::string& part : parts) spell_out_part(keys, part, width);
}

}  // namespace

Json Draft::get(const std::string& path) const {
  const auto [table, key] = halves(path);
  const auto in = [&name = key](const Json& t) { return t.contains(name) ? t.at(name) : Json(); };
  if (const Json* t = table_of(*this, table)) return in(*t);
  for (const DraftLayer& layer : layers) {
    if (path == "layers.mlp" && is_dense(layer)) return layer.mlp;
    if (path == "layers.norms") return layer.norms;
    if (layer.mixer == table) return in(layer.keys);
  }
  return {};
}

void Draft::set(const std::string& path, const Json& value) {
  const auto [table, key] = halves(path);
  if (Json* t = table_of(*this, table)) (*t)[key] = value;
  for (DraftLayer& layer : layers) {
    if (path == "layers.mlp" && is_dense(layer)) layer.mlp = value.get<std::string>();
    if (path == "layers.norms") layer.norms = value.get<std::string>();
    if (layer.mixer == table) layer.keys[key] = value;
  }
}

bool Draft::uses(const std::string& mixer) const {
  return std::any_of(layers.begin(), layers.end(),
                     [&](const DraftLayer& layer) { return layer.mixer == mixer; });
}

bool Draft::dense() const { return std::any_of(layers.begin(), layers.end(), is_dense); }

Draft draft_of(const TomlTable& recipe, const layers::Model& model) {
  static const std::set<std::string> listed = {"pattern", "mlp", "norm_position", "layers"};
  Draft d;
  d.vocabulary = model.vocabulary();
  d.name = recipe.peek("name");
  const layers::LayerNames names = layers::layer_names(recipe);
  const std::map<std::string, TomlValue> values = recipe.values();
  std::map<std::string, Json> tables;
  for (const auto& [path, value] : values) {
    const auto [table, key] = halves(path);
    if (path.find('.') != std::string::npos) tables[table][key] = value_of(value.text);
  }
  for (const auto& [key, value] : tables["model"].items())
    if (listed.count(key) == 0) d.model[key] = value;
  if (!tables["mlp"].is_null()) d.mlp = tables["mlp"];
  if (!tables["moe"].is_null()) d.moe = tables["moe"];
  const bool rms = d.model.value("norm", "rms") == "rms";
  spell_out(d.model, "norm_eps", rms ? 1e-6 : 1e-5);
  spell_out(d.model, "embedding_scale", std::sqrt(static_cast<double>(model.width())));
  for (size_t i = 0; i < names.mixers.size(); ++i) {
    DraftLayer layer;
    Json keys = tables[names.mixers[i]];
    layer.mixer = keys.is_object() ? keys.value("type", names.mixers[i]) : names.mixers[i];
    if (keys.is_object()) layer.keys = keys;
    layer.keys.erase("type");
    spell_out_layer(layer.keys, model.width());
    layer.mlp = names.mlps[i];
    layer.norms = names.norms[i];
    d.layers.push_back(std::move(layer));
  }
  if (!d.dense()) d.mlp = Json::object();
  return d;
}

namespace {

void write_keys(std::string& out, const Json& table) {
  for (const auto& [key, value] : table.items()) out += concat(key, " = ", value.dump(), "\n");
}

// The shortest list that a recipe repeats over its layers, with "x*3" for three in a row.
std::string repeated(const std::vector<std::string>& all) {
  size_t period = 1;
  const auto repeats = [&] {
    for (size_t i = period; i < all.size(); ++i)
      if (all[i] != all[i - period]) return false;
    return true;
  };
  while (!repeats()) ++period;
  std::vector<std::string> parts;
  for (size_t i = 0, n = 1; i < std::min(period, all.size()); i += n) {
    for (n = 1; i + n < period && all[i + n] == all[i];) ++n;
    parts.push_back(n == 1 ? all[i] : concat(all[i], "*", n));
  }
  return Json(parts).dump();
}

bool all_are(const std::vector<std::string>& list, const std::string& name) {
  return std::all_of(list.begin(), list.end(), [&](const auto& one) { return one == name; });
}

// The tables of the mixers: one for each set of keys, in the order in which layers have them.
struct Tables {
  std::vector<std::pair<std::string, DraftLayer>> all;  // by name
  std::vector<std::string> of_layer;

  explicit Tables(const std::vector<DraftLayer>& layers) {
    std::map<std::string, int> kinds;
    for (const DraftLayer& layer : layers) {
      const auto same = [&](const auto& t) {
        return t.second.mixer == layer.mixer && t.second.keys == layer.keys;
      };
      auto found = std::find_if(all.begin(), all.end(), same);
      if (found == all.end()) {
        const int number = ++kinds[layer.mixer];
        const std::string name = number == 1 ? layer.mixer : concat(layer.mixer, "_", number);
        found = all.insert(all.end(), {name, layer});
      }
      of_layer.push_back(found->first);
    }
  }
};

}  // namespace

std::string recipe_of(const Draft& d, const std::string& dtype) {
  std::vector<std::string> mlps, norms;
  for (const DraftLayer& layer : d.layers) {
    mlps.push_back(layer.mlp);
    norms.push_back(layer.norms);
  }
  const Tables tables(d.layers);
  std::string out = concat("name = ", Json(d.name).dump(), "\n\n[model]\n");
  write_keys(out, d.model);
  out += concat("layers = ", d.layers.size(), "\npattern = ", repeated(tables.of_layer),
                "\nmlp = ", repeated(mlps), "\n");
  if (!all_are(norms, "pre")) out += concat("norm_position = ", repeated(norms), "\n");
  for (const auto& [name, layer] : tables.all) {
    if (layer.keys.empty() && name == layer.mixer) continue;
    out += concat("\n[", name, "]\n");
    if (name != layer.mixer) out += concat("type = ", Json(layer.mixer).dump(), "\n");
    write_keys(out, layer.keys);
  }
  const auto table = [&](const char* name, const Json& keys) {
    if (keys.empty()) return;
    out += concat("\n[", name, "]\n");
    write_keys(out, keys);
  };
  if (d.dense()) table("mlp", d.mlp);
  table("moe", d.moe);
  table("data", {{"tokens", d.vocabulary}});
  if (dtype == "f64") table("train", {{"device", "cpu"}, {"dtype", dtype}});
  return out;
}

namespace {

// Numbers that were computed in another way may differ in their last bits.
bool alike(const Json& a, const Json& b) {
  if (!a.is_number() || !b.is_number()) return a == b;
  const double x = a.get<double>(), y = b.get<double>();
  return std::abs(x - y) <= 1e-14 * std::abs(x);
}

class DraftComparison {
 public:
  void compare(const std::string& prefix, const std::string& suffix, const Json& a, const Json& b) {
    static const std::set<std::string> free = {"context", "init", "z_loss", "recompute",
                                               "balance_loss"};
    for (const Json* keys : {&a, &b})
      for (const auto& [key, unused] : keys->items()) {
        if (free.count(key) > 0 || (keys == &b && a.contains(key))) continue;
        put(prefix + key + suffix, a.value(key, Json()), b.value(key, Json()));
      }
  }
  void put(const std::string& key, const Json& a, const Json& b) {
    const auto text = [](const Json& j) { return j.is_null() ? "absent" : j.dump(); };
    if (!alike(a, b)) found.push_back({key, text(a), text(b)});
  }
  std::vector<Difference> found;
};

}  // namespace

std::vector<Difference> differences(const Draft& one, const Draft& other) {
  DraftComparison c;
  c.compare("model.", "", one.model, other.model);
  c.put("model.layers", one.layers.size(), other.layers.size());
  for (size_t i = 0; i < std::min(one.layers.size(), other.layers.size()); ++i) {
    const DraftLayer &a = one.layers[i], &b = other.layers[i];
    const std::string layer = concat(" of layer ", i);
    c.put("model.pattern" + layer, a.mixer, b.mixer);
    c.put("model.mlp" + layer, a.mlp, b.mlp);
    c.put("model.norm_position" + layer, a.norms, b.norms);
    if (a.mixer == b.mixer) c.compare(a.mixer + ".", layer, a.keys, b.keys);
  }
  c.compare("mlp.", "", one.mlp, other.mlp);
  c.compare("moe.", "", one.moe, other.moe);
  return c.found;
}

}  // namespace weft::train
