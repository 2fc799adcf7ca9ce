// What cannot be imported or exported is told in one line, and nothing is written.
#include <cmath>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "core/safetensors.h"
#include "tests/paths.h"
#include "tests/train/said.h"

using namespace weft;
using namespace weft::tests;

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// A copy of a model of hub/, to be spoilt.
struct Model {
  explicit Model(const std::string& name) {
    fs::copy(source_path("tests/oracles/hub/" + name), f / "m");
  }
  json config() const { return json::parse(f.read("m/config.json")); }
  void set(const std::string& key, const json& value) const {
    json c = config();
    c[key] = value;
    f.write("m/config.json", c.dump());
  }
  using Tensors = std::vector<std::pair<std::string, Tensor>>;
  // Each tensor as `change` gives it back; none where it is absent.
  void tensors(const std::function<Tensor(std::string& name, Tensor t)>& change) const {
    Tensors all;
    {
      const SafetensorsReader file(f / "m");
      for (const SafeTensor& t : file.entries()) {
        std::string name = t.name;
        const Tensor changed = change(name, file.read(t.name));
        if (changed) all.emplace_back(name, changed);
      }
    }
    write(all);
  }
  void add(const std::function<Tensors(const SafetensorsReader& file)>& more) const {
    Tensors all;
    {
      const SafetensorsReader file(f / "m");
      for (const SafeTensor& t : file.entries()) all.emplace_back(t.name, file.read(t.name));
      for (const auto& one : more(file)) all.push_back(one);
    }
    write(all);
  }
  void write(const Tensors& all) const {
    const std::string path = f / "m/model.safetensors";
    std::vector<TensorInfo> infos;
    for (const auto& [name, t] : all) infos.push_back({name, t.shape(), t.dtype()});
    SafetensorsWriter out(path, infos, {{"format", "pt"}});
    for (const auto& [name, t] : all) out.tensor(name, t);
    out.commit();
  }
  Ran import(std::vector<std::string> more = {}) const {
    more.insert(more.begin(), {"import", "m", "m.h5"});
    return run_weft(f, more);
  }
  void refused(const std::vector<std::string>& parts) const {
    says(import(), 2, parts);
    CHECK_FALSE(fs::exists(f / "m.h5"));
  }

  Folder f;
};

}  // namespace

TEST_CASE("import: the first key that our layers cannot express is told") {
  const std::vector<std::tuple<std::string, json, std::string>> bad = {
      {"hidden_act", "swish_something", "hidden_act is \"swish_something\""},
      {"hidden_size", "8", "hidden_size is \"8\": expected a whole number"},
      {"hidden_size", 0, "width"},
      {"hidden_size", 1e300, "hidden_size is 1e+300: expected a whole number"},
      {"vocab_size", 0, "tokens"},
      {"vocab_size", 2147483648, "tokens"},
      {"num_attention_heads", 0, "num_attention_heads is 0"},
      {"num_hidden_layers", -1, "num_hidden_layers is -1"},
      {"num_key_value_heads", 3, "heads"},
      {"attention_bias", "yes", "expected true or false"},
      {"rope_parameters", {{"rope_type", "dynamic"}, {"factor", 2}}, "rope_type is \"dynamic\""},
      {"rope_parameters", {{"rope_type", "default"}, {"rope_speed", 2}}, "rope_speed"},
      {"quantization_config", {{"bits", 4}}, "quantised"},
      {"is_encoder_decoder", true, "is_encoder_decoder is true"},
      {"model_type", "lama", "did you mean \"llama\""}};
  for (const auto& [key, value, said] : bad) {
    INFO(key);
    const Model m("llama");
    m.set(key, value);
    m.refused({"m/config.json", said});
  }
}

TEST_CASE("import: OLMo-Hybrid says whether it has positions") {
  const Model m("olmo_hybrid");
  m.set("rope_parameters", nullptr);
  m.refused({"rope_parameters is null", "null for no positions"});
}

TEST_CASE("import: keys that nobody knows are told once, and dropout is named") {
  const Model m("llama");
  m.set("some_new_key", 1);
  m.set("attention_dropout", 0.1);
  const Ran ran = m.import();
  says(ran, 0, {"some_new_key", "attention_dropout is 0.1"});
  CHECK(ran.text.find("some_new_key") == ran.text.rfind("some_new_key"));
}

TEST_CASE("import: older spellings of positions mean what the newer ones mean") {
  const Model one("llama"), other("llama");
  json c = other.config();
  json scaling = c["rope_parameters"];
  c["rope_theta"] = scaling["rope_theta"];
  scaling.erase("rope_theta");
  scaling["type"] = scaling["rope_type"];
  scaling.erase("rope_type");
  c.erase("rope_parameters");
  c["rope_scaling"] = scaling;
  c["torch_dtype"] = c["dtype"];
  other.f.write("m/config.json", c.dump());
  done(one.import({"--recipe", "r.toml"}));
  done(other.import({"--recipe", "r.toml"}));
  CHECK(one.f.read("r.toml") == other.f.read("r.toml"));
}

