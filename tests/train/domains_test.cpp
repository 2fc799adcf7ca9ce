// [domains]: what a recipe may say, what an evaluation of a mixture says of each domain, and how
// much a choice tells of it.
#include "train/domains.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/catch.h"
#include "tests/train/small_run.h"
#include "train/checkpoint.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;

namespace {

const std::string kModel = R"([model]
width = 16
layers = 2
pattern = ["document_router"]
context = 32
[document_router]
heads = 2
block = 4
opening = 4
patterns = [1, 8]
soft_steps = 1
anneal_steps = 1
[mlp]
width = 16
)";
const std::string kDomains = R"([domains]
words = "words.txt"
numbers = ["one.txt", "two.txt"]
)";
const std::string kRun = R"([train]
device = "cpu"
steps = 3
batch = 2
log_every = 1
eval_every = 1
eval_batches = 4
out = "run"
[sample]
tokens = 0
)";

void write_texts(const Folder& f) {
  std::string words, one, two;
  for (int i = 0; i < 300; ++i) words += concat("the word of a line, ", i % 7, "\n");
  for (int i = 0; i < 200; ++i) one += concat(i * 17 % 1000, " ", i * i % 999, "\n");
  for (int i = 0; i < 90; ++i) two += concat(i, " ", 2 * i, " ", 3 * i, "\n");
  f.write("words.txt", words);
  f.write("one.txt", one);
  f.write("two.txt", two);
}

Ran trained(const Folder& f, const std::string& recipe, const std::vector<std::string>& more = {}) {
  f.write("recipe.toml", recipe);
  std::vector<std::string> list{"train", "recipe.toml"};
  list.insert(list.end(), more.begin(), more.end());
  return run_weft(f, list);
}

