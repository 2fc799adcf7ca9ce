#include "core/units.h"

#include <limits>

#include "tests/catch.h"

using namespace weft;

TEST_CASE("units: a duration is rounded to seconds and shown in two units at most") {
  CHECK(duration_text(0) == "0s");
  CHECK(duration_text(0.4) == "0s");
  CHECK(duration_text(0.6) == "1s");
  CHECK(duration_text(59.4) == "59s");
  CHECK(duration_text(59.6) == "1m 00s");
  CHECK(duration_text(200) == "3m 20s");
  CHECK(duration_text(3599.4) == "59m 59s");
  CHECK(duration_text(3600) == "1h 00m");
  CHECK(duration_text(3725) == "1h 02m");
  CHECK(duration_text(100 * 3600 + 59 * 60) == "100h 59m");
  CHECK(duration_text(std::numeric_limits<double>::infinity()) == "?");
  CHECK(duration_text(std::numeric_limits<double>::quiet_NaN()) == "?");
}

TEST_CASE("units: bytes are counted by 1024, numbers by 1000") {
  CHECK(bytes_text(0) == "0 B");
  CHECK(bytes_text(1023) == "1023 B");
  CHECK(bytes_text(1024) == "1.00 KiB");
  CHECK(bytes_text(1536) == "1.50 KiB");
  CHECK(bytes_text(1048576) == "1.00 MiB");
  CHECK(bytes_text(2.5 * 1073741824) == "2.50 GiB");
  CHECK(bytes_text(3.0 * 1099511627776) == "3.00 TiB");
  CHECK(bytes_text(5000.0 * 1099511627776) == "5000.00 TiB");
  CHECK(count_text(0) == "0");
  CHECK(count_text(999) == "999");
  CHECK(count_text(1000) == "1.0k");
  CHECK(count_text(12345) == "12.3k");
  CHECK(count_text(1050000) == "1.05M");
  CHECK(count_text(2.5e9) == "2.50G");
}

// However long the machine takes: what passed at least and at most bounds what is shown.

TEST_CASE("units: a number is written as its format says") {
  CHECK(number_text("%.2f", 1.005) == "1.00");
  CHECK(number_text("%.3g", 1234567) == "1.23e+06");
}
