#include "train/lessons/marking.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/error.h"
#include "core/file.h"
#include "core/text.h"
#include "core/units.h"
#include "kernels/contract/agreement.h"
#include "train/lessons/run.h"
#include "train/workbench/operation_file.h"

namespace weft::train {
namespace {

using namespace kernels;

constexpr double kThreeDigits = 0.006;
constexpr double kForm = 1e-4;  // on the relative error of a form
constexpr int64_t kFewestTokens = 8;

double answer_of(const Lesson& l, const Exercise& e, const std::string& equations) {
  Values example = example_numbers(l);
  for (const Exercise::Change& c : e.changes)
    change(example, c.name, c.token,
           c.value.size() == 1 ? number_value(c.value[0]) : vector_value(c.value));
  Values numbers = solved_gradient(l, example);
  solve(equations_of(equations), numbers);
  return numbers.at("answer").at({}).at[0];
}

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\r"), end = text.find_last_not_of(" \t\r");
  return begin == std::string::npos ? "" : text.substr(begin, end + 1 - begin);
}

double number_in(const std::string& text, const std::string& where) {
  double v = 0;
  const std::string minus = "−";  // the sign of the pages
  const std::string plain = text.starts_with(minus) ? "-" + text.substr(minus.size()) : text;
  const char* const begin = plain.data() + (plain.starts_with("+") ? 1 : 0);
  const char* const end = plain.data() + plain.size();
  const auto read = std::from_chars(begin, end, v);
  require(read.ec == std::errc() && read.ptr == end && std::isfinite(v), where, ": \"", text,
          "\" is no number; expected a line as \"1 = 0.25\"");
  return v;
}

// The answers by exercise, from 1.
std::map<size_t, double> answers_in(const Lesson& l, const std::string& path,
                                    const std::string& text) {
  std::map<size_t, double> answers;
  size_t line = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string one = trimmed(text.substr(at, end - at)).substr(0, 1000);
    at = end + 1;
    ++line;
    if (one.empty() || one[0] == '#') continue;
    const std::string where = concat(path, ":", line);
    const size_t equals = one.find('=');
    require(equals != std::string::npos, where, ": \"", as_utf8(one),
            "\" is no answer; expected a line as \"1 = 0.25\"");
    const double n = number_in(trimmed(one.substr(0, equals)), where);
    require(n >= 1 && n <= static_cast<double>(l.exercises.size()) && n == std::floor(n), where,
            ": exercise ", n, ": expected 1 to ", l.exercises.size(),
            l.operation.empty() ? "" : "; the last exercise is a file of tensors");
    const auto exercise = static_cast<size_t>(n);
    require(answers.count(exercise) == 0, where, ": exercise ", n,
            " is answered a second time; expected one line for each");
    answers[exercise] = number_in(trimmed(one.substr(equals + 1)), where);
  }
  require(!answers.empty(), path, ": holds no answers; expected lines as \"1 = 0.25\"");
  return answers;
}

Mark mark_of(const Lesson& l, size_t exercise, double answer) {
  const Exercise& e = l.exercises[exercise - 1];
  if (is_right(answer, right_answer(l, e))) return {exercise, true, ""};
  const std::vector<double> wrong = wrong_answers(l, e);
  for (size_t i = 0; i < wrong.size(); ++i)
    if (is_right(answer, wrong[i])) return {exercise, false, e.mistakes[i].hint};
  return {exercise, false, e.hint};
}

// The first token at which a result differs by more than its share, from 1; 0: none.
int64_t first_wrong_token(const Tensor& got, const Tensor& wanted) {
  const double size = std::sqrt(static_cast<double>(wanted.numel()));
  double norm = 0;
  for (const double v : to_doubles(wanted)) norm += v * v;
  const double bound = 10 * kForm * std::sqrt(norm) / size;
  for (int64_t t = 0; t < wanted.size(1); ++t) {
    const std::vector<double> a = to_doubles(got.slice(1, t, t + 1).contiguous());
    const std::vector<double> b = to_doubles(wanted.slice(1, t, t + 1).contiguous());
    for (size_t i = 0; i < a.size(); ++i)
      if (!(std::abs(a[i] - b[i]) <= bound)) return t + 1;
  }
  return 0;
}

bool agrees(const Tensor& got, const Tensor& wanted) {
  return difference(got, wanted, 0, "o").error <= kForm;
}

