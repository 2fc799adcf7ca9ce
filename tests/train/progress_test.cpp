// What a run shows of its speed, and what it keeps in metrics.jsonl.
#include "train/progress.h"

#include <chrono>
#include <thread>

#include "tests/catch.h"
#include "tests/folder.h"

using namespace weft;
using namespace weft::train;
using weft::tests::Folder;

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void sleep_seconds(double seconds) {
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

}  // namespace

TEST_CASE("progress: the rate is tokens by the mean time of a step, and counts what is left") {
  const auto start = Clock::now();
  Progress p(/*steps=*/12, /*done=*/4);
  CHECK(p.tokens_per_second() == 0);
  CHECK(p.seconds_left() == 0);
  p.step(5, "loss", 1000, false);
  sleep_seconds(0.02);
  p.step(6, "loss", 1000, false);
  const double mean = 1000 / p.tokens_per_second();
  CHECK(mean >= 0.02 / 2 * 0.9999);  // of two steps of this run
  CHECK(mean <= since(start) / 2 * 1.0001);
  CHECK(p.seconds_left() == Approx(mean * 6));
  p.step(12, "loss", 500, false);
  CHECK(p.seconds_left() == 0);
}

TEST_CASE("progress: the mean time of a step is that of the last twenty or so") {
  Progress p(100, 0);
  for (int64_t step = 1; step <= 60; ++step) p.step(step, "", 1, false);
  sleep_seconds(0.04);
  p.step(61, "", 1, false);
  CHECK(1 / p.tokens_per_second() >= 0.04 / 20 * 0.9999);
}

TEST_CASE("progress: what is done between two steps is not the time of a step, unless counted") {
  for (const bool counted : {false, true}) {
    Progress p(10, 0);
    p.step(1, "", 1, false);
    const double before = 1 / p.tokens_per_second();
    sleep_seconds(0.03);
    const auto end = Clock::now();
    p.say("between", counted);
    p.step(2, "", 1, false);
    const double after = 1 / p.tokens_per_second();
    if (counted)
      CHECK(after >= (before + 0.03) / 2 * 0.9999);
    else
      CHECK(after <= (before + since(end)) / 2 * 1.0001);
  }
}

TEST_CASE("progress: metrics keep the lines up to the step gone on from, and none from 0") {
  const std::string lines =
      "{\"step\":1,\"loss\":3}\n{\"step\":2,\"loss\":2}\n{\"step\":2,\"eval_loss\":2}\n"
      "{\"step\":3,\"loss\":1}\n{\"step\":13,\"loss\":1}\n";
  const auto kept = [&](int64_t step, const std::string& text, const std::string& dropped,
                        bool lacks) {
    const Folder f;
    f.write("metrics.jsonl", text);
    Metrics m(f.path(), step);
    INFO("from step " << step);
    CHECK(m.dropped() == dropped);
    CHECK(m.lacks_evaluation() == lacks);
    CHECK(m.write("{\"step\":99}") == 0);
    CHECK(m.flush() == 0);
    std::string all = f.read("metrics.jsonl");
    REQUIRE(all.ends_with("{\"step\":99}\n"));
    return all.substr(0, all.size() - 12);
  };
  CHECK(kept(13, lines, "", true) == lines);
  CHECK(kept(2, lines, "metrics.jsonl: dropped 2 lines of later steps", false) ==
        lines.substr(0, lines.find("{\"step\":3")));
  CHECK(kept(1, lines, "metrics.jsonl: dropped 4 lines of later steps", true) ==
        "{\"step\":1,\"loss\":3}\n");
  CHECK(kept(0, lines, "metrics.jsonl: dropped 5 lines of an earlier run", false).empty());
  CHECK(kept(13, lines + "{\"step\":13,\"lo",
             "metrics.jsonl: dropped 0 lines of later steps and 1 "
             "that are not whole",
             true) == lines);
  CHECK(kept(5, "", "", false).empty());
  const Folder none;
  const Metrics fresh(none.path(), 7);
  CHECK(fresh.dropped().empty());
  CHECK_FALSE(fresh.lacks_evaluation());
  CHECK(none.read("metrics.jsonl").empty());
}
