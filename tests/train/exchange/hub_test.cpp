// Models that transformers made (tests/oracles/make_hub.py), imported, run, and exported again.
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "core/hdf5.h"
#include "core/safetensors.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/gap.h"
#include "tests/paths.h"
#include "train/checkpoint.h"
#include "train/exchange/architecture.h"
#include "train/exchange/export.h"
#include "train/exchange/import.h"
#include "train/recipe.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;

namespace {

namespace fs = std::filesystem;

std::string hub(const std::string& name) { return source_path("tests/oracles/hub/" + name); }

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const auto& entry : fs::directory_iterator(hub("")))
    all.push_back(entry.path().filename().string());
  std::sort(all.begin(), all.end());
  return all;
}

Tensor logits_of(const std::string& checkpoint, const Tensor& tokens, Dtype dtype) {
  const Hdf5Reader file = open_checkpoint(checkpoint);
  const Recipe r = recipe_from_text(read_state(file).recipe, "recipe");
  layers::Model m(r.toml, r.toml.table("data").integer("tokens", {1, 1 << 24}), dtype, kCpu, 1);
  load_parameters(file, m.parameters());
  return m.logits(tokens);
}

// The values of a config in which `config` agrees with it; keys that say nothing of the model, and
// spellings of what another key says too, are left out.
nlohmann::json meaning(const std::string& folder) {
  Json all = read_config(folder).all();
  for (const char* key : {"transformers_version", "torch_dtype", "use_cache", "pad_token_id",
                          "bos_token_id", "eos_token_id", "pretraining_tp", "rope_theta",
                          "rope_scaling", "rope_local_base_freq", "attention_dropout"})
    all.erase(key);
  nlohmann::json sorted = nlohmann::json::object();
  for (const auto& [key, value] : all.items())
    if (!value.is_null()) sorted[key] = value;
  return sorted;
}

}  // namespace

TEST_CASE("hub: the logits of an imported model are those of transformers") {
  for (const std::string& name : names()) {
    INFO(name);
    const Folder f;
    const Hdf5Reader expected(hub(name) + "/expected.h5");
    const Tensor tokens = expected.tensor("inputs/tokens");
    for (const auto& [dtype, bound] : {std::pair{"f64", 1e-9}, std::pair{"f32", 1e-4}}) {
      INFO(dtype);
      import_model({.folder = hub(name), .out = f / "m.h5", .dtype = dtype});
      const Tensor got = logits_of(f / "m.h5", tokens, dtype_from(dtype));
      CHECK(gap(got.to(Dtype::f64), expected.tensor("outputs/logits")).relative() < bound);
    }
  }
}

TEST_CASE("hub: an exported import has the same tensors, bit by bit, and keys of one meaning") {
  for (const std::string& name : names()) {
    INFO(name);
    const Folder f;
    import_model({.folder = hub(name), .out = f / "m.h5", .dtype = "f64"});
    export_model({.checkpoint = f / "m.h5", .folder = f / "out"});
    const SafetensorsReader one(hub(name)), other(f / "out");
    CHECK(other.metadata().at("format") == "pt");
    // transformers cuts its convolutions and names a norm otherwise than its readers expect.
    if (name != "olmo_hybrid") {
      size_t buffers = 0;
      for (const SafeTensor& t : one.entries()) {
        INFO(t.name);
        if (t.name.ends_with("_decay") || t.name.ends_with("slope_rate")) {
          ++buffers;
          continue;
        }
        REQUIRE(other.has(t.name));
        CHECK(other.entry(t.name).dtype == t.dtype);
        CHECK(other.entry(t.name).shape == t.shape);
        CHECK(to_doubles(other.read(t.name)) == to_doubles(one.read(t.name)));
      }
      CHECK(one.entries().size() == other.entries().size() + buffers);
    }
    const nlohmann::json there = meaning(hub(name)), here = meaning(f / "out");
    for (const auto& [key, value] : here.items()) {
      INFO(key);
      if (there.contains(key)) CHECK(there.at(key) == value);
    }
    // Read again, it is the same checkpoint.
    import_model({.folder = f / "out", .out = f / "again.h5", .dtype = "f64"});
    const Hdf5Reader before = open_checkpoint(f / "m.h5"), after = open_checkpoint(f / "again.h5");
    CHECK(read_state(before).recipe == read_state(after).recipe);
    for (const TensorInfo& t : before.tensors("parameters"))
      CHECK(to_doubles(before.tensor(t.name)) == to_doubles(after.tensor(t.name)));
  }
}

TEST_CASE("hub: shards are read as one file is, and --as names the format") {
  const Folder f;
  const SafetensorsReader whole(hub("llama"));
  std::filesystem::create_directory(f / "m");
  std::filesystem::copy_file(hub("llama") + "/config.json", f / "m/config.json");
  std::vector<TensorInfo> infos;
  for (const SafeTensor& t : whole.entries()) infos.push_back({t.name, t.shape, t.nearest()});
  SafetensorsFolderWriter out(f / "m", infos, {{"format", "pt"}}, /*shard_bytes=*/4000);
  for (const SafeTensor& t : whole.entries()) out.tensor(t.name, whole.read(t.name));
  out.commit();
  CHECK(SafetensorsReader(f / "m").files().size() > 2);
  import_model({.folder = hub("llama"), .out = f / "one.h5", .dtype = "f64"});
  import_model({.folder = f / "m", .out = f / "other.h5", .dtype = "f64"});
  const Hdf5Reader one = open_checkpoint(f / "one.h5"), other = open_checkpoint(f / "other.h5");
  for (const TensorInfo& t : one.tensors("parameters"))
    CHECK(to_doubles(one.tensor(t.name)) == to_doubles(other.tensor(t.name)));
  // Granite is a Llama with factors, which may all be one, but has no scaling of its own here.
  export_model({.checkpoint = f / "one.h5", .folder = f / "granite", .as = "granite"});
  CHECK(read_config(f / "granite").text("model_type") == "granite");
}

TEST_CASE("hub: every format on the list has a model that transformers made") {
  std::set<std::string> seen;
  for (const std::string& name : names()) seen.insert(read_config(hub(name)).text("model_type"));
  for (const std::string& name : architecture_names()) {
    INFO(name);
    CHECK(seen.count(name) == 1);
  }
}
