// What each head of a model reads of a text, as a verb's page and JSON show it.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"
#include "layers/mixing.h"
#include "layers/model.h"
#include "train/pages/chart.h"

namespace weft::train {

// One matrix of the page.
struct Panel {
  std::string head;  // "head 3", "channel 7", "mean of 256 channels"
  std::vector<double> values;
  double largest = 0;
  int colour = -1;  // of the head's gates
};

struct LayerView {
  size_t text = 0;  // of which checkpoint
  std::string model, mixer, operation;
  int64_t layer = 0;
  int64_t part = 1, parts = 1;  // of the operations that mix tokens in this layer
  double gap = 0;
  std::vector<Panel> panels;
  std::vector<Chart> gates;

  std::string title() const {
    return concat(model, ", layer ", layer, ": ", mixer,
                  parts > 1 ? concat(", part ", part, " of ", parts) : "");
  }
};

// Of a model: all where it is -1, else one.
struct Choice {
  int64_t layer = -1, head = -1;
  int64_t channel = -1;  // of a scan; -1: the mean over its channels
};

struct ModelNames {
  std::string model;
  std::vector<std::string> mixers;  // by layer
};

struct Shown {
  std::vector<std::vector<std::string>> texts;  // the tokens, by checkpoint
  std::vector<LayerView> layers;
};

// Adds a text and the layers that read it. Throws Error for a head or channel that a layer lacks.
void look_into(const layers::Model& model, const data::Tokenizer& tokenizer,
               const std::vector<int32_t>& tokens, const ModelNames& names, const Choice& choice,
               Shown& shown);

// A layer's matrices and gates. `index` counts the matrices of the page.
std::string layer_section(const LayerView& view, size_t T, size_t& index);
// How to read a matrix.
std::string_view matrix_note();
// The dialog in which a matrix opens large; a page has it once.
std::string large_matrix();
// `packed` as the page's script reads it; else every number, the lower triangle by rows.
nlohmann::ordered_json data_of(const Shown& shown, bool packed);

}  // namespace weft::train
