// `weft cases`: what it writes, where, and what it refuses.
#include "train/workbench/cases.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "tests/catch.h"
#include "tests/message.h"
#include "tests/train/answers.h"
#include "tests/train/program.h"
#include "train/workbench/operation_file.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;
namespace fs = std::filesystem;

namespace {

std::set<std::string> entries(const std::string& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    names.insert(entry.path().filename().string());
  return names;
}

std::string refusal(const CasesArguments& arguments) {
  std::ostringstream out;
  return message([&] { run_cases(arguments, out); });
}

}  // namespace

TEST_CASE("cases: every case of an operation stands in a file of each dtype, as it is tested") {
  const Folder f;
  make_cases(f / "c", {"gated_linear"}, {"f64", "bf16"}, "packed");
  const kernels::Operation& op = kernels::operation("gated_linear");
  const auto files = case_files({{&op}, {Dtype::f64, Dtype::bf16}, "packed"});
  REQUIRE(files.size() >= 4);
  for (const CaseFile& c : files) {
    INFO(c.file);
    const OperationFile read = read_operation_file(f / ("c/" + c.file), op);
    const kernels::Expected e = kernels::expected_of(op, c.named, c.dtype);
    CHECK(read.operation == "gated_linear");
    CHECK(read.grouped);
    REQUIRE(read.inputs.size() == e.inputs.size());
    for (const auto& [name, t] : e.inputs) CHECK(same_bits(read.inputs.at(name), t));
    REQUIRE(read.output_gradients.size() == e.output_gradients.size());
    for (const auto& [name, t] : e.output_gradients)
      CHECK(same_bits(read.output_gradients.at(name), t));
    CHECK(read.inputs.at("q").dtype() == c.dtype);
    CHECK(read.inputs.at("g").dtype() == (c.dtype == Dtype::bf16 ? Dtype::f32 : c.dtype));
    // The options say the same to the operation.
    const auto a = op.forward(kernels::Form::naive, e.inputs, c.named.settings);
    const auto b = op.forward(kernels::Form::naive, read.inputs, read.settings);
    for (const auto& [name, t] : a) CHECK(same_bits(b.at(name), t));
  }
}

TEST_CASE("cases: the options of every operation come back from a file as they were") {
  for (const kernels::Operation* op : kernels::operations())
    for (const kernels::NamedCase& c : op->cases()) {
      INFO(op->name() << ", " << c.name);
      const Folder f;
      Hdf5Writer file(f / "o.h5");
      for (const auto& [name, text] : c.settings)
        file.attribute("options", name, attribute_of(text));
      for (const auto& [name, t] : c.inputs) file.tensor("inputs/" + name, t.contiguous());
      file.commit();
      const OperationFile read = read_operation_file(f / "o.h5", *op);
      for (const auto& [name, text] : c.settings) {
        if (text == "true" || text == "false")
          CHECK(read.settings.at(name) == (text == "true" ? "1" : "0"));
        else
          CHECK(read.settings.at(name) == text);
      }
      break;  // one case of each: every option has a value there
    }
}

TEST_CASE("cases: the list says what is in the folder, what comes back and where") {
  const Folder f;
  make_cases(f / "c", {"matmul,router", "matmul"}, {"f32"});
  const auto list = nlohmann::json::parse(f.read("c/cases.json"));
  CHECK(list["selection"]["operations"] == std::vector<std::string>{"matmul", "router"});
  CHECK(list["operations"].size() == 2);
  CHECK(list["operations"][0]["inputs"][1]["gradient"] == "dw");
  std::set<std::string> files{"cases.json", "results"};
  for (const auto& file : list["files"]) {
    files.insert(file["file"].get<std::string>());
    CHECK(file["result"] == "results/" + file["file"].get<std::string>());
    CHECK(file["outputs"].size() >= 1);
    CHECK(file["gradients"].size() >= 1);
  }
  CHECK(entries(f / "c") == files);
  CHECK(entries(f / "c/results").empty());
}

