// What `weft replay` writes is what a run starts from and is fed, step by step.
#include "core/error.h"
#include "core/hdf5.h"
#include "tests/catch.h"
#include "tests/train/small_run.h"
#include "train/source.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;

namespace {

std::string recipe(const std::string& more) {
  return kSmallModel + "[train]\nbatch = 2\nseed = 5\ndevice = \"cpu\"\n" + more;
}

}  // namespace

TEST_CASE("replay: every micro-batch of every step is written, in the order of the run") {
  const Folder f;
  f.write("text.txt", small_text());
  for (const int64_t accumulate : {1, 3}) {
    f.write("recipe.toml", recipe(concat("accumulate = ", accumulate, "\n")));
    const Ran ran = run_weft(f, {"replay", "recipe.toml", "--steps", "4", "--out", "x.h5"});
    INFO(ran.text);
    REQUIRE(ran.status == 0);
    CHECK_THAT(ran.text, ContainsSubstring("batches of 4 steps"));
    const Hdf5Reader file(f / "x.h5");
    CHECK(file.text("", "format") == "weft replay 1");
    Recipe r = recipe_from_text(file.text("", "recipe"), "recipe");
    r.toml.set("data.source", f / "text.txt");
    const DataSettings data = read_data(r.toml);
    Source source(data, r, 16);
    const Tensor tokens = file.tensor("tokens"), targets = file.tensor("targets");
    REQUIRE(tokens.shape() == Shape{4 * accumulate, 2, 16});
    REQUIRE(targets.shape() == tokens.shape());
    for (int64_t i = 0; i < 4 * accumulate; ++i) {
      const layers::Batch batch = source.next(kCpu);
      CHECK(to_ints(tokens.select(0, i)) == to_ints(batch.tokens));
      CHECK(to_ints(targets.select(0, i)) == to_ints(batch.targets));
    }
    const layers::Model model(r.toml, 256, Dtype::f32, kCpu, 5);
    CHECK(file.tensors("parameters").size() == model.parameters().size());
    for (const layers::Parameter& p : model.parameters())
      CHECK(to_doubles(file.tensor("parameters/" + p.name)) == to_doubles(p.master));
  }
}

TEST_CASE("replay: overrides hold, a hundred steps are the standard, packed text is refused") {
  const Folder f;
  f.write("text.txt", small_text());
  f.write("recipe.toml", recipe(""));
  REQUIRE(
      run_weft(f, {"replay", "recipe.toml", "--set", "train.batch=1", "--out", "x.h5"}).status ==
      0);
  CHECK(Hdf5Reader(f / "x.h5").info("tokens").shape == Shape{100, 1, 16});
  const Ran packed =
      run_weft(f, {"replay", "recipe.toml", "--set", "data.packed=true", "--out", "y.h5"});
  CHECK(packed.status == 2);
  CHECK_THAT(packed.text, ContainsSubstring("data.packed=false"));
  CHECK_FALSE(std::filesystem::exists(f / "y.h5"));
}
