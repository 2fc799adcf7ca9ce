// What the verbs print with each flag is what the program's parts give in this process.
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/units.h"
#include "kernels/contract/operation.h"
#include "tests/catch.h"
#include "tests/train/said.h"
#include "tests/train/shell.h"
#include "train/checkpoint.h"
#include "train/evaluate.h"
#include "train/generate.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;

namespace {

constexpr const char* kPacked = "packed = true\ndocument = \"line\"\n";

// Trains a little, so that the model likes some bytes more than others.
void make_run(const Folder& f, const std::string& data = "") {
  write_run(f, kSmallModel + data + R"([train]
device = "cpu"
steps = 5
batch = 3
out = "run"
[optimizer]
lr = 0.02
[sample]
tokens = 0
)");
  const Ran ran = run_weft(f, {"train", "recipe.toml", "--overwrite"});
  INFO(ran.text);
  REQUIRE(ran.status == 0);
}

layers::Model trained(const Folder& f, const std::string& from = "run/best.h5") {
  const Hdf5Reader file = open_checkpoint(f / from);
  const Recipe r = recipe_from_text(read_state(file).recipe, "recipe");
  layers::Model model(r.toml, 256, Dtype::f32, kCpu, 1);
  load_parameters(file, model.parameters());
  return model;
}

std::string generated(const Folder& f, std::vector<std::string> more) {
  more.insert(more.begin(), {"generate", "run", "--device", "cpu", "--prompt", "word "});
  const Ran ran = run_weft(f, more);
  INFO(ran.text);
  CHECK(ran.status == 0);
  const size_t end = ran.text.rfind("\n", ran.text.rfind(" tokens a second"));
  return ran.text.substr(0, end);
}

std::string expected(const layers::Model& model, int64_t tokens, SamplingSettings s) {
  s.tokens = 256;
  const auto bytes = data::byte_tokenizer();
  return "word " + bytes->decode(generate(model, bytes->encode("word "), tokens, s).tokens);
}

}  // namespace

TEST_CASE("flags: generate draws with the seed, temperature, top-k, top-p and tokens it is given") {
  const Folder f;
  make_run(f);
  const layers::Model m = trained(f);
  const auto check = [&](const std::vector<std::string>& flags, int64_t tokens,
                         const SamplingSettings& s) {
    const std::string text = generated(f, flags);
    CHECK((text == expected(m, tokens, s)));
    return text;
  };
  std::set<std::string> seen{
      check({"--tokens", "40"}, 40, {.temperature = 0.8, .seed = 1}),
      check({"--tokens", "40", "--seed", "2"}, 40, {.temperature = 0.8, .seed = 2}),
      check({"--tokens", "40", "--temperature", "3"}, 40, {.temperature = 3}),
      check({"--tokens", "40", "--top-k", "2"}, 40, {.top_k = 2}),
      check({"--tokens", "40", "--top-p", "0.5"}, 40, {.top_p = 0.5}),
      check({"--tokens", "41"}, 41, {}),
      check({}, 200, {.temperature = 0.8, .seed = 1}),
  };
  CHECK(seen.size() == 7);
  const std::string likeliest =
      check({"--tokens", "40", "--temperature", "0"}, 40, {.temperature = 0});
  CHECK((generated(f, {"--tokens", "40", "--top-k", "1"}) == likeliest));
  CHECK((generated(f, {"--tokens", "40", "--top-p", "1e-9", "--seed", "9"}) == likeliest));
  CHECK((generated(f, {"--tokens", "40", "--top-k", "9999999999"}) ==
         generated(f, {"--tokens", "40"})));
}

TEST_CASE("flags: generate goes on from its prompt, each token from all before it") {
  const Folder f;
  make_run(f);
  const layers::Model m = trained(f);
  const SamplingSettings s{.temperature = 1.5, .seed = 3};
  const Generated g = generate(m, {5, 6, 7}, 9, s);
  std::vector<int32_t> text{5, 6, 7};
  for (uint64_t i = 0; i < 9; ++i) {
    const auto n = static_cast<int64_t>(text.size());
    const Tensor logits = m.logits(tensor_of(text).reshape({1, n})).reshape({n, 256});
    text.push_back(kernels::draw_token(logits.select(0, n - 1).contiguous(), s, i));
  }
  CHECK(g.tokens == std::vector<int32_t>(text.begin() + 3, text.end()));
}

