#include "train/workbench/fault_kind.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "core/units.h"
#include "kernels/contract/agreement.h"

namespace weft::train {
namespace {

using namespace kernels;

// Dimensions with more slices are not searched for slices in another order.
constexpr int64_t kFewSlices = 16;

// The measure of a remark: what is left of the error, by the scale of the whole.
double left_over(const std::vector<double>& got, const std::vector<double>& expected,
                 double scale) {
  double squares = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double gap = got[i] - expected[i];
    squares += gap * gap;
  }
  return got.empty() ? 0 : std::sqrt(squares / static_cast<double>(got.size())) / scale;
}

// Infinities that are expected (an empty sum's logarithm) are none.
std::string odd_numbers(const std::vector<double>& got, const std::vector<double>& expected) {
  int64_t odd = 0;
  for (size_t i = 0; i < got.size(); ++i) odd += !std::isfinite(got[i]) && got[i] != expected[i];
  return odd == 0 ? "" : concat(odd, " of ", got.size(), " numbers are not finite");
}

std::string factor(const std::vector<double>& got, const std::vector<double>& expected,
                   double scale, double bound) {
  double across = 0, square = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    across += got[i] * expected[i];
    square += expected[i] * expected[i];
  }
  if (got.size() < 2 || square == 0) return "";
  const double f = across / square;
  if (std::all_of(got.begin(), got.end(), [](double x) { return x == 0; }))
    return "every number is zero";
  std::vector<double> scaled = expected;
  for (double& x : scaled) x *= f;
  if (left_over(got, scaled, scale) > bound * std::max(1.0, std::abs(f))) return "";
  if (std::abs(f + 1) <= 2 * bound) return "every number has the wrong sign";
  return concat("every number is ", number_text("%.6g", f), " times what is expected");
}

std::string swapped_dimensions(const Tensor& got, const Tensor& expected, double scale,
                               double bound) {
  const int n = got.dims();
  for (int a = 0; a < n; ++a)
    for (int b = a + 1; b < n; ++b)
      if (got.size(a) == got.size(b) && got.size(a) > 1 &&
          left_over(to_doubles(got.transpose(a, b).contiguous()), to_doubles(expected), scale) <=
              bound)
        return concat("dimensions ", a, " and ", b, " are swapped");
  return "";
}

// The error of slice `i` of one against slice `j` of the other, along a dimension.
double slice_error(const Tensor& got, int64_t i, const Tensor& expected, int64_t j, int dim,
                   double scale) {
  return left_over(to_doubles(got.select(dim, i).contiguous()),
                   to_doubles(expected.select(dim, j).contiguous()), scale);
}

// Each wrong slice is another slice of what is expected.
std::string swapped_slices(const Tensor& got, const Tensor& expected, int dim,
                           const std::vector<int64_t>& wrong, const std::string& letter,
                           double scale, double bound) {
  if (got.size(dim) > kFewSlices || wrong.size() < 2) return "";
  constexpr size_t kShown = 2;
  std::string text;
  for (size_t n = 0; n < wrong.size(); ++n) {
    const int64_t i = wrong[n];
    std::optional<int64_t> found;
    for (int64_t j = 0; j < got.size(dim) && !found; ++j)
      if (j != i && slice_error(got, i, expected, j, dim, scale) <= bound) found = j;
    if (!found) return "";
    if (n < kShown)
      text += concat(n ? ", " : "", letter, " ", i, " holds what belongs to ", letter, " ", *found);
  }
  if (wrong.size() > kShown) text += concat(" and ", wrong.size() - kShown, " more");
  return text;
}

// "3-7, 9".
std::string ranges(const std::vector<int64_t>& list) {
  std::string text;
  for (size_t i = 0; i < list.size();) {
    size_t end = i;
    while (end + 1 < list.size() && list[end + 1] == list[end] + 1) ++end;
    text += (text.empty() ? "" : ", ") + std::to_string(list[i]) +
            (end > i ? "-" + std::to_string(list[end]) : "");
    i = end + 1;
  }
  return text;
}

std::string slices(const Tensor& got, const Tensor& expected,
                   const std::vector<std::string>& letters, double scale, double bound) {
  std::string text;
  for (int d = 0; d < got.dims() && d < static_cast<int>(letters.size()); ++d) {
    std::vector<int64_t> wrong;
    for (int64_t i = 0; i < got.size(d); ++i)
      if (!(slice_error(got, i, expected, i, d, scale) <= bound)) wrong.push_back(i);
    const std::string& letter = letters[static_cast<size_t>(d)];
    const std::string swapped = swapped_slices(got, expected, d, wrong, letter, scale, bound);
    if (!swapped.empty()) return swapped;
    if (wrong.empty() || static_cast<int64_t>(wrong.size()) == got.size(d)) continue;
    text += concat(text.empty() ? "wrong at " : "; ", letter, " ", ranges(wrong), " of 0-",
                   got.size(d) - 1);
  }
  return text.size() < 120 ? text : "";
}

