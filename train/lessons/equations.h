// Equations as data. A lesson states each form of a mechanism as a few lines of text; the numbers,
// the formulas that a reader sees and what the page's script computes are all made from them.
//
//   for t = 1 .. T
//     S[t] = exp(g[t]) * S[t-1] + outer(k[t], v[t])   # keep, then write
//     o[t] = scale * read(S[t], q[t])
//
// A line gives a name a value at an index, or begins a loop over the lines below that stand two
// blanks further in ("for t = T down 1" goes backwards). A value is a number, a vector or a matrix.
// Behind # stands what the line means. The functions: exp, log, tanh, sqrt, sigmoid, softplus,
// floor, ceil, of every entry; dot(a, b) = a . b; outer(a, b) = a b'; read(S, a) = S' a;
// times(S, b) = S b; each(a, b): elementwise, a vector scales a matrix by rows; inner(A, B): the
// sum of all products; rows(A, B): that sum for each row; at(a, i): entry i; larger, smaller: of
// two numbers; above(x, y): 1 where x > y, else 0; vector(x, y, ..); zeros(n), zeros(n, m).
// sum(j = a .. b: x) and largest(j = a .. b: x) run over j.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace weft::train {

// rank 0: one number; 1: rows numbers; 2: rows x cols, row-major.
struct Value {
  int rank = 0;
  int64_t rows = 1, cols = 1;
  std::vector<double> at = {0};
  bool operator==(const Value&) const = default;
};
Value number_value(double v);
Value vector_value(std::vector<double> v);

struct Expression {
  enum class Kind { number, name, call, sum, largest, add, subtract, multiply, divide, negate };
  Kind kind = Kind::number;
  double number = 0;
  std::string name;               // of a name, a function, or a sum's variable
  std::vector<Expression> parts;  // indices, arguments, operands; of a sum: from, to, body
};

struct Equation {
  int line = 0;  // from 1, as written
  bool loop = false, down = false;
  std::string name;               // what gets a value, or the loop's variable
  std::vector<Expression> index;  // where
  Expression value, to;           // the value; a loop's first and last
  std::string note;
  std::vector<Equation> body;
};
using Equations = std::vector<Equation>;

// Throws Error that names the line.
Equations equations_of(std::string_view text);
Expression expression_of(std::string_view text);

// Values by name and index; what has no index stands at {}.
using Index = std::vector<int64_t>;
using Values = std::map<std::string, std::map<Index, Value>>;

// What a line gave, in the order in which the lines ran.
struct Assignment {
  int line = 0;
  std::string name;
  Index index;
  Value value;
};
// Runs the lines; `numbers` gets what they give. Throws Error for a name without a value and for
// shapes that do not fit.
std::vector<Assignment> solve(const Equations& equations, Values& numbers);
double number_of(const Expression& expression, const Values& numbers);

// As the page's script reads them.
nlohmann::ordered_json json_of(const Equations& equations);
nlohmann::ordered_json json_of(const Value& value);
nlohmann::ordered_json json_of(const Values& numbers);

}  // namespace weft::train
