// The batches of a run are those of its data: the training part is learned from, the rest is
// evaluated.
#include "train/source.h"

#include <filesystem>

#include "core/error.h"
#include "tests/catch.h"
#include "tests/folder.h"

using namespace weft;
using namespace weft::train;
using weft::tests::Folder;

namespace {

constexpr int64_t kContext = 16;

std::string text() {
  std::string t;
  for (int i = 0; i < 300; ++i)
    t += concat("line ", i * i % 977, i % 3 ? " of it\n" : " of it\n\n");
  return t;
}

Recipe recipe(const std::string& data, int64_t seed = 7) {
  return recipe_from_text(
      concat("[train]\nbatch = 3\ndevice = \"cpu\"\nseed = ", seed, "\n[data]\n", data), "r.toml");
}

Source source_of(const Recipe& r, const data::TokenizerPtr& tokenizer = nullptr) {
  return {read_data(r.toml), r, kContext, tokenizer};
}

std::vector<int64_t> all_of(const Tensor& t) {
  return t.defined() ? to_ints(t) : std::vector<int64_t>();
}

void check_training(Source& source, const data::BatchesPtr& expected) {
  data::BatchSource own(expected, 0);
  for (int i = 0; i < 5; ++i) {
    const layers::Batch a = source.next(kCpu);
    const data::Batch b = own.next();
    CHECK(all_of(a.tokens) == all_of(b.tokens));
    CHECK(all_of(a.targets) == all_of(b.targets));
    CHECK(all_of(a.cu_seqlens) == all_of(b.cu_seqlens));
  }
  CHECK(source.state() == own.state());
}

void check_held_out(Source& source, const data::BatchesPtr& expected) {
  REQUIRE(source.held_out());
  const data::Batches& own = source.held_out()->batches();
  REQUIRE(own.count() == expected->count());
  for (int64_t i = 0; i < own.count(); ++i) {
    data::HostBatch a, b;
    own.make(i, a);
    expected->make(i, b);
    CHECK(a.tokens == b.tokens);
    CHECK(a.targets == b.targets);
    CHECK(a.cu_seqlens == b.cu_seqlens);
  }
}

}  // namespace

TEST_CASE("source: text is cut as `document` says, its end held out, packed or not") {
  const Folder f;
  f.write("text.txt", text());
  const data::BatchShape shape{.rows = 3, .length = kContext};
  for (const auto& [name, cut] : std::vector<std::pair<std::string, data::Cut>>{
           {"file", data::Cut::file}, {"blank", data::Cut::blank}, {"line", data::Cut::line}}) {
    const auto set = data::open_data({f / "text.txt"}, {.document = cut}, data::byte_tokenizer());
    for (const double held_out : {0.05, 0.3}) {
      const auto [training, rest] = set.split(held_out);
      for (const bool packed : {false, true}) {
        INFO(name << (packed ? ", packed" : "") << ", " << held_out);
        const Recipe r = recipe(concat("source = \"", f / "text.txt", "\"\ndocument = \"", name,
                                       "\"\npacked = ", packed ? "true" : "false",
                                       "\nheld_out = ", held_out, "\n"));
        Source source = source_of(r);
        CHECK(source.is_text());
        check_training(source, packed ? data::training_packed(training, shape, 7)
                                      : data::training_windows(training, shape, 7));
        check_held_out(source, packed ? data::held_out_packed(rest, shape)
                                      : data::held_out_windows(rest, shape));
      }
    }
  }
}

TEST_CASE("source: a seed of its own gives each run its own order") {
  const Folder f;
  f.write("text.txt", text());
  const std::string data = concat("source = \"", f / "text.txt", "\"\n");
  Source a = source_of(recipe(data, 1)), b = source_of(recipe(data, 2));
  CHECK(all_of(a.next(kCpu).tokens) != all_of(b.next(kCpu).tokens));
}

TEST_CASE("source: nothing held out is nothing evaluated") {
  const Folder f;
  f.write("text.txt", text());
  const auto of = [&](const std::string& more) {
    return source_of(recipe(concat("source = \"", f / "text.txt", "\"\n", more)));
  };
  CHECK(of("held_out = 0\n").held_out() == nullptr);
  CHECK(of("").held_out() != nullptr);
  CHECK_THAT(of("").describe(), ContainsSubstring("tokens (bytes, vocabulary 256), ") &&
                                    ContainsSubstring(" held out"));
}

