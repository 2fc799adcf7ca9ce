// The gradient certificate finds what is wrong, says where, and passes what is right.
#include "train/workbench/certificate.h"

#include <cmath>
#include <sstream>

#include "core/file.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::train;
using kernels::Form;
using kernels::Settings;
using kernels::Tensors;

namespace {

// y = x^2, whose chunkwise form can be told to be wrong in one element.
class Square : public kernels::Operation {
 public:
  double wrong_forward = 0, wrong_backward = 0, wrong_naive = 0;

  std::string name() const override { return "square"; }
  std::vector<kernels::Field> inputs() const override { return {{"x", "[R]"}}; }
  std::vector<kernels::Field> outputs() const override { return {{"y", "[R]"}}; }
  std::vector<kernels::Setting> settings() const override { return {}; }
  std::vector<Form> forms() const override { return {Form::naive, Form::chunkwise}; }
  std::vector<kernels::NamedCase> cases() const override {
    return {{"five <numbers>", {{"x", kernels::normal({5}, 1, "x")}}, {}}};
  }
  kernels::BenchCase bench(int64_t) const override { return {}; }

  Tensors forward(Form form, const Tensors& in, const Settings&) const override {
    return {{"y", made(in.at("x"), form == Form::naive ? wrong_naive : wrong_forward,
                       [&](size_t, double x) { return x * x; })}};
  }
  Tensors backward(Form form, const Tensors& in, const Settings&, const Tensors& dy,
                   const std::vector<std::string>&) const override {
    const std::vector<double> d = to_doubles(dy.at("dy"));
    return {{"dx", made(in.at("x"), form == Form::naive ? 0 : wrong_backward,
                        [&](size_t i, double x) { return 2 * x * d[i]; })}};
  }

 private:
  template <class F>
  static Tensor made(const Tensor& x, double error, const F& f) {
    const std::vector<double> values = to_doubles(x);
    const Tensor y = empty(x.shape(), Dtype::f64);
    for (size_t i = 0; i < values.size(); ++i)
      y.data<double>()[i] = f(i, values[i]) + (i == 3 ? error : 0);
    return y.to(x.dtype());
  }
};

std::string failures(const std::vector<CertificateRow>& rows) {
  std::string list;
  for (const CertificateRow& r : rows)
    if (!r.passed())
      list +=
          concat(r.tensor, " ", r.form, " ", r.against, " ", name_of(r.dtype), " ", r.at[0], "\n");
  return list;
}

}  // namespace

TEST_CASE("certificate: a right operation passes in every dtype, form and way") {
  const auto rows = certify(Square());
  CHECK(failures(rows).empty());
  // y: 2 forms x 3 dtypes; dx: the same and the differences.
  CHECK(rows.size() == 6 + 8);
}

TEST_CASE(
    "certificate: a wrong gradient fails against differences and definition, with its place") {
  Square square;
  square.wrong_backward = 1e-4;
  CHECK(failures(certify(square)) ==
        "dx chunkwise differences f64 3\n"
        "dx chunkwise definition f64 3\n"
        "dx chunkwise definition f32 3\n");
  square.wrong_backward = 1e-2;
  CHECK_THAT(failures(certify(square)), ContainsSubstring("dx chunkwise definition bf16 3"));
}

TEST_CASE("certificate: a wrong result that differences cannot see fails against the definition") {
  Square square;
  square.wrong_forward = 1e-4;
  CHECK(failures(certify(square)) ==
        "y chunkwise definition f64 3\n"
        "y chunkwise definition f32 3\n");
}

TEST_CASE("certificate: a result or a gradient that is not finite fails in every dtype") {
  for (const double odd : {double{NAN}, double{INFINITY}, -double{INFINITY}}) {
    INFO(odd);
    Square square;
    square.wrong_backward = odd;
    CHECK(failures(certify(square)) ==
          "dx chunkwise differences f64 3\n"
          "dx chunkwise definition f64 3\n"
          "dx chunkwise definition f32 3\n"
          "dx chunkwise definition bf16 3\n");
    square.wrong_backward = 0;
    square.wrong_forward = odd;
    const auto rows = certify(square);
    CHECK_THAT(failures(rows), ContainsSubstring("y chunkwise definition f64 3") &&
                                   ContainsSubstring("y chunkwise definition f32 3") &&
                                   ContainsSubstring("y chunkwise definition bf16 3") &&
                                   ContainsSubstring("dx chunkwise differences f64"));
    square.wrong_naive = odd;  // where the definition says so too
    CHECK_THAT(failures(certify(square)), ContainsSubstring("y naive definition f64 3") &&
                                              ContainsSubstring("y chunkwise definition bf16 3"));
  }
}

