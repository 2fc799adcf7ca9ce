#include "train/recipe.h"

#include <filesystem>

#include "core/text.h"
#include "kernels/common/gemm.h"

namespace weft::train {
namespace {

int64_t at_least(const TomlTable& t, const std::string& key, int64_t least, int64_t fallback) {
  const int64_t value = t.integer(key, fallback);
  if (value < least) t.refuse(key, key, " = ", value, ", expected at least ", least);
  return value;
}

double in_range(const TomlTable& t, const std::string& key, double low, double high,
                double fallback) {
  const double value = t.number(key, fallback);
  if (!(value >= low && value <= high))
    t.refuse(key, key, " = ", value, ", expected a number from ", low, " to ", high);
  return value;
}

RunSettings read_train(const TomlTable& t, const std::string& name, bool planned) {
  RunSettings s;
  s.steps = at_least(t, "steps", 1, s.steps);
  s.batch = at_least(t, "batch", 1, s.batch);
  s.accumulate = at_least(t, "accumulate", 1, s.accumulate);
  s.seed = static_cast<uint64_t>(at_least(t, "seed", 0, 1));
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
  s.log_every = at_least(t, "log_every", 1, s.log_every);
  s.eval_every = at_least(t, "eval_every", 0, s.eval_every);
  s.eval_batches = at_least(t, "eval_batches", 1, s.eval_batches);
  if (t.has("checkpoint_every")) s.checkpoint_every = at_least(t, "checkpoint_every", 0, 0);
  s.keep = at_least(t, "keep", 1, s.keep);
  s.out = t.string("out", "runs/" + name);
  if (s.out.empty()) t.refuse("out", "out is empty, expected a folder to be made");
  return s;
}

OptimizerSettings read_optimizer(const TomlTable& t) {
  OptimizerSettings s;
  s.lr = in_range(t, "lr", 0, 1e3, s.lr);
  s.beta1 = in_range(t, "beta1", 0, 0.999999, s.beta1);
  s.beta2 = in_range(t, "beta2", 0, 0.999999, s.beta2);
  s.eps = in_range(t, "eps", 0, 1, s.eps);
  s.weight_decay = in_range(t, "weight_decay", 0, 1e3, s.weight_decay);
  s.clip = in_range(t, "clip", 0, 1e9, s.clip);
  return s;
}

ScheduleSettings read_schedule(const TomlTable& t) {
  ScheduleSettings s;
  s.type = t.string("type", s.type);
  if (s.type != "cosine" && s.type != "wsd" && s.type != "constant")
    t.refuse("type", "type = \"", s.type, "\", expected \"cosine\", \"wsd\" or \"constant\"");
  s.warmup = at_least(t, "warmup", 0, s.warmup);
  s.final = in_range(t, "final", 0, 1, s.final);
  s.decay = in_range(t, "decay", 0, 1, s.decay);
  return s;
}

SampleSettings read_sample(const TomlTable& t) {
  SampleSettings s;
  s.every = at_least(t, "every", 0, s.every);
  s.prompt = t.string("prompt", s.prompt);
  s.tokens = at_least(t, "tokens", 0, s.tokens);
  s.temperature = in_range(t, "temperature", 0, 100, s.temperature);
  s.top_k = at_least(t, "top_k", 0, s.top_k);
  s.top_p = in_range(t, "top_p", 0, 1, s.top_p);
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
  return r;
}

}  // namespace

void set_products(const RunSettings& settings) {
  if constexpr (has_cuda) kernels::set_tf32(settings.tf32 && settings.dtype == Dtype::f32);
}

Recipe read_recipe(const std::string& path, std::vector<std::string> overrides,
                   const std::string& device, bool planned) {
  if (!device.empty()) overrides.push_back("train.device=\"" + device + "\"");
  Recipe recipe = checked(toml_from_file(path), name_of_file(path), overrides, planned);
  recipe.path = path;
  return recipe;
}

Recipe recipe_from_text(const std::string& text, const std::string& name,
                        const std::vector<std::string>& overrides) {
  return checked(toml_from_text(text, name), name_of_file(name), overrides, false);
}

}  // namespace weft::train