TEST_CASE("source: a dataset has its own vocabulary, and the recipe's may be larger") {
  const Folder f;
  f.write("text.txt", text());
  data::build_token_dataset({f / "text.txt"}, {.document = data::Cut::line}, data::byte_tokenizer(),
                            f / "t.h5");
  const auto of = [&](const std::string& more) {
    return recipe(concat("dataset = \"", f / "t.h5", "\"\n", more));
  };
  Source source = source_of(of("packed = true\n"));
  const auto set = data::open_token_dataset(f / "t.h5");
  check_training(source,
                 data::training_packed(set.split(0.05).first, {.rows = 3, .length = kContext}, 7));
  CHECK(source.tokenizer()->kind() == "bytes");
  const auto size = [&](const std::string& more) {
    return vocabulary_of(read_data(of(more).toml));
  };
  CHECK(size("") == 256);
  CHECK(size("vocabulary = 300\n") == 300);
  source_of(of("vocabulary = 256\n"));
  CHECK_THROWS_WITH(source_of(of("vocabulary = 255\n")),
                    ContainsSubstring("has a vocabulary of 256, the recipe's data.vocabulary is "
                                      "255"));
}

TEST_CASE("source: a task is learned from its training examples and asked its test examples") {
  const Recipe r = recipe(
      "task = \"mqar\"\nvocabulary = 64\npairs = [1, 3]\npower = 0.5\nrandom_filler = false\n"
      "test_examples = 10\nexamples = 20\n");
  Source source = source_of(r);
  CHECK_FALSE(source.is_text());
  const data::TaskOptions options{.name = "mqar",
                                  .vocabulary = 64,
                                  .pairs = {1, 3},
                                  .random_filler = false,
                                  .power = 0.5,
                                  .examples = 20};
  const data::BatchShape shape{.rows = 3, .length = kContext};
  check_training(source, data::training_task(options, shape, 7));
  check_held_out(source, data::test_task(options, shape, 7, 10));
  CHECK(source.held_out()->batches().count() == 4);
  CHECK_THAT(source.describe(), ContainsSubstring("task mqar, vocabulary 64"));
}

TEST_CASE("source: the shape of a batch is rows of the context, or one row packed") {
  const auto shape = [](const std::string& more) {
    const Recipe r = recipe("source = \"x\"\n" + more);
    return batch_shape(read_data(r.toml), r, kContext);
  };
  CHECK(shape("").tokens == Shape{3, 16});
  CHECK(shape("").borders == 0);
  CHECK(shape("packed = true\n").tokens == Shape{1, 48});
  CHECK(shape("packed = true\n").borders == 49);
  CHECK(shape("packed = true\n").length == 16);
  const Recipe wide =
      recipe_from_text("[train]\nbatch = 1073741824\n[data]\nsource = \"x\"\n", "r");
  const DataSettings data = read_data(wide.toml);
  CHECK(batch_shape(data, wide, 1).tokens == Shape{1073741824, 1});
  CHECK_THROWS_WITH(batch_shape(data, wide, 2), ContainsSubstring("batch = 1073741824"));
}

// When a run first lists its text its folder holds a lock alone, so that it does not look like one.
TEST_CASE(
    "source: the run's own folder in the folder of its text is no text, however it is named") {
  const Folder f;
  std::filesystem::create_directories(f / "texts/runs/one");
  f.write("texts/a.txt", text());
  f.write("texts/runs/one/run.lock", "process 1\n");
  f.write("texts/runs/two.txt", text());
  const auto of = [&](const std::string& sources, const std::string& out) {
    Recipe r = recipe("source = " + sources + "\n");
    r.train.out = out;
    return source_of(r).describe();
  };
  const std::string texts = "\"" + (f / "texts") + "\"";
  const std::string here = of(texts, f / "texts/runs/one"), elsewhere = of(texts, f / "nowhere");
  INFO(here);
  CHECK_THAT(here,
             ContainsSubstring("left out: 1 folders of runs") && ContainsSubstring("runs/one"));
  CHECK_THAT(elsewhere, !ContainsSubstring("left out"));
  std::filesystem::create_directory_symlink(f / "texts", f / "link");
  for (const char* name : {"texts/runs/one/", "texts/../texts/./runs/one", "link/runs/one"})
    CHECK(of(texts, f / name) == here);
  CHECK_THAT(
      of("[\"" + (f / "texts/a.txt") + "\", \"" + (f / "texts/runs") + "\"]", f / "texts/runs/one"),
      ContainsSubstring("runs/one"));
}
