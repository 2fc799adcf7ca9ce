// What a student learns of a teacher: the losses of its stages, and runs with [distill].
#include "train/distillation.h"

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "core/text.h"
#include "tests/gap.h"
#include "tests/train/rank_runs.h"
#include "tests/train/running.h"
#include "tests/train/said.h"
#include "tests/train/small_run.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;
using autograd::Var;

namespace {

Tensor wave(int64_t rows, int64_t columns, double rate, double size) {
  const Tensor t = empty({rows, columns}, Dtype::f64);
  for (int64_t i = 0; i < t.numel(); ++i)
    t.data<double>()[i] = size * std::sin(rate * static_cast<double>(i + 1));
  return t;
}

double off(const Tensor& got, const std::vector<double>& expected) {
  return gap(to_doubles(got), expected).relative();
}

// The numbers of tests/oracles/distillation.py.
struct Expected {
  double temperature, cap, teacher_cap, loss;
  std::vector<double> dx, dw;
};
const std::vector<Expected> kDivergences = {
    {1,
     0,
     0,
     1.3789583703491219,
     {0.082904293076161276, 0.097471076630703438, 0.10333105920317695, -0.082741498589149878,
      -0.078611549868873379, -0.067459465523754064, -0.19222517481007789, -0.20835507475181622,
      -0.20587323639972865, 0.10253024546102314, 0.13594821298386583, 0.15722233152878984,
      -0.040390793166515518, -0.066222635259804902, -0.086139006572979626},
     {-0.051652740212357072, -0.023133110371950913, 0.016266382741204274, 0.30624899081242168,
      0.40479230684843526,   0.31295547591936046,   -0.11074018007233036, -0.18084838968302167,
      -0.16590077579174928,  -0.010801670916779622, 0.041094586675463673, 0.073663418033606848,
      -0.05415062544968452,  -0.19060454435130131,  -0.23741416776634072, -0.14406499167619474,
      -0.071870435452366085, 0.03412590957124214,   0.065161217514924596, 0.020569586334740944,
      -0.033696242707323854}},
    {2,
     1.5,
     2.5,
     1.0649307398148968,
     {0.00064507972957132415, -0.0013409804165870655, -0.0032072547759082874, -0.039585973931573232,
      -0.03928718496685496, -0.035478988776153748, -0.028477394530251589, -0.028337560732195129,
      -0.025666417030306286, 0.0081159872483530845, 0.0046744201717913341, 0.00081530106288099993,
      -0.037852326479776592, -0.045711549506089529, -0.049487495955501191},
     {-0.029253104421477497,  0.0090898943612550652, 0.043157773792372067,   0.014145441112074185,
      0.033687098470477898,   0.037385187042782327,  0.00012799264157897458, -0.019513793644005434,
      -0.029977937867377499,  0.029067363749970574,  0.068169674980611772,   0.075210722887316964,
      0.0064415026200151269,  -0.051320270055245518, -0.084945317822184396,  -0.029505621291611946,
      -0.0012258076105490833, 0.027630522543527297,  0.04322481226762645,    -0.0016395424195530771,
      -0.045732794688259845}}};
const std::vector<double> kAlignmentGradient = {
    0.42699689609227254,  0.60154791635441085,   0.39808649264803603, -0.11615536522120637,
    -0.70827427175454105, -1.0878201491949602,   -1.0452888116528627, -0.55554893296728103,
    0.20321255613102293,  0.92506195581689554,   1.3121644664764531,  1.2082829951995901,
    0.66818197586982786,  -0.069061841232941346, -0.69014203406266927};

const std::string kTeacher = R"([model]
width = 16
layers = 2
pattern = ["attention"]
context = 16
[mlp]
width = 24
[attention]
heads = 2
[data]
source = "text.txt"
[train]
device = "cpu"
steps = 6
batch = 4
out = "teacher"
[optimizer]
lr = 1e-2
[sample]
tokens = 0
)";

const std::string kStudent = R"([model]
width = 16
layers = 2
pattern = ["gated_delta", "attention"]
context = 16
[mlp]
width = 24
[attention]
heads = 2
[gated_delta]
heads = 2
key_width = 8
value_width = 8
[data]
source = "text.txt"
[distill]
teacher = "teacher"
[distill.align]
steps = 3
lr = 1e-2
length = 8
[distill.match]
steps = 3
lr = 1e-2
temperature = 2
[train]
device = "cpu"
steps = 9
batch = 2
accumulate = 2
log_every = 1
eval_batches = 2
checkpoint_every = 1
keep = 20
out = "run"
[sample]
tokens = 0
)";

void make_teacher(const Folder& f) {
  f.write("text.txt", small_text());
  f.write("teacher.toml", kTeacher);
  f.write("student.toml", kStudent);
  done(run_weft(f, {"train", "teacher.toml"}));
}

