// `weft judge`: right answers pass, and each kind of wrong one is found and named.
#include "train/workbench/judge.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/catch.h"
#include "tests/train/answers.h"
#include "tests/train/program.h"
#include "train/workbench/fault_kind.h"
#include "train/workbench/operation_file.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;
namespace fs = std::filesystem;

namespace {

Tensor changed(const Tensor& t, const std::function<double(size_t, double)>& f) {
  std::vector<double> values = to_doubles(t);
  for (size_t i = 0; i < values.size(); ++i) values[i] = f(i, values[i]);
  return tensor_of(values).reshape(t.shape()).to(t.dtype());
}

Tensor scaled(const Tensor& t, double factor) {
  return changed(t, [=](size_t, double x) { return factor * x; });
}

// What `judge` says where the answers are spoilt; it must end with `status`.
std::string said(const Folder& f, const Spoil& spoil, int status = 1,
                 const JudgeArguments& more = {}) {
  answer(f / "c", spoil);
  JudgeArguments a = more;
  a.folder = f / "c";
  const Judged j = judged(a);
  INFO(j.text);
  CHECK(j.status == status);
  return j.text;
}

}  // namespace

TEST_CASE("judge: our own forms pass as if they were another's") {
  const Folder f;
  make_cases(f / "c", {"router", "short_conv", "kda", "attention"}, {}, "one");
  answer(f / "c");
  const Judged j = judged({.folder = f / "c", .all = true});
  INFO(j.text);
  CHECK(j.status == 0);
  CHECK_THAT(j.text, ContainsSubstring("4 operations, ") && ContainsSubstring(", 0 failed; ") &&
                         ContainsSubstring("0 declined, 0 missing: passed\n"));
}

TEST_CASE("judge: what `weft op` writes is an answer") {
  const Folder f;
  make_cases(f / "c", {"router"}, {"f32"}, "not normalised");
  for (const auto& entry : fs::directory_iterator(f / "c")) {
    const std::string name = entry.path().filename().string();
    if (!name.ends_with(".h5")) continue;
    CHECK(run_weft(f, {"op", "router", "c/" + name, "c/results/" + name}).status == 0);
  }
  CHECK(run_weft(f, {"judge", "c"}).status == 0);
}

TEST_CASE("judge: an answer that is off in one tensor of one case fails there, in its dtype") {
  const Folder f;
  make_cases(f / "c", {"matmul"}, {}, "odd");
  for (const char* tensor : {"outputs/y", "gradients/dw", "gradients/dbias"})
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
      const std::string text = said(f, [&](const CaseFile& c, Answer& a) {
        if (c.dtype == dtype) a.tensors[tensor] = scaled(a.tensors[tensor], 1.02);
      });
      const std::string name = std::string(tensor).substr(std::string(tensor).find('/') + 1);
      CHECK_THAT(text, ContainsSubstring(concat("FAILED  matmul ", name, " result, definition ",
                                                dtype, ": case \"odd sizes\": error ")) &&
                           ContainsSubstring("1 failed; "));
    }
}

TEST_CASE("judge: a constant factor, a sign, zeros and a swap are told as what they are") {
  const Folder f;
  make_cases(f / "c", {"linear"}, {"f32"}, "one token, gate, state");
  const auto gradient = [&](const char* tensor, const auto& change) {
    return said(f,
                [&](const CaseFile&, Answer& a) { a.tensors[tensor] = change(a.tensors[tensor]); });
  };
  CHECK_THAT(gradient("gradients/dk", [](const Tensor& t) { return scaled(t, 0.5); }),
             ContainsSubstring("every number is 0.5 times what is expected"));
  CHECK_THAT(gradient("gradients/dk", [](const Tensor& t) { return scaled(t, -1); }),
             ContainsSubstring("every number has the wrong sign"));
  CHECK_THAT(gradient("gradients/dv", [](const Tensor& t) { return scaled(t, 0); }),
             ContainsSubstring("every number is zero"));
  CHECK_THAT(gradient("outputs/o",
                      [](const Tensor& t) {
                        return changed(t, [](size_t i, double x) { return i == 2 ? x + 1 : x; });
                      }),
             ContainsSubstring("wrong at "));
}

