// `weft op`: what it reads and writes, and what it says about files and flags that are wrong.
#include "train/workbench/op.h"

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "core/hdf5.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/message.h"
#include "tests/paths.h"

using namespace weft;
using weft::tests::Folder;
using namespace weft::train;
using kernels::normal;

namespace {

namespace fs = std::filesystem;

void write(const std::string& path, const kernels::Tensors& tensors) {
  Hdf5Writer file(path);
  for (const auto& [name, t] : tensors) file.tensor(name, t);
  file.commit();
}

std::string run(const std::vector<std::string>& words, int status = 0) {
  std::ostringstream out;
  CHECK(run_op(op_arguments(words), out) == status);
  return out.str();
}

std::string refusal(const std::vector<std::string>& words) {
  std::ostringstream out;
  return tests::message([&] { run_op(op_arguments(words), out); });
}

const Tensor x = normal({5, 3}, 1, "x"), w = normal({4, 3}, 1, "w"), dy = normal({5, 4}, 1, "dy");

}  // namespace

TEST_CASE("op: tensors at the root give results at the root, gradients with output gradients") {
  const Folder folder;
  write(folder / "in.h5", {{"x", x}, {"w", w}, {"dy", dy}});
  run({"matmul", folder / "in.h5", folder / "out.h5"});
  const Hdf5Reader out(folder / "out.h5");
  CHECK(out.text("", "operation") == "matmul");
  const kernels::Operation& op = kernels::operation("matmul");
  const auto y = op.forward(kernels::Form::chunkwise, {{"x", x}, {"w", w}}, {});
  const auto dx = op.backward(kernels::Form::chunkwise, {{"x", x}, {"w", w}}, {}, {{"dy", dy}});
  CHECK(to_doubles(out.tensor("y")) == to_doubles(y.at("y")));
  CHECK(to_doubles(out.tensor("dw")) == to_doubles(dx.at("dw")));
  CHECK(out.tensors().size() == 3);
}

TEST_CASE("op: groups in the file give groups, and flags override its options") {
  const Folder folder;
  Hdf5Writer file(folder / "in.h5");
  file.tensor("inputs/x", x);
  file.attribute("options", "kind", std::string("relu"));
  file.commit();
  const auto first = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words = {"activation", folder / "in.h5", folder / "out.h5"};
    words.insert(words.end(), more.begin(), more.end());
    run(words);
    return to_doubles(Hdf5Reader(folder / "out.h5").tensor("outputs/y"))[0];
  };
  const double value = x.data<double>()[0];
  CHECK(first({}) == std::max(0.0, value));
  CHECK(first({"--kind", "exp"}) == Approx(std::exp(value)));
  CHECK(first({"--kind=tanh", "--form", "naive"}) == Approx(std::tanh(value)));
}

TEST_CASE("op: computes in the dtype that is asked for") {
  const Folder folder;
  write(folder / "in.h5", {{"x", x}, {"w", w}});
  for (const std::string dtype : {"f64", "f32", "bf16"}) {
    run({"matmul", folder / "in.h5", folder / "out.h5", "--dtype", dtype, "--backward"});
    CHECK(Hdf5Reader(folder / "out.h5").info("dx").dtype == dtype_from(dtype));
  }
}

TEST_CASE("op: --list and --help show every tensor and option") {
  CHECK_THAT(run({"--list"}), ContainsSubstring("matmul") && ContainsSubstring("w [O, I]") &&
                                  ContainsSubstring("targets [R]"));
  CHECK_THAT(run({"--help"}), ContainsSubstring("--check FILE"));
  CHECK_THAT(run({"linear", "--help"}), ContainsSubstring(" 1e-06             added to that"));
  CHECK_THAT(run({"cross_entropy", "--help"}),
             ContainsSubstring("bias") && ContainsSubstring("may be left out") &&
                 ContainsSubstring("--softcap") && ContainsSubstring("dloss"));
}

TEST_CASE("op: --check compares a file with its own results") {
  const std::string oracle = tests::source_path("tests/oracles/matmul_bias.h5");
  CHECK_THAT(run({"--check", oracle}), ContainsSubstring("naive") && ContainsSubstring("dbias"));
  const Folder folder;
  Hdf5Writer file(folder / "wrong.h5");
  file.attribute("", "operation", std::string("matmul"));
  const Hdf5Reader right(oracle);
  for (const TensorInfo& info : right.tensors()) {
    const Tensor t = right.tensor(info.name);
    if (info.name == "gradients/dw") t.data<double>()[1] += 1e-6;
    file.tensor(info.name, t);
  }
  file.commit();
  const std::string text = run({"--check", folder / "wrong.h5", "--form", "chunkwise"}, 1);
  CHECK_THAT(text, ContainsSubstring("FAILED  dw") && ContainsSubstring("at [0, 1]"));

  std::ofstream(folder / "notes.h5") << "not a file of tensors";
  std::ostringstream out;
  try {
    run_op(op_arguments({"--check", folder / "notes.h5", oracle}), out);
    FAIL("a file that is none was taken");
  } catch (const Error& e) {
    CHECK_THAT(e.what(), ContainsSubstring("notes.h5"));
  }
  CHECK_THAT(out.str(),
             ContainsSubstring("dbias") && ContainsSubstring("compared in f64, 0 failed"));
}

