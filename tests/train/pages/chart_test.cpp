// Curves as SVG: where points stand, what is left out, how many are drawn.
#include "train/pages/chart.h"

#include <cmath>
#include <regex>

#include "tests/catch.h"

using namespace weft;
using namespace weft::train;

namespace {

// The points of the first curve of a picture.
std::vector<std::pair<double, double>> points_of(const std::string& svg) {
  const size_t at = svg.find("data-name");
  const size_t from = svg.find(" d=\"", at) + 4;
  const std::string d = svg.substr(from, svg.find('"', from) - from);
  const std::regex point("[ML]([-0-9.]+) ([-0-9.]+)");
  std::vector<std::pair<double, double>> points;
  for (std::sregex_iterator i(d.begin(), d.end(), point), end; i != end; ++i)
    points.emplace_back(std::stod((*i)[1]), std::stod((*i)[2]));
  return points;
}

}  // namespace

TEST_CASE("chart: ticks are round numbers around what they span") {
  CHECK(ticks_of(0, 10) == std::vector<double>{0, 2, 4, 6, 8, 10});
  CHECK(ticks_of(1.3, 4.7) == std::vector<double>{1, 2, 3, 4, 5});
  for (const double low : {-3.0, 0.0, 1e-9, 7e6})
    for (const double size : {1e-7, 0.3, 12.0, 9e8}) {
      const auto t = ticks_of(low, low + size);
      CHECK(t.front() <= low + 1e-6 * size);
      CHECK(t.back() >= low + size * (1 - 1e-6));
      CHECK(t.size() >= 2);
      CHECK(t.size() <= 8);
    }
}

TEST_CASE("chart: a point stands where its numbers say") {
  const auto p = points_of(chart_inside({"t", "x", {{"c", {0, 5, 10}, {0, 2.5, 10}}}}));
  REQUIRE(p.size() == 3);
  CHECK(p[1].first == Approx((p[0].first + p[2].first) / 2));
  CHECK((p[0].second - p[1].second) / (p[0].second - p[2].second) == Approx(0.25).margin(1e-3));
}

TEST_CASE("chart: what is not finite is left out, and a flat or empty curve is drawn") {
  const auto p = points_of(chart_inside({"t", "x", {{"c", {0, 1, 2}, {1, NAN, 2}}}}));
  CHECK(p.size() == 2);
  for (const std::vector<double>& y : {std::vector<double>{}, {3}, {0}, {-1e9}}) {
    const std::string s = chart_inside({"t", "x", {{"c", std::vector<double>(y.size(), 1), y}}});
    CHECK(s.find("nan") == std::string::npos);
    CHECK(s.find("inf") == std::string::npos);
  }
}

TEST_CASE("chart: a long curve keeps its extremes within a bounded number of points") {
  Curve c{"c", {}, {}};
  for (int i = 0; i < 100000; ++i) {
    c.x.push_back(i);
    c.y.push_back(i == 54321 ? 100 : std::sin(i * 0.01));
  }
  const auto p = points_of(chart_inside({"t", "x", {c}}));
  CHECK(p.size() <= 901);
  double top = 1e9;
  for (const auto& [x, y] : p) top = std::min(top, y);
  CHECK(top == Approx(30));  // y = 100 is the upper end of the box
}

TEST_CASE("chart: a curve of any length ends at its last point") {
  for (const int n : {2, 899, 901, 5000, 100003}) {
    Curve c{"c", {}, {}};  // the last point is no extreme
    for (int i = 0; i < n; ++i) {
      c.x.push_back(i);
      c.y.push_back(i + 1 == n ? 0.25 : i % 2);
    }
    const auto p = points_of(chart_inside({"t", "x", {c}}));
    INFO(n << " points");
    const double low = p.front().second;  // y = 0
    double top = low;
    for (const auto& [x, y] : p) top = std::min(top, y);
    for (const auto& [x, y] : p) CHECK(x <= p.back().first);
    if (n > 2) CHECK((low - p.back().second) / (low - top) == Approx(0.25).margin(2e-3));
  }
}

TEST_CASE("chart: a smoothed constant is that constant from its first point on") {
  for (const double v : smoothed({2, 2, 2, 2}, 10)) CHECK(v == Approx(2));
  CHECK(smoothed({1, 3}, 1) == std::vector<double>{1, 3});
  CHECK(smoothed({NAN, 3, NAN}, 2)[2] == 3);
}