TEST_CASE("judge: heads in another order, and a state that is transposed, are named") {
  const Folder f;
  make_cases(f / "c", {"delta"}, {"f64"}, "off the chunk");
  const auto swapped = [](const Tensor& t, int dim) {
    const Tensor out = t.clone();
    out.select(dim, 0).copy_from(t.select(dim, 1));
    out.select(dim, 1).copy_from(t.select(dim, 0));
    return out;
  };
  CHECK_THAT(
      said(f, [&](const CaseFile&,
                  Answer& a) { a.tensors["outputs/o"] = swapped(a.tensors["outputs/o"], 2); }),
      ContainsSubstring("H 0 holds what belongs to H 1, H 1 holds what belongs to H 0"));
  const Tensor x = kernels::normal({2, 3, 3}, 1, "x");
  CHECK(kind_of_fault(x.transpose(1, 2).contiguous(), x, {"H", "K", "V"}, 1, 1e-10) ==
        "dimensions 1 and 2 are swapped");
}

TEST_CASE("judge: a fault from some token on is told with its tokens") {
  const Folder f;
  make_cases(f / "c", {"gated_linear"}, {"f32"}, "off the chunk");
  const std::string text = said(f, [&](const CaseFile&, Answer& a) {
    const Tensor o = a.tensors["outputs/o"].clone();
    const int64_t T = o.size(1);
    o.slice(1, T - 3, T).zero();
    a.tensors["outputs/o"] = o;
  });
  CHECK_THAT(text, ContainsSubstring("wrong at T "));
}

TEST_CASE("judge: cases that fail alone with one input are told by it") {
  const Folder f;
  make_cases(f / "c", {"gated_linear"}, {"f32"}, "o");
  const std::string text = said(f, [&](const CaseFile& c, Answer& a) {
    if (c.named.inputs.count("cu_seqlens"))
      a.tensors["gradients/dv"] = scaled(a.tensors["gradients/dv"], 2);
  });
  CHECK_THAT(text, ContainsSubstring(" cases with cu_seqlens, in 0 of ") &&
                       ContainsSubstring("every number is 2 times what is expected"));
}

TEST_CASE("judge: cases that fail from some length on are told by it") {
  const kernels::Operation& op = kernels::operation("delta");
  const std::vector<kernels::NamedCase> cases = op.cases();
  const auto told = [&](int64_t longest) {
    std::vector<CaseVerdict> verdicts;
    for (const kernels::NamedCase& c : cases)
      verdicts.push_back({&c, c.inputs.at("q").size(1) <= longest});
    return kind_of_cases(op, verdicts);
  };
  CHECK_THAT(told(64), ContainsSubstring("fails from T = ") && ContainsSubstring("passes to T = "));
  CHECK(told(0).empty());
  CHECK(told(1000).empty());
}

TEST_CASE("judge: a number that is not finite passes nothing") {
  const Folder f;
  make_cases(f / "c", {"matmul"}, {}, "odd");
  for (const double odd : {double{NAN}, double{INFINITY}, -double{INFINITY}})
    for (const char* tensor : {"outputs/y", "gradients/dx"}) {
      const std::string text = said(f, [&](const CaseFile&, Answer& a) {
        a.tensors[tensor] =
            changed(a.tensors[tensor], [&](size_t i, double x) { return i == 1 ? odd : x; });
      });
      CHECK_THAT(text, ContainsSubstring("error inf") &&
                           ContainsSubstring(" numbers are not finite") &&
                           ContainsSubstring("3 failed; "));
    }
}

