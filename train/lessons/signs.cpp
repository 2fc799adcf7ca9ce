#include "train/lessons/signs.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "core/error.h"
#include "core/text.h"
#include "core/units.h"
#include "train/lessons/formula.h"
#include "train/lessons/lesson_sections.h"

namespace weft::train {
namespace {

struct Sign {
  const char* function;
  const char* drawn;  // with names
  const char* meaning;
  const char* sample;  // with numbers
};
// Names of one small letter are vectors here, A and S are tables, x and y numbers.
constexpr Sign kSigns[] = {
    {"sum", "sum(j = 1 .. 3: x[j])", "the sum of $x[1]$, $x[2]$ and $x[3]$",
     "sum(j = 1 .. 3: 10 * j)"},
    {"largest", "largest(j = 1 .. 3: x[j])", "the largest of $x[1]$, $x[2]$ and $x[3]$",
     "largest(j = 1 .. 3: 10 * j)"},
    {"dot", "dot(a, b)", "a number: entry times entry, all added up",
     "dot(vector(1, 2), vector(3, 4))"},
    {"each", "each(a, b)",
     "entry times entry, not added up; if the right side is a table, entry $i$ multiplies row $i$",
     "each(vector(1, 2), vector(3, 4))"},
    {"outer", "outer(a, b)",
     "a table of all products: row $i$ is entry $i$ of $a$ times the whole of $b$",
     "outer(vector(1, 2), vector(3, 4))"},
    {"read", "read(S, a)", "a vector: each row of $S$ times the entry of $a$ for it, all added up",
     "read(outer(vector(1, 2), vector(3, 4)), vector(1, 1))"},
    {"times", "times(S, b)",
     "a vector: entry $i$ is row $i$ of $S$, entry times entry with $b$, "
     "added up",
     "times(outer(vector(1, 2), vector(3, 4)), vector(1, 1))"},
    {"inner", "inner(A, S)", "a number: entry times entry of two tables, all added up",
     "inner(outer(vector(1, 2), vector(3, 4)), outer(vector(1, 1), vector(1, 1)))"},
    {"rows", "rows(A, S)", "a vector: the same for each row by itself",
     "rows(outer(vector(1, 2), vector(3, 4)), outer(vector(1, 1), vector(1, 1)))"},
    {"at", "at(a, 2)", "entry 2 of $a$", "at(vector(3, 4), 2)"},
    {"exp", "exp(x)", "the exponential: a sum above becomes a product, and $exp(0) = 1$", "exp(1)"},
    {"log", "log(x)", "the logarithm, which undoes the exponential", "log(2)"},
    {"sqrt", "sqrt(x)", "the square root", "sqrt(9)"},
    {"tanh", "tanh(x)", "pulls any number between −1 and 1", "tanh(1)"},
    {"sigmoid", "sigmoid(x)", "pulls any number between 0 and 1: $1 / (1 + exp(-x))$",
     "sigmoid(0)"},
    {"softplus", "softplus(x)", "makes any number positive: $log(1 + exp(x))$", "softplus(0)"},
    {"floor", "floor(x)", "the whole number below", "floor(2.5)"},
    {"ceil", "ceil(x)", "the whole number above", "ceil(2.5)"},
    {"larger", "larger(x, y)", "the larger of two numbers", "larger(3, 4)"},
    {"smaller", "smaller(x, y)", "the smaller of two numbers", "smaller(3, 4)"},
    {"vector", "vector(x, y)", "a vector of these entries", "vector(3, 4)"},
    {"zeros", "zeros(2)", "where a vector or a table begins: all of its entries are 0", "zeros(2)"},
    {"above", "above(x, y)", "1 if it is so, else 0", "above(3, 4)"}};

void collect(const Expression& e, std::set<std::string>& names) {
  if (e.kind == Expression::Kind::call) names.insert(e.name);
  if (e.kind == Expression::Kind::sum) names.insert("sum");
  if (e.kind == Expression::Kind::largest) names.insert("largest");
  for (const Expression& part : e.parts) collect(part, names);
}

void collect(const Equations& equations, std::set<std::string>& names) {
  for (const Equation& e : equations) {
    collect(e.value, names);
    collect(e.to, names);
    for (const Expression& i : e.index) collect(i, names);
    collect(e.body, names);
  }
}

// "11", "(3, 8)", "(3, 4) and below it (6, 8)".
std::string numbers_text(const Value& v) {
  const auto row = [&](int64_t from, int64_t count) {
    std::vector<std::string> entries;
    for (int64_t i = from; i < from + count; ++i)
      entries.push_back(with_minus(number_text("%.4g", v.at[static_cast<size_t>(i)])));
    return v.rank == 0 ? entries[0] : concat("(", joined(entries), ")");
  };
  if (v.rank < 2) return row(0, v.rank == 0 ? 1 : v.rows);
  std::vector<std::string> rows;
  for (int64_t r = 0; r < v.rows; ++r) rows.push_back(row(r * v.cols, v.cols));
  return joined(rows, " and below it ");
}

}  // namespace

std::vector<std::string> functions_of(const Lesson& l) {
  std::set<std::string> called;
  for (const LessonForm& f : l.forms) collect(equations_of(f.equations), called);
  collect(equations_of(l.gradient.equations), called);
  std::vector<std::string> names;
  for (const Sign& s : kSigns)
    if (called.erase(s.function) > 0) names.emplace_back(s.function);
  for (const std::string& name : called) names.push_back(name);  // those without a row
  return names;
}

std::string signs_section(const Lesson& l) {
  const std::vector<std::string> names = functions_of(l);
  std::vector<std::vector<std::string>> rows;
  for (const Sign& s : kSigns) {
    if (!contains(names, s.function)) continue;
    Values numbers;
    solve(equations_of(concat("y = ", s.sample)), numbers);
    rows.push_back({formula(std::string_view(s.drawn)), with_formulas(s.meaning),
                    concat(formula(std::string_view(s.sample)), " is ",
                           numbers_text(numbers.at("y").at({})))});
  }
  if (rows.empty()) return "";
  return "<details><summary>What the signs of this page mean</summary>\n" +
         lesson_table({"sign", "means", "with numbers"}, rows, "signs") + "</details>\n";
}

}  // namespace weft::train
