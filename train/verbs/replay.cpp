// `weft replay`: what a run starts from and what it is fed, for another framework to follow it
// number by number: parameters/NAME, and tokens and targets [steps, micro-batches, B, T].
#include <cstdio>

#include "core/file.h"
#include "core/hdf5.h"
#include "core/units.h"
#include "train/source.h"
#include "train/verbs/verbs.h"
#include "train/workbench/report.h"

namespace weft::train {

int run_replay(const ReplayArguments& a) {
  require(a.steps >= 1, "--steps ", a.steps, ": expected at least 1");
  Recipe recipe = read_recipe(a.recipe, a.set, "cpu");
  const DataSettings data = read_data(recipe.toml);
  const layers::Model model(recipe.toml, vocabulary_of(data), recipe.train.dtype, kCpu,
                            recipe.train.seed);
  recipe.finish();
  std::vector<std::string> inputs = data.sources;
  inputs.push_back(a.recipe);
  require_output(a.out, inputs);
  Source source(data, recipe, model.context());
  Hdf5Writer file(a.out);
  file.attribute("", "format", std::string("weft replay 1"));
  file.attribute("", "recipe", recipe.toml.to_text());
  for (const layers::Parameter& p : model.parameters())
    file.tensor("parameters/" + p.name, p.master);
  {
    TaskProgress line("replay");
    for (int64_t step = 0; step < a.steps; ++step) {
      line.show(static_cast<double>(step) / static_cast<double>(a.steps), "batches");
      for (int64_t i = 0; i < recipe.train.accumulate; ++i) {
        const layers::Batch batch = source.next(kCpu);
        require(!batch.cu_seqlens,
                "weft replay: packed batches differ in their borders; run it "
                "with --set data.packed=false");
        if (step == 0 && i == 0)
          for (const char* name : {"tokens", "targets"})
            file.begin_rows(name, Dtype::i32, batch.tokens.shape());
        file.append_rows("tokens", batch.tokens.data<int32_t>(), 1);
        file.append_rows("targets", batch.targets.data<int32_t>(), 1);
      }
    }
  }
  file.commit();
  std::FILE* const told = is_standard_output(a.out) ? stderr : stdout;
  std::fprintf(told, "%s: %s parameters, batches of %ld steps\n", a.out.c_str(),
               count_text(double(model.parameter_count())).c_str(), static_cast<long>(a.steps));
  return 0;
}

}  // namespace weft::train
