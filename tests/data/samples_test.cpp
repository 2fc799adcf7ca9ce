// Texts by name: what a table says is true of it, and each is read by its name.
#include "data/samples.h"

#include <filesystem>
#include <map>
#include <set>
#include <sstream>

#include "tests/data/helpers.h"

using namespace weft;
using namespace weft::data;

namespace {

std::vector<std::string> cells(const std::string& line) {
  std::vector<std::string> all;
  std::istringstream in(line);
  for (std::string cell; std::getline(in, cell, '|');) {
    const size_t first = cell.find_first_not_of(' '), last = cell.find_last_not_of(' ');
    all.push_back(first == std::string::npos ? "" : cell.substr(first, last - first + 1));
  }
  return all;
}

}  // namespace

TEST_CASE("samples: each order of a table repeats the code that its article has above") {
  std::set<std::string> texts;
  for (int64_t number = 0; number < 40; ++number) {
    const Document table = generated_table(number);
    INFO(table.text);
    CHECK(table.text.size() < 500);
    texts.insert(table.text);
    std::map<std::string, std::string> code;
    int64_t orders = 0;
    std::istringstream in(table.text);
    for (std::string line; std::getline(in, line);) {
      const std::vector<std::string> c = cells(line);
      if (c.size() == 2 && c[0] != "article") {
        CHECK(code.emplace(c[0], c[1]).second);
      } else if (c.size() == 4 && c[0] != "order") {
        CHECK(std::stoll(c[0]) == ++orders);
        CHECK(c[2] == code.at(c[1]));
      }
    }
    CHECK(code.size() == 5);
    CHECK(orders == 12);
  }
  CHECK(texts.size() == 40);
}

TEST_CASE("samples: tables are read by their name, each a document") {
  int64_t documents = 0;
  for_each_document({kTables}, {}, [&](Document&& d) {
    if (documents % 2000 == 0) CHECK(d.text == generated_table(documents).text);
    ++documents;
  });
  CHECK(documents == kTableCount);
}

TEST_CASE("samples: Debian's Python is read by its name, a module a document, in order") {
  namespace fs = std::filesystem;
  std::error_code error;
  bool any = false;
  for (const auto& entry : fs::directory_iterator("/usr/lib", error))
    any = any || (entry.path().filename().string().starts_with("python3.") &&
                  fs::exists(entry.path() / "os.py"));
  if (!any) {
    contains(message([] { python_library(); }), "apt-get install libpython3-stdlib");
    return;
  }
  const std::vector<std::string> files = python_library();
  CHECK(std::is_sorted(files.begin(), files.end()));
  size_t at = 0;
  bool found = false;
  for_each_document({kPythonLibrary}, {}, [&](Document&& d) {
    REQUIRE(at < files.size());
    found = found || (files[at].ends_with("/os.py") && d.text.find("def ") != std::string::npos);
    CHECK(d.text.size() == fs::file_size(files[at++]));
  });
  CHECK(at == files.size());
  CHECK(found);
}