TEST_CASE("flags: generate names how many tokens it wrote and the state that they took") {
  const Folder f;
  make_run(f);
  const Ran ran =
      run_weft(f, {"generate", "run", "--device", "cpu", "--prompt", "word ", "--tokens", "7"});
  const int64_t bytes = generate(trained(f), {1, 2, 3, 4, 5}, 7, {}).state_bytes;
  CHECK_THAT(ran.text, ContainsSubstring("7 tokens, ") &&
                           ContainsSubstring(bytes_text(double(bytes)) + " of state"));
  for (const char* prompt : {"sixteen bytes !!", "x"})
    CHECK(run_weft(f, {"generate", "run", "--prompt", prompt, "--tokens", "1"}).status == 0);
  const Ran longer = run_weft(f, {"generate", "run", "--prompt", "seventeen bytes !"});
  CHECK(longer.status == 2);
  CHECK_THAT(longer.text, ContainsSubstring("17 tokens, the model's context 16"));
}

TEST_CASE("flags: eval takes the text it is given, packed where the run was, and so many batches") {
  const Folder f;
  std::string other;
  for (int i = 0; i < 60; ++i) other += concat("another line, number ", 7 * i, "\n");
  std::string before;
  for (const std::string& data : {std::string(), std::string(kPacked)}) {
    INFO(data);
    make_run(f, data);
    f.write("other.txt", other);
    const layers::Model m = trained(f);
    const bool packed = !data.empty();
    const data::TokenPart all =
        data::open_data({f / "other.txt"}, text_options(packed ? "line" : "file"),
                        data::byte_tokenizer())
            .all();
    const data::BatchShape shape{.rows = 3, .length = 16};
    data::BatchSource source(packed ? data::held_out_packed(all, shape)
                                    : data::held_out_windows(all, shape));
    const auto printed = [&](std::vector<std::string> more) {
      more.insert(more.begin(), {"eval", "run", "--device", "cpu", "--data", "other.txt"});
      const Ran ran = run_weft(f, more);
      CHECK(ran.status == 0);
      return ran.text;
    };
    const std::string whole = printed({});
    CHECK(whole == evaluate(m, source, 0, kCpu).text() + "\n");
    CHECK(printed({"--batches", "2"}) == evaluate(m, source, 2, kCpu).text() + "\n");
    CHECK(printed({"--batches", "0"}) == whole);
    CHECK(printed({"--batches", "100000"}) == whole);
    CHECK(printed({"--batches", "2"}) != whole);
    CHECK(evaluate(m, source, 0, kCpu).tokens ==
          static_cast<double>(packed ? all.size() - all.documents() : all.size() - 1));

    // Lines of one letter can be predicted from one another, but not where each is alone.
    f.write("other.txt", "a\nb\nc\nd\n");
    const Ran letters = run_weft(f, {"eval", "run", "--data", "other.txt"});
    CHECK(letters.status == (packed ? 2 : 0));
  }
}

TEST_CASE("flags: eval of a run is that of its held-out part, by its best checkpoint") {
  const Folder f;
  make_run(f);
  const layers::Model m = trained(f);
  Recipe r = recipe_from_text(read_state(open_checkpoint(f / "run/best.h5")).recipe, "recipe");
  r.toml.set("data.source", f / "text.txt");
  const DataSettings data = read_data(r.toml);
  Source source(data, r, 16);
  const std::string said = evaluate(m, *source.held_out(), 0, kCpu).text();
  CHECK(run_weft(f, {"eval", "run", "--device", "cpu"}).text ==
        "run/best.h5, step 5: " + said + "\n");
  const std::string some = evaluate(m, *source.held_out(), 1, kCpu).text();
  CHECK(run_weft(f, {"eval", "run/best.h5", "--device", "cpu", "--batches", "1"}).text ==
        "run/best.h5, step 5: " + some + "\n");
  CHECK(some != said);
}

TEST_CASE("flags: data cuts by --document, and describes what it wrote") {
  const Folder f;
  f.write("text.txt", "one\ntwo\n\nthree\n\n\nfour");
  const auto documents = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words{"data", "text.txt", "--out", "t.h5"};
    words.insert(words.end(), more.begin(), more.end());
    const Ran ran = run_weft(f, words);
    INFO(ran.text);
    CHECK(ran.status == 0);
    CHECK(run_weft(f, {"data", "--describe", "t.h5"}).text + "" ==
          ran.text.substr(ran.text.find('\n') + 1));
    return data::open_token_dataset(f / "t.h5").documents();
  };
  CHECK(documents({}) == 1);
  CHECK(documents({"--document", "file"}) == 1);
  CHECK(documents({"--document", "blank"}) == 3);
  CHECK(documents({"--document", "line"}) == 4);
  for (const std::vector<std::string>& bad :
       std::vector<std::vector<std::string>>{{"--document", "page"},
                                             {"--tokenizer", "words"},
                                             {"--vocabulary", "1"},
                                             {"--vocabulary", "16777217"}}) {
    std::vector<std::string> words{"data", "text.txt", "--out", "t.h5"};
    words.insert(words.end(), bad.begin(), bad.end());
    const Ran ran = run_weft(f, words);
    CHECK(ran.status == 2);
    CHECK_THAT(ran.text, ContainsSubstring(bad[0] + " " + bad[1] + ": expected"));
  }
}

