// A chart of curves as SVG: drawn once, here, for pages and for pictures that stand alone.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace weft::train {

struct Curve {
  std::string name;
  std::vector<double> x, y;  // of one length; points that are not finite are left out
  int colour = 0;
  std::string look;       // "raw", "smooth" or "": which switch of the page hides it
  bool dots = false;      // points without a line
  bool labelled = false;  // each point has its number beside it
};

// A number as text, with the minus sign of formulas in place of the hyphen of printf.
std::string with_minus(const std::string& text);

struct Chart {
  std::string title;   // what is drawn upwards
  std::string across;  // what is drawn across, with its unit
  std::vector<Curve> curves;
};

inline constexpr double kChartWidth = 480, kChartHeight = 300;

// Two to seven round numbers that span low to high.
std::vector<double> ticks_of(double low, double high);
// A running mean that forgets over `points` points, without a pull towards the first.
std::vector<double> smoothed(const std::vector<double>& y, double points);
// The chart in a box of kChartWidth x kChartHeight, without a legend. Curves of more than 600
// points are drawn by the smallest and the largest of each stretch.
std::string chart_inside(const Chart& chart);
// The same as an element of a page, with the numbers that the page's script reads.
std::string chart_element(const Chart& chart);

}  // namespace weft::train
