// Every lesson's equations are those of the code: they give the operation's numbers.
#include "train/lessons/run.h"

#include <algorithm>
#include <cmath>

#include "core/file.h"
#include "tests/catch.h"
#include "tests/paths.h"
#include "train/lessons/lesson_page.h"

using namespace weft;
using namespace weft::kernels;
using namespace weft::train;

TEST_CASE("lessons: every form's equations give what the naive form gives, wherever sliders are") {
  REQUIRE(!lessons().empty());
  for (const Lesson& l : lessons())
    for (const std::vector<double>& places : checked_places(l)) {
      const Values example = placed(l, places);
      for (size_t i = 0; i < l.forms.size(); ++i) {
        INFO(l.name << ", " << l.forms[i].title);
        const Values ours = solved_form(l, i, example), wanted = program_numbers(l, i, example);
        for (const auto& [name, values] : wanted) {
          INFO(name);
          if (name == "final_state") continue;  // the last state, which has a name of its own
          REQUIRE(ours.count(name) == 1);
          CHECK(largest_difference({{name, values}}, ours) < 1e-12);
          CHECK(ours.at(name).size() >= values.size());
        }
      }
      if (l.operation.empty()) continue;
      const Values right = operation_outputs(l, example, Form::naive);
      CHECK(right.count("o") == 1);
      for (const Form form : {Form::recurrent, Form::chunkwise})
        CHECK(largest_difference(right, operation_outputs(l, example, form)) < 1e-12);
    }
}

TEST_CASE("lessons: the gradient's equations give the gradient of every input") {
  for (const Lesson& l : lessons()) {
    if (l.operation.empty()) continue;
    for (const std::vector<double>& places : checked_places(l)) {
      const Values example = placed(l, places), right = operation_gradients(l, example);
      const Values ours = solved_gradient(l, example);
      INFO(l.name);
      for (const auto& [name, values] : right) {
        INFO(name);
        REQUIRE(ours.count(name) == 1);
        CHECK(largest_difference({{name, values}}, ours) < 1e-11);
      }
    }
    size_t numbers = 0;
    for (const auto& [name, rows] : l.example)
      if (name != "dout")
        for (const std::vector<double>& row : rows) numbers += row.size();
    const std::vector<GradientRow> rows = gradient_rows(l);
    CHECK(rows.size() == numbers);
    for (const GradientRow& r : rows) {
      INFO(l.name << ": " << r.name << " " << r.entry);
      CHECK(std::abs(r.differences - r.program) < 1e-9);
      CHECK(std::abs(r.equations - r.program) < 1e-11);
    }
  }
}

TEST_CASE("lessons: a changed equation no longer gives the operation's numbers") {
  Lesson l = lessons()[0];
  std::string& text = l.forms[0].equations;
  text.replace(text.find("scale * "), 8, "2 * scale * ");
  const Values example = example_numbers(l);
  CHECK(largest_difference(operation_outputs(l, example, Form::naive), solved_form(l, 0, example)) >
        1e-3);
}

TEST_CASE("lessons: a changed equation no longer gives what the program's own code gives") {
  Lesson l = lesson("parallel");
  std::string& text = l.forms[2].equations;
  text.replace(text.find("above("), 6, "1 - above(");
  const Values example = example_numbers(l);
  CHECK(largest_difference(program_numbers(l, 2, example), solved_form(l, 2, example)) > 1);
}

TEST_CASE("lessons: the formulas of cost count what the operation's benchmark counts") {
  for (const Lesson& l : lessons())
    for (const int64_t T : {64, 192}) {
      if (l.operation.empty()) continue;
      const BenchCase bench = operation(l.operation).bench(T);
      const bool heads = bench.inputs.count("q") > 0;
      const Tensor& x = bench.inputs.at(heads ? "v" : "x");
      Values n;
      const auto set = [&](const char* name, int64_t v) {
        n[name][{}] = number_value(static_cast<double>(v));
      };
      set("T", T);
      set("H", x.size(2));
      set("K", heads ? bench.inputs.at("k").size(3) : bench.inputs.at("B").size(2));
      set("V", heads ? x.size(3) : 1);
      set("W", T);  // a window over all, and all pairs: the benchmark has no window, and its
      set("A", T * (T + 1) / 2);  // pattern sees every block of so few
      INFO(l.name << " " << T);
      CHECK(number_of(expression_of(l.forward_flops), n) == Approx(bench.flops.forward));
      CHECK(number_of(expression_of(l.backward_flops), n) == Approx(bench.flops.backward));
    }
}

TEST_CASE("lessons: a name of the code stands in the file that the page names") {
  for (const Lesson& l : lessons())
    for (const CodeName& n : l.names) {
      INFO(l.name << ": " << n.name << " in " << n.file);
      CHECK_THAT(read_file(tests::source_path(n.file)), ContainsSubstring(n.name));
    }
}

TEST_CASE("lessons: the delta rule's line is learned as the operation learns it") {
  const Experiment& e = lesson("delta").experiments[0];
  const Values n = solved_experiment(e, first_places(e));
  std::vector<double> k, v;
  for (const auto& [index, value] : n.at("k")) k.insert(k.end(), value.at.begin(), value.at.end());
  for (const auto& [index, value] : n.at("v")) v.push_back(value.at[0]);
  const auto T = static_cast<int64_t>(v.size());
  Tensors in;
  in["q"] = in["k"] = tensor_of(k).reshape({1, T, 1, 2});
  in["v"] = tensor_of(v).reshape({1, T, 1, 1});
  in["beta"] = full({1, T, 1}, n.at("beta").at({}).at[0], Dtype::f64);
  const std::vector<double> S =
      to_doubles(operation("delta").forward(Form::naive, in, {}).at("final_state"));
  CHECK(S[0] == Approx(n.at("learned").at({T}).at[0]));
  CHECK(S[1] == Approx(n.at("offset").at({T}).at[0]));
  CHECK(S[0] == Approx(first_places(e)[0]).margin(0.05));  // it has learned
}

TEST_CASE("lessons: every experiment has numbers to draw, wherever its knobs are") {
  for (const Lesson& l : lessons())
    for (const Experiment& e : l.experiments)
      for (size_t k = 0; k < e.knobs.size(); ++k)
        for (const double place : {e.knobs[k].low, e.knobs[k].high}) {
          std::vector<double> places = first_places(e);
          places[k] = place;
          const Values n = solved_experiment(e, places);
          INFO(l.name << ": " << e.title << ", " << e.knobs[k].name << " " << place);
          for (const Experiment::Curve& c : e.curves)
            for (const auto& [index, v] : n.at(c.name)) CHECK(std::isfinite(v.at.at(0)));
        }
}

TEST_CASE(
    "lessons: through L layers of windows W a token gets all it has from L (W - 1) before it") {
  const Experiment& e = lesson("window").experiments[0];
  for (const double W : {1.0, 2.0, 6.0, 12.0}) {
    const Values n = solved_experiment(e, {W});
    for (const auto& [layers, name] : {std::pair{1, "get1"}, {2, "get2"}, {4, "get4"}}) {
      INFO(layers << " layers, W = " << W);
      const int64_t reach = layers * (static_cast<int64_t>(W) - 1);
      double sum = 0;
      for (int64_t j = 1; j <= 40; ++j) {
        const double part = n.at(name).at({j}).at[0];
        CHECK((part > 0) == (40 - j <= reach));
        sum += part;
      }
      if (reach < 40) CHECK(sum == Approx(1));
    }
  }
}
