// An operation's file: what stands under a name that the operation knows is read, or refused with
// what was found. unreadable/make.py made the files.
#include "train/workbench/operation_file.h"

#include <filesystem>

#include "core/hdf5.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/message.h"
#include "tests/paths.h"

using namespace weft;
using namespace weft::train;

namespace {

std::string path_of(const std::string& name) {
  return tests::source_path("tests/train/unreadable/") + name + ".h5";
}

std::string refusal(const std::string& name) {
  return tests::message([&] { read_operation_file(path_of(name), kernels::operation("delta")); });
}

}  // namespace

TEST_CASE("operation file: a gate that cannot be read is refused with what it is, never left out") {
  const std::vector<std::pair<std::string, std::string>> kinds = {
      {"long_double", "floating-point numbers of 16 bytes"},
      {"complex", "complex numbers"},
      {"record", "records of the fields gate, n"},
      {"text", "text"},
      {"nine_dimensions", "a dataset of 9 dimensions"},
      {"group", "a group"},
      {"empty", "a dataset without numbers"},
      {"lists", "lists of different lengths"},
      {"broken_link", "a link to nothing"},
      {"missing_file", "a link to nothing"}};
  for (const auto& [kind, what] : kinds) {
    INFO(kind);
    CHECK_THAT(refusal("g_" + kind),
               ContainsSubstring("g_" + kind + ".h5: \"g\" is " + what) &&
                   ContainsSubstring("expected a tensor of numbers with at most 6 dimensions"));
  }
}

TEST_CASE("operation file: index tensors, output gradients and every group are read or refused") {
  CHECK_THAT(refusal("index"), ContainsSubstring("\"cu_seqlens\" is text"));
  CHECK_THAT(refusal("output_gradient"), ContainsSubstring("\"dout\" is complex numbers"));
  for (const std::string name : {"inputs/g", "grad_outputs/dout", "outputs/o", "gradients/dq"}) {
    std::string file = "grouped_" + name;
    file[file.find('/')] = '_';
    CHECK_THAT(refusal(file),
               ContainsSubstring("\"" + name + "\" is floating-point numbers of 16"));
  }
  CHECK_THAT(refusal("not_a_group_inputs"),
             ContainsSubstring("\"inputs\" is text; expected a group"));
  CHECK_THAT(refusal("not_a_group_options"),
             ContainsSubstring("\"options\" is text; expected a group"));
}

TEST_CASE("operation file: an option that cannot be read, or stands elsewhere, is refused") {
  CHECK_THAT(refusal("option_empty"), ContainsSubstring("attribute \"scale\" of \"options\" is "
                                                        "empty, expected text or a number"));
  CHECK_THAT(refusal("option_record"), ContainsSubstring("records of the fields a, b"));
  CHECK_THAT(refusal("option_list"), ContainsSubstring("options/scale is a list"));
  CHECK_THAT(refusal("option_tensor"),
             ContainsSubstring("\"options/scale\" is a tensor; an option is an attribute"));
  CHECK_THAT(refusal("option_at_root"),
             ContainsSubstring("attribute \"scale\" stands at the root"));
}

TEST_CASE("operation file: tensors that stand where nothing is read are refused") {
  CHECK_THAT(refusal("beside_inputs"),
             ContainsSubstring("\"g\" stands at the root beside inputs/") &&
                 ContainsSubstring("move it into inputs/"));
  CHECK_THAT(refusal("misspelt_group"), ContainsSubstring("\"grad_output/dout\"") &&
                                            ContainsSubstring("did you mean \"grad_outputs\""));
  CHECK_THAT(refusal("without_inputs"),
             ContainsSubstring("grad_outputs/ stands there and inputs/ does not"));
}

TEST_CASE("operation file: a shape that no memory holds is refused by name") {
  CHECK_THAT(
      refusal("shape_2e62"),
      ContainsSubstring("tensor \"g\": the bytes of a tensor of shape [2147483648, 2147483648]"));
  CHECK_THAT(refusal("shape_bytes"), ContainsSubstring("tensor \"g\": the bytes of a tensor"));
  CHECK_THAT(refusal("shape_2e64"), ContainsSubstring("\"g\""));
  for (const std::string name : {"shape_2e62", "shape_bytes", "shape_2e64"})
    CHECK_THROWS_WITH(Hdf5Reader(path_of(name)).tensors(), ContainsSubstring("\"g\""));
}

TEST_CASE("operation file: an option has all the digits that the file has") {
  const tests::Folder f;
  const double scale = 0.35355339059327379;
  {
    Hdf5Writer out(f / "op.h5");
    for (const char* name : {"q", "k", "v"})
      out.tensor(concat("inputs/", name), zeros({1, 2, 1, 2}, Dtype::f64));
    out.tensor("inputs/beta", zeros({1, 2, 1}, Dtype::f64));
    out.attribute("options", "scale", scale);
    out.commit();
  }
  const OperationFile read = read_operation_file(f / "op.h5", kernels::operation("delta"));
  CHECK(std::stod(read.settings.at("scale")) == scale);
}