TEST_CASE("judge: a wrong shape, dtype or name is one line that says what was expected") {
  const Folder f;
  make_cases(f / "c", {"matmul"}, {"f32"}, "odd");
  const auto line = [&](const Spoil& spoil, const std::string& what) {
    const std::string text = said(f, spoil);
    CHECK_THAT(text, ContainsSubstring("FAILED  matmul ") && ContainsSubstring(what));
  };
  line(
      [](const CaseFile&, Answer& a) {
        a.tensors["outputs/y"] = a.tensors["outputs/y"].transpose(0, 1).contiguous();
      },
      "has shape ");
  line([](const CaseFile&,
          Answer& a) { a.tensors["outputs/y"] = a.tensors["outputs/y"].to(Dtype::f64); },
       "is f64, expected f32");
  line([](const CaseFile&,
          Answer& a) { a.tensors["gradients/dw"] = a.tensors["gradients/dw"].to(Dtype::bf16); },
       "is bf16, expected f32");
  line(
      [](const CaseFile&, Answer& a) {
        a.tensors["gradients/dw"] = zeros(a.tensors["gradients/dw"].shape(), Dtype::i32);
      },
      "is i32, expected f32");
  line([](const CaseFile&, Answer& a) { a.tensors["outputs/z"] = a.tensors["outputs/y"]; },
       "outputs/z is not asked for: unknown tensor \"z\"");
  line([](const CaseFile&, Answer& a) { a.tensors["gradients/w"] = a.tensors["gradients/dw"]; },
       "did you mean \"dw\"");
  line([](const CaseFile&, Answer& a) { a.tensors["y"] = a.tensors["outputs/y"]; },
       "\"y\" stands at the root");
  line([](const CaseFile&, Answer& a) { a.tensors["output/y"] = a.tensors["outputs/y"]; },
       "\"output\" stands at the root");
  line(
      [](const CaseFile&, Answer& a) {
        a.tensors["outputs/y/z"] = a.tensors["outputs/y"];
        a.tensors.erase("outputs/y");
      },
      "outputs/y is a group");
}

TEST_CASE("judge: bf16 may be answered in f32, and is held to the bound of bf16") {
  const Folder f;
  make_cases(f / "c", {"matmul"}, {"bf16"});
  said(
      f,
      [](const CaseFile&, Answer& a) {
        for (auto& [name, t] : a.tensors) t = t.to(Dtype::f32);
      },
      0);
  said(f, [](const CaseFile&, Answer& a) {
    for (auto& [name, t] : a.tensors) t = scaled(t.to(Dtype::f32), 1.004);
  });
}

TEST_CASE("judge: an index is right or wrong, in any type of integer") {
  const Folder f;
  make_cases(f / "c", {"router"}, {"f32"}, "two of five");
  said(
      f,
      [](const CaseFile&, Answer& a) {
        a.tensors["outputs/index"] = a.tensors["outputs/index"].to(Dtype::i64);
      },
      0);
  CHECK_THAT(said(f, [](const CaseFile&,
                        Answer& a) { a.tensors["outputs/index"].data<int32_t>()[0] ^= 1; }),
             ContainsSubstring("FAILED  router index result"));
  CHECK_THAT(said(f,
                  [](const CaseFile&, Answer& a) {
                    a.tensors["outputs/index"] = a.tensors["outputs/index"].to(Dtype::f32);
                  }),
             ContainsSubstring("is f32, expected integers"));
}

TEST_CASE("judge: nothing passes by being left out") {
  const Folder f;
  make_cases(f / "c", {"matmul"}, {"f32"});
  const int cases = static_cast<int>(kernels::operation("matmul").cases().size());
  CHECK_THAT(
      said(f, [](const CaseFile&, Answer& a) { a.written = false; }),
      ContainsSubstring("0 given") && ContainsSubstring(concat(" and ", cases - 4, " more")));
  CHECK_THAT(said(f, [](const CaseFile& c, Answer& a) { a.written = c.named.name != "odd sizes"; }),
             ContainsSubstring("MISSING  matmul f32: no result: \"odd sizes\""));
  CHECK_THAT(said(f, [](const CaseFile&, Answer& a) { a.tensors.erase("gradients/dw"); }),
             ContainsSubstring("MISSING  matmul f32: dw: "));
  // An empty file is no answer either.
  CHECK_THAT(said(f, [](const CaseFile&, Answer& a) { a.tensors.clear(); }),
             ContainsSubstring("MISSING  matmul f32: all: "));
}

