#include "train/lessons/lesson_sections.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <sstream>

#include "core/device.h"
#include "core/error.h"
#include "core/text.h"
#include "core/units.h"
#include "train/lessons/formula.h"
#include "train/lessons/run.h"
#include "train/lessons/signs.h"
#include "train/pages/chart.h"
#include "train/pages/page.h"

namespace weft::train {
namespace {

using namespace kernels;
std::string number(double v) {
  const bool whole = v == std::round(v) && std::abs(v) < 1e7;  // a count loses no digit
  return with_minus(number_text(whole ? "%.0f" : "%.4g", v == 0 ? 0 : v));
}

// With nine decimals; what rounds to 0 has no sign.
std::string nine_decimals(double v) {
  return with_minus(number_text("%.9f", std::abs(v) < 5e-10 ? 0 : v));
}
std::string size_of(double v) { return with_minus(number_text("%.1e", v)); }

// A question as HTML: its numbers below zero have the sign that they have in formulas.
std::string question_text(const std::string& question) {
  std::string s = with_formulas(question);
  for (size_t at = s.find('-'); at != std::string::npos; at = s.find('-', at + 1))
    if (at > 0 && (s[at - 1] == ' ' || s[at - 1] == '(') && at + 1 < s.size() &&
        std::isdigit(static_cast<unsigned char>(s[at + 1])) != 0)
      s.replace(at, 1, "−");
  return s;
}

std::string named(const std::string& name, const Index& index) {
  Expression e{Expression::Kind::name, 0, name, {}};
  for (const int64_t i : index)
    e.parts.push_back({Expression::Kind::number, static_cast<double>(i), "", {}});
  return formula(e);
}

std::string text_of(const Value& v) {
  std::vector<std::string> entries;
  for (const double x : v.at) entries.push_back(number(x));
  return v.rank == 0 ? entries[0] : concat("(", joined(entries), ")");
}

// A row for each name, a column for each token. What has no tokens, or two numbers of an index,
// stands below: "Besides, C = 2."
std::string numbers_table(const Values& numbers, const std::vector<std::string>& names,
                          const std::string& across = "token") {
  std::vector<std::vector<std::string>> rows;
  size_t tokens = 0;
  std::string besides;
  for (const std::string& name : names) {
    const std::map<Index, Value>& values = numbers.at(name);
    if (values.begin()->first.size() != 1) {
      for (const auto& [index, v] : values)
        besides += concat(besides.empty() ? "" : ", ", named(name, index), " = ", text_of(v));
      continue;
    }
    std::vector<std::string> row = {formula(name)};
    for (const auto& [index, v] : values) row.push_back(text_of(v));
    tokens = std::max(tokens, row.size() - 1);
    rows.push_back(row);
  }
  if (rows.empty()) return concat("<p>", besides, ".</p>\n");
  std::vector<std::string> heading = {across};
  for (size_t t = 1; t <= tokens; ++t) heading.push_back(std::to_string(t));
  return lesson_table(heading, rows) +
         (besides.empty() ? "" : concat("<p>Besides, ", besides, ".</p>\n"));
}

std::vector<std::string> inputs_of(const Lesson& l, const Values& example) {
  std::vector<std::string> names;
  if (l.operation.empty()) {
    for (const auto& [name, values] : example) names.push_back(name);
    return names;
  }
  for (const Field& f : operation(l.operation).inputs())
    if (l.example.count(f.name) > 0) names.emplace_back(f.name);
  if (example.count("scale") > 0) names.emplace_back("scale");
  for (const auto& [setting, symbol] : l.symbols)
    if (symbol != "scale" && example.count(symbol) > 0) names.push_back(symbol);
  for (const auto& [name, v] : l.constants) names.push_back(name);
  return names;
}

std::string knob(const std::string& label, size_t i, double low, double high, double step,
                 double value) {
  return concat("<label><span>", with_formulas(label), "</span> <input type=\"range\" data-knob=\"",
                i, "\" min=\"", low, "\" max=\"", high, "\" step=\"", step, "\" value=\"", value,
                "\"><span class=\"at\">", number(value), "</span></label>\n");
}

std::string stepper(size_t form, const LessonForm& f) {
  return concat("<div class=\"form\" data-form=\"", form, "\">\n", "<h3>", f.title, "</h3>\n",
                with_formulas(f.text), "<div class=\"pair\"><div class=\"scroll\">",
                formulas(equations_of(f.equations)),
                "</div>\n<div class=\"steps\"><p><button class=\"back\">one back</button> <button "
                "class=\"on\">one on</button> <label>step <input type=\"range\" class=\"step\" "
                "min=\"0\" max=\"0\" value=\"0\" aria-label=\"step\"></label></p>\n<output "
                "aria-live=\"polite\"></output><div class=\"shown\"></div></div></div>\n</div>\n");
}

double bytes_of(const GpuShape& shape, const std::vector<Field>& fields, bool outputs) {
  double bytes = 0;
  for (const Field& f : fields) {
    if (outputs && f.optional) continue;
    if (f.optional && !contains(shape.with, f.name)) continue;
    double n = f.wide ? 4 : 2;
    for (const std::string& letter : letters_of(f.shape)) {
      const auto found = shape.sizes.find(letter);
      n *= found == shape.sizes.end() ? 1 : static_cast<double>(found->second);
    }
    bytes += n;
  }
  return bytes;
}

// The program's numbers on the example: of the operation, and of forms with a program of their own.
std::string program_part(const Lesson& l, const Values& example) {
  std::string s = "<h3>What the program gives</h3>\n";
  const auto table = [&](const std::string& text, const Values& values) {
    std::vector<std::string> names;
    for (const auto& [name, numbers] : values) names.push_back(name);
    s += concat("<p>", text, "</p>\n",
                numbers_table(values, names, l.operation.empty() ? "index" : "token"));
  };
  if (!l.operation.empty())
    table(concat(
              "The naive form of <code>", l.operation,
              "</code>, in f64 (numbers of 8 bytes, with 16 digits), on the example as it was. The "
              "three forms above give the same."),
          operation_outputs(l, example, Form::naive));
  for (const LessonForm& f : l.forms)
    if (f.program) table(concat("“", f.title, "”:"), f.program(example));
  return s;
}

// How a reader draws an input, as numpy says it: gates are negative, learning rates positive, what
// has come out of a feature map is too, and keys of a delta rule have length one.
std::string drawn(const Lesson& l, const Field& f) {
  const std::string name = f.name;
  std::vector<std::string> sizes;
  for (const std::string& letter : letters_of(f.shape))
    sizes.push_back(letter == "T" || letter == "S"   ? "T"
                    : letter == "K" || letter == "V" ? letter
                                                     : "1");
  const std::string shape = concat("((", joined(sizes), sizes.size() == 1 ? ",))\n" : "))\n");
  if (name == "g" || name == "log_gamma") return concat(name, " = -rng.random", shape);
  const bool positive = l.settings.count("normalize") > 0 && (name == "q" || name == "k");
  if (positive)
    return concat(name, " = rng.random", shape.substr(0, shape.size() - 1),
                  "  # what comes out of the feature map: positive\n");
  if (name == "beta") return concat(name, " = rng.random", shape);
  std::string line = concat(name, " = rng.standard_normal", shape);
  const bool corrects = l.example.count("beta") > 0;
  if (corrects && name == "q")
    return line.substr(0, line.size() - 1) + "  # taken as it comes, of any length\n";
  if (corrects && name == "k")
    line += "k /= np.linalg.norm(k, axis=-1, keepdims=True)  # keys have length one\n";
  return line;
}

// What the letters of the shapes stand for that the program does not name.
std::string letters_told(const Lesson& l) {
  static const std::pair<const char*, const char*> kMeanings[] = {
      {"B", "rows of a batch"}, {"Hk", "heads of keys"}, {"H", "heads"}, {"E", "channels"}};
  const Operation& op = operation(l.operation);
  std::vector<std::string> all = letters_of(op.outputs()[0].shape), ones;
  for (const Field& f : op.inputs())
    if (l.example.count(f.name) > 0)
      for (const std::string& letter : letters_of(f.shape)) all.push_back(letter);
  for (const auto& [letter, meaning] : kMeanings)
    if (contains(all, letter)) ones.push_back(concat(letter, " (", meaning, ")"));
  return concat("In the shapes of its tensors, ", joined(ones), ones.size() == 1 ? " is" : " are",
                " 1", contains(all, "S") ? ", and S (the number of keys) is T. " : ". ");
}

// What the letters in brackets are, behind a table of names that has some.
std::string sizes_told(const Lesson& l) {
  static const std::pair<const char*, const char*> kSizes[] = {
      {"B", "rows of a batch, which are texts of their own"},
      {"T", "tokens"},
      {"S", "keys"},
      {"H", "heads"},
      {"Hk", "heads of queries and keys"},
      {"E", "channels"},
      {"K", l.example.count("k") > 0 ? "entries of a key" : "numbers of memory of a channel"},
      {"V", "entries of a value"},
      {"N", "texts"}};
  std::vector<std::string> all, told;
  for (const CodeName& n : l.names)
    if (const size_t at = n.meaning.rfind('['); at != std::string::npos)
      for (const std::string& letter : letters_of(n.meaning.substr(at))) all.push_back(letter);
  for (const auto& [letter, meaning] : kSizes)
    if (contains(all, letter)) told.push_back(concat(letter, " ", meaning));
  return told.empty()
             ? ""
             : concat("<p>In brackets are the sizes of a tensor in the code: ", joined(told),
                      ".</p>\n");
}

// The exercise to write the mechanism: a program that lacks one function.
std::string form_exercise(const Lesson& l) {
  std::string draws, lines, arguments, options;
  for (const Field& f : operation(l.operation).inputs()) {
    if (l.example.count(f.name) == 0) continue;
    draws += drawn(l, f);
    arguments += concat(arguments.empty() ? "" : ", ", f.name);
    lines += concat("    f[\"inputs/", f.name, "\"] = ", f.name, "\n");
  }
  draws += l.index_python;
  for (const std::string& name : l.index_names) {
    arguments += concat(", ", name);
    lines += concat("    f[\"inputs/", name, "\"] = ", name, "\n");
  }
  for (const Setting& s : operation(l.operation).settings())
    if (const auto set = l.settings.find(s.name);
        set != l.settings.end() && s.name != "scale" && s.name != "return_state")
      options += concat("    options.attrs[\"", s.name, "\"] = \"", set->second, "\"  # ",
                        escaped(s.help), "\n");
  if (!options.empty()) options = "    options = f.create_group(\"options\")\n" + options;
  const std::string out = operation(l.operation).outputs()[0].shape;
  return concat(
      "<li>Write it yourself. This program in Python (with the packages numpy and h5py) draws "
      "inputs, "
      "computes <code>o</code> by a function of yours, and writes all to a file: <pre>import h5py\n"
      "import numpy as np\n\ndef my_form(",
      arguments, "):\n    return ...  # ", escaped(out),
      "\n\nT, K, V = 12, 4, 3\nrng = np.random.default_rng(1)\n", draws,
      "with h5py.File(\"mine.h5\", \"w\") as f:\n    f.attrs[\"operation\"] = \"", l.operation,
      "\"\n", lines, "    f[\"outputs/o\"] = my_form(", arguments, ")\n", options,
      "</pre>\n<code>weft lesson ", l.name, " --check mine.h5</code> compares. ", letters_told(l),
      example_numbers(l).count("scale") > 0 ? "The scale is 1 over the root of K. " : "",
      options.empty() ? "" : "Settings are as the last lines say. ",
      l.settings.count("normalize") > 0
          ? with_formulas("With <code>normalize</code> each result is divided by $den$, the sum of "
                          "the weights and $eps$. ")
          : "",
      "Any sizes will do, from 8 tokens on, and any language that writes HDF5; <code>weft op ",
      l.operation, " --help</code> lists all inputs and options.</li>\n");
}

}  // namespace

std::string lesson_table(const std::vector<std::string>& heading,
                         const std::vector<std::vector<std::string>>& rows,
                         const std::string& look) {
  std::string s = concat("<div class=\"scroll\"><table",
                         look.empty() ? "" : concat(" class=\"", look, "\""), "><thead><tr>");
  for (const std::string& h : heading) s += concat("<th>", h, "</th>");
  s += "</tr></thead>\n<tbody>\n";
  for (const std::vector<std::string>& row : rows) {
    s += "<tr>";
    for (const std::string& cell : row) s += concat("<td>", cell, "</td>");
    s += "</tr>\n";
  }
  return s + "</tbody></table></div>\n";
}

std::string lesson_chart(const Chart& chart) {
  std::string key;
  for (const Curve& c : chart.curves)
    key += concat("<span class=\"key ", c.dots ? "dots " : "", "c", c.colour, "\"></span>",
                  escaped(c.name), " ");
  return concat("<div><p>", key, "</p>\n", chart_element(chart), "</div>\n");
}

std::string equations_section(const Lesson& l) {
  std::string s = concat(
      with_formulas(
          "<p>The definition, line by line. Tokens count from 1, and $T$ is their number. A "
          "symbol with an index belongs to a token, as $o[i]$; with two, to a pair of "
          "tokens.</p>\n"),
      l.example.count("k") > 0 ? with_formulas("<p>$K$ and $V$ are the numbers of entries of a key "
                                               "and of a value.</p>\n")
                               : "",
      formulas(equations_of(l.forms[0].equations)));
  return s + signs_section(l) + "<h3>The names in the code</h3>\n" + names_section(l);
}

std::string names_section(const Lesson& l) {
  std::vector<std::vector<std::string>> rows;
  for (const CodeName& n : l.names)
    rows.push_back({with_formulas(concat("$", n.formula, "$")),
                    concat("<code>", escaped(n.name), "</code>"), with_formulas(n.meaning),
                    concat("<code>", escaped(n.file), "</code>")});
  return lesson_table({"on this page", "in the code", "what it is", "file"}, rows, "names") +
         sizes_told(l);
}

std::string forms_section(const Lesson& l) {
  const Values example = example_numbers(l);
  std::string s =
      "<p>The example is small enough to follow with a pencil. These are its inputs:</p>\n" +
      numbers_table(example, inputs_of(l, example), l.operation.empty() ? "index" : "token");
  if (!l.sliders.empty()) {
    s += "<fieldset class=\"knobs\" id=\"sliders\"><legend>Change the example</legend>\n";
    const std::vector<double> places = first_places(l);
    for (size_t i = 0; i < l.sliders.size(); ++i)
      s += knob(l.sliders[i].label, i, l.sliders[i].low, l.sliders[i].high, l.sliders[i].step,
                places[i]);
    s += "<button id=\"reset\">as it was</button></fieldset>\n";
  }
  s += "<p class=\"check\" id=\"check\">This line compares the page's own computation with the "
       "program's numbers. It needs the page's script.</p>\n";
  if (l.operation.empty()) s += signs_section(l);
  s += "<p>Press “one on”, or move the step with the arrow keys: the line that runs is marked, and "
       "what it gives stands beside or below the lines.</p>\n";
  for (size_t i = 0; i < l.forms.size(); ++i) s += stepper(i, l.forms[i]);
  s += program_part(l, example);
  for (size_t i = 0; i < l.experiments.size(); ++i) {
    const Experiment& e = l.experiments[i];
    s += concat("<div class=\"experiment\" data-experiment=\"", i, "\">\n<h3>Try it: ", e.title,
                "</h3>\n", with_formulas(e.text),
                "<fieldset class=\"knobs\"><legend>You choose</legend>\n");
    for (size_t k = 0; k < e.knobs.size(); ++k)
      s += knob(e.knobs[k].label, k, e.knobs[k].low, e.knobs[k].high, e.knobs[k].step,
                e.knobs[k].start);
    Chart chart{e.upwards, e.across, {}};
    const Values first = solved_experiment(e, first_places(e));
    for (size_t c = 0; c < e.curves.size(); ++c) {
      Curve curve{e.curves[c].label, {}, {}, static_cast<int>(c), "", e.curves[c].dots};
      for (const auto& [index, v] : first.at(e.curves[c].name)) {
        curve.x.push_back(static_cast<double>(index.at(0)));
        curve.y.push_back(v.at[0]);
      }
      chart.curves.push_back(std::move(curve));
    }
    s += concat("</fieldset>\n<div class=\"pair\">", lesson_chart(chart),
                "<details><summary>its equations</summary>\n<div class=\"scroll\">",
                formulas(equations_of(e.equations)), "</div></details></div>\n</div>\n");
  }
  return s;
}

std::string gradient_section(const Lesson& l) {
  const std::vector<GradientRow> rows = gradient_rows(l);
  std::map<std::string, std::pair<double, double>> worst;
  std::vector<std::string> order;
  std::vector<std::vector<std::string>> all, summary;
  for (const GradientRow& r : rows) {
    if (worst.count(r.name) == 0) order.push_back(r.name);
    auto& [equations, differences] = worst[r.name];
    equations = std::max(equations, std::abs(r.equations - r.program));
    differences = std::max(differences, std::abs(r.differences - r.program));
    std::string what = named(r.name, r.index);
    if (r.entry > 0) what += concat(", entry ", r.entry);
    all.push_back({what, nine_decimals(r.equations), nine_decimals(r.program),
                   nine_decimals(r.differences), size_of(std::abs(r.differences - r.program))});
  }
  for (const std::string& name : order)
    summary.push_back({formula(name), size_of(worst[name].first), size_of(worst[name].second)});
  std::vector<std::string> chosen;
  const Values example = example_numbers(l);
  for (const Field& f : operation(l.operation).outputs())
    if (example.count(gradient_name(f.name)) > 0) chosen.push_back(gradient_name(f.name));
  return concat(
      with_formulas(l.gradient.text),
      with_formulas(
          "<p>A name with d before it is a gradient: by how much the loss changes if this "
          "number grows a little, for each unit that it grows. $dout$ is the gradient of "
          "the result. It comes from the layers above; on the example it is "
          "chosen:</p>\n"),
      numbers_table(example, chosen),
      stepper(l.forms.size(), {"Step by step", "", l.gradient.equations}),
      with_formulas("<h3>Checked as this page was made</h3>\n<p>The loss is the sum of $dout$ "
                    "times $o$. Each "
                    "input's number was moved a little up and down in the program's naive form, "
                    "and the change "
                    "of the loss was divided by the change of the number (five points). That needs "
                    "no formula "
                    "of a gradient. The program's gradient is that of its chunkwise form.</p>\n"),
      lesson_table(
          {"gradient of", "equations − program, largest", "differences − program, largest"},
          summary),
      "<details><summary>every number</summary>\n",
      lesson_table({"input", "equations above", "program", "differences", "off by"}, all),
      "</details>\n");
}

std::string gpu_section(const Lesson& l, double budget) {
  const Operation& op = operation(l.operation);
  std::vector<std::vector<std::string>> rows;
  for (const GpuShape& shape : op.gpu_shapes()) {
    if (shape.name.find(l.shapes) == std::string::npos) continue;
    const double bytes = bytes_of(shape, op.inputs(), false) + bytes_of(shape, op.outputs(), true);
    rows.push_back(
        {escaped(shape.name), count_text(shape.flops.forward), bytes_text(bytes),
         number_text("%.0f", shape.flops.forward / bytes),
         concat("<output class=\"floor\" data-flops=\"", number_text("%.17g", shape.flops.forward),
                "\" data-bytes=\"", number_text("%.17g", bytes), "\"></output>")});
  }
  return concat(
      with_formulas(l.gpu),
      "<p>Words: a <b>block</b> is a group of threads that share fast memory on the chip; a "
      "<b>warp</b> is 32 of them that go step by step together. "
      "<b>Registers</b> hold the numbers that a thread works on; they need no trip to memory. "
      "<b>Tensor cores</b> multiply small matrices in one go. bf16 is a number of 2 bytes, f32 of "
      "4.</p>\n"
      "<p>No pass can be faster than its <b>floor</b>: the larger of two times, that of its "
      "operations at the card's rate of matrix products, and that of reading its inputs and "
      "writing "
      "its outputs once at the card's rate of memory. If the operations for each byte are fewer "
      "than "
      "the rate of products divided by the rate of memory, memory is the limit.</p>\n<fieldset "
      "class=\"knobs\" id=\"card\"><legend>Rates "
      "of "
      "your card</legend><label>products, TFLOP/s <input type=\"number\" min=\"0\" step=\"any\" "
      "class=\"tflops\"></label> <label>memory, TB/s <input type=\"number\" min=\"0\" "
      "step=\"any\" class=\"tbytes\"></label></fieldset>\n",
      rows.empty() ? ""
                   : lesson_table({"shape of the benchmark, bf16", "operations forward",
                                   "inputs and outputs", "operations a byte", "floor forward"},
                                  rows),
      "<p>These floors are for the forward pass alone, and for the rates that you give.</p>\n",
      measured_on_gpu({l.operation}, budget));
}

std::string measured_on_gpu(const std::vector<std::string>& operations, double budget) {
  const std::string command =
      concat("<code>weft bench ", joined(operations, " "), " --device cuda</code>");
  if (cuda_device_count() == 0)
    return concat(
        "<p>This machine has no GPU that the program can use, so nothing was measured on "
        "one. On a machine with a GPU, the page shows here what ",
        command,
        " measures: the card's two rates, the times, and the share of the floor that "
        "they reach. <code>BENCHMARKS.md</code> holds saved runs.</p>\n");
  if (budget == 0) return "<p>Nothing was timed for this page (<code>--budget 0</code>).</p>\n";
  std::ostringstream table;
  run_bench({.names = operations, .device = "cuda", .budget = budget}, table);
  return concat("<p>What ", command,
                " measured on this machine's GPU, as the page was made:</p>\n"
                "<pre>",
                escaped(table.str()), "</pre>\n");
}

std::string cost_section(const Lesson& l, const std::vector<BenchRow>& times) {
  std::map<std::string, Curve> curves;
  std::vector<std::vector<std::string>> rows;
  for (const BenchRow& r : times) {
    // Inputs that the benchmark leaves out are none of the page's.
    const std::string name = r.name.substr(0, r.name.find(" without "));
    Curve& c = curves[name];
    c.name = name;
    c.x.push_back(static_cast<double>(r.length));
    c.y.push_back(1e3 * r.best);
    rows.push_back({escaped(name), std::to_string(r.length),
                    number_text("%.3g", 1e3 * r.best_forward), number_text("%.3g", 1e3 * r.best),
                    bytes_text(double(r.memory)),
                    r.time_ratio > 0 ? number_text("%.2f", r.time_ratio) : "–"});
  }
  Chart chart{"forward and backward, ms", "tokens", {}};
  for (auto& [name, curve] : curves) {
    curve.colour = static_cast<int>(chart.curves.size());
    chart.curves.push_back(curve);
  }
  const std::string measured =
      times.empty()
          ? "<p>Nothing was timed for this page (<code>--budget 0</code>).</p>\n"
          : concat(
                "<p>Measured on this machine's processor as the page was made, in f32, with the "
                "sizes of <code>weft bench</code>: the fastest of a few repeats. Other programs on "
                "a busy machine spoil such short times; then make the page again. x2 is the time "
                "over "
                "that of half the length: 2 is linear, 4 is the square.</p>\n<div "
                "class=\"pair\">",
                lesson_chart(chart),
                lesson_table({"operation", "tokens", "forward ms", "both ms", "peak memory", "x2"},
                             rows),
                "</div>\n");
  return concat(
      with_formulas(l.cost),
      with_formulas("<p>Operations of the forward pass, as the program counts them, for $H$ "
                    "heads:</p>\n"),
      "<p class=\"display\">", formula(l.forward_flops),
      "</p>\n<p>and of the backward pass:</p>\n<p "
      "class=\"display\">",
      formula(l.backward_flops), "</p>\n", measured);
}

std::string exercises_section(const Lesson& l) {
  std::string s = concat(
      "<p>The numbers are those of the example in section ", l.operation.empty() ? 2 : 3,
      ", with what the exercise changes. Write "
      "your answers to a file <code>answers.txt</code>, one on a line, rounded to three digits. A "
      "whole number of up to three digits must be exact.</p>\n"
      "<pre>1 = 0.25\n2 = -1.5</pre>\n<p>and run <code>weft lesson ",
      l.name,
      " --check answers.txt</code>. A wrong answer gets a hint. What an exercise leaves as it is, "
      "you may read off the steps "
      "above.</p>\n<ol class=\"exercises\">\n");
  for (const Exercise& e : l.exercises) {
    s += concat("<li>", question_text(e.question), "</li>\n");
  }
  if (l.operation.empty()) return s + "</ol>\n";
  return s + form_exercise(l) + "</ol>\n";
}

}  // namespace weft::train
