// Equations, computed in f64.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "core/error.h"
#include "core/text.h"
#include "train/lessons/equations.h"

namespace weft::train {
namespace {

using Kind = Expression::Kind;

// A sum over nothing is the number 0 whatever is summed, so 0 may be added to any shape.
bool is_nothing(const Value& v) { return v.rank == 0 && v.at[0] == 0; }

template <class F>
Value mapped(Value v, const F& f) {
  for (double& x : v.at) x = f(x);
  return v;
}

Value added(const Value& a, const Value& b, double sign) {
  if (is_nothing(b)) return a;
  if (is_nothing(a)) return mapped(b, [&](double x) { return sign * x; });
  require(a.rank == b.rank && a.rows == b.rows && a.cols == b.cols,
          "equations: a sum of values of two shapes");
  Value sum = a;
  for (size_t i = 0; i < sum.at.size(); ++i) sum.at[i] += sign * b.at[i];
  return sum;
}

Value scaled(const Value& a, const Value& b) {
  require(a.rank == 0 || b.rank == 0,
          "equations: * takes a number; for two vectors there are dot, outer and each");
  const double factor = a.rank == 0 ? a.at[0] : b.at[0];
  return mapped(a.rank == 0 ? b : a, [&](double x) { return factor * x; });
}

Value outer(const Value& a, const Value& b) {
  Value out{2, a.rows, b.rows, {}};
  for (const double x : a.at)
    for (const double y : b.at) out.at.push_back(x * y);
  return out;
}

// S' a, or S a.
Value product(const Value& S, const Value& a, bool transposed) {
  require(S.rank == 2 && a.rank == 1 && a.rows == (transposed ? S.rows : S.cols),
          "equations: a matrix and a vector whose sizes do not fit");
  Value out = vector_value(std::vector<double>(static_cast<size_t>(transposed ? S.cols : S.rows)));
  for (int64_t r = 0; r < S.rows; ++r)
    for (int64_t c = 0; c < S.cols; ++c)
      out.at[static_cast<size_t>(transposed ? c : r)] +=
          S.at[static_cast<size_t>(r * S.cols + c)] * a.at[static_cast<size_t>(transposed ? r : c)];
  return out;
}

Value inner(const Value& a, const Value& b) {
  require(a.rank == b.rank && a.at.size() == b.at.size(),
          "equations: a product of values of two shapes");
  double sum = 0;
  for (size_t i = 0; i < a.at.size(); ++i) sum += a.at[i] * b.at[i];
  return number_value(sum);
}

Value each(const Value& a, const Value& b) {
  require(a.rank == 1 && b.rank >= 1 && a.rows == b.rows, "equations: each() of two shapes");
  Value out = b;
  for (size_t i = 0; i < out.at.size(); ++i) out.at[i] *= a.at[i / static_cast<size_t>(b.cols)];
  return out;
}

// Of two tables: the inner product of each row with that row of the other.
Value rows_of(const Value& a, const Value& b) {
  require(a.rank == 2 && b.rank == 2 && a.rows == b.rows && a.cols == b.cols,
          "equations: rows() of two shapes");
  Value out = vector_value(std::vector<double>(static_cast<size_t>(a.rows)));
  for (size_t i = 0; i < a.at.size(); ++i)
    out.at[i / static_cast<size_t>(a.cols)] += a.at[i] * b.at[i];
  return out;
}

Value zeros_of(const std::vector<Value>& sizes) {
  Value out = vector_value(std::vector<double>(static_cast<size_t>(sizes.at(0).at[0])));
  if (sizes.size() == 1) return out;
  out.rank = 2;
  out.cols = static_cast<int64_t>(sizes[1].at[0]);
  out.at.resize(static_cast<size_t>(out.rows * out.cols));
  return out;
}

double softplus(double x) { return x > 30 ? x : std::log1p(std::exp(x)); }

using Function = std::function<Value(const std::vector<Value>&)>;

const std::map<std::string, Function>& functions() {
  const auto of_one = [](double (*f)(double)) -> Function {
    return [f](const std::vector<Value>& x) { return mapped(x.at(0), f); };
  };
  static const std::map<std::string, Function> all = {
      {"exp", of_one([](double x) { return std::exp(x); })},
      {"log", of_one([](double x) { return std::log(x); })},
      {"tanh", of_one([](double x) { return std::tanh(x); })},
      {"sqrt", of_one([](double x) { return std::sqrt(x); })},
      {"floor", of_one([](double x) { return std::floor(x); })},
      {"ceil", of_one([](double x) { return std::ceil(x); })},
      {"sigmoid", of_one([](double x) { return 1 / (1 + std::exp(-x)); })},
      {"softplus", of_one(softplus)},
      {"dot", [](const auto& x) { return inner(x.at(0), x.at(1)); }},
      {"inner", [](const auto& x) { return inner(x.at(0), x.at(1)); }},
      {"outer", [](const auto& x) { return outer(x.at(0), x.at(1)); }},
      {"read", [](const auto& x) { return product(x.at(0), x.at(1), true); }},
      {"times", [](const auto& x) { return product(x.at(0), x.at(1), false); }},
      {"rows", [](const auto& x) { return rows_of(x.at(0), x.at(1)); }},
      {"each", [](const auto& x) { return each(x.at(0), x.at(1)); }},
      {"larger",
       [](const auto& x) { return number_value(std::max(x.at(0).at[0], x.at(1).at[0])); }},
      {"smaller",
       [](const auto& x) { return number_value(std::min(x.at(0).at[0], x.at(1).at[0])); }},
      {"above", [](const auto& x) { return number_value(x.at(0).at[0] > x.at(1).at[0] ? 1 : 0); }},
      {"at",
       [](const auto& x) {
         return number_value(x.at(0).at.at(static_cast<size_t>(x.at(1).at[0]) - 1));
       }},
      {"vector",
       [](const auto& x) {
         Value v = vector_value({});
         for (const Value& entry : x) v.at.push_back(entry.at[0]);
         v.rows = static_cast<int64_t>(x.size());
         return v;
       }},
      {"zeros", zeros_of}};
  return all;
}

class Solver {
 public:
  explicit Solver(Values& numbers) : numbers_(numbers) {}

