// Equations as data: what a line means, and what is refused.
#include "train/lessons/equations.h"

#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/text.h"
#include "tests/catch.h"
#include "tests/train/markup.h"
#include "train/lessons/formula.h"
#include "train/lessons/signs.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;

namespace {

double solved(const std::string& expression) {
  Values numbers;
  numbers["a"][{}] = vector_value({1, 2});
  numbers["b"][{}] = vector_value({3, -1});
  numbers["S"][{}] = Value{2, 2, 2, {1, 2, 3, 4}};
  for (int64_t i = 1; i <= 3; ++i) numbers["x"][{i}] = number_value(static_cast<double>(i * i));
  return number_of(expression_of(expression), numbers);
}

}  // namespace

TEST_CASE("equations: signs bind as on paper, and functions do what their names say") {
  CHECK(solved("1 - 2 - 3") == -4);
  CHECK(solved("2 + 3 * 4 / 6") == 4);
  CHECK(solved("-2 * -3") == 6);
  CHECK(solved("(1 + 2) * 3") == 9);
  CHECK(solved("dot(a, b)") == 1);
  CHECK(solved("at(read(S, a), 1)") == 7);   // S' a
  CHECK(solved("at(times(S, a), 1)") == 5);  // S a
  CHECK(solved("at(each(a, b), 2)") == -2);
  CHECK(solved("at(times(each(a, S), a), 2)") == 22);  // rows of S by a
  CHECK(solved("at(rows(S, S), 2)") == 25);
  CHECK(solved("inner(S, outer(a, b))") == 1 * 3 - 2 + 3 * 6 - 4 * 2);
  CHECK(solved("sum(i = 1 .. 3: x[i])") == 14);
  CHECK(solved("sum(i = 2 .. 1: x[i])") == 0);
  CHECK(solved("largest(i = 1 .. 3: -x[i])") == -1);
  CHECK(solved("larger(floor(1.5), ceil(1.5)) + smaller(1, 2)") == 3);
  CHECK(solved("exp(log(2)) + sqrt(9) + tanh(0) + sigmoid(0)") == Approx(5.5));
  CHECK(solved("softplus(0)") == Approx(std::log(2)));
  CHECK(solved("at(vector(4, 5), 2)") == 5);
  CHECK(solved("-infinity") == -std::numeric_limits<double>::infinity());
}

TEST_CASE("equations: loops run in their direction, and each line is told as it runs") {
  Values numbers;
  const auto steps =
      solve(equations_of("y = 1\nfor t = 3 down 2\n  y = 10 * y + t  # note\n"), numbers);
  REQUIRE(steps.size() == 3);
  CHECK(steps[1].line == 3);
  CHECK(numbers.at("y").at({}).at[0] == 132);
  CHECK(numbers.count("t") == 0);
}

TEST_CASE("equations: what is no equation is refused with its line") {
  for (const char* text : {"x = 1 +", "x 1", "x = (1", "= 1", "x = 1 2", "for t = 1", "  x = 1",
                           "x = q[1", "x = sum(j: 1)"})
    CHECK_THROWS_WITH(equations_of(text), ContainsSubstring("line 1"));
  Values numbers;
  CHECK_THROWS_WITH(solve(equations_of("x = y"), numbers), ContainsSubstring("y has no value"));
  CHECK_THROWS_WITH(solve(equations_of("x = dott(1, 1)"), numbers),
                    ContainsSubstring("did you mean \"dot\""));
  CHECK_THROWS_WITH(solve(equations_of("x = vector(1, 2) + 1"), numbers),
                    ContainsSubstring("two shapes"));
  CHECK_THROWS_WITH(with_formulas("a $x"), ContainsSubstring("odd number"));
}

TEST_CASE("equations: a formula is whole markup and keeps what binds together") {
  for (const char* text : {"a[i] * (b - c)", "exp(x[i, j] - lse[i])", "sum(j = 1 .. i: p[j]) * v",
                           "S[t] = exp(g[t]) * S[t-1] + outer(k[t], v[t])", "-(a + b) / 2",
                           "larger(1, 2) + at(o, 1)"}) {
    const std::string f = formula(std::string_view(text));
    INFO(f);
    CHECK(tests::markup_fault(f) == "");
    CHECK_THAT(f, ContainsSubstring("<math>"));
  }
  CHECK_THAT(formula(std::string_view("a * (b + c)")), ContainsSubstring("<mo>(</mo>"));
  CHECK(formula(std::string_view("a * b + c")).find("<mo>(</mo>") == std::string::npos);
  CHECK_THAT(formula(std::string_view("sum(j = 1 .. 2: j) * v")), ContainsSubstring("<mo>(</mo>"));
  CHECK_THAT(with_formulas("`a<b` and $x$"), ContainsSubstring("<code>a&lt;b</code> and <math>"));
}

TEST_CASE("lessons: each function that a lesson calls has its sign explained with right numbers") {
  for (const Lesson& l : lessons()) {
    INFO(l.name);
    const std::vector<std::string> functions = functions_of(l);
    const std::string signs = signs_section(l);
    CHECK(count_of(signs, "<tr><td>") == functions.size());
  }
  const std::string delta = signs_section(lesson("delta"));
  CHECK_THAT(delta, ContainsSubstring("</math> is 11<") &&
                        ContainsSubstring("is (3, 4) and below it (6, 8)<"));
  CHECK_THAT(signs_section(lesson("mamba")), ContainsSubstring("</math> is 0.6931<"));
}
