// `weft plot`: curves of runs as a page, a picture, CSV and JSON; what it refuses and skips.
#include <nlohmann/json.hpp>

#include "core/error.h"

#include "tests/catch.h"
#include "tests/train/markup.h"
#include "tests/train/said.h"
#include "tests/train/shell.h"
#include "train/verbs/run_page.h"

using namespace weft;
using namespace weft::tests;

namespace {

const std::string kLines =
    "{\"step\":1,\"loss\":4.0,\"lr\":0.1,\"norm\":2,\"tokens\":100,\"hash\":\"ab\","
    "\"peak_bytes\":1048576,\"tokens_per_second\":50}\n"
    "{\"step\":2,\"loss\":3.0,\"lr\":0.2,\"norm\":1,\"tokens\":200,\"peak_bytes\":1048576,"
    "\"tokens_per_second\":100}\n"
    "{\"step\":2,\"eval_loss\":3.5,\"perplexity\":33}\n"
    "{\"step\":3,\"loss\":2.5,\"lr\":0.1,\"norm\":1,\"tokens\":300,\"peak_bytes\":1048576,"
    "\"tokens_per_second\":100}\n";

void write_metrics(const Folder& f, const std::string& run, const std::string& lines) {
  std::filesystem::create_directories(f / run);
  f.write(run + "/metrics.jsonl", lines);
}

// The name of SVG's namespace is no address that anything is fetched from.
std::string without_namespace(std::string text) {
  const std::string name = "http://www.w3.org/2000/svg";
  for (size_t at; (at = text.find(name)) != std::string::npos;) text.erase(at, name.size());
  return text;
}

}  // namespace

TEST_CASE("plot: JSON holds every number of a run's metrics, with tokens and seconds of its step") {
  const Folder f;
  write_metrics(f, "a", kLines);
  const Ran ran = run_shell(f, "$WEFT plot a --json");
  REQUIRE(ran.status == 0);
  const auto j = nlohmann::json::parse(ran.text);
  CHECK(j["runs"][0]["name"] == "a");
  const auto& m = j["runs"][0]["metrics"];
  CHECK(m["loss"]["value"] == std::vector<double>{4, 3, 2.5});
  CHECK(m["loss"]["seconds"] == std::vector<double>{2, 3, 4});
  CHECK(m["eval_loss"]["tokens"] == std::vector<double>{200});
  CHECK(m.contains("hash") == false);
}

TEST_CASE("plot: CSV has a line for each number") {
  const Folder f;
  write_metrics(f, "a,b", kLines);
  CHECK(run_shell(f, "$WEFT plot a,b --csv --metric lr").text ==
        "run,metric,step,tokens,seconds,value\n\"a,b\",lr,1.0,100.0,2.000,0.1\n"
        "\"a,b\",lr,2.0,200.0,3.000,0.2\n\"a,b\",lr,3.0,300.0,4.000,0.1\n");
  const Ran ran = run_shell(f, "$WEFT plot a,b --csv");
  CHECK(count_of(ran.text, "\n") == 1 + 3 * 5 + 2);
}

TEST_CASE("plot: a page has a chart of each metric against steps, tokens and time") {
  const Folder f;
  write_metrics(f, "a", kLines);
  write_metrics(f, "b", kLines);
  says(run_shell(f, "$WEFT plot a b"), 0, {"plot.html: 2 runs"});
  const std::string page = without_namespace(f.read("plot.html"));
  CHECK(markup_fault(page) == "");
  CHECK(page.find("<!doctype html>\n<!-- made by weft plot -->") == 0);
  // loss with held-out loss, perplexity, rate, norm, tokens a second, memory.
  CHECK(count_of(page, "class=\"chart\"") == 6 * 3);
  for (const char* axis : {"steps", "tokens", "time"})
    CHECK(count_of(page, std::string("<div class=\"against-") + axis + "\">") == 6);
  CHECK(count_of(page, "data-name=\"b, eval_loss\"") == 3);
  for (const char* outside : {"http:", "https:", "src=", "@import", "url("})
    CHECK(page.find(outside) == std::string::npos);
  CHECK(page.size() < 3'000'000);
}

