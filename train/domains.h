// What an evaluation of a mixture says of its domains: the loss of each, how dense each layer is
// for each, and how much a choice tells of the domain.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "train/evaluate.h"

namespace weft::train {

// I(D; P) in bits of the joint counts [domains][patterns]: sum of p(d, k) log2 p(d, k) / p(d) p(k).
// 0 where nothing was counted. Throws Error for rows of several lengths.
double information(const std::vector<std::vector<double>>& counts);

// A layer whose mixer chooses what softmax attention sees.
struct LayerDensity {
  std::string owner;                        // "layers.3.mixer"
  std::vector<double> density;              // [domains]: keys seen, over those of all of the past
  std::vector<std::vector<double>> shares;  // [domains][choices], of tokens behind openings
  double information = 0;                   // of domain and choice, bits a token
};

struct DomainReport {
  struct Domain {
    std::string name;
    double loss = 0, bits_per_byte = -1, tokens = 0;
  };
  std::vector<Domain> domains;
  std::vector<LayerDensity> layers;  // none where no mixer chooses, or on several ranks
  double entropy = 0;                // H(D) of the tokens that chose: the most that is told

  // A table for people, with a line of each domain and one of each layer.
  std::string text() const;
  // Numbers for metrics.jsonl: eval_loss_NAME, density_NAME (the mean over layers), information
  // (the mean over layers), information_LAYER.
  void add_metrics(nlohmann::ordered_json& line) const;
};

// Of an evaluation whose batches bore numbers of `names`. Nothing where it was of no mixture.
DomainReport domain_report(const Evaluation& e, const std::vector<std::string>& names);

}  // namespace weft::train
