// The pages of lessons: whole, small, and without anything from outside.
#include "train/lessons/lesson_page.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tests/catch.h"
#include "tests/train/markup.h"
#include "tests/train/said.h"
#include "tests/train/shell.h"
#include "train/lessons/formula.h"
#include "train/lessons/marking.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;

namespace {

std::string data_in(const std::string& page) {
  const std::string begin = "id=\"data\">";
  const size_t at = page.find(begin) + begin.size();
  return page.substr(at, page.find("</script>", at) - at);
}

}  // namespace

TEST_CASE("lessons: every page has its sections, is small and whole, and asks for nothing") {
  for (const Lesson& l : lessons()) {
    INFO(l.name);
    const std::string page = lesson_page(l, {});
    CHECK(markup_fault(page) == "");
    CHECK(page.find("<!doctype html>\n<!-- made by weft lesson -->") == 0);
    CHECK(page.size() < 1'000'000);
    size_t last = 0;
    for (const std::string& id : lesson_sections(l)) {
      const size_t at = page.find("<section id=\"" + id + "\">");
      REQUIRE(at != std::string::npos);
      CHECK(at > last);
      last = at;
      CHECK_THAT(page, ContainsSubstring("href=\"#" + id + "\""));
    }
    for (const char* outside : {"https:", " src=", "@import", "url(", "href=\"/"})
      CHECK(page.find(outside) == std::string::npos);
    CHECK(count_of(page, "http:") == count_of(page, "'http://www.w3.org/2000/svg'"));  // a name
    CHECK(count_of(page, "class=\"form\"") == l.forms.size() + !l.operation.empty());
    CHECK(l.forms.size() >= (l.operation.empty() ? 2 : 3));
    CHECK(exercise_count(l) >= 5);
    CHECK(page.find('$') == page.find("${"));  // no formula was left as text before the script
    const auto data = nlohmann::json::parse(data_in(page));
    CHECK(data["lesson"]["forms"].size() == l.forms.size());
    CHECK(data["lesson"]["checks"].size() == 1 + 5 * l.sliders.size());
    for (const auto& check : data["lesson"]["checks"])
      for (size_t i = 0; i < l.forms.size(); ++i) CHECK(!check["want"].at(i).empty());
    CHECK(page == lesson_page(l, {}));
    for (const std::string& before : l.first) CHECK_NOTHROW(lesson(before));
  }
  CHECK_THROWS_WITH(lesson("atention"), ContainsSubstring("did you mean \"attention\""));
}

TEST_CASE("lessons: what belongs to no token stands beside the table of tokens") {
  const std::string page = lesson_page(lesson("mamba"), {});
  CHECK_THAT(page,
             ContainsSubstring("<p>Besides, " + formula(std::string_view("A_log")) + " = (0, −1)"));
  CHECK_THAT(lesson_page(lesson("window"), {}),
             ContainsSubstring(formula(std::string_view("W")) + " = 3"));
  CHECK(page.find("<td>" + formula(std::string_view("A_log")) + "</td><td>(0") ==
        std::string::npos);
}

TEST_CASE(
    "lessons: a page names what it takes from elsewhere, and its signs are those of formulas") {
  const std::string linear = lesson_page(lesson("linear"), {}),
                    kda = lesson_page(lesson("kda"), {});
  CHECK_THAT(linear, ContainsSubstring("<code>weft lesson attention</code> makes that page"));
  CHECK_THAT(linear,
             ContainsSubstring("B (rows of a batch), Hk (heads of keys), H (heads) are 1. "));
  CHECK_THAT(linear, ContainsSubstring("# what comes out of the feature map"));
  CHECK_THAT(linear, ContainsSubstring("options.attrs[\"normalize\"] = \"true\"  # divide by"));
  CHECK_THAT(lesson_page(lesson("attention"), {}),
             ContainsSubstring("S (the number of keys) is T"));
  CHECK_THAT(linear, ContainsSubstring("With <code>normalize</code> each result is divided by"));
  CHECK_THAT(kda, ContainsSubstring("# taken as it comes"));
  CHECK_THAT(kda, ContainsSubstring("be (0, −100)"));
  CHECK_THAT(kda, ContainsSubstring("<span class=\"key dots c0\">"));
  CHECK(formula("x * x + 1") ==
        "<math><mrow><msup><mi>x</mi><mrow><mn>2</mn></mrow></msup>"
        "<mo>+</mo><mn>1</mn></mrow></math>");
  for (const Lesson& l : lessons()) {
    INFO(l.name);
    const std::string page = lesson_page(l, {});
    for (const char* none : {">-0", "−0.000000000", ">−0<", "<td>-"})
      CHECK(page.find(none) == std::string::npos);
  }
  std::vector<BenchRow> rows(1);
  rows[0].name = "linear without g";
  CHECK(lesson_page(lesson("linear"), {rows, "", 0, nullptr}).find("without g") ==
        std::string::npos);
}

