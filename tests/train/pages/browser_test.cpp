// Pages in a real browser, where this machine has one. tests/pages/check.py does the work.
#include "tests/catch.h"
#include "tests/train/shell.h"

using namespace weft::tests;

TEST_CASE("pages: in a browser a page of each kind fits, computes, and works by the keyboard") {
  const Folder f;
  if (run_shell(f, "python3 -c 'import select'").status != 0) SKIP("there is no Python 3");
  const Ran ran =
      run_shell(f, "python3 -B '" + source_path("tests/pages/check.py") + "' --program \"$WEFT\"");
  if (ran.status == 77) SKIP("there is no Chromium; `apt install chromium` has these checks run");
  INFO(ran.text);
  CHECK(ran.status == 0);
  CHECK_THAT(ran.text, ContainsSubstring(", 0 faults"));
}