TEST_CASE("import: a tensor that is missing, renamed, of another shape or of no use is named") {
  const std::string name = "model.layers.1.self_attn.k_proj.weight";
  const auto spoilt = [&](const std::function<Tensor(std::string&, Tensor)>& change,
                          const std::vector<std::string>& parts) {
    const Model m("llama");
    m.tensors([&](std::string& n, const Tensor& t) { return n == name ? change(n, t) : t; });
    m.refused(parts);
  };
  spoilt([](std::string&, const Tensor&) { return Tensor(); },
         {name + "\" is missing", "layers.1.mixer.k_proj.weight\" [6, 8]"});
  spoilt([](std::string& n, const Tensor& t) { return n += "s", t; },
         {name + "\" is missing", name + "s"});
  spoilt([](std::string&, const Tensor& t) { return t.slice(0, 0, 5).contiguous(); },
         {name + "\" has shape [5, 8], expected [6, 8]", "layers.1.mixer.k_proj.weight"});
  spoilt(
      [](std::string&, const Tensor& t) {
        return t.reshape({6, 8, 1});
      },
      {"[6, 8, 1], expected [6, 8]"});
  spoilt([](std::string&, const Tensor& t) { return full(t.shape(), NAN, t.dtype()); },
         {name, "not finite"});
  const Model m("llama");
  m.set("mlp_bias", false);
  m.refused({"model.layers.0.mlp.down_proj.bias", "no place", "5 more"});
}

TEST_CASE("import: the gated norm of GLA has one of two names, as the library was set") {
  const Model one("gla"), other("gla");
  const std::string fused = "g_norm_swish_gate.weight";
  int renamed = 0;
  other.tensors([&](std::string& n, const Tensor& t) {
    if (n.ends_with(fused) && ++renamed)
      n.replace(n.size() - fused.size(), fused.size(), "g_norm.weight");
    return t;
  });
  CHECK(renamed == 2);
  done(one.import());
  done(other.import());
  CHECK(one.f.read("m.h5") == other.f.read("m.h5"));
}

TEST_CASE("import: what our mixers of fla's lack is refused by its key") {
  const auto refused = [](const char* name, const char* key, const json& value, const char* said) {
    INFO(name << ": " << key);
    const Model m(name);
    m.set(key, value);
    m.refused({"m/config.json", said});
  };
  refused("gla", "use_short_conv", true, "use_short_conv is true");
  refused("gla", "num_kv_heads", 1, "num_kv_heads is 1");
  refused("gla", "clamp_min", -1.0, "clamp_min is -1.0");
  refused("gla", "expand_v", 1.25, "expand_v is 1.25");
  refused("retnet", "use_output_gate", false, "use_output_gate is false");
  refused("retnet", "feature_map", "relu", "feature_map is \"relu\"");
  refused("hgrn2", "use_lower_bound", true, "use_lower_bound is true");
  refused("hgrn2", "expand_ratio", 13, "expand_ratio is 13");
  refused("linear_attn", "feature_map", "hedgehog", "feature_map is \"hedgehog\"");
  refused("linear_attn", "norm_q", true, "norm_q is true");
  refused("linear_attn", "num_heads", 0, "num_heads is 0");
}

TEST_CASE("import: what our hybrids lack is refused by its key") {
  const auto refused = [](const char* name, const char* key, const json& value, const char* said) {
    INFO(name << ": " << key);
    const Model m(name);
    m.set(key, value);
    m.refused({"m/config.json", said});
  };
  refused("bamba", "mamba_proj_bias", true, "mamba_proj_bias is true");
  refused("bamba", "mamba_n_heads", 5, "mamba_n_heads is 5: heads of width 4 have 20");
  refused("bamba", "hidden_size", 2147483648, "expected 1 to 16777216");
  refused("bamba", "mamba_n_heads", 0, "expected 1 to 16777216");
  refused("lfm2", "block_multiple_of", 2147483648, "expected 1 to 16777216");
  refused("bamba", "time_step_limit", {2.0, 1.0}, "time_step_limit is [2.0,1.0]");
  refused("bamba", "time_step_limit", {0.0, "much"}, "expected two numbers");
  refused("bamba", "attn_layer_indices", {3}, "expected numbers of the 3 layers");
  refused("granite_hybrid", "shared_intermediate_size", 7, "shared_intermediate_size is 7");
  refused("granite_hybrid", "position_embedding_type", "learned", "our layers know rope, nope");
  refused("granite_hybrid", "layer_types", {"linear_attention", "mlp"}, "layer_types");
  refused("falcon_h1", "ssm_multipliers", {1.0, 2.0}, "expected 5 numbers");
  refused("falcon_h1", "projectors_bias", true, "projectors_bias is true");
  refused("falcon_h1", "key_multiplier", 0.0, "another number than zero");
  refused("nemotron_h", "layers_block_type", {"linear_attention", "moe"},
          "our layers know linear_attention, full_attention, mlp");
  refused("nemotron_h", "layers_block_type", {"linear_attention", "mlp", "mlp"}, "behind a mixer");
  refused("nemotron_h", "use_bias", true, "use_bias is true");
  refused("lfm2", "layer_types", {"conv", "mamba", "conv"}, "this format has conv");
  refused("gpt_oss", "hidden_act", "gelu", "hidden_act is \"gelu\"");
  refused("gpt_oss", "quantization_config", {{"quant_method", "mxfp4"}}, "quantised");
}