// The sizes behind the letters of a case's inputs.
std::map<std::string, int64_t> sizes_of(const Operation& op, const NamedCase& c) {
  std::map<std::string, int64_t> sizes;
  for (const Field& f : op.inputs()) {
    const auto found = c.inputs.find(f.name);
    if (found == c.inputs.end()) continue;
    const std::vector<std::string> letters = letters_of(f.shape);
    for (size_t d = 0; d < letters.size() && static_cast<int>(d) < found->second.dims(); ++d)
      sizes.emplace(letters[d], found->second.size(static_cast<int>(d)));
  }
  return sizes;
}

struct Split {
  std::string with, without;
  std::vector<bool> has;  // by case
};

// Everything that a case may have or lack.
std::vector<Split> splits(const Operation& op, const std::vector<CaseVerdict>& cases) {
  std::vector<Split> list;
  const auto add = [&](const std::string& with, const std::string& without, const auto& has) {
    Split s{with, without, {}};
    for (const CaseVerdict& c : cases) s.has.push_back(has(*c.named));
    list.push_back(std::move(s));
  };
  std::vector<std::string> optional;
  for (const Setting& s : op.settings())
    if (s.tensor) optional.push_back(s.name);
  for (const Field& f : op.inputs())
    if (f.optional) optional.emplace_back(f.name);
  for (const std::string& name : optional)
    add(concat("with ", name), "without",
        [&](const NamedCase& c) { return c.inputs.count(name) > 0; });
  for (const Setting& s : op.settings()) {
    if (s.tensor) continue;
    add(concat("where ", s.name, " is not ", s.standard.empty() ? "\"\"" : s.standard),
        "where it is", [&](const NamedCase& c) {
          const auto found = c.settings.find(s.name);
          return found != c.settings.end() && found->second != s.standard;
        });
  }
  add("with fewer key heads than value heads", "of the others", [&](const NamedCase& c) {
    const auto sizes = sizes_of(op, c);
    return sizes.count("Hk") > 0 && sizes.count("H") > 0 && sizes.at("Hk") < sizes.at("H");
  });
  return list;
}

struct Count {
  int of = 0, failed = 0;
};

// "fails in 3 of 3 cases with cu_seqlens, in 0 of 11 without", where no case without it fails.
std::string separated(const Split& s, const std::vector<CaseVerdict>& cases, double& share) {
  Count with, without;
  for (size_t i = 0; i < cases.size(); ++i) {
    Count& side = s.has[i] ? with : without;
    ++side.of;
    side.failed += !cases[i].passed;
  }
  if (with.failed == 0 || without.of == 0 || without.failed > 0) return "";
  share = static_cast<double>(with.failed) / with.of;
  return concat("fails in ", with.failed, " of ", with.of, " cases ", s.with, ", in 0 of ",
                without.of, " ", s.without);
}

// The letter whose sizes tell failing from passing cases: "fails from T = 70 on, passes to T = 64".
std::string by_size(const Operation& op, const std::vector<CaseVerdict>& cases) {
  std::map<std::string, int64_t> most_passing, least_failing;
  std::map<std::string, size_t> seen;
  for (const CaseVerdict& c : cases)
    for (const auto& [letter, size] : sizes_of(op, *c.named)) {
      ++seen[letter];
      if (c.passed) {
        const auto found = most_passing.emplace(letter, size).first;
        found->second = std::max(found->second, size);
      } else {
        const auto found = least_failing.emplace(letter, size).first;
        found->second = std::min(found->second, size);
      }
    }
  for (const auto& [letter, size] : least_failing)
    if (seen[letter] == cases.size() && most_passing.count(letter) > 0 &&
        most_passing[letter] < size)
      return concat("fails from ", letter, " = ", size, " on, passes to ", letter, " = ",
                    most_passing[letter]);
  return "";
}

}  // namespace

std::string kind_of_fault(const Tensor& got, const Tensor& expected,
                          const std::vector<std::string>& letters, double scale, double bound) {
  const std::vector<double> a = to_doubles(got), b = to_doubles(expected);
  if (const std::string odd = odd_numbers(a, b); !odd.empty()) return odd;
  if (scale <= 0 || !std::all_of(b.begin(), b.end(), [](double x) { return std::isfinite(x); }))
    return "";
  if (const std::string text = factor(a, b, scale, bound); !text.empty()) return text;
  if (const std::string text = swapped_dimensions(got, expected, scale, bound); !text.empty())
    return text;
  return slices(got, expected, letters, scale, bound);
}

std::string kind_of_cases(const Operation& op, const std::vector<CaseVerdict>& cases) {
  if (std::none_of(cases.begin(), cases.end(), [](const CaseVerdict& c) { return c.passed; }) ||
      std::all_of(cases.begin(), cases.end(), [](const CaseVerdict& c) { return c.passed; }))
    return "";
  std::string best;
  double most = 0;
  for (const Split& s : splits(op, cases)) {
    double share = 0;
    const std::string text = separated(s, cases, share);
    if (share > most) {
      most = share;
      best = text;
    }
  }
  const std::string sizes = by_size(op, cases);
  return most < 1 && !sizes.empty() ? sizes : best;
}

}  // namespace weft::train