TEST_CASE("lessons: the index links every lesson, each behind those to read before") {
  const std::string page = lesson_index();
  std::vector<std::string> order;
  for (const Lesson& l : lessons()) {
    for (const std::string& before : l.first)
      CHECK(std::find(order.begin(), order.end(), before) != order.end());
    order.push_back(l.name);
  }
  CHECK(order == std::vector<std::string>{"attention", "window", "block_sparse", "linear",
                                          "retention", "gated_linear", "delta", "gated_delta",
                                          "kda", "mamba", "mamba2", "state", "hybrids", "memory",
                                          "parallel"});
  CHECK(markup_fault(page) == "");
  size_t last = 0;
  for (const Lesson& l : lessons()) {
    const size_t at = page.find("href=\"" + lesson_file(l.name) + "\"");
    REQUIRE(at != std::string::npos);
    CHECK(at > last);
    last = at;
  }
}

TEST_CASE("lessons: two runs write the same bytes, but for the times of sections 5 and 6") {
  const Folder f;
  for (const char* out : {"a.html", "b.html"})
    says(run_weft(
             f, {"lesson", "attention", "--text", "<b> </script>", "--budget", "0", "--out", out}),
         0, {out, "Softmax attention"});
  const std::string page = f.read("a.html");
  CHECK(page == f.read("b.html"));
  CHECK(markup_fault(page) == "");
  CHECK_THAT(page, ContainsSubstring("“&lt;b&gt; &lt;/script&gt;”") &&
                       ContainsSubstring("Nothing was timed") &&
                       ContainsSubstring("data-matrix=\"1\""));
  says(run_weft(f, {"lesson", "attention", "--budget", "0.0001"}), 0, {"lesson-attention.html"});
  const std::string timed = f.read("lesson-attention.html");
  CHECK_THAT(timed, ContainsSubstring("forward and backward, ms"));
  CHECK(timed.substr(0, timed.find("<section id=\"gpu\">")) ==
        page.substr(0, page.find("<section id=\"gpu\">")));
  says(run_weft(f, {"lesson"}), 0, {"attention", "lessons.html lists them"});
}

TEST_CASE("lessons: tokens of the text that is read count from 1, and gates by entry are means") {
  const Folder f;
  says(run_weft(f, {"lesson", "gated_linear", "--text", "abcd", "--budget", "0"}), 0, {"Gates"});
  const std::string page = f.read("lesson-gated_linear.html");
  const size_t gates = page.find("the mean over the gate");
  REQUIRE(gates != std::string::npos);
  CHECK_THAT(page, ContainsSubstring("data-x=\"1 4\""));
  CHECK_THAT(page, ContainsSubstring("`${k + 1} “"));
}

TEST_CASE("lessons: a mistake is told and writes nothing") {
  const Folder f;
  f.write("lesson-attention.html", "theirs");
  says(run_weft(f, {"lesson", "attention"}), 2, {"--overwrite"});
  says(run_weft(f, {"lesson", "atention"}), 2, {"did you mean \"attention\""});
  says(run_weft(f, {"lesson", "--text", "x"}), 2, {"need the name of a lesson"});
  says(run_weft(f, {"lesson", "parallel", "--text", "x"}), 2, {"no model reads a text"});
  says(run_weft(f, {"lesson", "attention", "--check", "a", "--out", "b"}), 2, {"leave out --out"});
  says(run_weft(f, {"lesson", "attention", "--check", "absent"}), 2, {"absent"});
  says(run_weft(f, {"lesson", "attention", "--budget", "-1", "--out", "b"}), 2, {"--budget"});
  says(run_weft(f, {"lesson", "attention", "--out", "b", "--text", std::string(201, 'x')}), 2,
       {"201 tokens", "at most 200"});
  CHECK(f.names() == std::set<std::string>{"lesson-attention.html"});
}
