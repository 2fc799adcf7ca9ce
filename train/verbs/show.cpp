// `weft show`: what each head of a model reads of a text, as a page, a picture or JSON.
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/text.h"
#include "core/units.h"
#include "train/pages/matrix.h"
#include "train/pages/page.h"
#include "train/verbs/loaded.h"
#include "train/verbs/mixing_views.h"
#include "train/verbs/verbs.h"

namespace weft::train {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kMostTokens = 1024;

std::string name_of_model(const std::string& checkpoint) {
  const std::string folder = run_of(checkpoint);
  const std::string name = std::filesystem::path(folder).filename().string();
  return name.empty() ? checkpoint : name;
}

void look_into_checkpoint(const std::string& checkpoint, const ShowArguments& a, Shown& shown) {
  const Loaded l = load(checkpoint, "cpu");
  require_tokenizer(l, "reads");
  const std::vector<int32_t> tokens = l.tokenizer->encode(a.text);
  const auto T = static_cast<int64_t>(tokens.size());
  const int64_t most = std::min(kMostTokens, l.model->longest_text());
  require(T <= most, "--text has ", T, " tokens, expected at most ", most);
  const layers::LayerNames names = layers::layer_names(l.recipe.toml);
  require(a.layer < static_cast<int64_t>(names.mixers.size()), "--layer ", a.layer, ": ", l.path,
          " has layers 0 to ", names.mixers.size() - 1);
  look_into(*l.model, *l.tokenizer, tokens, {name_of_model(l.path), names.mixers},
            {a.layer, a.head, a.channel}, shown);
}

std::string page_of(const Shown& shown, const std::string& text) {
  Page page{"show", concat("What is read of “", text, "”"), "", "", nullptr};
  page.note = matrix_note();
  size_t index = 0;
  for (const LayerView& view : shown.layers)
    page.body += layer_section(view, shown.texts[view.text].size(), index);
  page.body += large_matrix();
  ordered_json data = data_of(shown, /*packed=*/true);
  page.data = &data;
  return page.text();
}

// The text in lines of at most `most` characters.
std::vector<std::string> lines_of(const std::string& text, size_t most) {
  std::vector<std::string> lines;
  size_t count = most;
  for (size_t i = 0, n = 0; i < text.size(); i += n, ++count) {
    n = std::max<size_t>(1, utf8_character(std::string_view(text).substr(i)));
    if (count >= most) lines.emplace_back(), count = 0;
    lines.back() += text.substr(i, n);
  }
  return lines;
}

// Up to four matrices a row, each under its name.
std::string picture_of(const Shown& shown, const std::string& text) {
  constexpr double kSide = 220, kGap = 20, kHead = 40;
  constexpr size_t kAcross = 4;
  constexpr double kLetter = 7;  // a wide one
  constexpr size_t kRoomy = 34;  // letters over a matrix; more are drawn narrower
  std::string inside;
  size_t index = 0;
  for (const LayerView& view : shown.layers) {
    const size_t T = shown.texts[view.text].size();
    for (const Panel& p : view.panels) {
      const double x = kGap + static_cast<double>(index % kAcross) * (kSide + kGap);
      const double y = kHead + static_cast<double>(index / kAcross) * (kSide + kHead);
      const char* const narrow = view.title().size() > kRoomy
                                     ? " textLength=\"228\" lengthAdjust=\"spacingAndGlyphs\""
                                     : "";
      inside +=
          concat("<text x=\"", x, "\" y=\"", y - 22, "\"", narrow, ">", escaped(view.title()),
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
  for (const std::string& all :
       {std::string("Row: a token. Column: the token whose value it takes."),
        "Text: “" + text + "”"})
    for (const std::string& line :
         lines_of(all, static_cast<size_t>((width - 2 * kGap) / kLetter))) {
      inside += concat("<text class=\"soft\" x=\"", kGap, "\" y=\"", y, "\">", escaped(line),
                       "</text>\n");
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
  for (const std::string& c : a.checkpoints) look_into_checkpoint(c, a, shown);
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
