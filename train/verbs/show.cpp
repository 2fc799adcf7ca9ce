// `weft show`: what each head of a model reads of a text, as a page, a picture or JSON.
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/text.h"
#include "core/units.h"
#include "layers/mixing.h"
#include "train/pages/chart.h"
#include "train/pages/matrix.h"
#include "train/pages/page.h"
#include "train/verbs/loaded.h"
#include "train/verbs/verbs.h"

namespace weft::train {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kMostTokens = 1024;

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
  double gap = 0;
  std::vector<Panel> panels;
  std::vector<Chart> gates;

  std::string title() const { return concat(model, ", layer ", layer, ": ", mixer); }
};

struct Shown {
  std::vector<std::vector<std::string>> texts;  // the tokens, by checkpoint
  std::vector<LayerView> layers;
};

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

void add_panels(LayerView& view, const layers::Mixing& m, const ShowArguments& a) {
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

void add_gates(LayerView& view, const layers::Mixing& m, const ShowArguments& a) {
  static const std::map<std::string, std::string> kTitles = {
      {"kept", "part of the state that a token keeps, by head"},
      {"beta", "beta: how much of what its key held a token overwrites, by head"},
      {"step", "step of a token, mean over channels"},
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
      for (size_t t = 0; t < c.y.size(); ++t) c.x.push_back(static_cast<double>(t));
      chart.curves.push_back(std::move(c));
    }
    view.gates.push_back(std::move(chart));
  }
}

// "layers.3.mixer" is layer 3.
int64_t layer_of(const std::string& owner) { return std::stoll(owner.substr(owner.find('.') + 1)); }

std::string name_of_model(const std::string& checkpoint) {
  const std::string folder = run_of(checkpoint);
  const std::string name = std::filesystem::path(folder).filename().string();
  return name.empty() ? checkpoint : name;
}

void look_into(const std::string& checkpoint, const ShowArguments& a, Shown& shown) {
  const Loaded l = load(checkpoint, "cpu");
  require(l.tokenizer != nullptr, l.path, ": was trained on a task and reads no text");
  const std::vector<int32_t> tokens = l.tokenizer->encode(a.text);
  const auto T = static_cast<int64_t>(tokens.size());
  const int64_t most = std::min(kMostTokens, l.model->longest_text());
  require(T <= most, "--text has ", T, " tokens, expected at most ", most);
  const layers::LayerNames names = layers::layer_names(l.recipe.toml);
  require(a.layer < static_cast<int64_t>(names.mixers.size()), "--layer ", a.layer, ": ", l.path,
          " has layers 0 to ", names.mixers.size() - 1);
  std::vector<std::string> pieces;
  for (const int32_t t : tokens) pieces.push_back(l.tokenizer->piece(t));
  shown.texts.push_back(std::move(pieces));
  layers::watch_mixings(
      [&] {
        l.model->logits(tensor_of(tokens).reshape({1, T}));
      },
      [&](const layers::Mixing& m) {
        LayerView view;
        view.layer = layer_of(m.owner);
        if (a.layer >= 0 && a.layer != view.layer) return;
        view.text = shown.texts.size() - 1;
        view.model = name_of_model(l.path);
        view.mixer = names.mixers[static_cast<size_t>(view.layer)];
        view.operation = m.operation;
        view.gap = m.gap;
        add_panels(view, m, a);
        add_gates(view, m, a);
        shown.layers.push_back(std::move(view));
      });
}

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

// `packed` as the page's script reads it; else every number, the lower triangle by rows.
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

std::string square(const Panel& p, size_t T, const std::string& label) {
  return concat("<svg viewBox=\"0 0 ", T, " ", T, "\" role=\"img\" aria-label=\"", escaped(label),
                "\">\n", matrix_inside(p.values, T, p.largest), "<path class=\"frame\" ",
                "vector-effect=\"non-scaling-stroke\" d=\"M0 0V", T, "H", T, "\"/></svg>");
}

std::string section_of(const LayerView& view, size_t T, size_t& index) {
  std::string s = concat(
      "<section>\n<h2>", escaped(view.title()), "</h2>\n<p>Operation ", escaped(view.operation),
      ". Matrix times values differs from the result by ", number_text("%.1e", view.gap),
      " of its largest number.</p>\n<div class=\"pair\">\n<div class=\"heads\">\n");
  for (const Panel& p : view.panels)
    s += concat("<figure><button class=\"open\" data-matrix=\"", index++, "\" aria-label=\"open ",
                escaped(p.head), "\">", square(p, T, p.head), "</button><figcaption>",
                p.colour < 0 || view.gates.empty()
                    ? ""
                    : concat("<span class=\"key c", p.colour % 8, "\"></span>"),
                escaped(p.head), ", largest ", number_text("%.3g", p.largest),
                "</figcaption></figure>\n");
  s += "</div>\n";
  if (!view.gates.empty()) {
    s += "<div class=\"grid\">\n";
    for (const Chart& c : view.gates) s += chart_element(c);
    s += "</div>\n";
  }
  return s + "</div>\n</section>\n";
}