// The hash that the last line of metrics.jsonl with one has.
std::string last_hash(const Folder& f, const std::string& run = "run") {
  const std::string text = f.read(run + "/metrics.jsonl");
  const size_t at = text.rfind("\"hash\":\"");
  REQUIRE(at != std::string::npos);
  return text.substr(at + 8, 16);
}

// The parameters of a checkpoint that begin with `start`, as bytes.
std::map<std::string, std::vector<double>> parameters(const std::string& path,
                                                      const std::string& start) {
  const Hdf5Reader file = open_checkpoint(path);
  std::map<std::string, std::vector<double>> all;
  for (const TensorInfo& t : file.tensors("parameters"))
    if (t.name.starts_with("parameters/" + start)) all[t.name] = to_doubles(file.tensor(t.name));
  return all;
}

}  // namespace

TEST_CASE("distillation: loss and gradients of matched logits are PyTorch's, in chunks and whole") {
  for (const Expected& e : kDivergences)
    for (const int64_t most : {1, 14, 1000}) {
      const Var x = Var::leaf(wave(5, 3, 0.7, 1.3)), w = Var::leaf(wave(7, 3, 0.3, 1.1));
      const Var loss =
          divergence({x, w, e.cap}, {wave(5, 4, 1.1, 1.5), wave(7, 4, 0.9, 0.8), e.teacher_cap},
                     e.temperature, most);
      INFO("temperature " << e.temperature << ", at most " << most);
      CHECK(off(loss.value(), {e.loss}) < 1e-12);
      autograd::backward(loss);
      CHECK(off(x.grad(), e.dx) < 1e-11);
      CHECK(off(w.grad(), e.dw) < 1e-11);
    }
}

TEST_CASE("distillation: the alignment of an output is PyTorch's, and so is its gradient") {
  const Var y = Var::leaf(wave(5, 3, 0.7, 1.3));
  const Var loss = alignment(y, wave(5, 3, 0.4, 0.6));
  CHECK(off(loss.value(), {6.2283605885008635}) < 1e-10);
  autograd::backward(loss);
  CHECK(off(y.grad(), kAlignmentGradient) < 1e-10);
}

TEST_CASE("distillation: gradients of both losses agree with differences") {
  const auto check = [](const autograd::GradcheckReport& report) {
    INFO(report.text());
    CHECK(report.passed());
  };
  check(autograd::gradcheck(
      [](const std::vector<Var>& in) {
        return std::vector<Var>{divergence({in[0], in[1], 1.5},
                                           {wave(3, 4, 1.1, 1.5), wave(5, 4, 0.9, 0.8), 0}, 3, 10)};
      },
      {{"x", wave(3, 2, 0.7, 1.3)}, {"w", wave(5, 2, 0.3, 1.1)}}));
  check(autograd::gradcheck(
      [](const std::vector<Var>& in) {
        return std::vector<Var>{alignment(in[0], wave(3, 4, 1.1, 0.3))};
      },
      {{"y", wave(3, 4, 0.7, 1.3)}}));
}

TEST_CASE("distillation: a student whose logits are the teacher's is zero away from it") {
  const Tensor x = wave(6, 3, 0.7, 20), w = wave(9, 3, 0.3, 20);  // logits far beyond f32's exp
  for (const Dtype dtype : {Dtype::f64, Dtype::f32}) {
    const HeadInput same{x.to(dtype), w.to(dtype), 0};
    CHECK(std::abs(divergence(same, same, 1).value().item()) < 1e-10);
  }
}

TEST_CASE("distillation: logits of any size give a finite loss and finite gradients in f32") {
  const Var x = Var::leaf(wave(6, 3, 0.7, 20).to(Dtype::f32)),
            w = Var::leaf(wave(9, 3, 0.3, 20).to(Dtype::f32));
  const Tensor tx = wave(6, 3, 0.5, 30).to(Dtype::f32), tw = wave(9, 3, 0.8, 30).to(Dtype::f32);
  const Var loss = divergence({x, w, 0}, {tx, tw, 0}, 1);
  autograd::backward(loss);
  CHECK(loss.value().item() > 1);
  for (const Tensor& t : {loss.value(), x.grad(), w.grad()}) CHECK(autograd::all_finite(t));
}

TEST_CASE("distill: alignment moves the mixers that are others, and nothing else by a bit") {
  const Folder f;
  make_teacher(f);
  done(run_weft(f, {"convert", "teacher", "student.toml", "--out", "start.h5"}));
  says(run_weft(f, {"train", "student.toml", "--begin", "start.h5"}), 0,
       {"from step 1: stage 1 of 3", "from step 4: stage 2 of 3", "from step 7: stage 3 of 3",
        "without softmax layers", "the teacher"});
  const std::string start = f / "start.h5", aligned = f / "run/checkpoints/step-0000000003.h5",
                    matched = f / "run/checkpoints/step-0000000006.h5";
  CHECK(parameters(start, "layers.0.mixer.") != parameters(aligned, "layers.0.mixer."));
  for (const char* part :
       {"embedding", "layers.0.mixer_norm", "layers.0.mlp", "layers.1.", "norm"}) {
    INFO(part);
    CHECK((parameters(start, part) == parameters(aligned, part)));
    CHECK((parameters(aligned, part) != parameters(matched, part)));
  }
  CHECK_THAT(f.read("run/metrics.jsonl"), ContainsSubstring("\"stage\":3"));
  CHECK_THAT(f.read("run/metrics.jsonl"), ContainsSubstring("teacher_recall_again"));
}

