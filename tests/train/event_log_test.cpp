// Event files of TensorBoard, byte by byte. tests/oracles/event_file.py reads one with the reader
// of TensorBoard.
#include "train/event_log.h"

#include "tests/catch.h"
#include "tests/message.h"
#include "tests/train/shell.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;

TEST_CASE("event file: the checksum is CRC-32C, and a record has masked ones of length and bytes") {
  CHECK(crc32c("123456789") == 0xe3069283u);            // the check value of CRC-32C
  CHECK(crc32c(std::string(32, '\0')) == 0x8a9136aau);  // RFC 3720, B.4
  const std::string r = event_record("abc");
  CHECK(r.size() == 8 + 4 + 3 + 4);
  CHECK(r.substr(0, 8) == std::string("\3\0\0\0\0\0\0\0", 8));
  CHECK(r.substr(12, 3) == "abc");
}

TEST_CASE("event file: a metric is a scalar at its step") {
  const std::string expected(
      "\x09\0\0\0\0\0\0\0\x40"  // wall_time 2.0
      "\x10\xac\x02"            // step 300
      "\x2a\x0d\x0a\x0b"        // summary, value
      "\x0a\x04loss"            // tag
      "\x15\0\0\xc0\x3f",
      27);  // simple_value 1.5
  CHECK(event_scalar(2, 300, "loss", 1.5) == event_record(expected));
  CHECK_THAT(event_header("made by a test"),
             ContainsSubstring("brain.Event:2") && ContainsSubstring("made by a test"));
}

TEST_CASE("event file: a run's log tells what its lines tell, and begins anew where it goes on") {
  const Folder f;
  const std::string one = "{\"step\":1,\"loss\":3,\"tokens\":100,\"tokens_per_second\":50}",
                    two = "{\"step\":2,\"loss\":2.5,\"hash\":\"ab\"}";
  const std::string first =
                        event_scalar(2, 1, "loss", 3) + event_scalar(2, 1, "tokens_per_second", 50),
                    second = event_scalar(2, 2, "loss", 2.5);
  const std::string begin = event_header("made by weft train");
  {
    EventLog log(f.path(), "");
    CHECK(log.write(one) == 0);
    CHECK(log.write(two) == 0);
    CHECK(log.write("no line") == 0);
    CHECK(log.flush() == 0);
  }
  CHECK(f.read(kEventFile) == begin + first + second);
  EventLog(f.path(), one + "\n").write(two);
  CHECK(f.read(kEventFile) == begin + first + second);
}

TEST_CASE("event file: one that another program made is not replaced") {
  const Folder f;
  f.write(kEventFile, "theirs");
  CHECK_THAT(message([&] { EventLog(f.path(), ""); }), ContainsSubstring("is not replaced"));
  CHECK(f.read(kEventFile) == "theirs");
}

TEST_CASE("event file: a run that was gone on from has each step in it once") {
  const Folder f;
  write_run(f, kSmallModel + R"([train]
device = "cpu"
steps = 6
batch = 2
log_every = 1
checkpoint_every = 3
keep = 9
out = "run"
[log]
tensorboard = true
[sample]
tokens = 0
)");
  REQUIRE(run_weft(f, {"train", "recipe.toml"}).status == 0);
  const std::string path = std::string("run/") + kEventFile;
  const auto scalars = [&](const std::string& tag) {
    const std::string events = f.read(path), name = "\x0a" + std::string(1, char(tag.size())) + tag;
    int count = 0;
    for (size_t at = 0; (at = events.find(name, at)) != std::string::npos; ++at) ++count;
    return count;
  };
  CHECK(scalars("loss") == 6);
  CHECK(scalars("eval_loss") == 1);
  const Ran ran = run_weft(f, {"train", "recipe.toml", "--resume", "--overwrite", "--from",
                               "run/checkpoints/step-0000000003.h5", "--set", "train.steps=7"});
  INFO(ran.text);
  REQUIRE(ran.status == 0);
  CHECK(scalars("loss") == 7);
  CHECK(scalars("eval_loss") == 1);
}

TEST_CASE("event file: weft plot writes one in a folder for each run, and replaces only its own") {
  const Folder f;
  for (const char* run : {"a", "b"}) {
    std::filesystem::create_directories(f / run);
    f.write(std::string(run) + "/metrics.jsonl", "{\"step\":1,\"loss\":2.5}\n");
  }
  const std::string line = "$WEFT plot a b --tensorboard --out t";
  for (int i = 0; i < 2; ++i) {
    const Ran ran = run_shell(f, line);
    INFO(ran.text);
    CHECK(ran.status == 0);
  }
  const std::string path = std::string("t/b/") + kEventFile;
  CHECK_THAT(f.read(path), ContainsSubstring("loss"));
  f.write(path, "theirs");
  CHECK(run_shell(f, line).status == 2);
  CHECK(f.read(path) == "theirs");
}