constexpr const char* kLarge =
    "<dialog id=\"large\" aria-label=\"one matrix\"><h2></h2><output aria-live=\"polite\"></output>"
    "<div class=\"stage\"></div><p><button class=\"before\">before</button> <button "
    "class=\"after\">after</button> <button class=\"close\">close</button> Arrow keys move from "
    "token to token.</p></dialog>\n";

std::string page_of(const Shown& shown, const std::string& text) {
  Page page{"show", concat("What is read of “", text, "”"), "", "", nullptr};
  page.note =
      "Row: a token's result. Column: the token whose value it takes, with this factor. Blue adds, "
      "orange takes away, grey is exactly zero; the shade grows with the square root of the factor "
      "over the largest of its matrix. Every matrix is exact: the mechanism itself was fed unit "
      "values in place of its own. Open one to read its numbers.";
  size_t index = 0;
  for (const LayerView& view : shown.layers)
    page.body += section_of(view, shown.texts[view.text].size(), index);
  page.body += kLarge;
  ordered_json data = data_of(shown, /*packed=*/true);
  page.data = &data;
  return page.text();
}

// Up to four matrices a row, each under its name.
std::string picture_of(const Shown& shown, const std::string& text) {
  constexpr double kSide = 220, kGap = 20, kHead = 40;
  constexpr size_t kAcross = 4;
  std::string inside;
  size_t index = 0;
  for (const LayerView& view : shown.layers) {
    const size_t T = shown.texts[view.text].size();
    for (const Panel& p : view.panels) {
      const double x = kGap + static_cast<double>(index % kAcross) * (kSide + kGap);
      const double y = kHead + static_cast<double>(index / kAcross) * (kSide + kHead);
      inside +=
          concat("<text x=\"", x, "\" y=\"", y - 22, "\">", escaped(view.title()),
                 "</text><text class=\"soft\" x=\"", x, "\" y=\"", y - 7, "\">", p.head,
                 ", largest ", number_text("%.2g", p.largest), "</text>\n<g transform=\"translate(",
                 x, " ", y, ") scale(", number_text("%.6g", kSide / static_cast<double>(T)),
                 ")\">\n", matrix_inside(p.values, T, p.largest),
                 "<path class=\"frame\" vector-effect=\"non-scaling-stroke\" d=\"M0 0V", T, "H", T,
                 "Z\"/></g>\n");
      ++index;
    }
  }
  const size_t rows = (index + kAcross - 1) / kAcross;
  const double width = kGap + static_cast<double>(std::min(index, kAcross)) * (kSide + kGap);
  double y = 18 + static_cast<double>(rows) * (kSide + kHead);
  for (const std::string& line :
       {std::string("Row: a token. Column: the token whose value it takes."),
        "Text: “" + text + "”"}) {
    inside +=
        concat("<text class=\"soft\" x=\"", kGap, "\" y=\"", y, "\">", escaped(line), "</text>\n");
    y += 17;
  }
  return picture("show", "What is read of “" + text + "”", width, y - 4, inside);
}

void check(const ShowArguments& a) {
  require(!a.text.empty(), "--text is empty, expected some text to read");
  require(a.layer >= -1, "--layer ", a.layer, ": expected a layer's number, from 0");
  require(a.head >= -1, "--head ", a.head, ": expected a head's number, from 0");
  require(a.channel >= -1, "--channel ", a.channel, ": expected a channel's number, from 0");
  require(!(a.svg && a.json), "--svg and --json each name the form of the output; expected one");
}

}  // namespace

int run_show(const ShowArguments& a) {
  check(a);
  const bool printed = a.out.empty() && a.json;  // on standard output
  const std::string out = !a.out.empty() ? a.out : a.svg ? "show.svg" : "show.html";
  std::vector<std::string> inputs;
  for (const std::string& c : a.checkpoints) inputs.push_back(find_checkpoint(c));
  if (!printed) require_page_output(out, inputs, a.overwrite);
  Shown shown;
  for (const std::string& c : a.checkpoints) look_into(c, a, shown);
  const std::string text = a.json  ? json_line(data_of(shown, /*packed=*/false)) + "\n"
                           : a.svg ? picture_of(shown, a.text)
                                   : page_of(shown, a.text);
  if (printed)
    std::fwrite(text.data(), 1, text.size(), stdout);
  else if (a.json)
    write_file(out, text);
  else
    write_page(out, text, "choose a --layer, a --head or a shorter --text");
  size_t matrices = 0;
  for (const LayerView& view : shown.layers) matrices += view.panels.size();
  if (!printed && !is_standard_output(out))
    std::printf("%s: %zu matrices of %zu tokens, %s\n", out.c_str(), matrices,
                shown.texts[0].size(), bytes_text(double(text.size())).c_str());
  return 0;
}

}  // namespace weft::train
