#include "train/verbs/mixing_views.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/text.h"
#include "core/units.h"
#include "train/pages/matrix.h"
#include "train/pages/page.h"

namespace weft::train {
namespace {

using nlohmann::ordered_json;

std::vector<double> numbers_of(const Tensor& matrices, int64_t h) {
  return to_doubles(matrices.select(0, h));
}

std::vector<double> mean_of(const Tensor& matrices) {
  const int64_t n = matrices.size(0);
  std::vector<double> mean(static_cast<size_t>(matrices.numel() / n));
  for (int64_t h = 0; h < n; ++h) {
    const std::vector<double> one = numbers_of(matrices, h);
    for (size_t i = 0; i < mean.size(); ++i) mean[i] += one[i] / static_cast<double>(n);
  }
  return mean;
}

void add_panel(LayerView& view, const std::string& head, std::vector<double> values,
               int colour = -1) {
  const double largest = largest_of(values);
  view.panels.push_back({head, std::move(values), largest, colour});
}

void add_panels(LayerView& view, const layers::Mixing& m, const Choice& a) {
  const int64_t n = m.matrix.size(0);
  if (m.channels) {
    require(a.channel < n, "--channel ", a.channel, ": ", view.title(), " has channels 0 to ",
            n - 1);
    if (a.channel >= 0)
      add_panel(view, concat("channel ", a.channel), numbers_of(m.matrix, a.channel));
    else
      add_panel(view, concat("mean of ", n, " channels"), mean_of(m.matrix));
    return;
  }
  require(a.head < n, "--head ", a.head, ": ", view.title(), " has heads 0 to ", n - 1);
  for (int64_t h = 0; h < n; ++h)
    if (a.head < 0 || a.head == h)
      add_panel(view, concat("head ", h), numbers_of(m.matrix, h), static_cast<int>(h));
}

void add_gates(LayerView& view, const layers::Mixing& m, const Choice& a) {
  static const std::map<std::string, std::string> kTitles = {
      {"kept", "state that a token keeps, by head: the mean over the gate"},
      {"beta", "beta, by head: how much of what a key held goes"},
      {"step", "step of a token, mean over channels"},
      {"state", "norm of the state after a token"},
      {"routes", "what the router gives to each choice"}};
  static const char* const kRoutes[] = {"no key", "window", "selected blocks", "all of the past"};
  for (const auto& [name, gate] : m.gates) {
    Chart chart{kTitles.at(name), "token", {}};
    for (int64_t h = 0; h < gate.size(0); ++h) {
      const bool route = name == "routes";
      if (!m.channels && !route && a.head >= 0 && a.head != h) continue;
      Curve c{route        ? kRoutes[h]
              : m.channels ? name
                           : concat("head ", h, ", ", name),
              {},
              {},
              static_cast<int>(h)};
      c.y = to_doubles(gate.select(0, h));
      for (size_t t = 0; t < c.y.size(); ++t) c.x.push_back(static_cast<double>(t + 1));
      chart.curves.push_back(std::move(c));
    }
    view.gates.push_back(std::move(chart));
  }
}

// "layers.3.mixer" is layer 3.
int64_t layer_of(const std::string& owner) { return std::stoll(owner.substr(owner.find('.') + 1)); }

// A token as text: bytes that are none are written out.
ordered_json token_texts(const Shown& shown) {
  ordered_json j = ordered_json::array();
  for (const auto& text : shown.texts) {
    ordered_json list = ordered_json::array();
    for (const std::string& piece : text) list.push_back(as_utf8(piece));
    j.push_back(list);
  }
  return j;
}

ordered_json rows_of(const Panel& p, size_t T) {
  ordered_json rows = ordered_json::array();
  for (size_t t = 0; t < T; ++t)
    rows.push_back(
        std::vector<double>(p.values.begin() + static_cast<std::ptrdiff_t>(t * T),
                            p.values.begin() + static_cast<std::ptrdiff_t>(t * T + t + 1)));
  return rows;
}

std::string square(const Panel& p, size_t T, const std::string& label) {
  return concat("<svg viewBox=\"0 0 ", T, " ", T, "\" role=\"img\" aria-label=\"", escaped(label),
                "\">\n", matrix_inside(p.values, T, p.largest), "<path class=\"frame\" ",
                "vector-effect=\"non-scaling-stroke\" d=\"M0 0V", T, "H", T, "\"/></svg>");
}

}  // namespace

void look_into(const layers::Model& model, const data::Tokenizer& tokenizer,
               const std::vector<int32_t>& tokens, const ModelNames& names, const Choice& a,
               Shown& shown) {
  std::vector<std::string> pieces;
  for (const int32_t t : tokens) pieces.push_back(tokenizer.piece(t));
  shown.texts.push_back(std::move(pieces));
  const size_t first = shown.layers.size();
  const auto T = static_cast<int64_t>(tokens.size());
  layers::watch_mixings(
      [&] {
        model.logits(tensor_of(tokens).reshape({1, T}));
      },
      [&](const layers::Mixing& m) {
        LayerView view;
        view.layer = layer_of(m.owner);
        if (a.layer >= 0 && a.layer != view.layer) return;
        view.text = shown.texts.size() - 1;
        view.model = names.model;
        view.mixer = names.mixers[static_cast<size_t>(view.layer)];
        view.operation = m.operation;
        view.gap = m.gap;
        add_panels(view, m, a);
        add_gates(view, m, a);
        shown.layers.push_back(std::move(view));
      });
  std::map<int64_t, int64_t> parts;  // by layer
  for (size_t i = first; i < shown.layers.size(); ++i)
    shown.layers[i].part = ++parts[shown.layers[i].layer];
  for (size_t i = first; i < shown.layers.size(); ++i)
    shown.layers[i].parts = parts[shown.layers[i].layer];
}

namespace {

// Of curves that no matrix has the colour of.
std::string legend_of(const Chart& chart) {
  std::string s;
  for (const Curve& c : chart.curves)
    if (!c.name.starts_with("head "))
      s += concat(" <small><span class=\"key c", c.colour % 8, "\"></span>", escaped(c.name),
                  "</small>");
  return chart.curves.size() < 2 || s.empty() ? "" : concat("<p class=\"legend\">", s, "</p>\n");
}

}  // namespace

std::string layer_section(const LayerView& view, size_t T, size_t& index) {
  std::string s =
      concat("<section>\n<h2>", escaped(view.title()), "</h2>\n<p>Operation ",
             escaped(view.operation), ". Matrix times values differs from the result by ",
             with_minus(number_text("%.1e", view.gap)),
             " of its largest number.</p>\n<div class=\"pair\">\n<div class=\"heads\">\n");
  const bool keyed = std::any_of(view.gates.begin(), view.gates.end(),
                                 [](const Chart& c) { return legend_of(c).empty(); });
  for (const Panel& p : view.panels)
    s += concat(
        "<figure><button class=\"open\" data-matrix=\"", index++, "\" aria-label=\"open ",
        escaped(p.head), "\">", square(p, T, p.head), "</button><figcaption>",
        p.colour < 0 || !keyed ? "" : concat("<span class=\"key c", p.colour % 8, "\"></span>"),
        escaped(p.head), ", largest ", number_text("%.3g", p.largest), "</figcaption></figure>\n");
  s += "</div>\n";
  if (!view.gates.empty()) {
    s += "<div class=\"grid\">\n";
    for (const Chart& c : view.gates)
      s += concat("<div>", chart_element(c), legend_of(c), "</div>\n");
    s += "</div>\n";
  }
  return s + "</div>\n</section>\n";
}

std::string_view matrix_note() {
  return "Row: a token's result. Column: the token whose value it takes, with this factor. Blue "
         "adds, "
         "orange takes away, grey is exactly zero; the shade grows with the square root of the "
         "factor "
         "over the largest of its matrix. Every matrix is exact: the mechanism itself was fed unit "
         "values in place of its own. Open one to read its numbers.";
}

std::string large_matrix() {
  return "<dialog id=\"large\" aria-label=\"one matrix\"><h2></h2><output "
         "aria-live=\"polite\"></output>"
         "<div class=\"stage\"></div><p><button class=\"before\">before</button> <button "
         "class=\"after\">after</button> <button class=\"close\">close</button> Arrow keys move "
         "from "
         "token to token.</p></dialog>\n";
}

ordered_json data_of(const Shown& shown, bool packed) {
  ordered_json j;
  j["made_by"] = "weft show";
  j["texts"] = token_texts(shown);
  j["matrices"] = ordered_json::array();
  for (const LayerView& view : shown.layers) {
    const size_t T = shown.texts[view.text].size();
    for (const Panel& p : view.panels) {
      ordered_json m;
      m["label"] = as_utf8(concat(view.title(), ", ", p.head));
      m["text"] = view.text;
      if (packed) {
        m["scale"] = p.largest;
        m["cells"] = packed_cells(p.values, T, p.largest);
      } else {
        m["model"] = as_utf8(view.model);
        m["layer"] = view.layer;
        m["mixer"] = view.mixer;
        m["operation"] = view.operation;
        m["part"] = p.head;
        m["gap"] = view.gap;
        m["rows"] = rows_of(p, T);
        for (const Chart& c : view.gates)
          for (const Curve& curve : c.curves) m["gates"][curve.name] = curve.y;
      }
      j["matrices"].push_back(m);
    }
  }
  return j;
}

}  // namespace weft::train
