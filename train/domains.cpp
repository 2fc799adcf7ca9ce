#include "train/domains.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/text.h"
#include "core/units.h"

namespace weft::train {
namespace {

double entropy_of(const std::vector<double>& counts) {
  double all = 0, bits = 0;
  for (const double n : counts) all += n;
  for (const double n : counts)
    if (n > 0) bits -= n / all * std::log2(n / all);
  return bits;
}

std::string padded(const std::string& text, size_t width) {
  return std::string(width - std::min(width, text.size()), ' ') + text;
}

// The layers of all domains, in step: each evaluation met the same.
std::vector<LayerDensity> layers_of(const std::vector<DomainEvaluation>& all) {
  std::vector<LayerDensity> layers;
  for (size_t i = 0; i < all.at(0).routes.size(); ++i) {
    LayerDensity layer{all[0].routes[i].owner, {}, {}, 0};
    std::vector<std::vector<double>> counts;
    for (const DomainEvaluation& d : all) {
      const layers::Routes& r = d.routes.at(i);
      layer.density.push_back(d.full_keys > 0 ? r.keys / d.full_keys : 0);
      layer.shares.push_back(r.shares);
      counts.push_back(r.shares);
      for (double& share : counts.back()) share *= r.tokens;
    }
    layer.information = information(counts);
    layers.push_back(std::move(layer));
  }
  return layers;
}

}  // namespace

double information(const std::vector<std::vector<double>>& counts) {
  std::vector<double> rows, columns;
  double all = 0;
  for (const std::vector<double>& row : counts) {
    require(row.size() == counts[0].size(), "information: rows of ", row.size(), " and ",
            counts[0].size(), " numbers, expected as many patterns for each domain");
    columns.resize(row.size());
    rows.push_back(0);
    for (size_t k = 0; k < row.size(); ++k) {
      rows.back() += row[k];
      columns[k] += row[k];
      all += row[k];
    }
  }
  double bits = 0;
  for (size_t d = 0; d < rows.size(); ++d)
    for (size_t k = 0; k < columns.size(); ++k)
      if (const double n = counts[d][k]; n > 0)
        bits += n / all * std::log2(n * all / (rows[d] * columns[k]));
  return std::max(0.0, bits);  // not less by rounding
}

DomainReport domain_report(const Evaluation& e, const std::vector<std::string>& names) {
  DomainReport report;
  std::vector<DomainEvaluation> all;
  for (const auto& [number, d] : e.domains) {
    report.domains.push_back(
        {names.at(static_cast<size_t>(number)), d.loss, d.bits_per_byte, d.tokens});
    all.push_back(d);
  }
  if (all.empty()) return report;
  report.layers = layers_of(all);
  std::vector<double> chose;
  for (const DomainEvaluation& d : all)
    if (!d.routes.empty()) chose.push_back(d.routes[0].tokens);
  report.entropy = entropy_of(chose);
  return report;
}

std::string DomainReport::text() const {
  if (domains.empty()) return "";
  size_t first = 6, column = 12;
  for (const LayerDensity& layer : layers) first = std::max(first, layer.owner.size());
  for (const Domain& d : domains) column = std::max(column, d.name.size() + 2);
  const auto line = [&](const std::string& name, const auto& cell, const std::string& end) {
    std::string t = name + std::string(first - std::min(first, name.size()), ' ');
    for (size_t i = 0; i < domains.size(); ++i) t += padded(cell(i), column);
    return t + end + "\n";
  };
  const bool bytes = std::all_of(domains.begin(), domains.end(),
                                 [](const Domain& d) { return d.bits_per_byte >= 0; });
  std::string t = line(
      "domain", [&](size_t i) { return domains[i].name; }, "");
  t += line(
      "tokens", [&](size_t i) { return number_text("%.0f", domains[i].tokens); }, "");
  t += line(
      "loss", [&](size_t i) { return number_text("%.4f", domains[i].loss); }, "");
  if (bytes)
    t += line(
        "bits", [&](size_t i) { return number_text("%.4f", domains[i].bits_per_byte); },
        "  a byte");
  for (const LayerDensity& layer : layers)
    t += line(
        layer.owner, [&](size_t i) { return number_text("%.1f", 100 * layer.density[i]) + " %"; },
        concat("  of the keys; its choice tells ", number_text("%.3f", layer.information), " of ",
               number_text("%.3f", entropy), " bits of the domain"));
  return t;
}

void DomainReport::add_metrics(nlohmann::ordered_json& line) const {
  for (const Domain& d : domains) line[concat("eval_loss_", d.name)] = d.loss;
  if (layers.empty()) return;
  double told = 0;
  for (size_t i = 0; i < domains.size(); ++i) {
    double density = 0;
    for (const LayerDensity& layer : layers) density += layer.density[i];
    line[concat("density_", domains[i].name)] = density / static_cast<double>(layers.size());
  }
  for (const LayerDensity& layer : layers) told += layer.information;
  line["information"] = told / static_cast<double>(layers.size());
  for (size_t i = 0; i < layers.size(); ++i)
    line[concat("information_", i)] = layers[i].information;
}

}  // namespace weft::train
