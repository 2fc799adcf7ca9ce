// What a plan advises: the largest part of a batch that fits, and how many ranks share a step.
#include "train/planner.h"

#include "core/memory.h"
#include "core/units.h"
#include "tests/catch.h"
#include "tests/message.h"
#include "train/step.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;

namespace {

Recipe recipe_of(int64_t batch, int64_t accumulate) {
  return recipe_from_text(
      concat("[model]\nwidth = 16\ncontext = 1024\npattern = [\"delta\"]\n[delta]\nheads = 2\n"
             "[data]\ntokens = 256\n[train]\ndevice = \"cpu\"\nbatch = ",
             batch, "\naccumulate = ", accumulate, "\n"),
      "r");
}

double peak_of(int64_t batch, int64_t accumulate) {
  Recipe r = recipe_of(batch, accumulate);
  return static_cast<double>(make_plan(r).peak);
}

}  // namespace

TEST_CASE("planner: the batch that it advises fits, twice that does not, and a step is as large") {
  constexpr int64_t kBatch = int64_t{3} << 19, kAccumulate = 5;  // 1.6 milliard tokens
  const Recipe r = recipe_of(kBatch, kAccumulate);
  const std::string advice = smaller_batch(r);
  const std::string start = "train.batch = ", middle = " with train.accumulate = ";
  INFO(advice);
  REQUIRE(advice.starts_with(start));
  const int64_t batch = std::stoll(advice.substr(start.size()));
  const size_t at = advice.find(middle);
  REQUIRE(at != std::string::npos);
  const int64_t accumulate = std::stoll(advice.substr(at + middle.size()));
  CHECK(batch * accumulate == kBatch * kAccumulate);
  const auto memory = static_cast<double>(memory_of(kCpu));
  CHECK(peak_of(batch, accumulate) < 0.95 * memory);
  if (2 * batch < kBatch) CHECK(peak_of(2 * batch, accumulate / 2) >= 0.95 * memory);
  CHECK(advice.ends_with(
      concat(" would need ", bytes_text(peak_of(batch, accumulate)), " of ", bytes_text(memory))));
  CHECK(smaller_batch(recipe_of(1, 1)).empty());  // there is no half of a row
}

TEST_CASE("planner: ranks share the micro-batches of a step evenly, or are told which would") {
  const Recipe r = recipe_of(1, 12);
  for (int ranks = 1; ranks <= 13; ++ranks) {
    INFO(ranks << " ranks");
    const std::string why = message([&] { require_shards(r, ranks); });
    if (12 % ranks == 0)
      CHECK(why == "no error");
    else
      CHECK_THAT(why, ContainsSubstring("accumulate = 12") &&
                          ContainsSubstring("1, 2, 3, 4, 6, 12 ranks fit") &&
                          ContainsSubstring(concat("a multiple of ", ranks)));
    if (12 % ranks == 0) {
      CHECK(micro_batches(r, kCpu, ranks) == 12 / ranks);
      CHECK(micro_batches(r, kMeta, ranks) == std::min(2, 12 / ranks));
    }
  }
}