std::string refusal(const std::string& text, const std::vector<std::string>& set = {}) {
  try {
    const Recipe r = recipe_from_text(text, "r.toml", set);
    read_data(r.toml);
    r.finish();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("domains: information is that of the joint counts, in bits") {
  CHECK(information({{3, 0}, {0, 3}}) == Approx(1));
  CHECK(information({{3, 3}, {5, 5}}) == Approx(0).margin(1e-15));
  CHECK(information({{2, 0, 0}, {0, 2, 0}, {0, 0, 4}}) == Approx(1.5));
  // H(D) = 1, and H(D | P) = 3/4 H(1/3) + 1/4 0 = 0.75 x 0.9182958...
  CHECK(information({{2, 2}, {4, 0}}) == Approx(0.31127812445913283));
  CHECK(information({{1, 2, 3}, {4, 1, 1}}) == Approx(0.1991966271302657));
  CHECK(information({{0, 0}, {0, 0}}) == 0);
  CHECK(information({{7}}) == 0);
  CHECK(information({}) == 0);
  CHECK_THROWS_WITH(information({{1, 2}, {1}}), Catch::Matchers::Contains("as many patterns"));
}

TEST_CASE("domains: a report has what each domain was given, and what a choice tells") {
  Evaluation e;
  const auto routes = [](double sparse, double keys, double tokens) {
    layers::Routes r{"layers.0.mixer"};
    r.shares = {sparse, 1 - sparse};
    r.keys = keys;
    r.tokens = tokens;
    return std::vector<layers::Routes>{r};
  };
  e.domains[0] = {1.5, 2.0, 100, 20, routes(1, 5, 60)};
  e.domains[1] = {0.5, 0.7, 50, 40, routes(0, 40, 60)};
  const DomainReport r = domain_report(e, {"prose", "tables"});
  REQUIRE(r.layers.size() == 1);
  CHECK(r.layers[0].density == std::vector<double>{0.25, 1});
  CHECK(r.layers[0].information == Approx(1));
  CHECK(r.entropy == Approx(1));
  nlohmann::ordered_json line;
  r.add_metrics(line);
  CHECK(line.dump() == R"({"eval_loss_prose":1.5,"eval_loss_tables":0.5,"density_prose":0.25,)"
                       R"("density_tables":1.0,"information":1.0,"information_0":1.0})");
  CHECK_THAT(r.text(), Catch::Matchers::Contains("25.0 %") &&
                           Catch::Matchers::Contains("100.0 %") &&
                           Catch::Matchers::Contains("tells 1.000 of 1.000 bits of the domain"));
  CHECK(domain_report({}, {}).text().empty());
}

TEST_CASE(
    "domains: a recipe's [domains] stands for a source, and wrong ones are refused by place") {
  const std::string domains = "[domains]\na = \"a.txt\"\nb = [\"b.txt\", \"kjv\"]\n";
  const DataSettings s = read_data(toml_from_text("[data]\npacked = true\n" + domains, "r.toml"));
  REQUIRE(s.domains.size() == 2);
  CHECK(s.domains[1].name == "b");
  CHECK(s.sources == std::vector<std::string>{"a.txt", "b.txt", "kjv"});
  CHECK(s.packed);
  const auto refused = [](const std::string& text, const std::string& why,
                          const std::vector<std::string>& set = {}) {
    INFO(text);
    CHECK_THAT(refusal(text, set), Catch::Matchers::Contains(why));
  };
  CHECK(refusal(domains).empty());
  refused("[domains]\na = \"a.txt\"\n", "r.toml:2:5: [domains] has 1 of them, expected 2 to 64");
  refused("[domains]\na = 3\nb = \"b\"\n", "r.toml:2:5");
  refused("[domains]\na = \"a\"\nb = []\n", "r.toml:3:5: b is empty, expected text files");
  refused("[domains]\na = \"a\"\nb = \"b.h5\"\n", "r.toml:3:5: b names \"b.h5\", expected text");
  refused("[data]\nsource = \"a\"\n[domains]\na = \"a\"\nb = \"b\"\n",
          "r.toml:4:1: \"a\" in [domains]");
  refused("[data]\ndataset = \"a.h5\"\n[domains]\na = \"a\"\nb = \"b\"\n", "leave one of them out");
  refused("[data]\npairs = [4]\n" + domains, "[data] is read from [domains]");
  refused("[model]\nwidth = 8\n[data]\npacked = true\n", "or [domains] names sources");
  // An override is the last word.
  const auto overridden = [&](const std::vector<std::string>& set) {
    const Recipe r = recipe_from_text(domains, "r.toml", set);
    const DataSettings d = read_data(r.toml);
    r.finish();
    return d;
  };
  CHECK(overridden({"data.source=other.txt"}).sources == std::vector<std::string>{"other.txt"});
  CHECK(overridden({"data.source=other.txt"}).domains.empty());
  CHECK(overridden({"data.task=mqar"}).is_task);
  CHECK(overridden({"domains.c=c.txt"}).domains.size() == 3);
}

TEST_CASE("domains: a run tells loss, density and information of each, and eval the same") {
  const Folder f;
  write_texts(f);
  for (const bool packed : {true, false}) {
    const std::string data = packed ? "[data]\npacked = true\ndocument = \"file\"\nheld_out = 0.2\n"
                                    : "[data]\nheld_out = 0.2\n";
    const Ran ran = trained(f, kModel + data + kDomains + kRun, {"--overwrite"});
    INFO(ran.text);
    REQUIRE(ran.status == 0);
    nlohmann::json last;
    std::istringstream lines(f.read("run/metrics.jsonl"));
    for (std::string line; std::getline(lines, line);)
      if (const auto j = nlohmann::json::parse(line); j.contains("eval_loss")) last = j;
    for (const char* name : {"words", "numbers"}) {
      CHECK(last[concat("eval_loss_", name)].get<double>() > 1);
      const double density = last[concat("density_", name)].get<double>();
      CHECK((density > 0.1 && density <= 1));
    }
    CHECK(last["information"].get<double>() >= 0);
    CHECK(last.contains("information_1"));
    const Ran eval = run_weft(f, {"eval", "run", "--batches", "4", "--page", "page.html"});
    INFO(eval.text);
    CHECK(eval.status == 0);
    CHECK_THAT(eval.text, Catch::Matchers::Contains("words") &&
                              Catch::Matchers::Contains("numbers") &&
                              Catch::Matchers::Contains("layers.1.mixer") &&
                              Catch::Matchers::Contains("bits of the domain"));
    char loss[32];
    std::snprintf(loss, sizeof loss, "%.4f", last["eval_loss_numbers"].get<double>());
    CHECK_THAT(eval.text, Catch::Matchers::Contains(loss));
    CHECK_THAT(f.read("page.html"), Catch::Matchers::Contains("made by weft eval") &&
                                        Catch::Matchers::Contains("<svg") &&
                                        Catch::Matchers::Contains(loss));
  }
  const Ran resumed = run_weft(f, {"train", "recipe.toml", "--resume", "--set", "train.steps=4"});
  INFO(resumed.text);
  CHECK(resumed.status == 0);
  CHECK(run_weft(f, {"eval", "run", "--batches", "2", "--page", "d.svg"}).status == 0);
  CHECK_THAT(f.read("d.svg"), Catch::Matchers::Contains("density of layers by domain"));
  const Ran text = run_weft(f, {"eval", "run", "--data", "one.txt", "--page", "x.html"});
  CHECK(text.status == 2);
  CHECK_THAT(text.text, Catch::Matchers::Contains("--page with --data"));
  f.write("notes.html", "my own");
  const Ran kept = run_weft(f, {"eval", "run", "--page", "notes.html"});
  CHECK(kept.status == 2);
  CHECK(f.read("notes.html") == "my own");
}

TEST_CASE("domains: the loss of a domain is that of its held-out text alone") {
  const Folder f;
  write_texts(f);
  const std::string data = "[data]\npacked = true\nheld_out = 0.2\n";
  const Recipe r = recipe_from_text(kModel + data + "[domains]\nwords = \"" + (f / "words.txt") +
                                        "\"\nnumbers = \"" + (f / "one.txt") + "\"\n" + kRun,
                                    "r.toml");
  const layers::Model model(r.toml, 256, Dtype::f64, kCpu, 1);
  Source both(read_data(r.toml), r, 32);
  CHECK(both.domains() == std::vector<std::string>{"words", "numbers"});
  const Evaluation mixture = evaluate(model, *both.held_out(), 0, kCpu);
  double nats = 0, tokens = 0;
  for (const auto& [domain, file] : {std::pair{0, "words.txt"}, std::pair{1, "one.txt"}}) {
    const Recipe one = recipe_from_text(
        kModel + "[data]\npacked = true\nheld_out = 0.2\nsource = \"" + (f / file) + "\"\n" + kRun,
        "r.toml");
    Source alone(read_data(one.toml), one, 32);
    const Evaluation e = evaluate(model, *alone.held_out(), 0, kCpu);
    CHECK(e.domains.empty());
    const DomainEvaluation& d = mixture.domains.at(domain);
    CHECK(d.loss == Approx(e.loss));
    CHECK(d.bits_per_byte == Approx(e.bits_per_byte));
    CHECK(d.tokens == e.tokens);
    REQUIRE(d.routes.size() == 2);
    // Filling counts for nothing: the tokens are those of the text.
    CHECK(d.routes[0].tokens + d.routes[0].opening <= e.tokens + e.tokens / 20);
    nats += d.loss * d.tokens;
    tokens += d.tokens;
  }
  CHECK(mixture.loss == Approx(nats / tokens));
  CHECK(mixture.tokens == tokens);
}
