// Event files of TensorBoard, byte by byte. tests/oracles/event_file.py reads one with the reader
// of TensorBoard.
#include "train/verbs/event_file.h"

#include "tests/catch.h"
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
  RunMetrics run;
  run.metrics["loss"] = {{300}, {0}, {2.0}, {1.5}};
  const std::string f = event_file(run);
  const std::string expected(
      "\x09\0\0\0\0\0\0\0\x40"  // wall_time 2.0
      "\x10\xac\x02"            // step 300
      "\x2a\x0d\x0a\x0b"        // summary, value
      "\x0a\x04loss"            // tag
      "\x15\0\0\xc0\x3f",
      27);  // simple_value 1.5
  CHECK_THAT(f, ContainsSubstring(event_record(expected)));
  CHECK_THAT(f, ContainsSubstring("brain.Event:2"));
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
  const std::string path = "t/b/events.out.tfevents.0.weft";
  CHECK_THAT(f.read(path), ContainsSubstring("loss"));
  f.write(path, "theirs");
  CHECK(run_shell(f, line).status == 2);
  CHECK(f.read(path) == "theirs");
}
