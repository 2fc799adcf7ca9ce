// Pages: text of others is text, and only our own files are replaced.
#include "train/pages/page.h"

#include <nlohmann/json.hpp>

#include "tests/catch.h"
#include "tests/folder.h"

using namespace weft;
using namespace weft::train;

TEST_CASE("page: text of others cannot leave its place") {
  CHECK(escaped("a<b>&\"'") == "a&lt;b&gt;&amp;&quot;&#39;");
  CHECK(escaped("\xE9\n\x7F") == "\\xE9\\x0A\\x7F");
  CHECK(escaped("é ☃") == "é ☃");
  const std::string json = json_inside({{"x", "</script><!--"}});
  CHECK(json.find('<') == std::string::npos);
  CHECK(nlohmann::json::parse(json)["x"] == "</script><!--");
}

TEST_CASE("page: a page is whole by itself and says who made it") {
  nlohmann::ordered_json data = {{"a", 1}};
  const std::string t = Page{"plot", "a <b>", "n & m", "<p>body</p>", &data}.text();
  CHECK(t.find("<!doctype html>\n<!-- made by weft plot -->") == 0);
  for (const char* part : {"<title>a &lt;b&gt;</title>", "n &amp; m", "<p>body</p>",
                           "prefers-color-scheme:dark", "@media print", "{\"a\":1}", "</html>"})
    CHECK_THAT(t, ContainsSubstring(part));
  for (const char* outside : {"https:", " src=", " href=", "@import", "url("})
    CHECK(t.find(outside) == std::string::npos);
}

TEST_CASE("page: only what this program made is replaced unasked") {
  const tests::Folder f;
  f.write("theirs", "<html>");
  f.write("empty", "");
  f.write("ours", Page{"plot", "t", "", "", nullptr}.text());
  f.write("svg", picture("show", "l", 1, 1, ""));
  f.write("json", "{\"made_by\":\"weft show\"}");
  for (const char* name : {"empty", "ours", "svg", "json", "new"})
    CHECK_NOTHROW(require_page_output(f / name, {}, false));
  CHECK_THROWS_WITH(require_page_output(f / "theirs", {}, false), ContainsSubstring("--overwrite"));
  CHECK_NOTHROW(require_page_output(f / "theirs", {}, true));
  CHECK_THROWS_WITH(require_page_output(f / "ours", {f / "ours"}, true),
                    ContainsSubstring("input"));
}

TEST_CASE("page: a page that is too large is not written") {
  const tests::Folder f;
  CHECK_THROWS_WITH(write_page(f / "p", std::string(3'000'001, 'x'), "choose one"),
                    ContainsSubstring("at most 3 MB; choose one"));
  CHECK(f.names().empty());
}