TEST_CASE("import: older spellings of layers mean what the newer ones mean") {
  const auto same = [](const char* name, const std::function<void(json & config)>& respell) {
    INFO(name);
    const Model one(name), other(name);
    json c = other.config();
    respell(c);
    other.f.write("m/config.json", c.dump());
    done(one.import({"--recipe", "r.toml"}));
    done(other.import({"--recipe", "r.toml"}));
    CHECK(one.f.read("r.toml") == other.f.read("r.toml"));
  };
  same("nemotron_h", [](json& c) {
    c.erase("layers_block_type");
    c["hybrid_override_pattern"] = "M-M*-";
  });
  same("nemotron_h", [](json& c) {
    c["layers_block_type"] = {"mamba", "mlp", "mamba", "attention", "mlp"};
  });
  same("granite_hybrid", [](json& c) { c["layer_types"] = {"mamba", "attention"}; });
  same("lfm2", [](json& c) {
    c.erase("layer_types");
    c["full_attn_idxs"] = {1};
  });
  same("lfm2", [](json& c) {  // two thirds of it, rounded up to a multiple
    c["intermediate_size"] = 16;
    c["block_auto_adjust_ff_dim"] = true;
    c["block_multiple_of"] = 6;
  });
  same("gpt_oss", [](json& c) {
    c.erase("layer_types");
    c["num_experts"] = c["num_local_experts"];
    c.erase("num_local_experts");
  });
}

TEST_CASE("import: words of Python that are no JSON are the numbers that they say") {
  const Model one("bamba"), other("bamba"), third("bamba");
  one.set("time_step_limit", {0.25, {{"__float__", "Infinity"}}});
  std::string text = one.f.read("m/config.json");
  const std::string object = R"({"__float__":"Infinity"})";
  REQUIRE(text.find(object) != std::string::npos);
  text.replace(text.find(object), object.size(), "Infinity");
  other.f.write("m/config.json", text);
  done(one.import({"--recipe", "r.toml"}));
  done(other.import({"--recipe", "r.toml"}));
  CHECK(one.f.read("r.toml") == other.f.read("r.toml"));
  CHECK_THAT(one.f.read("r.toml"), ContainsSubstring("step_least = 0.25"));
  text.replace(text.find("Infinity"), 8, "NaN");
  third.f.write("m/config.json", text);
  third.refused({"time_step_limit"});
  // Within a text they are letters.
  text.replace(text.find("NaN"), 3, "2, \"a \\\" NaN\"");
  third.f.write("m/config.json", text);
  third.refused({"time_step_limit is [0.25,2,\"a \\\" NaN\"]"});
}

TEST_CASE("import: the inner channels of Mamba go before their factor, as in transformers") {
  const Model one("falcon_mamba"), other("falcon_mamba");
  other.set("expand", 16);
  other.set("intermediate_size", 16);
  done(one.import({"--recipe", "r.toml"}));
  done(other.import({"--recipe", "r.toml"}));
  CHECK(one.f.read("r.toml") == other.f.read("r.toml"));
  other.set("intermediate_size", 13);
  fs::remove(other.f / "m.h5");
  other.refused({"intermediate_size is 13"});
}

TEST_CASE("import: gpt-oss that says nothing of positions has those of its class") {
  const Model m("gpt_oss");
  json c = m.config();
  c.erase("rope_parameters");
  m.f.write("m/config.json", c.dump());
  done(m.import({"--recipe", "r.toml"}));
  const std::string recipe = m.f.read("r.toml");
  for (const char* line :
       {"rotary_base = 150000.0", "rotary_scaling = \"yarn\"", "rotary_factor = 32.0",
        "rotary_context = 4096", "rotary_truncate = false"})
    CHECK_THAT(recipe, ContainsSubstring(line));
}