TEST_CASE(
    "plot: the table of a page has the last loss, the least held-out one and the middle rate") {
  const Folder f;
  write_metrics(f, "a",
                "nonsense\n" + kLines +
                    "{\"step\":4,\"loss\":2.75,\"tokens\":4000,\"peak_bytes\":3145728,"
                    "\"tokens_per_second\":70}\n"
                    "{\"step\":4,\"eval_loss\":3.75,\"bits_per_byte\":1.5}\n");
  std::filesystem::create_directories(f / "x");
  write_metrics(f, "x/a", kLines);
  says(run_shell(f, "$WEFT plot a x/a --against tokens"), 0, {"2 runs"});
  const std::string page = f.read("plot.html");
  CHECK_THAT(page, ContainsSubstring(
                       "a</td><td>4</td><td>4.0k</td><td>2.7500</td><td>3.5000</td><td>1.500</td>"
                       "<td>100</td><td>3.00 MiB</td></tr>"));
  CHECK_THAT(page, ContainsSubstring("id=\"against-tokens\" checked"));
  CHECK_THAT(page, ContainsSubstring("a/metrics.jsonl:1: the line is cut short"));
  CHECK_THAT(page, ContainsSubstring("data-name=\"x/a, loss\""));
  CHECK(count_of(page, "class=\"key c1\"") >= 1);
  const std::string svg =
      run_shell(f, "$WEFT plot a --svg --against time --metric lr >&2 && cat plot.svg").text;
  CHECK_THAT(svg, ContainsSubstring("learning rate against seconds of training"));
  CHECK_THAT(svg, ContainsSubstring("held-out loss 3.750"));
  CHECK_THAT(run_shell(f, "$WEFT plot a --svg && cat plot.svg").text,
             ContainsSubstring("nats a token against steps"));
}

TEST_CASE("plot: JSON and CSV leave out no number, however long a run was") {
  const Folder f;
  std::string lines;
  for (int i = 1; i <= 4500; ++i) lines += concat("{\"step\":", i, ",\"loss\":1,\"tokens\":9}\n");
  write_metrics(f, "a", lines);
  const auto j = nlohmann::json::parse(run_shell(f, "$WEFT plot a --json").text);
  CHECK(j["runs"][0]["metrics"]["loss"]["value"].size() == 4500);
  CHECK(count_of(run_shell(f, "$WEFT plot a --csv").text, "\n") == 4501);
}

TEST_CASE("plot: names of runs are text in pages, pictures and data") {
  const Folder f;
  const std::string evil = "<script>alert(1)<!--\"'&";
  write_metrics(f, evil, kLines);
  for (const char* form : {"", "--svg"}) {
    REQUIRE(
        run_weft(f, {"plot", evil, "--out", "o", "--overwrite", *form ? form : "--against=steps"})
            .status == 0);
    const std::string out = f.read("o");
    CHECK(markup_fault(out) == "");
    CHECK(out.find("<script>alert") == std::string::npos);
    CHECK(out.find("alert(1)<!--") == std::string::npos);
    CHECK_THAT(out, ContainsSubstring("&lt;script&gt;alert(1)&lt;!--&quot;&#39;&amp;"));
  }
}

TEST_CASE("plot: a damaged line is told with its place and skipped") {
  const Folder f;
  write_metrics(f, "a", "nonsense}\n{\"loss\":1}\n[1]\n\n" + kLines + "{\"step\":4,\"lo");
  const Ran ran = run_shell(f, "$WEFT plot a --json >j.json");
  says(ran, 0,
       {"a/metrics.jsonl:1: the line is no JSON; skipped", ":2: the line has no number \"step\"",
        ":3: the line is no JSON object", ":9: the line is cut short"});
  CHECK(nlohmann::json::parse(f.read("j.json"))["runs"][0]["metrics"]["loss"]["value"].size() == 3);
}

