// `weft show`: the matrices of a checkpoint as a page, a picture and JSON.
#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/catch.h"
#include "tests/train/markup.h"
#include "tests/train/said.h"
#include "tests/train/shell.h"

using namespace weft;
using namespace weft::tests;

namespace {

constexpr const char* kRecipe = R"([model]
width = 16
layers = 3
pattern = ["attention", "gated_delta", "mamba"]
context = 16
mlp = "none"
[attention]
heads = 2
[gated_delta]
heads = 2
[data]
source = "text.txt"
[sample]
tokens = 0
[train]
device = "cpu"
steps = 1
batch = 2
out = "run"
)";

void make_run(const Folder& f) {
  write_run(f, kRecipe);
  const Ran ran = run_weft(f, {"train", "recipe.toml"});
  INFO(ran.text);
  REQUIRE(ran.status == 0);
}

}  // namespace

TEST_CASE("show: JSON has the matrix of every head, the mean over a scan's channels, and gates") {
  const Folder f;
  make_run(f);
  const Ran ran = run_weft(f, {"show", "run", "--text", "word <5>", "--json"});
  INFO(ran.text);
  REQUIRE(ran.status == 0);
  const auto j = nlohmann::json::parse(ran.text);
  CHECK(j["texts"][0].size() == 8);
  REQUIRE(j["matrices"].size() == 5);
  const std::vector<std::string> labels = {
      "run, layer 0: attention, head 0", "run, layer 0: attention, head 1",
      "run, layer 1: gated_delta, head 0", "run, layer 1: gated_delta, head 1",
      "run, layer 2: mamba, mean of 32 channels"};
  for (size_t i = 0; i < labels.size(); ++i) {
    const auto& m = j["matrices"][i];
    CHECK(m["label"] == labels[i]);
    CHECK(m["gap"] < 1e-4);
    REQUIRE(m["rows"].size() == 8);
    for (size_t t = 0; t < 8; ++t) {
      REQUIRE(m["rows"][t].size() == t + 1);
      double sum = 0;
      for (const double v : m["rows"][t]) sum += v;
      if (i < 2) CHECK(sum == Approx(1));  // softmax
    }
  }
  CHECK(j["matrices"][2]["gates"]["head 1, beta"].size() == 8);
  CHECK(j["matrices"][4]["gates"]["step"].size() == 8);
}

TEST_CASE("show: a page opens each matrix and says nothing but text of its text") {
  const Folder f;
  make_run(f);
  says(run_weft(f, {"show", "run", "--text", "</script><b>"}), 0, {"show.html: 5 matrices"});
  const std::string page = f.read("show.html");
  CHECK(markup_fault(page) == "");
  CHECK(page.find("<!doctype html>\n<!-- made by weft show -->") == 0);
  CHECK(count_of(page, "data-matrix=\"") == 5 + 1);   // and once in the script
  CHECK(count_of(page, "class=\"chart\"") == 4 + 1);  // kept and beta, step, norms of states
  CHECK(count_of(page, "</script>") == 2);
  CHECK(page.find("<b>") == std::string::npos);
  const size_t at = page.find("id=\"data\">") + 10;
  const auto data = nlohmann::json::parse(page.substr(at, page.find("</script>", at) - at));
  CHECK(data["texts"][0][0] == "<");
  CHECK(data["matrices"][4]["cells"].get<std::string>().size() == (12 * 13 + 2) / 3 * 4);
}

TEST_CASE("show: a picture has the layers and heads that were asked for, of several checkpoints") {
  const Folder f;
  make_run(f);
  says(run_weft(f, {"show", "run", "run/best.h5", "--text", "abc", "--head", "0", "--svg"}), 0,
       {"show.svg: 6 matrices of 3 tokens"});
  const std::string one = f.read("show.svg");
  CHECK(one.find("<!-- made by weft show -->\n<svg") == 0);
  CHECK(markup_fault(one) == "");
  CHECK(count_of(one, "class=\"frame\"") == 6);
  says(run_weft(f, {"show", "run", "--text", "abc", "--layer", "2", "--channel", "7", "--svg"}), 0,
       {"1 matrices of 3 tokens"});
  CHECK_THAT(f.read("show.svg"), ContainsSubstring("channel 7"));
}

TEST_CASE("show: what is not there is refused with what is, and nothing is written") {
  const Folder f;
  make_run(f);
  const std::set<std::string> before = f.names();
  const auto refused = [&](std::vector<std::string> more, const std::string& why) {
    more.insert(more.begin(), {"show", "run"});
    says(run_weft(f, more), 2, {why});
  };
  refused({"--text", ""}, "--text is empty");
  refused({"--text", "a", "--layer", "3"}, "has layers 0 to 2");
  refused({"--text", "a", "--layer", "-2"}, "--layer -2");
  refused({"--text", "a", "--head", "2"}, "has heads 0 to 1");
  refused({"--text", "a", "--channel", "32"}, "has channels 0 to 31");
  refused({"--text", std::string(1025, 'a')}, "1025 tokens, expected at most 1024");
  refused({"--text", "a", "--svg", "--json"}, "expected one");
  refused({"--text", "a", "--out", "recipe.toml"}, "--overwrite");
  refused({"--text", "a", "--out", "run/best.h5", "--overwrite"}, "never overwritten");
  says(run_weft(f, {"show", "nowhere", "--text", "a"}), 2, {"nowhere"});
  CHECK(f.names() == before);
}