TEST_CASE("flags: data trains a vocabulary of the size that is asked for") {
  if (!data::has_sentencepiece()) SKIP("built without SentencePiece");
  const Folder f;
  f.write("text.txt", small_text());
  for (const char* size : {"320", "340"}) {
    const Ran ran = run_weft(f, {"data", "text.txt", "--out", "t.h5", "--tokenizer",
                                 "sentencepiece", "--vocabulary", size});
    INFO(ran.text);
    CHECK(ran.status == 0);
    CHECK_THAT(ran.text, ContainsSubstring(concat("vocabulary: ", size, " (sentencepiece)")));
  }
}

TEST_CASE(
    "flags: version tells of this build, doctor of this machine, with the threads there are") {
  const Folder f;
  const Ran version = run_shell(f, "OMP_NUM_THREADS=3 $WEFT version");
  CHECK(version.status == 0);
  CHECK_THAT(version.text,
             ContainsSubstring("weft " WEFT_VERSION "\n") && ContainsSubstring("cpu (3 threads)") &&
                 ContainsSubstring(concat("operations: ", kernels::operations().size(), "\n")) &&
                 ContainsSubstring(__VERSION__));
  CHECK((version.text.find("built without SentencePiece") == std::string::npos) ==
        data::has_sentencepiece());
  const Ran doctor = run_shell(f, "OMP_NUM_THREADS=3 $WEFT doctor --out no/such/folder");
  CHECK(doctor.status == 0);
  CHECK_THAT(doctor.text, ContainsSubstring(", 3 threads") && ContainsSubstring(" free in ") &&
                              ContainsSubstring(hdf5_version()));
  CHECK_THAT(doctor.text, !ContainsSubstring("no/such"));
  for (const char* device : {"cuda:", "cuda:x", "cuda:100", "cudax", "cuda1", "cuda:0:1"}) {
    const Ran ran = run_weft(f, {"doctor", "--device", device});
    INFO(device << ": " << ran.text);
    CHECK(ran.status == 2);
    CHECK_THAT(ran.text, ContainsSubstring(concat("unknown device \"", device, "\"")));
  }
}

TEST_CASE("flags: inspect prints the same numbers as text and as JSON, and they add up") {
  const Folder f;
  write_run(f, kSmallModel + "[train]\nbatch = 3\naccumulate = 2\ndevice = \"cpu\"\n");
  const auto j = nlohmann::json::parse(run_weft(f, {"inspect", "recipe.toml", "--json"}).text);
  const Recipe r = recipe_from_text(f.read("recipe.toml"), "recipe.toml");
  const layers::Model m(r.toml, 256, Dtype::f32, kCpu, 1);
  const int64_t n = m.parameter_count();
  CHECK(j["recipe"] == "recipe");
  CHECK(j["parameters"] == n);
  CHECK(j["active_parameters"] == m.active_parameter_count());
  int64_t sum = 0;
  for (const auto& [part, count] : j["parameters_by_part"].items()) sum += count.get<int64_t>();
  CHECK(sum == n);
  CHECK(j["forward_flops_per_token"] == m.flops_per_token());
  CHECK(j["training_flops_per_token"] == 3 * m.flops_per_token());
  const auto bytes = [&](const char* key) { return j[key].get<int64_t>(); };
  CHECK(bytes("parameter_bytes") >= 4 * n);
  CHECK(bytes("parameter_bytes") < 4 * n + 64 * 40);               // rounded up, each of them
  CHECK(bytes("gradient_bytes") == 2 * bytes("parameter_bytes"));  // of two micro-batches
  CHECK(bytes("optimizer_bytes") == 2 * bytes("parameter_bytes"));
  CHECK(bytes("activation_bytes") == bytes("peak_bytes") - 5 * bytes("parameter_bytes"));
  CHECK(bytes("decode_state_bytes") == 16 * 16 * 2 * 4);  // keys and values of the context
  int64_t owned = 0;
  for (const auto& [owner, of_it] : j["peak_by_owner"].items()) owned += of_it.get<int64_t>();
  CHECK(owned == bytes("peak_bytes"));

  const std::string text = run_weft(f, {"inspect", "recipe.toml"}).text;
  INFO(text);
  CHECK_THAT(text, ContainsSubstring("recipe: a step on tokens [3, 16], 2 micro-batches"));
  const auto row = [&](const std::string& name, int64_t value) {
    const size_t at = text.find("\n" + name + " ");
    REQUIRE(at != std::string::npos);
    CHECK_THAT(text.substr(at + 1, text.find('\n', at + 1) - at - 1),
               ContainsSubstring(concat(" ", value, " B")));
  };
  row("gradients", bytes("gradient_bytes"));
  row("optimizer", bytes("optimizer_bytes"));
  row("activations at the peak", bytes("activation_bytes"));
  row("peak of a training step", bytes("peak_bytes"));
  row("state of a generation", bytes("decode_state_bytes"));
  CHECK_THAT(text, ContainsSubstring(count_text(3 * m.flops_per_token())));
  for (const auto& [part, count] : j["parameters_by_part"].items())
    CHECK_THAT(text, ContainsSubstring("  " + part) &&
                         ContainsSubstring(concat(" ", count.get<int64_t>(), "\n")));
  const auto more = nlohmann::json::parse(
      run_weft(f, {"inspect", "recipe.toml", "--json", "--set", "train.batch=6"}).text);
  CHECK(more["peak_bytes"].get<int64_t>() > bytes("peak_bytes"));
}