namespace {

// The oracle of matmul with one of its tensors changed by f.
template <class F>
void changed_oracle(const std::string& path, const std::string& name, const F& f) {
  const Hdf5Reader right(tests::source_path("tests/oracles/matmul_bias.h5"));
  Hdf5Writer file(path);
  file.attribute("", "operation", std::string("matmul"));
  for (const TensorInfo& info : right.tensors()) {
    const Tensor t = right.tensor(info.name);
    if (info.name == name) f(t);
    file.tensor(info.name, t);
  }
  file.commit();
}

}  // namespace

TEST_CASE("op: --check fails what is not finite, expected or computed, in every form and dtype") {
  const Folder folder;
  const std::string path = folder / "odd.h5";
  for (const double odd : {double{NAN}, double{INFINITY}})
    for (const std::string name : {"outputs/y", "gradients/dw", "inputs/x", "grad_outputs/dy"}) {
      changed_oracle(path, name, [&](const Tensor& t) { t.data<double>()[2] = odd; });
      for (const std::string dtype : {"f64", "f32", "bf16"})
        for (const std::string form : {"naive", "chunkwise"}) {
          INFO(odd << " in " << name << ", " << dtype << ", " << form);
          CHECK_THAT(run({"--check", path, "--dtype", dtype, "--form", form}, 1),
                     ContainsSubstring("FAILED") && !ContainsSubstring(", 0 failed"));
        }
    }
}

TEST_CASE("op: --check holds wrong numbers of a file to the bound of right ones") {
  const Folder folder;
  const std::string path = folder / "wrong.h5";
  changed_oracle(path, "outputs/y", [](const Tensor& t) { t.fill(3); });
  for (const std::string dtype : {"f64", "f32", "bf16"})
    CHECK_THAT(run({"--check", path, "--dtype", dtype}, 1), ContainsSubstring("FAILED  y"));
}

TEST_CASE(
    "op: --check refuses a file with nothing to compare, and a tolerance that bounds nothing") {
  const Folder folder;
  const std::string path = folder / "in.h5",
                    oracle = tests::source_path("tests/oracles/matmul_bias.h5");
  const auto file = [&](const Tensor& expected, double tolerance) {
    Hdf5Writer out(path);
    out.attribute("", "operation", std::string("matmul"));
    out.attribute("", "tolerance", tolerance);
    out.tensor("inputs/x", zeros({0, 3}, Dtype::f64));
    out.tensor("inputs/w", w);
    if (expected) out.tensor("outputs/y", expected);
    out.commit();
  };
  file({}, 0);
  CHECK_THAT(refusal({"--check", path}), ContainsSubstring("nothing to compare"));
  CHECK_THAT(refusal({"--check", oracle, path}), ContainsSubstring("nothing to compare"));
  file(zeros({0, 4}, Dtype::f64), 0);
  CHECK_THAT(refusal({"--check", path}), ContainsSubstring("nothing to compare"));
  CHECK_THAT(refusal({"--check", oracle, "--form", "recurrent"}),
             ContainsSubstring("matmul has no recurrent form"));
  for (const double tolerance : {double{NAN}, double{INFINITY}, -1.0}) {
    file(zeros({0, 4}, Dtype::f64), tolerance);
    CHECK_THAT(refusal({"--check", path}), ContainsSubstring("attribute \"tolerance\""));
  }
}

TEST_CASE("op: a size of 2^62 or more is clamped where all is meant, else refused by its name") {
  const Folder folder;
  const std::string in = folder / "in.h5", out = folder / "out.h5";
  const auto said = [&](const std::string& op, const std::string& flag, const std::string& value) {
    return refusal({op, in, out, "--" + flag, value});
  };
  write(in, {{"x", x}});
  for (const std::string value :
       {"4611686018427387904", "9223372036854775807", "-9223372036854775808"}) {
    INFO(value);
    for (const std::string op : {"rms_norm", "layer_norm"})
      CHECK_THAT(said(op, "groups", value), ContainsSubstring("groups = " + value));
    write(in, {{"x", zeros({2, 0}, Dtype::f64)}});
    CHECK_THAT(said("rms_norm", "groups", value), ContainsSubstring("groups = " + value));
    write(in, {{"logits", x}});
    CHECK_THAT(said("router", "top_k", value), ContainsSubstring("top_k = " + value));
    write(in, {{"x", normal({1, 3, 2, 4}, 1, "x")}});
    CHECK_THAT(said("rotary", "width", value), ContainsSubstring("width = " + value));
    CHECK_THAT(said("rotary", "offset", value), ContainsSubstring("offset = " + value));
    write(in, {{"x", x}});
  }
}