TEST_CASE("plot: what holds no metrics is refused with what was expected") {
  const Folder f;
  write_metrics(f, "empty", "");
  write_metrics(f, "broken", "{\"st\n");
  std::filesystem::create_directories(f / "none");
  write_metrics(f, "a", kLines);
  says(run_shell(f, "$WEFT plot empty"), 2, {"empty/metrics.jsonl: is empty"});
  says(run_shell(f, "$WEFT plot broken"), 2, {"none of its 1 lines", "cut short"});
  says(run_shell(f, "$WEFT plot none"), 2, {"none: holds no metrics.jsonl", "folder of a run"});
  says(run_shell(f, "$WEFT plot nowhere"), 2, {"nowhere: is not there"});
  says(run_shell(f, "$WEFT plot a --metric los"), 2, {"did you mean \"loss\""});
  says(run_shell(f, "$WEFT plot a --against stps"), 2, {"did you mean \"steps\""});
  says(run_shell(f, "$WEFT plot a --svg --csv"), 2, {"expected one of them"});
  CHECK(f.names() == std::set<std::string>{"a", "broken", "empty", "none"});
}

TEST_CASE("plot: a file of another maker is replaced with --overwrite alone, and an input never") {
  const Folder f;
  write_metrics(f, "a", kLines);
  f.write("plot.svg", "mine");
  says(run_shell(f, "$WEFT plot a --svg"), 2, {"plot.svg: is there", "--overwrite"});
  CHECK(f.read("plot.svg") == "mine");
  says(run_shell(f, "$WEFT plot a --svg --overwrite && $WEFT plot a --svg"), 0, {});
  CHECK_THAT(f.read("plot.svg"), ContainsSubstring("<!-- made by weft plot -->"));
  says(run_shell(f, "$WEFT plot a --overwrite --out a/metrics.jsonl"), 2, {"never overwritten"});
  CHECK(f.read("a/metrics.jsonl") == kLines);
}

TEST_CASE("plot: train --page leaves the page that plot makes, and changes no number of the run") {
  const Folder f;
  write_run(f, kSmallRecipe);
  says(run_weft(f, {"train", "recipe.toml", "--page"}), 0, {"step 3"});
  says(run_weft(f, {"plot", "run"}), 0, {"plot.html"});
  CHECK(f.read("run/plot.html") == f.read("plot.html"));
  CHECK(f.read("plot.html").find("location.reload") == std::string::npos);
  const auto hash = [&](const std::string& run) {
    const std::string all = f.read(run + "/metrics.jsonl");
    return all.substr(all.rfind("\"hash\""), 26);
  };
  says(run_weft(f, {"train", "recipe.toml", "--set", "train.out=plain"}), 0, {});
  CHECK(hash("run") == hash("plain"));
  CHECK_FALSE(std::filesystem::exists(f / "plain/plot.html"));
}

TEST_CASE("plot: train --page takes the place of no file of others, and trains nothing then") {
  const Folder f;
  write_run(f, kSmallRecipe);
  std::filesystem::create_directories(f / "run");
  f.write("run/plot.html", "theirs");
  says(run_weft(f, {"train", "recipe.toml", "--page"}), 2, {"run/plot.html", "--overwrite"});
  CHECK(f.read("run/plot.html") == "theirs");
  CHECK_FALSE(std::filesystem::exists(f / "run/metrics.jsonl"));
}

TEST_CASE("plot: the page of a run that goes on loads itself anew, the last one does not") {
  const Folder f;
  write_metrics(f, "a", kLines);
  train::LivePage page(f / "a", false);
  page.renew();
  const std::string live = f.read("a/plot.html");
  CHECK(markup_fault(live) == "");
  CHECK_THAT(live, ContainsSubstring("location.reload") && ContainsSubstring("id=\"live\""));
  f.write("a/metrics.jsonl", kLines + "{\"step\":4,\"loss\":1.25,\"tokens\":400}\n");
  page.renew();  // too soon
  CHECK(f.read("a/plot.html") == live);
  CHECK(page.finish() == "");
  const std::string last = f.read("a/plot.html");
  CHECK(last.find("location.reload") == std::string::npos);
  CHECK_THAT(last, ContainsSubstring("1.2500"));
  std::filesystem::remove(f / "a/metrics.jsonl");
  CHECK_THAT(page.finish(), ContainsSubstring("metrics.jsonl"));
}