TEST_CASE("certificate: table, JSON and JUnit say what failed, where, and both numbers") {
  Square square;
  square.wrong_backward = 1;
  const auto rows = certify(square);
  std::ostringstream table;
  print_certificate(rows, table);
  CHECK_THAT(table.str(), ContainsSubstring("FAILED  square dx chunkwise, differences f64") &&
                              ContainsSubstring("at [3] got ") && ContainsSubstring("expected ") &&
                              ContainsSubstring("1 operations, 14 checks, 4 failed"));
  CHECK_THAT(certificate_json(rows),
             ContainsSubstring("\"passed\":false") && ContainsSubstring("\"at\":[3]"));
  CHECK_THAT(certificate_junit(rows), ContainsSubstring("tests=\"14\" failures=\"4\"") &&
                                          ContainsSubstring("five &lt;numbers>"));
}

TEST_CASE("certificate: the verb takes names and refuses those it does not know") {
  std::ostringstream out;
  CHECK(run_gradcheck({.operations = {"embedding"}}, out) == 0);
  CHECK_THAT(out.str(), ContainsSubstring("1 operations") && ContainsSubstring("0 failed"));
  CHECK_THROWS_WITH(run_gradcheck({.operations = {"embeding"}}, out),
                    ContainsSubstring("did you mean \"embedding\""));
}

TEST_CASE("certificate: one case is checked alone, and a name that none has is refused") {
  std::ostringstream out;
  CHECK(run_gradcheck({.operations = {"matmul"}, .json = true, .case_text = "odd"}, out) == 0);
  CHECK_THAT(out.str(), ContainsSubstring("\"cases\":1") && !ContainsSubstring("\"cases\":2"));
  CHECK_THROWS_WITH(run_gradcheck({.operations = {"matmul"}, .case_text = "zzz"}, out),
                    ContainsSubstring("--case \"zzz\": no case's name holds that"));
}

namespace {

// Of two cases one is wrong: the fourth number, which the other does not have.
class TwoCases final : public Square {
 public:
  explicit TwoCases(bool wrong_first) : wrong_first_(wrong_first) {}
  std::vector<kernels::NamedCase> cases() const override {
    std::vector<kernels::NamedCase> list = {{"wrong", {{"x", kernels::normal({5}, 1, "x")}}, {}},
                                            {"right", {{"x", kernels::normal({2}, 1, "x")}}, {}}};
    if (!wrong_first_) std::swap(list[0], list[1]);
    return list;
  }

 private:
  bool wrong_first_;
};

}  // namespace

TEST_CASE("certificate: a row is the worst of its cases, wherever that stands, and counts all") {
  for (const bool first : {true, false}) {
    TwoCases op(first);
    op.wrong_backward = 1e-2;
    op.wrong_forward = 1e-2;
    const auto rows = certify(op);
    CHECK(rows.size() == 14);
    for (const CertificateRow& r : rows) {
      INFO(r.tensor << " " << r.form << " " << r.against << " " << name_of(r.dtype));
      CHECK(r.cases == 2);
      if (r.passed()) continue;
      CHECK(r.case_name == "wrong");
      CHECK(r.error > r.bound);
    }
    CHECK_THAT(failures(rows), ContainsSubstring("y chunkwise definition f64 3") &&
                                   ContainsSubstring("dx chunkwise definition f32 3"));
    CHECK(failures(certify(op, kCpu, nullptr, "right")).empty());
  }
}

TEST_CASE("certificate: a row tells the error, its bound and both numbers as they are") {
  Square square;
  square.wrong_forward = 0.5;
  for (const CertificateRow& r : certify(square)) {
    if (r.tensor != "y" || r.form != "chunkwise" || r.dtype != Dtype::f64) continue;
    const std::vector<double> x = to_doubles(kernels::normal({5}, 1, "x"));
    double squares = 0;
    for (const double v : x) squares += v * v * v * v / 5;
    CHECK(r.expected == Approx(x[3] * x[3]));
    CHECK(r.got == Approx(x[3] * x[3] + 0.5));
    CHECK(r.error == Approx(std::sqrt(0.25 / 5 / squares)));
    CHECK(r.bound == 1e-10);
  }
}

TEST_CASE("certificate: the parts of the work that are done go from none towards one") {
  std::vector<double> parts;
  certify(TwoCases(true), kCpu, [&](double part) { parts.push_back(part); });
  CHECK(parts == std::vector<double>{0, 0.5});
}
