#include "train/pages/chart.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/units.h"
#include "train/pages/page.h"

namespace weft::train {
namespace {

constexpr double kLeft = 66, kTop = 30, kRight = 22, kBottom = 40;
constexpr double kAcross = kChartWidth - kLeft - kRight, kUp = kChartHeight - kTop - kBottom;
constexpr size_t kMostPoints = 600;

struct Span {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  void see(double v) {
    low = std::min(low, v);
    high = std::max(high, v);
  }
  bool empty() const { return low > high; }
  double size() const { return high - low; }
};

std::string short_number(double v) {
  const double size = std::abs(v);
  constexpr size_t kRoom = 7;  // letters beside the box
  std::string s = size >= 1e4 ? count_text(v) : number_text("%.4g", v);
  if (s.size() > kRoom && size < 1) {
    const auto power = static_cast<int>(std::floor(std::log10(size)));
    s = concat(number_text("%.4g", v / std::pow(10, power)), "e", power);
  }
  return with_minus(s);
}

bool is_point(const Curve& c, size_t i) { return std::isfinite(c.x[i]) && std::isfinite(c.y[i]); }

// The places of a curve's points that are drawn, in order.
std::vector<size_t> drawn(const Curve& c) {
  std::vector<size_t> points;
  for (size_t i = 0; i < c.x.size(); ++i)
    if (is_point(c, i)) points.push_back(i);
  if (points.size() <= kMostPoints) return points;
  std::vector<size_t> kept{points.front()};
  const size_t stretches = kMostPoints / 2;
  for (size_t s = 0; s < stretches; ++s) {
    const auto begin = points.begin() + static_cast<std::ptrdiff_t>(s * points.size() / stretches);
    const auto end =
        points.begin() + static_cast<std::ptrdiff_t>((s + 1) * points.size() / stretches);
    const auto [least, most] =
        std::minmax_element(begin, end, [&](size_t a, size_t b) { return c.y[a] < c.y[b]; });
    for (const size_t i : {std::min(*least, *most), std::max(*least, *most), *(end - 1)})
      if (i > kept.back()) kept.push_back(i);
  }
  return kept;
}

struct Frame {
  Span x, y;
  std::vector<double> lines;  // across, at round numbers: the first and last are y's ends
  explicit Frame(const Chart& chart) {
    for (const Curve& c : chart.curves)
      for (size_t i = 0; i < c.x.size(); ++i)
        if (is_point(c, i)) {
          x.see(c.x[i]);
          y.see(c.y[i]);
        }
    if (x.empty()) {
      x = {0, 1};
      y = {0, 1};
    }
    if (x.size() == 0) x = {x.low - 0.5, x.high + 0.5};
    const bool dots = std::all_of(chart.curves.begin(), chart.curves.end(),
                                  [](const Curve& c) { return c.dots; });
    if (dots) x = {x.low - 0.05 * x.size(), x.high + 0.05 * x.size()};  // off the edges
    // As flat as it is, a line stands in the middle.
    const double least = std::max(1e-12, 1e-6 * std::abs(y.high));
    if (y.size() < least) y = {y.low - std::max(least, 0.05 * std::abs(y.low)), y.high + least};
    lines = ticks_of(y.low, y.high);
    y = {lines.front(), lines.back()};
  }
  double at_x(double v) const { return kLeft + kAcross * (v - x.low) / x.size(); }
  double at_y(double v) const { return kTop + kUp * (y.high - v) / y.size(); }
};

std::string place(double v) { return number_text("%.1f", v); }

// So exact that a page's script reads a point's numbers from it, to five digits.
std::string exact(double v) {
  std::string s = number_text("%.3f", v);
  s.resize(s.find_last_not_of('0') + 1);
  if (s.back() == '.') s.pop_back();
  return s;
}

std::string text_at(double x, double y, const char* look, const std::string& text) {
  return concat("<text x=\"", place(x), "\" y=\"", place(y), "\" class=\"", look, "\">",
                escaped(text), "</text>\n");
}

std::string grid(const Chart& chart, const Frame& f) {
  std::string s = text_at(kLeft, 16, "", chart.title);
  for (const double v : f.lines) {
    s += concat("<path class=\"grid-line\" d=\"M", kLeft, " ", place(f.at_y(v)), "h", kAcross,
                "\"/>");
    s += text_at(kLeft - 6, f.at_y(v) + 4, "soft end", short_number(v));
  }
  for (const double v : ticks_of(f.x.low, f.x.high))
    if (v >= f.x.low - 1e-9 * f.x.size() && v <= f.x.high + 1e-9 * f.x.size())
      s += text_at(f.at_x(v), kTop + kUp + 16, "soft mid", short_number(v));
  return s + text_at(kLeft + kAcross / 2, kChartHeight - 6, "soft mid", chart.across);
}

std::string curve(const Curve& c, const Frame& f) {
  std::string path, labels;
  const std::vector<size_t> points = drawn(c);
  const bool dots = c.dots || points.size() == 1;  // a line needs two
  for (const size_t i : points) {
    const double x = f.at_x(c.x[i]), y = f.at_y(c.y[i]);
    path += concat(dots || path.empty() ? "M" : "L", exact(x), " ", exact(y), dots ? "h0" : "");
    if (c.labelled) labels += text_at(x, y - 9, "mid", number_text("%.3g", c.y[i]));
  }
  if (path.empty()) return "";
  return concat("<path class=\"", dots ? "dots" : "curve", " c", c.colour % 8,
                c.look.empty() ? "" : " " + c.look, "\" data-name=\"", escaped(c.name), "\" d=\"",
                path, "\"/>\n", labels);
}

}  // namespace

std::string with_minus(const std::string& text) {
  std::string s;
  for (const char c : text) s += c == '-' ? std::string("−") : std::string(1, c);
  return s;
}

std::vector<double> ticks_of(double low, double high) {
  if (!(high > low)) return {low, low + 1};
  const double rough = (high - low) / 5, power = std::pow(10, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double m : {1.0, 2.0, 5.0})
    if (m * power >= rough * (1 - 1e-9)) {
      step = m * power;
      break;
    }
  std::vector<double> ticks;
  const double first = std::floor(low / step + 1e-9), last = std::ceil(high / step - 1e-9);
  for (double k = first; k <= last; ++k) ticks.push_back(k * step);
  return ticks;
}

std::vector<double> smoothed(const std::vector<double>& y, double points) {
  const double keep = points <= 1 ? 0 : 1 - 1 / points;
  std::vector<double> out;
  double sum = 0, weight = 0;
  for (const double v : y) {
    if (std::isfinite(v)) {
      sum = keep * sum + v;
      weight = keep * weight + 1;
    }
    out.push_back(weight > 0 ? sum / weight : v);
  }
  return out;
}

std::string chart_inside(const Chart& chart) {
  const Frame f(chart);
  std::string s = grid(chart, f);
  for (const Curve& c : chart.curves) s += curve(c, f);
  return s;
}

std::string chart_element(const Chart& chart) {
  const Frame f(chart);
  const auto pair = [](const Span& s) {
    return number_text("%.17g", s.low) + " " + number_text("%.17g", s.high);
  };
  return concat("<figure><svg class=\"chart\" viewBox=\"0 0 ", kChartWidth, " ", kChartHeight,
                "\" tabindex=\"0\" role=\"img\" aria-label=\"", escaped(chart.title), " against ",
                escaped(chart.across), "\" data-box=\"", kLeft, " ", kTop, " ", kAcross, " ", kUp,
                "\" data-x=\"", pair(f.x), "\" data-y=\"", pair(f.y), "\" data-unit=\"",
                escaped(chart.across), "\">\n", chart_inside(chart),
                "</svg><output aria-live=\"polite\"></output></figure>\n");
}

}  // namespace weft::train
