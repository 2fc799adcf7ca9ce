#include "train/recipe.h"

#include <algorithm>
#include <filesystem>
#include <limits>

#include "core/text.h"
#include "kernels/tile/gemm.h"

namespace weft::train {
namespace {

// Steps are counted up to ten digits, as the names of checkpoints are.
constexpr Integers kSteps{1, 9999999999};
// Positions in a text are 32 bits wide.
constexpr int64_t kMostTokens = std::numeric_limits<int32_t>::max();
// What is far too much means all there is, or never.
constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
constexpr Integers kOneUp{1, kAny}, kZeroUp{0, kAny};

RunSettings read_train(const TomlTable& t, const std::string& name, bool planned) {
  RunSettings s;
  s.steps = t.integer("steps", kSteps, s.steps);
  s.batch = t.integer("batch", {1, kMostTokens}, s.batch);
  s.accumulate = t.integer("accumulate", {1, 1 << 24}, s.accumulate);
  s.seed = static_cast<uint64_t>(t.integer("seed", kZeroUp, 1));
  try {
    const std::string device = t.string("device", "auto");
    s.device = planned && has_cuda && device == "cuda" ? kCuda : device_from(device);
  } catch (const Error& e) {
    t.refuse("device", e.what());
  }
  const bool gpu = s.device.is_cuda();
  const std::string dtype = t.string("dtype", gpu ? "bf16" : "f32");
  if (dtype != "f32" && dtype != (gpu ? "bf16" : "f64"))
    t.refuse("dtype", "dtype = \"", dtype, "\", expected \"f32\" or ",
             gpu ? "\"bf16\" on a GPU" : "\"f64\" on the CPU");
  s.dtype = dtype_from(dtype);
  s.tf32 = t.boolean("tf32", s.tf32);
  s.log_every = t.integer("log_every", kOneUp, s.log_every);
  s.eval_every = t.integer("eval_every", kZeroUp, s.eval_every);
  s.eval_batches = t.integer("eval_batches", kOneUp, s.eval_batches);
  if (t.has("checkpoint_every")) s.checkpoint_every = t.integer("checkpoint_every", kZeroUp, 0);
  s.keep = t.integer("keep", kOneUp, s.keep);
  s.safetensors = t.boolean("safetensors", s.safetensors);
  s.out = t.string("out", "runs/" + name);
  if (s.out.empty()) t.refuse("out", "out is empty, expected a folder to be made");
  return s;
}

OptimizerSettings read_optimizer(const TomlTable& t) {
  OptimizerSettings s;
  s.lr = t.number("lr", {0, 1e3}, s.lr);
  s.beta1 = t.number("beta1", {0, 0.999999}, s.beta1);
  s.beta2 = t.number("beta2", {0, 0.999999}, s.beta2);
  s.eps = t.number("eps", {0, 1}, s.eps);
  s.weight_decay = t.number("weight_decay", {0, 1e3}, s.weight_decay);
  s.clip = t.number("clip", {0, 1e9}, s.clip);
  s.type = t.one_of("type", {"adamw", "muon"}, s.type);
  if (s.type == "adamw") {
    for (const char* key : {"muon_lr", "momentum", "muon_scale"})
      t.unused(key, "it has no use with type = \"adamw\"; leave it out", t.overridden("type"));
    return s;
  }
  s.muon_lr = t.number("muon_lr", {0, 1e3}, s.muon_lr);
  s.momentum = t.number("momentum", {0, 0.999999}, s.momentum);
  s.muon_scale = t.one_of("muon_scale", {"spectral", "adamw"}, s.muon_scale);
  return s;
}

ScheduleSettings read_schedule(const TomlTable& t) {
  ScheduleSettings s;
  s.type = t.one_of("type", {"cosine", "wsd", "constant"}, s.type);
  s.warmup = t.integer("warmup", kZeroUp, s.warmup);
  s.final = t.number("final", {0, 1}, s.final);
  s.decay = t.number("decay", {0, 1}, s.decay);
  return s;
}

SampleSettings read_sample(const TomlTable& t) {
  SampleSettings s;
  s.every = t.integer("every", kZeroUp, s.every);
  s.prompt = t.string("prompt", s.prompt);
  s.tokens = t.integer("tokens", kZeroUp, s.tokens);
  s.temperature = t.number("temperature", {0, 100}, s.temperature);
  s.top_k = std::min(kMostTokens, t.integer("top_k", kZeroUp, s.top_k));
  s.top_p = t.number("top_p", {.least = 0, .most = 1, .above = true}, s.top_p);
  return s;
}

DistillSettings::Stage read_stage(const TomlTable& t, DistillSettings::Stage s) {
  s.steps = t.integer("steps", kZeroUp, s.steps);
  s.lr = t.number("lr", {0, 1e3}, s.lr);
  s.length = t.integer("length", {0, kMostTokens}, s.length);
  return s;
}

DistillSettings read_distill(const TomlTable& t) {
  DistillSettings s;
  s.teacher = t.string("teacher", s.teacher);
  s.hash = t.string("hash", s.hash);
  s.align = read_stage(t.table("align"), s.align);
  s.match = read_stage(t.table("match"), s.match);
  s.temperature =
      t.table("match").number("temperature", {.least = 0, .most = 1e3, .above = true}, 1);
  if (!s.teacher.empty()) return s;
  const std::string why =
      "[distill] names no teacher; set distill.teacher, a checkpoint or the folder of a run";
  t.unused("hash", why, /*dropped=*/false);
  for (const char* stage : {"align", "match"})
    for (const char* key : {"steps", "lr", "length", "temperature"})
      t.table(stage).unused(key, why, /*dropped=*/false);
  return s;
}

// The name of a recipe that gives none. It is kept in checkpoints, so it is text.
std::string name_of_file(const std::string& path) {
  return as_utf8(std::filesystem::path(path).stem().string());
}

Recipe checked(TomlTable toml, const std::string& fallback_name,
               const std::vector<std::string>& overrides, bool planned) {
  for (const std::string& one : overrides) {
    const size_t at = one.find('=');
    require(at != std::string::npos && at > 0, "--set ", one, ": expected KEY=VALUE, for example ",
            "--set train.steps=500");
    toml.set(one.substr(0, at), one.substr(at + 1));
  }
  Recipe r;
  r.toml = toml;
  r.name = toml.string("name", fallback_name);
  r.train = read_train(toml.table("train"), r.name, planned);
  r.optimizer = read_optimizer(toml.table("optimizer"));
  r.schedule = read_schedule(toml.table("schedule"));
  r.sample = read_sample(toml.table("sample"));
  r.distill = read_distill(toml.table("distill"));
  if (!r.distill.teacher.empty() && r.optimizer.type == "muon")
    toml.table("optimizer")
        .refuse("type", "type = \"muon\" does not go with [distill], whose rates ",
                "are those of AdamW; leave type out");
  r.log.tensorboard = toml.table("log").boolean("tensorboard", r.log.tensorboard);
  return r;
}

}  // namespace

void set_products(const RunSettings& settings) {
  if constexpr (has_cuda) kernels::set_tf32(settings.tf32 && settings.dtype == Dtype::f32);
}

Recipe read_recipe(const std::string& path, std::vector<std::string> overrides,
                   const std::string& device, bool planned) {
  if (!device.empty()) overrides.push_back("train.device=" + device);
  Recipe recipe = checked(toml_from_file(path), name_of_file(path), overrides, planned);
  recipe.path = path;
  return recipe;
}

Recipe recipe_from_text(const std::string& text, const std::string& name,
                        const std::vector<std::string>& overrides) {
  return checked(toml_from_text(text, name), name_of_file(name), overrides, false);
}

}  // namespace weft::train