// The options are those of the list, so that a new one is tried too.
TEST_CASE("op: letters behind an option's number are refused by its name, in every operation") {
  const Folder folder;
  const std::string in = folder / "in.h5", out = folder / "out.h5";
  int options = 0;
  for (const kernels::Operation* op : kernels::operations()) {
    const kernels::NamedCase c = op->cases().front();
    write(in, c.inputs);
    for (const kernels::Setting& s : op->settings()) {
      const bool number = s.standard.find_first_of("0123456789") != std::string::npos;
      const bool choice = s.standard == "true" || s.standard == "false";
      if (s.tensor || (!number && !choice)) continue;
      ++options;
      const std::string least = number ? "1" : "true";
      for (const std::string behind : {"abc", "x", " 2", " ", ".0.0", "e", ",5"}) {
        const std::string value = least + behind;
        INFO(op->name() << " --" << s.name << " \"" << value << "\"");
        CHECK_THAT(refusal({op->name(), in, out, "--" + s.name, value}),
                   ContainsSubstring(s.name + ": \"" + value + "\" is not "));
      }
      for (const std::string value : {"", "abc", "nanx"})
        CHECK_THAT(refusal({op->name(), in, out, "--" + s.name + "=" + value}),
                   ContainsSubstring(s.name + ": \"" + value + "\" is not "));
      Hdf5Writer file(in);
      for (const auto& [name, t] : c.inputs) file.tensor("inputs/" + name, t.contiguous());
      file.attribute("options", s.name, least + "abc");
      file.commit();
      CHECK_THAT(refusal({op->name(), in, out}), ContainsSubstring(s.name));
      write(in, c.inputs);
    }
  }
  CHECK(options > 30);
  CHECK_FALSE(fs::exists(out));
}

TEST_CASE("op: says what is wrong with names, files and flags") {
  const Folder folder;
  const std::string in = folder / "in.h5", out = folder / "out.h5";
  write(in, {{"x", x}});
  CHECK_THAT(refusal({"matmul", in, out}),
             ContainsSubstring("input w [O, I] is missing") && ContainsSubstring("in.h5"));
  write(in, {{"x", x}, {"weight", w}});
  CHECK_THAT(refusal({"matmul", in, out}),
             ContainsSubstring("unknown tensor \"weight\"") && ContainsSubstring("did you mean"));
  write(in, {{"x", x}, {"w", x}, {"dy", x}});
  CHECK_THAT(refusal({"matmul", in, out}),
             ContainsSubstring("dy has shape [5, 3], expected [5, 5]"));
  write(in, {{"x", x}, {"w", dy}});
  CHECK_THAT(refusal({"matmul", in, out}), ContainsSubstring("w has shape [5, 4]"));
  write(in, {{"x", x}, {"w", w}});
  CHECK_THAT(refusal({"matmull", in, out}), ContainsSubstring("did you mean \"matmul\""));
  CHECK_THAT(refusal({"matmul", in, out, "--scale", "2"}), ContainsSubstring("unknown option"));
  CHECK_THAT(refusal({"matmul", in, out, "--form", "fast"}), ContainsSubstring("naive recurrent"));
  CHECK_THAT(refusal({"matmul", in, out, "--form", "recurrent"}),
             ContainsSubstring("no recurrent"));
  CHECK_THAT(refusal({"matmul", in, out, "--dtype", "f16"}), ContainsSubstring("f64 f32 bf16"));
  if (cuda_device_count() == 0)
    CHECK_THAT(refusal({"matmul", in, out, "--device", "cuda"}),
               ContainsSubstring("device cuda:0: "));
  CHECK_THAT(refusal({"matmul", in}), ContainsSubstring("expected IN.h5 OUT.h5"));
  CHECK_THAT(refusal({"matmul", folder / "none.h5", out}), ContainsSubstring("none.h5"));
  CHECK_FALSE(fs::exists(out));

  fs::resize_file(in, fs::file_size(in) / 2);
  CHECK_THAT(refusal({"matmul", in, out}), ContainsSubstring("in.h5"));
  std::ofstream(in) << "not a file of tensors";
  CHECK_THAT(refusal({"matmul", in, out}), ContainsSubstring("in.h5"));
}