TEST_CASE("judge: what was declined is told with its reason and never counts as passed") {
  const Folder f;
  make_cases(f / "c", {"matmul"}, {"f32"});
  const auto forward_alone = [](const CaseFile&, Answer& a) {
    std::erase_if(a.tensors, [](const auto& t) { return t.first.starts_with("gradients/"); });
    a.declined = "forward alone";
  };
  const std::string text = said(f, forward_alone, 0);
  CHECK_THAT(text, ContainsSubstring("DECLINED  matmul f32: ") &&
                       ContainsSubstring("(forward alone)") &&
                       ContainsSubstring("passed where answered") &&
                       !ContainsSubstring("missing: passed\n"));
  said(f, forward_alone, 1, {.all = true});
  // What is answered is judged all the same.
  CHECK_THAT(said(f,
                  [&](const CaseFile& c, Answer& a) {
                    forward_alone(c, a);
                    a.tensors["outputs/y"] = scaled(a.tensors["outputs/y"], 1.1);
                  }),
             ContainsSubstring("FAILED  matmul y"));
  const auto all_declined = [](const CaseFile&, Answer& a) {
    a.tensors.clear();
    a.declined = "no time";
  };
  CHECK_THAT(said(f, all_declined), ContainsSubstring("0 given") && ContainsSubstring(": FAILED"));
}

TEST_CASE("judge: the gradients of a kernel without one of the outputs are those of the others") {
  const Folder f;
  make_cases(f / "c", {"attention"}, {}, "sinks");
  const auto without_lse = [](const CaseFile& c, Answer& a) {
    const Question q = question_of(c);
    kernels::Tensors dy = q.expected.output_gradients;
    dy.erase("dlse");
    a.tensors.erase("outputs/lse");
    for (const auto& [name, t] :
         c.operation->backward(kernels::Form::chunkwise, q.given, c.named.settings, dy))
      a.tensors["gradients/" + name] = t;
    a.declined = "no logarithms";
  };
  CHECK_THAT(said(f, without_lse, 0), ContainsSubstring("lse (no logarithms)"));
  CHECK_THAT(said(f,
                  [&](const CaseFile& c, Answer& a) {
                    without_lse(c, a);
                    a.declined.clear();
                  }),
             ContainsSubstring("MISSING  attention f64: lse: ") &&
                 ContainsSubstring("FAILED  attention dq"));
  // A wrong form is no decision to do without.
  CHECK_THAT(said(f,
                  [&](const CaseFile& c, Answer& a) {
                    without_lse(c, a);
                    a.tensors["outputs/lse"] = a.tensors["outputs/o"];
                  }),
             ContainsSubstring("lse") && ContainsSubstring("FAILED  attention dq"));
  CHECK_THAT(said(f,
                  [&](const CaseFile& c, Answer& a) {
                    without_lse(c, a);
                    a.tensors["gradients/dk"] = scaled(a.tensors["gradients/dk"], 0.9);
                  }),
             ContainsSubstring("every number is 0.9 times what is expected"));
}

TEST_CASE("judge: inputs that a kernel has written into are found") {
  const Folder f;
  make_cases(f / "c", {"matmul"}, {"f32"}, "odd");
  const auto with_inputs = [](const CaseFile& c, Answer& a) {
    for (const auto& [name, t] : question_of(c).given) a.tensors["inputs/" + name] = t;
  };
  said(f, with_inputs, 0);
  CHECK_THAT(said(f,
                  [&](const CaseFile& c, Answer& a) {
                    with_inputs(c, a);
                    a.tensors["inputs/w"] = changed(a.tensors["inputs/w"], [](size_t i, double x) {
                      return i == 3 ? std::nextafter(static_cast<float>(x), 9.0F) : x;
                    });
                  }),
             ContainsSubstring("input w was changed: element 3 is "));
  CHECK_THAT(
      said(f, [&](const CaseFile&, Answer& a) { a.tensors["inputs/u"] = a.tensors["outputs/y"]; }),
      ContainsSubstring("unknown input \"u\""));
}

TEST_CASE("judge: a case that was edited is found, sealed or not") {
  const Folder f;
  make_cases(f / "c", {"matmul"}, {"f32"}, "odd");
  answer(f / "c");
  const std::string path = f / "c/matmul.f32.odd_sizes.h5",
                    before = f.read("c/matmul.f32.odd_sizes.h5");
  const kernels::Tensors kept = read_operation_file(path, kernels::operation("matmul")).inputs;
  Hdf5Writer file(path);
  for (const auto& [name, t] : kept) file.tensor("inputs/" + name, name == "w" ? scaled(t, 2) : t);
  file.commit();
  Judged j = judged({.folder = f / "c"});
  CHECK(j.status == 1);
  CHECK_THAT(j.text,
             ContainsSubstring("input w was changed") && ContainsSubstring("input dy is gone"));
  std::string damaged = before;
  damaged[damaged.size() / 2] = static_cast<char>(damaged[damaged.size() / 2] ^ 1);
  f.write("c/matmul.f32.odd_sizes.h5", damaged);
  j = judged({.folder = f / "c"});
  CHECK(j.status == 1);
  CHECK_THAT(j.text, ContainsSubstring("the case's file is not as it was written"));
}

