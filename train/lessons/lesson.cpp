#include "train/lessons/lesson.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/text.h"
#include "core/units.h"

namespace weft::train {
namespace {

using namespace kernels;

std::map<int, Lesson (*)()>& makers() {
  static std::map<int, Lesson (*)()> all;
  return all;
}

// One head of one row; what is left of a field's shape is tokens and widths.
bool is_one(const std::string& letter) {
  return letter == "B" || letter == "N" || letter == "H" || letter == "Hk" || letter == "E";
}
bool is_token(const std::string& letter) { return letter == "T" || letter == "S"; }

struct Layout {
  bool tokens = false;
  int inner = 0;
};
Layout layout_of(const Field& f) {
  Layout l;
  for (const std::string& letter : letters_of(f.shape))
    if (is_token(letter))
      l.tokens = true;
    else if (!is_one(letter))
      ++l.inner;
  return l;
}

Shape shape_of(const Field& f, int64_t rows, int64_t width) {
  Shape s;
  for (const std::string& letter : letters_of(f.shape))
    s.append(is_token(letter) ? rows : is_one(letter) ? 1 : width);
  return s;
}

std::string name_in(const Field& f, bool gradients) {
  return gradients ? gradient_name(f.name) : std::string(f.name);
}

bool has_scale(const Operation& op) {
  for (const Setting& s : op.settings())
    if (s.name == "scale") return true;
  return false;
}

const std::vector<std::vector<double>>* rows_of(const Lesson& l, const std::string& name) {
  const auto found = l.example.find(name);
  return found == l.example.end() ? nullptr : &found->second;
}

Value value_of(const std::vector<double>& row, int inner) {
  return inner == 0 ? number_value(row.at(0)) : vector_value(row);
}

}  // namespace

RegisteredLesson::RegisteredLesson(int place, Lesson (*make)()) { makers()[place] = make; }

std::string small_recipe(const std::string& mixer, const std::string& settings) {
  const std::string table = settings.empty() ? "" : concat("[", mixer, "]\n", settings, "\n");
  return concat("[model]\nwidth = 32\nlayers = 1\npattern = [\"", mixer,
                "\"]\ncontext = 256\nmlp = \"none\"\n", table);
}

const std::vector<Lesson>& lessons() {
  static const std::vector<Lesson> all = [] {
    std::vector<Lesson> list;
    for (const auto& [place, make] : makers()) list.push_back(make());
    return list;
  }();
  return all;
}

const Lesson& lesson(const std::string& name) {
  std::vector<std::string> known;
  for (const Lesson& l : lessons()) {
    if (l.name == name) return l;
    known.push_back(l.name);
  }
  fail(unknown_name("lesson", name, known));
}

Tensors example_tensors(const Lesson& l, const std::vector<Field>& fields, bool gradients) {
  Tensors tensors;
  for (const Field& f : fields) {
    const std::string name = name_in(f, gradients);
    const auto* const rows = rows_of(l, name);
    if (!rows) continue;
    std::vector<double> flat;
    for (const std::vector<double>& row : *rows) flat.insert(flat.end(), row.begin(), row.end());
    const auto n = static_cast<int64_t>(rows->size());
    const auto width = static_cast<int64_t>(rows->at(0).size());
    tensors[name] = tensor_of(flat).reshape(shape_of(f, n, width)).clone();
  }
  return tensors;
}

namespace {

// Of a lesson without an operation: rows of one entry are numbers, and one row has no token.
Values own_numbers(const Lesson& l) {
  Values numbers;
  for (const auto& [name, rows] : l.example)
    for (size_t t = 0; t < rows.size(); ++t)
      numbers[name][rows.size() > 1 ? Index{static_cast<int64_t>(t) + 1} : Index{}] =
          value_of(rows[t], rows[t].size() > 1);
  for (const auto& [name, v] : l.constants) numbers[name][{}] = number_value(v);
  return numbers;
}

}  // namespace

Values example_numbers(const Lesson& l) {
  if (l.operation.empty()) return own_numbers(l);
  Values numbers;
  const Operation& op = operation(l.operation);
  const auto add = [&](const std::vector<Field>& fields, bool gradients) {
    for (const auto& [name, values] :
         numbers_of(fields, example_tensors(l, fields, gradients), gradients))
      numbers[name] = values;
  };
  add(op.inputs(), false);
  add(op.outputs(), true);
  for (const Field& f : op.inputs()) {
    const auto* const rows = rows_of(l, f.name);
    if (!rows) continue;
    for (const std::string& letter : letters_of(f.shape)) {
      if (is_one(letter)) continue;
      const size_t n = is_token(letter) ? rows->size() : rows->at(0).size();
      numbers[is_token(letter) ? "T" : letter][{}] = number_value(static_cast<double>(n));
    }
  }
  for (const auto& [name, v] : l.constants) numbers[name][{}] = number_value(v);
  if (has_scale(op) && numbers.count("K") > 0)
    numbers["scale"][{}] = number_value(1 / std::sqrt(numbers["K"][{}].at[0]));
  for (const auto& [setting, symbol] : l.symbols)
    if (const auto found = l.settings.find(setting); found != l.settings.end())
      numbers[symbol][{}] = number_value(std::stod(found->second));
  return numbers;
}

void change(Values& numbers, const std::string& name, int64_t token, const Value& value) {
  const auto found = numbers.find(name);
  require(found != numbers.end(), "lesson: the example has no ", name);
  for (auto& [index, v] : found->second)
    if (token == 0 || index == Index{token}) v = value;
}

void change(Values& numbers, const Slider& s, double value) {
  if (s.entry == 0) return change(numbers, s.name, s.token, number_value(value));
  for (auto& [index, v] : numbers.at(s.name))
    if (s.token == 0 || index == Index{s.token}) v.at.at(static_cast<size_t>(s.entry) - 1) = value;
}

Values numbers_of(const std::vector<Field>& fields, const Tensors& tensors, bool gradients) {
  Values numbers;
  for (const Field& f : fields) {
    const auto found = tensors.find(name_in(f, gradients));
    if (found == tensors.end() || !found->second) continue;
    const Layout l = layout_of(f);
    if (l.inner > 1) continue;  // states are shown by the equations alone
    const std::vector<double> all = to_doubles(found->second);
    int64_t width = 1;
    const std::vector<std::string> letters = letters_of(f.shape);
    for (size_t i = 0; i < letters.size(); ++i)
      if (!is_one(letters[i]) && !is_token(letters[i]))
        width *= found->second.size(static_cast<int>(i));
    for (int64_t t = 0; t < static_cast<int64_t>(all.size()) / width; ++t) {
      const std::vector<double> row(all.begin() + t * width, all.begin() + (t + 1) * width);
      numbers[found->first][l.tokens ? Index{t + 1} : Index{}] = value_of(row, l.inner);
    }
  }
  return numbers;
}

Tensor tokens_of(const Values& numbers, const std::string& name) {
  const std::map<Index, Value>& values = numbers.at(name);
  std::vector<double> flat;
  for (const auto& [index, v] : values) flat.insert(flat.end(), v.at.begin(), v.at.end());
  const auto T = static_cast<int64_t>(values.size());
  const Value& one = values.begin()->second;
  const Tensor t = tensor_of(flat);
  return one.rank == 0 ? t.reshape({1, T, 1}) : t.reshape({1, T, 1, one.rows});
}

std::string number_setting(const Values& numbers, const std::string& name) {
  return number_text("%.17g", numbers.at(name).at({}).at[0]);
}

Tensors tensors_with(const Lesson& l, const Values& numbers) {
  Lesson changed = l;
  for (auto& [name, rows] : changed.example) {
    const auto found = numbers.find(name);
    if (found == numbers.end()) continue;
    size_t t = 0;
    for (const auto& [index, v] : found->second) rows.at(t++) = v.at;
  }
  Tensors tensors = example_tensors(changed, operation(l.operation).inputs());
  if (l.index) tensors.merge(l.index(numbers));
  return tensors;
}

Settings settings_with(const Lesson& l, const Values& numbers) {
  Settings s = l.settings;
  for (const auto& [setting, symbol] : l.symbols)
    if (s.count(setting) > 0) s[setting] = number_setting(numbers, symbol);
  return s;
}

double largest_difference(const Values& a, const Values& b) {
  double largest = 0;
  bool shared = false;
  for (const auto& [name, values] : a) {
    const auto other = b.find(name);
    if (other == b.end()) continue;
    for (const auto& [index, v] : values) {
      const auto at = other->second.find(index);
      if (at == other->second.end() || at->second.at.size() != v.at.size()) continue;
      shared = true;
      for (size_t i = 0; i < v.at.size(); ++i) {
        const double d = std::abs(v.at[i] - at->second.at[i]);
        if (!(d <= largest)) largest = d;  // NaN is no agreement
      }
    }
  }
  return shared ? largest : std::numeric_limits<double>::infinity();
}

}  // namespace weft::train
