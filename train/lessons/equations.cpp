#include "train/lessons/equations.h"

#include <cctype>
#include <charconv>
#include <nlohmann/json.hpp>

#include "core/error.h"

namespace weft::train {
namespace {

using Kind = Expression::Kind;
using nlohmann::ordered_json;

// Reads one line of text, from the left.
class Reader {
 public:
  Reader(std::string_view text, int line) : text_(text), line_(line) {}

  bool takes(std::string_view word) {
    blanks();
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }
  void expect(std::string_view word) {
    if (!takes(word)) wrong(concat("expected \"", word, "\""));
  }
  bool ended() {
    blanks();
    return at_ == text_.size();
  }
  [[noreturn]] void wrong(const std::string& what) const {
    fail("line ", line_, " of the equations, \"", text_, "\": ", what, " at column ", at_ + 1);
  }

  std::string name() {
    blanks();
    const size_t begin = at_;
    while (at_ < text_.size() &&
           (std::isalnum(static_cast<unsigned char>(text_[at_])) != 0 || text_[at_] == '_'))
      ++at_;
    if (begin == at_ || std::isdigit(static_cast<unsigned char>(text_[begin])) != 0)
      wrong("expected a name");
    return std::string(text_.substr(begin, at_ - begin));
  }
  std::vector<Expression> indices() {
    std::vector<Expression> list;
    if (!takes("[")) return list;
    do list.push_back(expression());
    while (takes(","));
    expect("]");
    return list;
  }
  Expression expression() {
    Expression left = term();
    while (true) {
      if (takes("+"))
        left = {Kind::add, 0, "", {left, term()}};
      else if (takes("-"))
        left = {Kind::subtract, 0, "", {left, term()}};
      else
        return left;
    }
  }

 private:
  void blanks() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  char next() {
    blanks();
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  Expression term() {
    Expression left = factor();
    while (true) {
      if (takes("*"))
        left = {Kind::multiply, 0, "", {left, factor()}};
      else if (takes("/"))
        left = {Kind::divide, 0, "", {left, factor()}};
      else
        return left;
    }
  }
  Expression factor() {
    if (takes("-")) return {Kind::negate, 0, "", {factor()}};
    if (takes("(")) {
      Expression inside = expression();
      expect(")");
      return inside;
    }
    if (std::isdigit(static_cast<unsigned char>(next())) != 0) return literal();
    return named();
  }
  Expression literal() {
    size_t end = at_;  // "1 .. T" is no fraction
    while (end < text_.size() && (std::isdigit(static_cast<unsigned char>(text_[end])) != 0 ||
                                  (text_[end] == '.' && text_.substr(end, 2) != "..")))
      ++end;
    Expression e;
    std::from_chars(text_.data() + at_, text_.data() + end, e.number);
    at_ = end;
    return e;
  }
  Expression named() {
    Expression e{Kind::name, 0, name(), {}};
    if (!takes("(")) {
      e.parts = indices();
      return e;
    }
    if (e.name == "sum" || e.name == "largest") {
      e.kind = e.name == "sum" ? Kind::sum : Kind::largest;
      e.name = name();
      expect("=");
      e.parts.push_back(expression());
      expect("..");
      e.parts.push_back(expression());
      expect(":");
      e.parts.push_back(expression());
    } else {
      e.kind = Kind::call;
      do e.parts.push_back(expression());
      while (takes(","));
    }
    expect(")");
    return e;
  }

  std::string_view text_;
  int line_;
  size_t at_ = 0;
};

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

Equation equation_of(std::string_view text, int line) {
  Equation e;
  e.line = line;
  const size_t note = text.find('#');
  if (note != std::string_view::npos) e.note = trimmed(text.substr(note + 1));
  Reader read(trimmed(text.substr(0, note)), line);
  if (read.takes("for ")) {
    e.loop = true;
    e.name = read.name();
    read.expect("=");
    e.value = read.expression();
    e.down = read.takes("down ");
    if (!e.down) read.expect("..");
    e.to = read.expression();
  } else {
    e.name = read.name();
    e.index = read.indices();
    read.expect("=");
    e.value = read.expression();
  }
  if (!read.ended()) read.wrong("more than an equation");
  return e;
}

ordered_json json_of(const Expression& e) {
  if (e.kind == Kind::number) return e.number;
  static constexpr const char* kNames[] = {"",  "name", "call", "sum", "largest",
                                           "+", "-",    "*",    "/",   "neg"};
  ordered_json j = {kNames[static_cast<int>(e.kind)]};
  if (!e.name.empty()) j.push_back(e.name);
  for (const Expression& part : e.parts) j.push_back(json_of(part));
  return j;
}

std::string key_of(const Index& index) {
  std::string key;
  for (const int64_t i : index) key += (key.empty() ? "" : ",") + std::to_string(i);
  return key;
}

}  // namespace

Value number_value(double v) { return {0, 1, 1, {v}}; }

Value vector_value(std::vector<double> v) {
  return {1, static_cast<int64_t>(v.size()), 1, std::move(v)};
}

Equations equations_of(std::string_view text) {
  Equations all;
  std::vector<Equations*> open = {&all};  // by depth
  int line = 0;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const std::string_view one = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    ++line;
    if (trimmed(one).empty()) {
      --line;
      continue;
    }
    const size_t depth = one.find_first_not_of(' ') / 2;
    require(depth < open.size(), "line ", line, " of the equations, \"", one,
            "\": stands further in than a line of the loop above it");
    open.resize(depth + 1);
    open.back()->push_back(equation_of(one, line));
    if (open.back()->back().loop) open.push_back(&open.back()->back().body);
  }
  return all;
}

Expression expression_of(std::string_view text) {
  Reader read(text, 1);
  Expression e = read.expression();
  if (!read.ended()) read.wrong("more than an expression");
  return e;
}

ordered_json json_of(const Equations& equations) {
  ordered_json list = ordered_json::array();
  for (const Equation& e : equations) {
    ordered_json index = ordered_json::array();
    for (const Expression& i : e.index) index.push_back(json_of(i));
    if (e.loop)
      list.push_back({{"line", e.line},
                      {"for", e.name},
                      {"from", json_of(e.value)},
                      {"to", json_of(e.to)},
                      {"down", e.down},
                      {"body", json_of(e.body)}});
    else
      list.push_back(
          {{"line", e.line}, {"name", e.name}, {"index", index}, {"value", json_of(e.value)}});
  }
  return list;
}

ordered_json json_of(const Value& v) {
  if (v.rank == 0) return v.at[0];
  if (v.rank == 1) return v.at;
  ordered_json rows = ordered_json::array();
  for (int64_t r = 0; r < v.rows; ++r)
    rows.push_back(std::vector<double>(v.at.begin() + r * v.cols, v.at.begin() + (r + 1) * v.cols));
  return rows;
}

ordered_json json_of(const Values& numbers) {
  ordered_json j = ordered_json::object();
  for (const auto& [name, values] : numbers)
    for (const auto& [index, value] : values) j[name][key_of(index)] = json_of(value);
  return j;
}

}  // namespace weft::train
