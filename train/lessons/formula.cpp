#include "train/lessons/formula.h"

#include <map>

#include "core/error.h"
#include "core/units.h"
#include "train/pages/page.h"

namespace weft::train {
namespace {

using Kind = Expression::Kind;

// How strongly an expression holds together: what is weaker stands in parentheses.
enum Strength { kSum = 1, kProduct = 2, kAtom = 3 };

std::string identifier(const std::string& name) {
  static const std::map<std::string, std::string> kLetters = {
      {"alpha", "α"}, {"beta", "β"}, {"gamma", "γ"},  {"delta", "δ"},   {"lambda", "λ"},
      {"Gamma", "Γ"}, {"eps", "ε"},  {"dbeta", "dβ"}, {"infinity", "∞"}};
  const auto found = kLetters.find(name);
  return concat("<mi>", found == kLetters.end() ? escaped(name) : found->second, "</mi>");
}

std::string op(const std::string& sign) { return concat("<mo>", sign, "</mo>"); }
std::string row(const std::string& inside) { return concat("<mrow>", inside, "</mrow>"); }
std::string in_parentheses(const std::string& inside) { return row(op("(") + inside + op(")")); }

Strength strength(const Expression& e) {
  static const std::string kProducts = " dot outer read times each ";
  switch (e.kind) {
    case Kind::add:
    case Kind::subtract:
      return kSum;
    case Kind::multiply:
    case Kind::negate:
    case Kind::sum:
    case Kind::largest:
      return kProduct;
    case Kind::call:
      return kProducts.find(" " + e.name + " ") != std::string::npos ? kProduct : kAtom;
    default:
      return kAtom;
  }
}

std::string text(const Expression& e);

// In parentheses where it is weaker than what stands around it.
std::string within(const Expression& e, Strength least) {
  return strength(e) < least ? in_parentheses(text(e)) : text(e);
}

// Fractions as a / b: one above the other would be too small within an index.
std::string in_line(const Expression& e) {
  if (e.kind == Kind::add) return in_line(e.parts[0]) + op("+") + in_line(e.parts[1]);
  if (e.kind != Kind::divide) return text(e);
  return within(e.parts[0], kProduct) + op("/") + within(e.parts[1], kAtom);
}

std::string indexed(const std::string& base, const std::vector<Expression>& index) {
  if (index.empty()) return base;
  std::string below;
  for (const Expression& i : index)
    below += (below.empty() ? "" : "<mo separator=\"true\">,</mo>") + in_line(i);
  return concat("<msub>", base, row(below), "</msub>");
}

std::string raised(const std::string& base, const std::string& power) {
  return concat("<msup>", base, row(power), "</msup>");
}

std::string over(const Expression& e) {
  const std::string from = row(identifier(e.name) + op("=") + text(e.parts[0]));
  const std::string sign = e.kind == Kind::sum ? "<mo>∑</mo>" : "<mo>max</mo>";
  return concat("<munderover>", sign, from, row(text(e.parts[1])), "</munderover>",
                within(e.parts[2], kProduct));
}

std::string called(const Expression& e) {
  const auto part = [&](size_t i, Strength least) { return within(e.parts.at(i), least); };
  const std::string gap = "<mspace width=\"0.15em\"></mspace>";
  if (e.name == "exp") return raised("<mi>e</mi>", text(e.parts.at(0)));
  if (e.name == "sqrt") return concat("<msqrt>", text(e.parts.at(0)), "</msqrt>");
  if (e.name == "dot") return part(0, kAtom) + op("·") + part(1, kAtom);
  if (e.name == "each") return part(0, kAtom) + op("⊙") + part(1, kAtom);
  if (e.name == "outer") return part(0, kAtom) + gap + raised(part(1, kAtom), op("⊤"));
  if (e.name == "read") return raised(part(0, kAtom), op("⊤")) + gap + part(1, kAtom);
  if (e.name == "times") return part(0, kAtom) + gap + part(1, kAtom);
  if (e.name == "zeros") return "<mn>0</mn>";
  if (e.name == "floor") return row(op("⌊") + in_line(e.parts.at(0)) + op("⌋"));
  if (e.name == "ceil") return row(op("⌈") + in_line(e.parts.at(0)) + op("⌉"));
  if (e.name == "above")
    return row(op("[") + text(e.parts.at(0)) + op("&gt;") + text(e.parts.at(1)) + op("]"));
  if (e.name == "inner")
    return row(op("⟨") + text(e.parts.at(0)) + op(",") + text(e.parts.at(1)) + op("⟩"));
  if (e.name == "at")
    return concat("<msub>", in_parentheses(text(e.parts.at(0))), row(text(e.parts.at(1))),
                  "</msub>");
  const std::string name = e.name == "larger"    ? "max"
                           : e.name == "smaller" ? "min"
                           : e.name == "vector"  ? ""
                                                 : e.name;
  std::string inside;
  for (const Expression& x : e.parts) inside += (inside.empty() ? "" : op(",")) + text(x);
  return (name.empty() ? "" : concat("<mi>", name, "</mi>")) + in_parentheses(inside);
}

// "q · k" before another factor would be read as q · (k v).
bool ends_with_dot(const Expression& e) {
  if (e.kind == Kind::multiply) return ends_with_dot(e.parts[1]);
  return e.kind == Kind::call && (e.name == "dot" || e.name == "each");
}

std::string multiplied(const Expression& e) {
  const Expression &a = e.parts[0], &b = e.parts[1];
  if (a.kind != Kind::number && text(a) == text(b)) return raised(within(a, kAtom), "<mn>2</mn>");
  const bool open = a.kind == Kind::sum || a.kind == Kind::largest || ends_with_dot(a);
  const std::string left = open ? in_parentheses(text(a)) : within(a, kProduct);
  const bool numbers = b.kind == Kind::number;
  return left + (numbers ? op("×") : "<mspace width=\"0.25em\"></mspace>") + within(b, kProduct);
}

std::string text(const Expression& e) {
  switch (e.kind) {
    case Kind::number:
      return concat("<mn>", number_text("%.12g", e.number), "</mn>");
    case Kind::name:
      return indexed(identifier(e.name), e.parts);
    case Kind::call:
      return called(e);
    case Kind::sum:
    case Kind::largest:
      return over(e);
    case Kind::add:
      return text(e.parts[0]) + op("+") + text(e.parts[1]);
    case Kind::subtract:
      return text(e.parts[0]) + op("−") + within(e.parts[1], kProduct);
    case Kind::multiply:
      return multiplied(e);
    case Kind::divide:
      return concat("<mfrac>", row(text(e.parts[0])), row(text(e.parts[1])), "</mfrac>");
    case Kind::negate:
      return op("−") + within(e.parts[0], kProduct);
  }
  return "";
}

std::string math(const std::string& inside) { return concat("<math>", row(inside), "</math>"); }

// What stands on the left of "=".
std::string target(const Equation& e) { return indexed(identifier(e.name), e.index); }

}  // namespace

std::string formula(const Expression& e) { return math(text(e)); }

std::string formula(std::string_view expression) {
  std::string inside;
  size_t begin = 0;
  int depth = 0;
  for (size_t at = 0; at <= expression.size(); ++at) {
    const char c = at < expression.size() ? expression[at] : '=';
    if (c == '(' || c == '[') ++depth;
    if (c == ')' || c == ']') --depth;
    if (c != '=' || depth > 0) continue;
    inside +=
        (begin == 0 ? "" : op("=")) + text(expression_of(expression.substr(begin, at - begin)));
    begin = at + 1;
  }
  return math(inside);
}

std::string formulas(const Equations& equations) {
  std::string out = "<ol class=\"equations\">\n";
  for (const Equation& e : equations) {
    const std::string note =
        e.note.empty() ? "" : concat("<span class=\"note\">", with_formulas(e.note), "</span>");
    out += concat("<li data-line=\"", e.line, "\">");
    if (e.loop)
      out += concat("<span class=\"line\"><span>for ",
                    math(identifier(e.name) + op("=") + text(e.value) + op("…") + text(e.to)),
                    e.down ? ", backwards" : "", ":</span>", note, "</span>\n", formulas(e.body));
    else
      out += concat("<span class=\"line\"><math displaystyle=\"true\">",
                    row(target(e) + op("=") + text(e.value)), "</math>", note, "</span>");
    out += "</li>\n";
  }
  return out + "</ol>\n";
}

std::string with_formulas(std::string_view html) {
  std::string out;
  for (size_t at = 0; at < html.size();) {
    const char c = html[at];
    if (c != '$' && c != '`') {
      out += c;
      ++at;
      continue;
    }
    const size_t end = html.find(c, at + 1);
    require(end != std::string_view::npos, "a lesson's text has an odd number of ", c);
    const std::string_view inside = html.substr(at + 1, end - at - 1);
    out += c == '$' ? formula(inside) : concat("<code>", escaped(inside), "</code>");
    at = end + 1;
  }
  return out;
}

}  // namespace weft::train