TEST_CASE("cases: names of files are plain, and no two cases share one") {
  std::vector<const kernels::Operation*> all = kernels::operations();
  std::set<std::string> names;
  const auto files = case_files({all, {Dtype::f64, Dtype::f32, Dtype::bf16}, ""});
  for (const CaseFile& c : files) {
    names.insert(c.file);
    CHECK(c.file.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                   "._-") == std::string::npos);
  }
  CHECK(names.size() == files.size());
}

TEST_CASE("cases: all is every operation") {
  const Folder f;
  make_cases(f / "c", {"all"}, {"f32"}, "one expert");
  CHECK(read_selection(f / "c").operations == kernels::operations());
}

TEST_CASE("cases: an index that the operation writes is asked for and not given") {
  const kernels::Operation& router = kernels::operation("router");
  for (const CaseFile& c : case_files({{&router}, {Dtype::f32}, ""})) {
    INFO(c.named.name);
    const Question q = question_of(c);
    const bool forced = c.named.name == "forced";
    CHECK(q.given.count("index") == size_t{forced});
    CHECK(q.written.count("index") == size_t{!forced});
  }
}

TEST_CASE("cases: only a new or an empty folder is filled") {
  const Folder f;
  fs::create_directory(f / "empty");
  make_cases(f / "empty", {"l2_norm"}, {"f32"}, "one");
  CHECK(fs::exists(f / "empty/cases.json"));
  CHECK_THAT(refusal({{"l2_norm", f / "empty"}, {}, ""}), ContainsSubstring("new or empty folder"));
  f.write("file", "text");
  CHECK_THAT(refusal({{"l2_norm", f / "file"}, {}, ""}), ContainsSubstring("is no folder"));
  CHECK(f.read("file") == "text");
  CHECK_THAT(refusal({{f / "c"}, {}, ""}), ContainsSubstring("OPERATION... DIR"));
  CHECK_THAT(refusal({{"l2_nrm", f / "c"}, {}, ""}), ContainsSubstring("l2_norm"));
  CHECK_THAT(refusal({{"l2_norm", f / "c"}, {"f16"}, ""}), ContainsSubstring("--dtype f16"));
  CHECK_THAT(refusal({{"l2_norm", f / "c"}, {}, "zzz"}), ContainsSubstring("zzz"));
  CHECK(!fs::exists(f / "c"));
}

TEST_CASE("cases: a folder that cannot be filled is left as it was") {
  const Folder f;
  const Ran ran = run_weft(f, {"cases", "matmul", "c"}, 0, SIGKILL, 40000);
  INFO(ran.text);
  if (ran.status != 0) CHECK(!fs::exists(f / "c"));
  const Ran tiny = run_weft(f, {"cases", "matmul", "d"}, 0, SIGKILL, 1000);
  CHECK(tiny.status == 2);
  CHECK(!fs::exists(f / "d"));
}

TEST_CASE("cases: a folder without its list, or with a list of something else, is not judged") {
  const Folder f;
  const auto refused = [&](const std::string& what) {
    CHECK_THROWS_WITH(read_selection(f / "c"), ContainsSubstring(what));
  };
  refused("is no folder");
  fs::create_directory(f / "c");
  refused("has no cases.json");
  for (const char* text : {"", "{", "[]", "{}", "{\"format\": 3}", "{\"format\": \"other\"}"}) {
    f.write("c/cases.json", text);
    refused("make the folder anew");
  }
  f.write("c/cases.json", "{\"format\": \"weft cases 1\", \"selection\": {\"operations\": 3}}");
  refused("cannot be read");
  f.write("c/cases.json",
          "{\"format\": \"weft cases 1\", \"selection\": {\"operations\": [\"matmull\"], "
          "\"dtypes\": [], \"case\": \"\"}}");
  refused("did you mean \"matmul\"");
}
