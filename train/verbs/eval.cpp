// `weft eval`: the loss of a checkpoint on held-out text, and what its mixers chose there.
#include <cstdio>

#include "layers/routes.h"
#include "train/ablation.h"
#include "train/evaluate.h"
#include "train/verbs/loaded.h"
#include "train/verbs/verbs.h"

namespace weft::train {

namespace {

void print_routes(const std::vector<layers::Routes>& all) {
  for (const layers::Routes& r : all) {
    if (r.lost) {
      std::printf(
          "%s: at most %.3g %% of a token's attention is lost, %.3g %% on average; a token sees "
          "%.1f keys\n",
          r.owner.c_str(), 100 * r.lost->most, 100 * r.lost->mean, r.keys);
      continue;
    }
    if (r.by_document) {
      std::printf("%s: behind an opening", r.owner.c_str());
      for (size_t i = 0; i < r.shares.size(); ++i)
        std::printf("%s pattern %zu %.1f %%", i == 0 ? "" : ",", i + 1, 100 * r.shares[i]);
      std::printf("; a token sees %.1f keys\n", r.keys);
      continue;
    }
    std::printf(
        "%s: no key %.1f %%, window %.1f %%, selected blocks %.1f %%, all %.1f %%; "
        "a token sees %.1f keys\n",
        r.owner.c_str(), 100 * r.shares[0], 100 * r.shares[1], 100 * r.shares[2], 100 * r.shares[3],
        r.keys);
  }
}

void print_ablations(const EvalArguments& a, const Loaded& l, data::BatchSource& held_out) {
  if (a.ablate)
    std::printf(
        "%s\n",
        ablations(*l.model, nullptr, held_out, a.batches, l.recipe.train.device).text().c_str());
}

// With several ranks each meets its own part of the text, so nothing is said of choices.
Evaluation evaluated(const Loaded& l, data::BatchSource& held_out, int64_t batches, Ranks* ranks,
                     std::vector<layers::Routes>& routes) {
  Evaluation e;
  const auto run = [&] {
    e = evaluate(*l.model, held_out, batches, l.recipe.train.device, nullptr, ranks);
  };
  if (ranks && ranks->size() > 1)
    run();
  else
    routes = layers::watch_routes(run);
  return e;
}

int eval_on(const EvalArguments& a, const std::shared_ptr<Ranks>& ranks,
            const std::string& device) {
  require(a.batches >= 0, "--batches ", a.batches, ": expected at least 1, or 0 for all");
  Loaded l = load(a.checkpoint, device);
  std::vector<layers::Routes> routes;
  if (!a.data.empty()) {
    require(!l.data.is_task, l.path, ": was trained on a task; --data takes text");
    require_tokenizer(l, "reads");
    const DataSettings given{
        .sources = {a.data}, .document = l.data.document, .packed = l.data.packed};
    l.data = given;
    const data::TokenDataset all =
        data::open_data(l.data.sources, text_options(l.data.document), l.tokenizer);
    if (!all.left_out().empty()) std::printf("left out: %s\n", all.left_out().c_str());
    const data::BatchShape shape{.rows = l.recipe.train.batch, .length = l.model->context()};
    data::BatchSource held_out(l.data.packed ? data::held_out_packed(all.all(), shape)
                                             : data::held_out_windows(all.all(), shape));
    const Evaluation e = evaluated(l, held_out, a.batches, ranks.get(), routes);
    std::printf("%s\n", e.text().c_str());
    print_routes(routes);
    print_ablations(a, l, held_out);
    return 0;
  }
  Source source(l.data, l.recipe, l.model->context(), l.tokenizer);
  require(source.held_out() != nullptr, l.path,
          ": the recipe holds out nothing that can be predicted; name a text with --data");
  const Evaluation e = evaluated(l, *source.held_out(), a.batches, ranks.get(), routes);
  std::printf("%s, step %ld: %s\n", l.path.c_str(), static_cast<long>(l.state.step),
              e.text().c_str());
  print_routes(routes);
  print_ablations(a, l, *source.held_out());
  return 0;
}

}  // namespace

int run_eval(const EvalArguments& a) {
  return on_ranks(a.ranks, a.device,
                  {nullptr, [&](const std::shared_ptr<Ranks>& ranks, const std::string& device) {
                     return eval_on(a, ranks, device);
                   }});
}

}  // namespace weft::train