// The vectors of the last dimension, each divided by its length.
Tensor of_length_one(const Tensor& vectors) {
  std::vector<double> v = to_doubles(vectors);
  const auto width = static_cast<size_t>(vectors.size(-1));
  for (size_t begin = 0; begin < v.size(); begin += width) {
    double square = 0;
    for (size_t i = begin; i < begin + width; ++i) square += v[i] * v[i];
    for (size_t i = begin; i < begin + width && square > 0; ++i) v[i] /= std::sqrt(square);
  }
  return tensor_of(v).reshape(vectors.shape());
}

Mark mark_form(const Lesson& l, const std::string& path) {
  require(!l.operation.empty(), path, ": is an HDF5 file, and ", l.name,
          " has no exercise of tensors; expected a text with lines as \"1 = 0.25\"");
  const Operation& op = operation(l.operation);
  const OperationFile f = read_operation_file(path, op);
  require(f.operation.empty() || f.operation == op.name(), path, ": is of operation \"",
          f.operation, "\"; expected \"", op.name(), "\"");
  const auto found = f.outputs.find("o");
  require(found != f.outputs.end(), path, ": has no outputs/o; expected the result of your form");
  const Tensors in = rounded_to(Dtype::f64, f.inputs, op.inputs());
  const Tensor right = op.forward(Form::naive, in, f.settings).at("o");
  require(right.size(1) >= kFewestTokens, path, ": has ", right.size(1),
          " tokens; expected at least ", kFewestTokens);
  const Tensor got = found->second.to(Dtype::f64);
  require(got.shape() == right.shape(), path, ": outputs/o has shape ", got.shape(), ", expected ",
          right.shape());
  const std::string first = op.inputs()[0].name;
  const std::vector<double> v = to_doubles(in.at(first));
  require(std::any_of(v.begin(), v.end(), [&](double x) { return x != v[0]; }), path,
          ": all numbers of ", first, " are equal, which shows little; draw them at random");
  const size_t exercise = l.exercises.size() + 1;
  if (agrees(got, right)) return {exercise, true, ""};
  for (const auto& [settings, hint] : l.wrong_settings) {
    Settings wrong = f.settings;
    for (const auto& [name, value] : settings) wrong[name] = value;
    if (agrees(got, op.forward(Form::naive, in, wrong).at("o"))) return {exercise, false, hint};
  }
  if (in.count("q") > 0 && in.count("beta") > 0) {
    Tensors wrong = in;
    wrong["q"] = of_length_one(in.at("q"));
    if (agrees(got, op.forward(Form::naive, wrong, f.settings).at("o")))
      return {exercise, false, "you divide q by its length; the form takes it as it comes"};
  }
  const int64_t t = first_wrong_token(got, right);
  return {exercise, false,
          t <= 1 ? std::string("the first token differs already; begin with a text of one token")
                 : concat("token ", t, " is the first that differs; follow the step from token ",
                          t - 1, " to it with a pencil")};
}

}  // namespace

bool is_right(double answer, double right) {
  double bound = right == 0 ? 1e-3 : kThreeDigits * std::abs(right);
  // Three digits hold such a number whole, so the next one is another answer.
  if (right == std::round(right) && std::abs(right) < 1000) bound = std::min(bound, 0.5);
  return std::abs(answer - right) <= bound;
}

size_t exercise_count(const Lesson& l) {
  return l.exercises.size() + (l.operation.empty() ? 0 : 1);
}

double right_answer(const Lesson& l, const Exercise& e) { return answer_of(l, e, e.equations); }

std::vector<double> wrong_answers(const Lesson& l, const Exercise& e) {
  std::vector<double> list;
  for (const Exercise::Mistake& m : e.mistakes) list.push_back(answer_of(l, e, m.equations));
  return list;
}

std::vector<Mark> mark_answers(const Lesson& l, const std::string& path) {
  const std::string text = read_file(path);
  if (text.starts_with("\x89HDF")) return {mark_form(l, path)};
  const size_t binary = first_not_utf8(text);
  require(binary == std::string::npos && text.find('\0') == std::string::npos, path,
          ": is neither a text nor an HDF5 file; expected lines as \"1 = 0.25\"");
  std::vector<Mark> marks;
  for (const auto& [exercise, answer] : answers_in(l, path, text))
    marks.push_back(mark_of(l, exercise, answer));
  return marks;
}

}  // namespace weft::train
