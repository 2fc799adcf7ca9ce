// `weft eval`: the loss of a checkpoint on held-out text, and what its mixers chose there.
#include <algorithm>
#include <cstdio>

#include "core/units.h"
#include "layers/routes.h"
#include "train/ablation.h"
#include "train/domains.h"
#include "train/evaluate.h"
#include "train/pages/density.h"
#include "train/pages/page.h"
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

std::string cells(const std::vector<double>& values, const char* format) {
  std::string t;
  for (const double x : values) t += concat("<td>", number_text(format, x), "</td>");
  return t;
}

// The domains of an evaluation as a page: losses, densities, and what choices tell.
std::string domain_page(const DomainReport& report, const std::string& checkpoint,
                        const Drawing& drawing) {
  std::string head = "<tr><th></th>";
  std::vector<double> losses, bits;
  for (const DomainReport::Domain& d : report.domains) {
    head += concat("<th>", escaped(d.name), "</th>");
    losses.push_back(d.loss);
    bits.push_back(d.bits_per_byte);
  }
  Page page{"eval", "Domains: " + checkpoint, "", "", nullptr};
  page.note =
      "How much of the keys that full attention sees each layer sees of held-out text, by domain. "
      "No label was read: the first tokens of a document choose.";
  page.body =
      concat("<figure><svg viewBox=\"0 0 ", number_text("%.6g", drawing.width), " ",
             number_text("%.6g", drawing.height), "\" role=\"img\" ",
             "aria-label=\"density of layers by domain\" style=\"max-width:60rem\">",
             drawing.inside, "</svg></figure>\n<h2>Losses</h2>\n<div class=\"scroll\"><table>",
             head, "</tr>\n<tr><td>nats a token</td>", cells(losses, "%.4f"), "</tr>\n");
  if (std::all_of(bits.begin(), bits.end(), [](double b) { return b >= 0; }))
    page.body += concat("<tr><td>bits a byte</td>", cells(bits, "%.4f"), "</tr>\n");
  page.body += "</table></div>\n<h2>Keys seen, and what a choice tells</h2>\n";
  page.body += concat("<div class=\"scroll\"><table>", head, "<th>bits of the domain, of ",
                      number_text("%.3f", report.entropy), "</th></tr>\n");
  for (const LayerDensity& layer : report.layers)
    page.body += concat("<tr><td>", escaped(layer.owner), "</td>", cells(layer.density, "%.3f"),
                        cells({layer.information}, "%.3f"), "</tr>\n");
  page.body += "</table></div>\n";
  return page.text();
}

void write_domains(const EvalArguments& a, const DomainReport& report, const std::string& from) {
  require(!report.domains.empty(), "--page: ", from,
          " was evaluated on no mixture; its recipe has ", "no [domains], or --data names a text");
  require(!report.layers.empty(), "--page: no mixer of ", from, " chooses how much it sees, or ",
          "several ranks share the text; a page shows what was chosen");
  std::vector<std::string> columns;
  std::vector<DensityRow> rows;
  for (const DomainReport::Domain& d : report.domains) columns.push_back(d.name);
  for (const LayerDensity& layer : report.layers) rows.push_back({layer.owner, layer.density});
  const Drawing drawing = density_drawing(columns, rows);
  const std::string text = a.page.ends_with(".svg")
                               ? picture("eval", "density of layers by domain", drawing.width,
                                         drawing.height, drawing.inside)
                               : domain_page(report, from, drawing);
  write_page(a.page, text, "evaluate a model with fewer layers");
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
  require(a.page.empty() || a.data.empty(),
          "--page with --data: a text has no domains; leave one "
          "of them out");
  Loaded l = load(a.checkpoint, device);
  if (!a.page.empty()) require_page_output(a.page, {l.path}, a.overwrite);
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
  const DomainReport report = domain_report(e, source.domains());
  std::printf("%s", report.text().c_str());
  print_ablations(a, l, *source.held_out());
  if (!a.page.empty() && (!ranks || ranks->first())) write_domains(a, report, l.path);
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