  Value value(const Expression& e) {
    const auto part = [&](size_t i) { return value(e.parts[i]); };
    switch (e.kind) {
      case Kind::number:
        return number_value(e.number);
      case Kind::name:
        return named(e);
      case Kind::call:
        return called(e);
      case Kind::sum:
      case Kind::largest:
        return over(e);
      case Kind::add:
        return added(part(0), part(1), 1);
      case Kind::subtract:
        return added(part(0), part(1), -1);
      case Kind::multiply:
        return scaled(part(0), part(1));
      case Kind::divide:
        return scaled(part(0), number_value(1 / single(e.parts[1])));
      case Kind::negate:
        return mapped(part(0), [](double x) { return -x; });
    }
    fail("equations: no such expression");
  }

  double single(const Expression& e) {
    const Value v = value(e);
    require(v.rank == 0, "equations: a vector stands where a number is expected");
    return v.at[0];
  }
  int64_t whole(const Expression& e) { return std::llround(single(e)); }

  void run(const Equations& equations) {
    for (const Equation& e : equations) {
      if (!e.loop) {
        const Index index = indices(e.index);
        const Value& v = numbers_[e.name][index] = value(e.value);
        done.push_back({e.line, e.name, index, v});
        continue;
      }
      const int64_t from = whole(e.value), to = whole(e.to), step = e.down ? -1 : 1;
      for (int64_t i = from; e.down ? i >= to : i <= to; i += step) {
        numbers_[e.name][{}] = number_value(static_cast<double>(i));
        run(e.body);
      }
      numbers_.erase(e.name);
    }
  }

  std::vector<Assignment> done;

 private:
  Index indices(const std::vector<Expression>& list) {
    Index index;
    for (const Expression& e : list) index.push_back(whole(e));
    return index;
  }
  Value named(const Expression& e) {
    if (e.name == "infinity") return number_value(std::numeric_limits<double>::infinity());
    const Index index = indices(e.parts);
    const auto values = numbers_.find(e.name);
    if (values != numbers_.end())
      if (const auto found = values->second.find(index); found != values->second.end())
        return found->second;
    std::string where;
    for (const int64_t i : index) where += " " + std::to_string(i);
    fail("equations: ", e.name, where, " has no value");
  }
  Value called(const Expression& e) {
    const auto f = functions().find(e.name);
    if (f == functions().end()) {
      std::vector<std::string> known;
      for (const auto& [name, function] : functions()) known.push_back(name);
      fail("equations: ", unknown_name("function", e.name, known));
    }
    std::vector<Value> x;
    for (const Expression& part : e.parts) x.push_back(value(part));
    return f->second(x);
  }
  Value over(const Expression& e) {
    const bool sum = e.kind == Kind::sum;
    Value all = number_value(sum ? 0 : -std::numeric_limits<double>::infinity());
    const int64_t to = whole(e.parts[1]);
    for (int64_t j = whole(e.parts[0]); j <= to; ++j) {
      numbers_[e.name][{}] = number_value(static_cast<double>(j));
      const Value one = value(e.parts[2]);
      all = sum ? added(all, one, 1) : number_value(std::max(all.at[0], one.at[0]));
    }
    numbers_.erase(e.name);
    return all;
  }

  Values& numbers_;
};

}  // namespace

std::vector<Assignment> solve(const Equations& equations, Values& numbers) {
  Solver s(numbers);
  s.run(equations);
  return s.done;
}

double number_of(const Expression& expression, const Values& numbers) {
  Values own = numbers;
  return Solver(own).single(expression);
}

}  // namespace weft::train