TEST_CASE("import: buffers are passed over, a copy of a tied head must be the embedding") {
  const auto with_head = [](double more) {
    auto m = std::make_unique<Model>("llama_yarn");
    // Two tensors of use become one of none and a head.
    m->add([&](const SafetensorsReader& file) {
      const Tensor head = file.read("model.embed_tokens.weight");
      head.data<double>()[3] += more;
      return std::vector<std::pair<std::string, Tensor>>{
          {"lm_head.weight", head},
          {"model.layers.0.self_attn.rotary_emb.inv_freq", zeros({3}, Dtype::f32)}};
    });
    return m;
  };
  done(with_head(0)->import());
  with_head(1e-9)->refused({"lm_head.weight", "tie_word_embeddings"});
}

TEST_CASE("import: a checkpoint without a tokenizer reads and writes no text") {
  const Model m("mistral");
  says(m.import({"--recipe", "m.toml"}), 0, {"token numbers, and no text"});
  m.f.write("text.txt", "a text");
  says(run_weft(m.f, {"generate", "m.h5", "--prompt", "a"}), 2, {"holds no tokenizer"});
  says(run_weft(m.f, {"show", "m.h5", "--text", "a"}), 2, {"holds no tokenizer"});
  says(run_weft(m.f, {"eval", "m.h5", "--data", "text.txt"}), 2, {"holds no tokenizer"});
  says(run_weft(m.f, {"eval", "m.h5"}), 2, {"data.source"});
  says(run_weft(m.f, {"train", "m.toml", "--begin", "m.h5"}), 2, {"data.source"});
}

TEST_CASE("import: a run begins with what was imported, and goes on to be exported") {
  const Model m("mistral");
  done(m.import({"--recipe", "m.toml"}));
  const std::vector<std::string> task = {
      "--set", "data.task=induction", "--set", "data.vocabulary=11", "--set", "train.steps=2",
      "--set", "train.batch=2",       "--set", "model.context=12",   "--set", "train.out=run"};
  const auto train = [&](std::vector<std::string> more) {
    std::vector<std::string> words{"train", "m.toml", "--device", "cpu"};
    words.insert(words.end(), task.begin(), task.end());
    words.insert(words.end(), more.begin(), more.end());
    return run_weft(m.f, words);
  };
  says(train({"--resume", "--from", "m.h5"}), 2, {""});
  says(train({"--resume", "--begin", "m.h5"}), 2, {"leave one of them out"});
  says(train({"--begin", "m.h5", "--set", "attention.rotary_base=60"}), 2,
       {"rotary_base is 50.0 there and 60.0 here"});
  done(train({"--begin", "m.h5", "--set", "optimizer.lr=0"}));
  done(run_weft(m.f, {"export", "run", "out"}));
  const SafetensorsReader one(m.f / "m"), other(m.f / "out");
  for (const SafeTensor& t : one.entries()) {
    INFO(t.name);
    CHECK(to_doubles(other.read(t.name)) == to_doubles(one.read(t.name, Dtype::f32)));
  }
  says(train({"--begin", "run", "--overwrite"}), 2, {"lies in"});
}

TEST_CASE("export: what the format cannot express is told by its first key, and nothing is there") {
  const Model m("mistral");
  done(m.import());
  says(run_weft(m.f, {"export", "m.h5", "out", "--as", "llama"}), 2,
       {"attention.window of layer 0 is 4"});
  says(run_weft(m.f, {"export", "m.h5", "out", "--as", "lama"}), 2, {"did you mean \"llama\""});
  says(run_weft(m.f, {"export", "m.h5", "out", "--dtype", "f8"}), 2, {"--dtype f8"});
  CHECK(m.f.names() == std::set<std::string>{"m", "m.h5"});
  fs::create_directory(m.f / "full");
  m.f.write("full/mine.txt", "mine");
  says(run_weft(m.f, {"export", "m.h5", "full"}), 2, {"new folder or an empty one"});
  CHECK(m.f.read("full/mine.txt") == "mine");
  fs::create_directory(m.f / "empty");
  done(run_weft(m.f, {"export", "m.h5", "empty", "--dtype", "bf16"}));
  CHECK(SafetensorsReader(m.f / "empty").entry("model.norm.weight").dtype == "BF16");
  CHECK(json::parse(m.f.read("empty/config.json")).at("torch_dtype") == "bfloat16");
}

TEST_CASE("export: a bias that the format has not must be zero") {
  const Model m("llama");  // whose o_proj has one
  m.set("mlp_bias", false);
  m.tensors([](std::string& n, const Tensor& t) {
    return n.find("mlp.") != std::string::npos && n.ends_with(".bias") ? Tensor() : t;
  });
  done(m.import());
  says(run_weft(m.f, {"export", "m.h5", "out", "--as", "qwen2"}), 2,
       {"layers.0.mixer.o_proj.bias", "not zero"});
  CHECK_FALSE(fs::exists(m.f / "out"));
}