TEST_CASE("judge: a result of no case, and a file that is no result, are a line each") {
  const Folder f;
  make_cases(f / "c", {"matmul"}, {"f32"}, "odd");
  answer(f / "c");
  f.write("c/results/matmul.f32.od_sizes.h5", "text");
  CHECK_THAT(
      judged({.folder = f / "c"}).text,
      ContainsSubstring("FAILED  results/matmul.f32.od_sizes.h5: belongs to no case; did you "
                        "mean \"matmul.f32.odd_sizes.h5\"?"));
  fs::rename(f / "c/results/matmul.f32.od_sizes.h5", f / "c/results/matmul.f32.odd_sizes.h5");
  const Judged j = judged({.folder = f / "c"});
  CHECK(j.status == 1);
  CHECK_THAT(j.text, ContainsSubstring("expected a result") && ContainsSubstring("MISSING"));
}

TEST_CASE("judge: --dtype judges those of the folder that it names") {
  const Folder f;
  make_cases(f / "c", {"matmul"}, {"f32", "bf16"}, "odd");
  const auto spoilt = [](const CaseFile& c, Answer& a) {
    if (c.dtype == Dtype::f32) a.tensors["outputs/y"] = scaled(a.tensors["outputs/y"], 2);
  };
  said(f, spoilt);
  said(f, spoilt, 0, {.dtypes = {"bf16"}});
  CHECK_THROWS_WITH(judged({.folder = f / "c", .dtypes = {"f64"}}),
                    ContainsSubstring("has no cases in f64"));
}

TEST_CASE("judge: JSON and JUnit say what the table says") {
  const Folder f;
  make_cases(f / "c", {"matmul"}, {"f32"});
  const auto spoilt = [](const CaseFile& c, Answer& a) {
    if (c.named.name == "odd sizes")
      a.tensors["gradients/dx"] = scaled(a.tensors["gradients/dx"], 3);
    if (c.named.name == "wide") {
      a.tensors.clear();
      a.declined = "too wide";
    }
  };
  const auto j = nlohmann::json::parse(said(f, spoilt, 1, {.json = true, .junit = f / "j.xml"}));
  CHECK(j["passed"] == false);
  CHECK(j["declined"].size() == 1);
  int failed = 0;
  for (const auto& check : j["checks"]) {
    CHECK(check["asked"] == check["answered"].get<int>() + check["declined"].get<int>());
    failed += check["passed"] == false;
  }
  CHECK(failed == 1);
  CHECK_THAT(f.read("j.xml"),
             ContainsSubstring("<testsuite name=\"judge\" tests=\"4\" failures=\"1\"") &&
                 ContainsSubstring("name=\"dx f32\">"));
}

TEST_CASE("judge: the verbs end with 0, 1 and 2") {
  const Folder f;
  CHECK(run_weft(f, {"cases", "matmul", "c", "--dtype", "f32", "--case", "odd"}).status == 0);
  CHECK(run_weft(f, {"cases", "matmul", "c"}).status == 2);
  CHECK(run_weft(f, {"cases", "matmull", "d"}).status == 2);
  CHECK(run_weft(f, {"cases", "d"}).status == 2);
  CHECK(run_weft(f, {"judge", "c"}).status == 1);
  CHECK(run_weft(f, {"judge", "nothing"}).status == 2);
  CHECK(run_weft(f, {"judge", "."}).status == 2);
  CHECK(run_weft(f, {"judge", "c", "--dtype", "f16"}).status == 2);
  CHECK(run_weft(f, {"judge", "c", "--junit", "nowhere/j.xml"}).status == 2);
  answer(f / "c");
  CHECK(run_weft(f, {"judge", "c"}).status == 0);
  CHECK(run_weft(f, {"judge", "c", "--dtype", "f64"}).status == 2);
}
