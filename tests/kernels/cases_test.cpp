// What the cases of a mechanism have to cover. The certificate of a mechanism with one trivial case
// would say nothing. The rules hold for every mechanism, also for a new one. forms_test.cpp tries
// other strides, threads and memory on every case.
#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "core/text.h"
#include "kernels/contract/operation.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::kernels;

namespace {

using Condition = std::function<bool(const NamedCase&)>;

bool has_form(const Operation& op, Form form) {
  const std::vector<Form> forms = op.forms();
  return std::find(forms.begin(), forms.end(), form) != forms.end();
}

bool takes(const Operation& op, const std::string& tensor) {
  for (const Setting& s : op.settings())
    if (s.tensor && s.name == tensor) return true;
  return false;
}

// The tokens of a case: the second size of the first input.
int64_t tokens(const Operation& op, const NamedCase& c) {
  return c.inputs.at(op.inputs()[0].name).size(1);
}

bool any_case(const Operation& op, const Condition& condition) {
  const std::vector<NamedCase> cases = op.cases();
  return std::any_of(cases.begin(), cases.end(), condition);
}

void for_mechanisms(const std::function<void(const Operation&)>& f) {
  int count = 0;
  for (const Operation* op : operations()) {
    if (!has_form(*op, Form::recurrent)) continue;
    ++count;
    INFO(op->name());
    f(*op);
  }
  CHECK(count >= 7);
}

}  // namespace

TEST_CASE("cases: every optional input of an operation is there in one case and absent in one") {
  for (const Operation* op : operations()) {
    for (const Field& f : op->inputs()) {
      INFO(op->name() << ": " << f.name);
      CHECK(any_case(*op, [&](const NamedCase& c) { return c.inputs.count(f.name) == 1; }));
      if (f.optional)
        CHECK(any_case(*op, [&](const NamedCase& c) { return c.inputs.count(f.name) == 0; }));
    }
  }
}

TEST_CASE("cases: every setting of a mechanism has two values") {
  for_mechanisms([](const Operation& op) {
    const std::vector<NamedCase> cases = op.cases();
    for (const Setting& s : op.settings()) {
      if (s.tensor) continue;
      std::vector<std::string> values;
      for (const NamedCase& c : cases)
        if (const auto found = c.settings.find(s.name); found != c.settings.end())
          values.push_back(found->second);
      std::sort(values.begin(), values.end());
      values.erase(std::unique(values.begin(), values.end()), values.end());
      INFO(s.name);
      CHECK(values.size() >= 2);
    }
  });
}

TEST_CASE("cases: a mechanism has packed documents, one of them of a single token") {
  for_mechanisms([](const Operation& op) {
    if (!takes(op, "cu_seqlens")) return;
    CHECK(any_case(op, [](const NamedCase& c) {
      const auto found = c.inputs.find("cu_seqlens");
      if (found == c.inputs.end() || found->second.numel() < 4) return false;
      const int32_t* const borders = found->second.data<int32_t>();
      for (int64_t n = 1; n < found->second.numel(); ++n)
        if (borders[n] - borders[n - 1] == 1) return true;
      return false;
    }));
  });
}

TEST_CASE("cases: a mechanism with a state starts from one that is not zero, packed and not") {
  for_mechanisms([](const Operation& op) {
    const std::vector<Field> fields = op.inputs();
    const bool has_state = std::any_of(fields.begin(), fields.end(), [](const Field& f) {
      return std::string(f.name) == "initial_state";
    });
    if (!has_state) return;
    for (const bool packed : {false, true})
      CHECK(any_case(op, [&](const NamedCase& c) {
        const auto state = c.inputs.find("initial_state");
        if (state == c.inputs.end() || (c.inputs.count("cu_seqlens") == 1) != packed) return false;
        for (const double x : to_doubles(state->second))
          if (x != 0) return true;
        return false;
      }));
  });
}

TEST_CASE("cases: a mechanism has one token, an odd length, and one that is longer than a chunk") {
  for_mechanisms([](const Operation& op) {
    CHECK(any_case(op, [&](const NamedCase& c) { return tokens(op, c) == 1; }));
    CHECK(any_case(
        op, [&](const NamedCase& c) { return tokens(op, c) > 1 && tokens(op, c) % 2 == 1; }));
    CHECK(any_case(op, [&](const NamedCase& c) { return tokens(op, c) > 64; }));
  });
}

TEST_CASE("cases: a mechanism has a benchmark") {
  for_mechanisms([](const Operation& op) { CHECK_FALSE(op.bench(64).inputs.empty()); });
}
