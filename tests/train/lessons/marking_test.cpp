// Answers to exercises: right ones are accepted, wrong ones get a hint, and neither passes as the
// other.
#include "train/lessons/marking.h"

#include <cmath>

#include "core/error.h"
#include "core/hdf5.h"
#include "core/units.h"
#include "kernels/contract/agreement.h"
#include "tests/catch.h"
#include "tests/train/said.h"
#include "train/lessons/run.h"

using namespace weft;
using namespace weft::kernels;
using namespace weft::tests;
using namespace weft::train;

namespace {

std::string refusal(const Lesson& l, const std::string& path) {
  try {
    mark_answers(l, path);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

Tensor scaled(const Tensor& t, double by) {
  std::vector<double> v = to_doubles(t);
  for (double& x : v) x *= by;
  return tensor_of(v).reshape(t.shape());
}

// A benchmark's inputs of 9 tokens, and what `change` makes of their right result, or of the one
// with `wrong` settings.
template <class F>
void write_form(const Lesson& l, const std::string& path, const F& change,
                const std::string& name = "o", const Settings& wrong = {}) {
  const Operation& op = operation(l.operation);
  BenchCase c = op.bench(9);
  for (const auto& [setting, value] : l.settings)
    if (setting != "scale") c.settings[setting] = value;
  Values numbers = example_numbers(l);
  numbers["T"][{}] = number_value(9);
  if (l.index)
    for (const auto& [index, t] : l.index(numbers)) c.inputs[index] = t;
  Settings used = c.settings;
  for (const auto& [setting, value] : wrong) used[setting] = value;
  const Tensor o = op.forward(Form::naive, c.inputs, used).at("o");
  change(o);
  Hdf5Writer file(path);
  file.attribute("", "operation", op.name());
  for (const auto& [input, t] : c.inputs) file.tensor("inputs/" + input, t.contiguous());
  for (const auto& [setting, value] : c.settings) file.attribute("options", setting, value);
  file.tensor("outputs/" + name, o);
  file.commit();
}

}  // namespace

TEST_CASE("lessons: right answers are accepted, and what mistakes lead to is refused with a hint") {
  const Folder f;
  for (const Lesson& l : lessons()) {
    std::string right = "# my answers\n\n";
    for (size_t i = 0; i < l.exercises.size(); ++i) {
      const Exercise& e = l.exercises[i];
      const double answer = right_answer(l, e);
      INFO(l.name << " " << i + 1 << ": " << answer);
      REQUIRE(std::isfinite(answer));
      right += concat(i + 1, " = ", number_text("%.3g", answer), "\r\n");
      const std::vector<double> wrong = wrong_answers(l, e);
      REQUIRE(!wrong.empty());
      for (size_t m = 0; m < wrong.size(); ++m) {
        INFO(e.mistakes[m].hint << ": " << wrong[m]);
        f.write("a", concat(i + 1, "=", number_text("%.4g", wrong[m])));
        const auto marks = mark_answers(l, f / "a");
        REQUIRE(marks.size() == 1);
        CHECK(!marks[0].right);
        CHECK(marks[0].text == e.mistakes[m].hint);
      }
      f.write("a", concat(i + 1, " = 123456"));
      CHECK(!mark_answers(l, f / "a")[0].right);
      CHECK(mark_answers(l, f / "a")[0].text == e.hint);
    }
    f.write("right", right);
    for (const Mark& m : mark_answers(l, f / "right")) {
      INFO(l.name << " " << m.exercise << ": " << m.text);
      CHECK(m.right);
    }
  }
}

TEST_CASE("lessons: a form of the reader's own is compared with the operation") {
  const Folder f;
  for (const Lesson& l : lessons()) {
    INFO(l.name);
    if (l.operation.empty()) {
      f.write("form.h5", "\x89HDF\r\n\x1a\n");
      CHECK_THAT(refusal(l, f / "form.h5"), ContainsSubstring("no exercise of tensors"));
      continue;
    }
    write_form(l, f / "right.h5", [](const Tensor&) {});
    const auto right = mark_answers(l, f / "right.h5");
    REQUIRE(right.size() == 1);
    CHECK(right[0].right);
    CHECK(right[0].exercise == l.exercises.size() + 1);
    write_form(l, f / "wrong.h5", [](const Tensor& o) { o.slice(1, 4, 9).fill(0.5); });
    const auto wrong = mark_answers(l, f / "wrong.h5");
    CHECK(!wrong[0].right);
    CHECK_THAT(wrong[0].text, ContainsSubstring("token 5 is the first"));
    write_form(l, f / "nan.h5", [](const Tensor& o) { o.fill(NAN); });
    CHECK(!mark_answers(l, f / "nan.h5")[0].right);
    write_form(
        l, f / "other.h5", [](const Tensor&) {}, "lse");
    CHECK(!refusal(l, f / "other.h5").empty());
  }
}

TEST_CASE("lessons: a form that leaves out what a setting says gets that hint") {
  const Folder f;
  for (const Lesson& l : lessons())
    for (const auto& [wrong, hint] : l.wrong_settings) {
      INFO(l.name << ": " << hint);
      write_form(
          l, f / "a.h5", [](const Tensor&) {}, "o", wrong);
      const auto marks = mark_answers(l, f / "a.h5");
      CHECK(!marks[0].right);
      CHECK(marks[0].text == hint);
    }
}

TEST_CASE("lessons: a whole number of three digits must be exact, all else right to three digits") {
  CHECK(is_right(191, 191));
  CHECK(!is_right(192, 191));
  CHECK(!is_right(190, 191));
  CHECK(is_right(2110, 2112));
  CHECK(is_right(69.3, 69.3147));
  CHECK(!is_right(0.92, 0.909));
  const Folder f;
  f.write("a", "4 = 192");
  CHECK_THAT(mark_answers(lesson("linear"), f / "a")[0].text, ContainsSubstring("not T^2 / 2"));
  f.write("a", "1 = −3");  // the minus sign of the pages
  CHECK(!mark_answers(lesson("linear"), f / "a")[0].right);
}

TEST_CASE("lessons: who divides q by its length in a delta rule is told so") {
  const Folder f;
  const Operation& op = operation("kda");
  const BenchCase c = op.bench(9);
  const Tensor unit = c.inputs.at("q"), q = scaled(unit, 3);
  for (const bool divided : {false, true}) {
    Tensors in = c.inputs;
    in["q"] = divided ? unit : q;
    Hdf5Writer file(f / "a.h5");
    for (const auto& [name, t] : c.inputs)
      file.tensor("inputs/" + name, name == "q" ? q : t.contiguous());
    file.tensor("outputs/o", op.forward(Form::naive, in, c.settings).at("o"));
    file.commit();
    const Mark mark = mark_answers(lesson("kda"), f / "a.h5")[0];
    CHECK(mark.right == !divided);
    if (divided) CHECK_THAT(mark.text, ContainsSubstring("divide q by its length"));
  }
}

TEST_CASE("lessons: a file that holds no answers is refused with its line") {
  const Folder f;
  const Lesson& l = lesson("attention");
  const std::pair<const char*, const char*> cases[] = {
      {"", "holds no answers"},       {"# 1 = 2\n", "holds no answers"},
      {"1 = 2\n1 = 2", ":2: "},       {"1 = nan", "is no number"},
      {"1 = inf", "is no number"},    {"1 = 2 3", "is no number"},
      {"1 = ", "is no number"},       {"x = 1", "is no number"},
      {"0 = 1", "expected 1 to 4"},   {"5 = 1", "expected 1 to 4"},
      {"1.5 = 1", "expected 1 to 4"}, {"answer", "is no answer"},
      {"\xff\xfe", "neither a text"}};
  for (const auto& [text, part] : cases) {
    f.write("a", text);
    INFO(text);
    CHECK_THAT(refusal(l, f / "a"), ContainsSubstring(part));
  }
  CHECK_THAT(refusal(l, f / "absent"), ContainsSubstring("absent"));
  f.write("a", "\x89HDF\r\n\x1a\n and no more");
  CHECK_THAT(refusal(l, f / "a"), ContainsSubstring("a"));
}

TEST_CASE("lessons: --check exits with 0 where all is right, 1 where not, 2 where it cannot tell") {
  const Folder f;
  const Lesson& l = lesson("attention");
  f.write("right", concat("1 = ", right_answer(l, l.exercises[0])));
  f.write("wrong", "1 = 99\n2 = 0.25\n");
  f.write("none", "hello");
  says(run_weft(f, {"lesson", "attention", "--check", "right"}), 0,
       {"exercise 1: right", "1 of 1"});
  says(run_weft(f, {"lesson", "attention", "--check", "wrong"}), 1,
       {"exercise 1: not right: multiply", "exercise 2: right", "1 of 2 right"});
  says(run_weft(f, {"lesson", "attention", "--check", "none"}), 2, {"none:1", "is no answer"});
}