TEST_CASE("distill: a run killed in any stage and resumed ends in the same bits") {
  const Folder f;
  make_teacher(f);
  done(run_weft(f, {"train", "student.toml"}));
  const std::string whole = last_hash(f);
  f.write("student.toml", kStudent + "");
  const std::vector<std::string> again{"train", "student.toml", "--set", "train.out=killed"};
  std::vector<std::string> resumed = again;
  resumed.emplace_back("--resume");
  int step = 2;
  for (const auto& arguments : {again, resumed, resumed}) {
    Running run(f, arguments);
    run.says(concat("step ", step, "/9"));
    run.send(SIGKILL);
    run.end();
    step += 3;
  }
  done(run_weft(f, resumed));
  CHECK(last_hash(f, "killed") == whole);
}

TEST_CASE("distill: two ranks take the steps of one") {
  skip_without_ranks();
  const Folder f;
  make_teacher(f);
  done(run_weft(f, {"train", "student.toml"}));
  done(run_weft(f, {"train", "student.toml", "--ranks", "2", "--set", "train.out=two"}));
  CHECK(last_hash(f, "two") == last_hash(f));
}

TEST_CASE("distill: a plan counts the teacher, and its peak is that of the run") {
  const Folder f;
  make_teacher(f);
  const Ran plan = run_weft(f, {"inspect", "student.toml", "--json"});
  done(plan);
  done(run_weft(f, {"train", "student.toml"}));
  const auto number = [](const std::string& text, const std::string& key) {
    const size_t at = text.find("\"" + key + "\"");
    REQUIRE(at != std::string::npos);
    return std::stoll(text.substr(text.find(':', at) + 1));
  };
  const int64_t planned = number(plan.text, "peak_bytes");
  int64_t most = 0;
  const std::string lines = f.read("run/metrics.jsonl");
  for (size_t at = 0; (at = lines.find("\"peak_bytes\":", at)) != std::string::npos; ++at)
    most = std::max<int64_t>(most, std::stoll(lines.substr(at + 13)));
  CHECK(planned == most);
  const Ran teacher = run_weft(f, {"inspect", "teacher.toml", "--json"});
  CHECK(number(plan.text, "teacher_bytes") == number(teacher.text, "parameter_bytes"));
}

TEST_CASE("distill: a teacher that does not fit is refused with what differs") {
  const Folder f;
  make_teacher(f);
  const auto refused = [&](const std::vector<std::string>& more,
                           const std::vector<std::string>& parts) {
    std::vector<std::string> all{"train", "student.toml", "--overwrite"};
    for (const std::string& set : more) all.insert(all.end(), {"--set", set});
    says(run_weft(f, all), 2, parts);
  };
  refused({"distill.teacher=\"nobody\""}, {"nobody"});
  refused({"model.width=32"}, {"another model.width: 16 there and 32"});
  refused({"model.layers=4"}, {"another number of layers: 2 there and 4"});
  refused({"data.task=\"mqar\"", "data.vocabulary=256"},
          {"tokens are others: bytes there and the task mqar"});
  refused({"data.task=\"mqar\"", "data.vocabulary=64"}, {"another vocabulary: 256 there and 64"});
  refused({"distill.hash=\"0123456789abcdef\""}, {"expected 0123456789abcdef"});
  refused({"distill.align.length=5"}, {"texts of 5 do not divide the context of 16"});
  refused({"distill.align.steps=7"}, {"train.steps = 9"});
  refused({"distill.align.steps=0", "distill.match.steps=0"}, {"nothing is learned"});
  refused({"train.out=\"teacher\""}, {"the folder of the teacher's run"});
  refused({"data.packed=true"}, {"documents are packed"});
}

TEST_CASE("distill: a run goes on with the teacher that it began with alone") {
  const Folder f;
  make_teacher(f);
  done(run_weft(f, {"train", "student.toml", "--set", "train.steps=6"}));
  done(run_weft(f, {"train", "teacher.toml", "--set", "train.out=other", "--set", "train.seed=2"}));
  says(run_weft(f, {"train", "student.toml", "--resume", "--set", "distill.teacher=other"}), 2,
       {"distill.hash is", "there and"});
  done(run_weft(f, {"train", "teacher.toml", "--set", "train.out=moved"}));  // the same numbers
  done(run_weft(f, {"train", "student.toml", "--resume", "--set", "distill.teacher=moved"}));
}
