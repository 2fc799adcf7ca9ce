// A recipe, read and checked. The [model] side is read by layers::Model, the [data] side by
// train/source.cpp; the rest here. Every key that nobody asks for is refused by finish().
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/dtype.h"
#include "core/toml.h"

namespace weft::train {

struct RunSettings {  // [train]
  int64_t steps = 1000;
  int64_t batch = 16;      // sequences a micro-batch
  int64_t accumulate = 1;  // micro-batches a step
  uint64_t seed = 1;
  Dtype dtype = Dtype::f32;
  bool tf32 = false;  // f32 products on a GPU by TF32 tensor cores
  Device device = kCpu;
  int64_t log_every = 10;
  int64_t eval_every = 0;  // 0: only at the end
  int64_t eval_batches = 20;
  int64_t checkpoint_every = -1;  // 0: only at the end and where it is stopped; -1: by time
  int64_t keep = 2;               // newest checkpoints kept, beside the best
  bool safetensors = false;       // each checkpoint has a twin for other programs
  std::string out;
};

struct OptimizerSettings {  // [optimizer]
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  double clip = 1.0;           // largest gradient norm; 0: none
  std::string type = "adamw";  // adamw | muon: matrices of mixers and MLPs by Muon
  double muon_lr = 0.02, momentum = 0.95;
  std::string muon_scale = "spectral";  // spectral | adamw
};

struct ScheduleSettings {       // [schedule]
  std::string type = "cosine";  // cosine | wsd | constant
  int64_t warmup = 0;           // steps
  double final = 0.1;           // last learning rate, as a part of lr
  double decay = 0.2;           // wsd: part of the steps spent falling
};

struct SampleSettings {  // [sample]
  int64_t every = 0;     // 0: only at the end
  std::string prompt;
  int64_t tokens = 200;
  double temperature = 0.8, top_p = 1;
  int64_t top_k = 0;
};

// [distill]: what a run learns of a teacher before it learns from the text.
struct DistillSettings {
  struct Stage {
    int64_t steps = 0;
    double lr = 0;
    int64_t length = 0;  // of texts; 0: the context
  };
  std::string teacher;  // a checkpoint, or the folder of a run; empty: none
  std::string hash;     // of its parameters; empty: not known before the run
  Stage align{0, 1e-3, 0}, match{0, 1e-4, 0};
  double temperature = 1;
};

struct LogSettings {         // [log]
  bool tensorboard = false;  // an event file of TensorBoard beside metrics.jsonl
};

struct Recipe {
  TomlTable toml;
  std::string name;
  std::string path;  // of the file that it was read from; empty for a checkpoint's
  RunSettings train;
  OptimizerSettings optimizer;
  ScheduleSettings schedule;
  SampleSettings sample;
  DistillSettings distill;
  LogSettings log;

  // After model and data have read their parts: refuses what nobody asked for.
  void finish() const { toml.finish(); }
};

// Sets how this process makes products of f32 on a GPU, as the recipe says.
void set_products(const RunSettings& settings);

// `overrides` are "table.key=value"; `device`, unless empty, stands before the recipe's own. A
// recipe that is only planned may name a GPU where there is none. Throw Error with file, line and
// column.
Recipe read_recipe(const std::string& path, std::vector<std::string> overrides = {},
                   const std::string& device = "", bool planned = false);
Recipe recipe_from_text(const std::string& text, const std::string& name,
                        const std::vector<std::string>& overrides = {});

}  // namespace weft::train
