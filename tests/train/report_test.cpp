#include "train/workbench/report.h"

#include <sstream>

#include "tests/catch.h"

using namespace weft::train;

TEST_CASE("report: columns are as wide as their widest cell, and numbers stand to the right") {
  std::ostringstream out;
  print_table(out, {"name", "T", "ratio"}, {{"attention", "64", "-"}, {"x", "1024", "10.5"}});
  const std::string text = out.str();
  INFO(text);
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  REQUIRE(lines.size() >= 3);
  const auto line_of = [&](const std::string& part) {
    for (const std::string& line : lines)
      if (line.find(part) != std::string::npos) return line;
    return std::string();
  };
  CHECK(line_of("attention").find("  64") != std::string::npos);
  CHECK(line_of("10.5").find("x ") == line_of("attention").find("attention"));
  // The last digits of a column stand below each other.
  CHECK(line_of("attention").find("64") + 2 == line_of("1024").find("1024") + 4);
}