TEST_CASE("flags: gradcheck takes as many operations as are named, and writes JUnit beside") {
  const Folder f;
  const Ran two = run_weft(f, {"gradcheck", "--op", "matmul", "--op", "l2_norm"});
  CHECK(two.status == 0);
  CHECK_THAT(two.text, ContainsSubstring("2 operations, ") && ContainsSubstring(" 0 failed"));
  const Ran one = run_weft(f, {"gradcheck", "--op", "l2_norm", "--json", "--junit", "x.xml"});
  CHECK(one.status == 0);
  CHECK_THAT(one.text, ContainsSubstring("\"operation\":\"l2_norm\""));
  CHECK_THAT(f.read("x.xml"), ContainsSubstring("<testsuite name=\"gradcheck\"") &&
                                  ContainsSubstring("failures=\"0\""));
}

TEST_CASE(
    "flags: cases writes the operations, dtypes and cases that are named, judge those of them") {
  const Folder f;
  const auto files = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words{"cases"};
    words.insert(words.end(), more.begin(), more.end());
    words.insert(words.end(), {"c", "--case", "wide"});
    says(run_weft(f, words), 0, {"answers go to c/results"});
    std::set<std::string> names;
    const auto list = nlohmann::json::parse(f.read("c/cases.json"));
    for (const auto& file : list["files"]) names.insert(file["file"].get<std::string>());
    return names;
  };
  using Names = std::set<std::string>;
  CHECK(files({"matmul", "l2_norm", "--dtype", "bf16"}) ==
        Names{"matmul.bf16.wide.h5", "l2_norm.bf16.wide_rows.h5",
              "l2_norm.bf16.columns_of_a_wider_matrix.h5"});
  std::filesystem::remove_all(f / "c");
  CHECK(files({"matmul", "--dtype", "f32,f64"}) ==
        Names{"matmul.f32.wide.h5", "matmul.f64.wide.h5"});
  says(run_weft(f, {"op", "matmul", "c/matmul.f32.wide.h5", "c/results/matmul.f32.wide.h5"}), 0,
       {});
  says(run_weft(f, {"judge", "c", "--dtype", "f32"}), 0, {"0 missing: passed"});
  says(run_weft(f, {"judge", "c"}), 1, {"MISSING  matmul f64: no result: \"wide\""});
}

TEST_CASE("flags: bench times the lengths, the option and without the input that are named") {
  const Folder f;
  const auto names = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words{"bench", "linear", "--budget", "0", "--json"};
    words.insert(words.end(), more.begin(), more.end());
    std::vector<std::string> all;
    std::istringstream lines(run_weft(f, words).text);
    for (std::string line; std::getline(lines, line);)
      if (line.starts_with("{")) {
        const auto j = nlohmann::json::parse(line);
        if (j.contains("T"))
          all.push_back(concat(j["name"].get<std::string>(), " ", int64_t(j["T"])));
      }
    return all;
  };
  using Names = std::vector<std::string>;
  CHECK(names({"--lengths", "16,8"}) == Names{"attention 8", "attention 16", "linear without g 8",
                                              "linear without g 16", "linear 8", "linear 16"});
  CHECK(names({"--lengths", "8", "--without", "g"}) == Names{"attention 8", "linear without g 8"});
  CHECK(names({"--lengths", "8", "--set", "normalize=true"}) ==
        Names{"attention 8", "linear normalize=true 8"});
}
