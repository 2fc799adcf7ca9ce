// A trained model as the start of a student with other mixers.
#include "train/conversion.h"

#include <set>

#include "core/text.h"
#include "core/units.h"
#include "tests/gap.h"
#include "tests/message.h"
#include "tests/train/said.h"
#include "tests/train/small_run.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;

namespace {

const std::string kRest = R"([mlp]
width = 12
[train]
device = "cpu"
dtype = "f64"
[data]
tokens = 11
)";

std::string recipe(const std::string& mixer, const std::string& keys, int width = 8,
                   int layers = 2) {
  return concat("[model]\nwidth = ", width, "\nlayers = ", layers, "\ncontext = 16\npattern = [\"",
                mixer, "\"]\n[", mixer, "]\n", keys, "\n", kRest);
}

// A teacher whose every number counts, biases and norms too.
std::string teacher_at(const Folder& f, const std::string& text) {
  RunState state;
  state.recipe = text;
  state.recipe_name = "teacher";
  state.tokenizer = "a vocabulary";
  state.step = 7;
  const Recipe r = recipe_from_text(text, "teacher");
  const layers::Model model(r.toml, 11, Dtype::f64, kCpu, 3);
  const std::string path = f / "teacher.h5";
  save_start(path, state, [&](const PutTensor& put) {
    for (const layers::Parameter& p : model.parameters()) {
      for (int64_t i = 0; p.master.dims() == 1 && i < p.master.numel(); ++i)
        p.master.data<double>()[i] += 0.3 * std::sin(static_cast<double>(3 * i + 1));
      put(p.name, p.master);
    }
  });
  return path;
}

double max_difference(const Tensor& a, const Tensor& b) {
  return gap(to_doubles(a), to_doubles(b)).widest;
}

Tensor logits(const layers::Model& model) {
  const Tensor tokens = empty({1, 13}, Dtype::i32);
  for (int64_t i = 0; i < 13; ++i) tokens.data<int32_t>()[i] = static_cast<int32_t>(i * i % 11);
  return model.logits(tokens);
}

// The largest difference between the logits of the teacher and of the student made of it.
double change(const std::string& teacher_text, const std::string& student_text) {
  const Folder f;
  const Teacher teacher = open_teacher(teacher_at(f, teacher_text));
  Conversion c(teacher, recipe_from_text(student_text, "student"));
  const Recipe r = recipe_from_text(teacher_text, "teacher");
  layers::Model model(r.toml, 11, Dtype::f64, kCpu, 1);
  load_parameters(teacher.file, model.parameters());
  return max_difference(logits(model), logits(c.student()));
}

const Origin& origin(const Conversion& c, const std::string& name) {
  for (const Origin& o : c.origins())
    if (o.name == name) return o;
  FAIL("no parameter " << name);
  return c.origins().front();
}

Tensor parameter(Conversion& c, const std::string& name) {
  for (const layers::Parameter& p : c.student().parameters())
    if (p.name == name) return p.master;
  FAIL("no parameter " << name);
  return {};
}

constexpr const char* kGroups = "heads = 4\nkey_heads = 2\nhead_dim = 4";

}  // namespace

TEST_CASE("conversion: a student with the teacher's mixers is the teacher") {
  const std::string text = recipe("attention", kGroups);
  CHECK(change(text, text) == 0);
}

TEST_CASE("conversion: heads that share keys less, or are there more often, compute the same") {
  const std::string teacher = recipe("attention", kGroups);
  CHECK(change(teacher, recipe("attention", "heads = 4\nkey_heads = 4\nhead_dim = 4")) < 1e-12);
  CHECK(change(teacher, recipe("attention", "heads = 8\nkey_heads = 4\nhead_dim = 4")) < 1e-12);
  CHECK(change(teacher, recipe("attention", "heads = 8\nkey_heads = 8\nhead_dim = 4")) < 1e-12);
}

TEST_CASE("conversion: blocks that cover all of the past compute what attention does") {
  const std::string blocks = "\nblock = 4\npattern = \"window\"\nwindow_blocks = 4";
  CHECK(change(recipe("attention", kGroups), recipe("block_sparse", kGroups + blocks)) < 1e-12);
}

TEST_CASE("conversion: where keys are fewer, heads are averaged and outputs added") {
  const Folder f;
  const Teacher teacher = open_teacher(teacher_at(f, recipe("attention", kGroups)));
  Conversion c(teacher,
               recipe_from_text(recipe("gated_linear", "heads = 2\nkey_width = 4\nvalue_width = 4"),
                                "student"));
  const Tensor q = teacher.file.tensor("parameters/layers.1.mixer.q_proj.weight");
  const Tensor o = teacher.file.tensor("parameters/layers.1.mixer.o_proj.weight");
  const Tensor q2 = parameter(c, "layers.1.mixer.q_proj.weight");
  const Tensor o2 = parameter(c, "layers.1.mixer.o_proj.weight");
  const auto at = [](const Tensor& t, int64_t i, int64_t j) { return view<const double>(t)(i, j); };
  CHECK(std::abs(at(q2, 5, 3) - (at(q, 9, 3) + at(q, 13, 3)) / 2) < 1e-15);
  CHECK(std::abs(at(o2, 3, 5) - (at(o, 3, 9) + at(o, 3, 13))) < 1e-15);
  CHECK(max_difference(parameter(c, "layers.1.mixer.k_proj.weight"),
                       teacher.file.tensor("parameters/layers.1.mixer.k_proj.weight")) == 0);
}

TEST_CASE("conversion: a wider head has the teacher's first, and a narrower one has no source") {
  const Folder f;
  const Teacher teacher = open_teacher(teacher_at(f, recipe("attention", kGroups)));
  Conversion wide(
      teacher, recipe_from_text(recipe("gated_delta", "heads = 4\nkey_width = 6\nvalue_width = 3"),
                                "student"));
  const Tensor q = teacher.file.tensor("parameters/layers.0.mixer.q_proj.weight");
  const Tensor q2 = parameter(wide, "layers.0.mixer.q_proj.weight");
  CHECK(max_difference(q2.slice(0, 6, 10), q.slice(0, 4, 8)) == 0);
  CHECK(max_difference(q2.slice(0, 10, 12), zeros({2, 8}, Dtype::f64)) > 0);
  CHECK(origin(wide, "layers.0.mixer.v_proj.weight").from.empty());
  CHECK_THAT(origin(wide, "layers.0.mixer.v_proj.weight").how,
             ContainsSubstring("heads of 4 there and 3 here"));
  CHECK(contains(wide.not_taken(), "layers.0.mixer.v_proj.weight"));
}

TEST_CASE("conversion: convolutions pass on their token, and gates keep, write and pass") {
  const Folder f;
  const Teacher teacher = open_teacher(teacher_at(f, recipe("attention", kGroups)));
  Conversion c(teacher, recipe_from_text(
                            recipe("gated_delta",
                                   "heads = 4\nkey_width = 4\nvalue_width = 4\ngate_bias = true"),
                            "student"));
  const std::string mixer = "layers.0.mixer.";
  const Tensor taps = parameter(c, mixer + "k_conv1d.weight");
  CHECK(max_difference(taps.slice(1, 3, 4), full({16, 1}, 1, Dtype::f64)) == 0);
  CHECK(max_difference(taps.slice(1, 0, 3), zeros({16, 3}, Dtype::f64)) == 0);
  const auto first = [&](const char* name) { return to_doubles(parameter(c, mixer + name))[0]; };
  const double step = std::log1p(std::exp(first("dt_bias")));
  CHECK(std::abs(std::exp(-std::exp(first("A_log")) * step) - 0.99) < 1e-12);
  CHECK(first("a_proj.weight") == 0);
  CHECK(1 / (1 + std::exp(-first("b_proj.bias"))) > 0.88);
  const double g = first("g_proj.bias");
  CHECK(std::abs(g / (1 + std::exp(-g)) - 1) < 1e-12);
  for (const char* mixers : {"simple_gla", "gated_linear"}) {
    Conversion gla(
        teacher,
        recipe_from_text(recipe(mixers, "heads = 4\nkey_width = 4\nvalue_width = 4"), "student"));
    const bool low_rank = std::string(mixers) == "gated_linear";
    const double b =
        to_doubles(parameter(gla, mixer + (low_rank ? "gk_proj.1.bias" : "gk_proj.bias")))[0];
    CHECK(std::abs(std::exp(-std::log1p(std::exp(-b)) / 16) - 0.99) < 1e-12);
  }
}

TEST_CASE("conversion: Mamba-2 reads queries as C, keys as B and values as x") {
  const Folder f;
  const Teacher teacher = open_teacher(teacher_at(f, recipe("attention", kGroups)));
  Conversion c(teacher, recipe_from_text(recipe("mamba2", "head_dim = 4\nstate = 4\ngroups = 4"),
                                         "student"));
  const auto of = [&](const char* name) {
    return teacher.file.tensor(std::string("parameters/layers.0.mixer.") + name);
  };
  const Tensor in = parameter(c, "layers.0.mixer.in_proj.weight");  // z 16, x 16, B 16, C 16, dt 4
  CHECK(max_difference(in.slice(0, 20, 24), of("v_proj.weight").slice(0, 0, 4)) == 0);
  CHECK(max_difference(in.slice(0, 44, 48), of("k_proj.weight").slice(0, 4, 8)) == 0);
  CHECK(max_difference(in.slice(0, 48, 64), of("q_proj.weight")) == 0);
  CHECK(max_difference(parameter(c, "layers.0.mixer.out_proj.weight"), of("o_proj.weight")) == 0);
}

TEST_CASE("conversion: biases go with their heads, and an output's stays as it is") {
  const std::string teacher = recipe("attention", std::string(kGroups) + "\nbias = true");
  for (const char* heads : {"heads = 4\nkey_heads = 4\nhead_dim = 4\nbias = true",
                            "heads = 8\nkey_heads = 4\nhead_dim = 4\nbias = true"})
    CHECK(change(teacher, recipe("attention", heads)) < 1e-12);
}

TEST_CASE("conversion: behind an output gate a head's queries are the first half of its rows") {
  const Folder f;
  const Teacher teacher = open_teacher(
      teacher_at(f, recipe("attention", std::string(kGroups) + "\noutput_gate = true")));
  Conversion c(teacher,
               recipe_from_text(recipe("hgrn2", "heads = 4\nkey_width = 4\nvalue_width = 4"), "s"));
  const Tensor q = teacher.file.tensor("parameters/layers.0.mixer.q_proj.weight");
  const Tensor q2 = parameter(c, "layers.0.mixer.q_proj.weight");
  for (int64_t h = 0; h < 4; ++h)
    CHECK(max_difference(q2.slice(0, 4 * h, 4 * h + 4), q.slice(0, 8 * h, 8 * h + 4)) == 0);
  // Values of HGRN2 are its i_proj, Lightning's output is its out_proj.
  CHECK(origin(c, "layers.0.mixer.i_proj.weight").from == "layers.0.mixer.v_proj.weight");
  CHECK(origin(c, "layers.0.mixer.o_proj.weight").from == "layers.0.mixer.o_proj.weight");
  const Conversion l(teacher, recipe_from_text(recipe("lightning",
                                                      "heads = 4\nkey_width = 4\n"
                                                      "value_width = 4"),
                                               "s"));
  CHECK(origin(l, "layers.1.mixer.out_proj.weight").from == "layers.1.mixer.o_proj.weight");
}

TEST_CASE(
    "conversion: of Mamba-2 queries are C, keys B and values x, and its steps start at once") {
  const Folder f;
  const Teacher teacher =
      open_teacher(teacher_at(f, recipe("mamba2", "head_dim = 4\nstate = 4\ngroups = 4")));
  Conversion c(teacher,
               recipe_from_text(recipe("gated_linear", "heads = 4\nkey_width = 4\nvalue_width = 4"),
                                "student"));
  const Tensor in = teacher.file.tensor("parameters/layers.0.mixer.in_proj.weight");
  const auto same = [&](const char* name, int64_t begin) {
    INFO(name);
    CHECK(max_difference(parameter(c, std::string("layers.0.mixer.") + name),
                         in.slice(0, begin, begin + 16)) == 0);
  };
  same("v_proj.weight", 16);  // behind z
  same("k_proj.weight", 32);
  same("q_proj.weight", 48);
  Conversion back(teacher, recipe_from_text(recipe("mamba2", "head_dim = 4\nstate = 4\ngroups = 1"),
                                            "student"));
  const Tensor fused = parameter(back, "layers.0.mixer.in_proj.weight");  // 16 + 16 + 4 + 4 + 4
  CHECK(max_difference(fused.slice(0, 40, 44), zeros({4, 8}, Dtype::f64)) == 0);
  CHECK(max_difference(fused.slice(0, 0, 16), zeros({16, 8}, Dtype::f64)) > 0);
}

TEST_CASE("conversion: learned positions are the first of the teacher's, as many as both have") {
  const std::string positions = "model.positions=\"learned\"";
  const Folder f;
  std::string text = recipe("attention", std::string(kGroups) + "\nrotary = false");
  text.replace(text.find("context = 16"), 12, "positions = \"learned\"\ncontext = 16");
  const Teacher teacher = open_teacher(teacher_at(f, text));
  const Tensor there = teacher.file.tensor("parameters/positions.weight");
  for (const int64_t context : {8, 24}) {
    Conversion c(teacher, recipe_from_text(text, "student", {concat("model.context=", context)}));
    const int64_t rows = std::min<int64_t>(16, context);
    CHECK(max_difference(parameter(c, "positions.weight").slice(0, 0, rows),
                         there.slice(0, 0, rows)) == 0);
    CHECK(origin(c, "positions.weight").how == concat("the first ", rows, " positions"));
  }
}

TEST_CASE("conversion: what has no source starts as the seed draws it, or where it does no harm") {
  const Folder f;
  const Teacher teacher = open_teacher(teacher_at(f, recipe("attention", kGroups)));
  struct Start {
    const char *mixer, *keys, *name;
    double value;
  };
  const std::vector<Start> starts = {
      {"kda", "heads = 4", "A_log", 0},
      {"kda", "heads = 4", "f_proj.1.weight", 0},
      {"kda", "heads = 4", "g_proj.1.weight", 0},
      {"kda", "heads = 4", "g_proj.1.bias", 4},
      {"kda", "heads = 4\nnegative_eigenvalues = true", "b_proj.weight", 0},
      {"delta", "heads = 4\ngate_bias = true", "b_proj.weight", 0},
      {"delta", "heads = 4\ngate_bias = true", "b_proj.bias", 2},
      {"delta", "heads = 4\ngate_bias = true\nnegative_eigenvalues = true", "b_proj.weight", 0},
      {"delta", "heads = 4\ngate_bias = true\nnegative_eigenvalues = true", "b_proj.bias", 0},
      {"gated_delta", "heads = 4\ngate_bias = true", "g_proj.weight", 0},
      {"gated_delta", "heads = 4", "a_proj.weight", 0},
      {"fast_weights", "heads = 4", "alpha_proj.weight", 0},
      {"fast_weights", "heads = 4", "alpha_proj.bias", 4},
      {"mamba2", "head_dim = 4\nstate = 4", "A_log", 0}};
  for (const Start& s : starts) {
    INFO(s.mixer << ", " << s.keys << ", " << s.name);
    Conversion c(teacher, recipe_from_text(recipe(s.mixer, s.keys), "student"));
    const Tensor t = parameter(c, std::string("layers.1.mixer.") + s.name);
    CHECK(max_difference(t, full(t.shape(), s.value, Dtype::f64)) == 0);
    CHECK(origin(c, std::string("layers.1.mixer.") + s.name).from.empty());
  }
  for (const uint64_t seed : {1, 2}) {
    const Recipe r =
        recipe_from_text(recipe("delta", "heads = 4"), "student", {concat("train.seed=", seed)});
    Conversion c(teacher, r);
    const layers::Model fresh(r.toml, 11, Dtype::f64, kCpu, seed);
    for (const layers::Parameter& p : fresh.parameters())
      if (p.name == "layers.0.mixer.b_proj.weight")
        CHECK(max_difference(parameter(c, p.name), p.master) == 0);
  }
}

TEST_CASE("conversion: its start has the student's recipe and seed, and the teacher's vocabulary") {
  const Folder f;
  const Teacher teacher = open_teacher(teacher_at(f, recipe("attention", kGroups)));
  const Recipe r = recipe_from_text(recipe("retention", "heads = 4"), "student", {"train.seed=5"});
  Conversion c(teacher, r);
  c.save(f / "start.h5");
  const Hdf5Reader file = open_checkpoint(f / "start.h5");
  const RunState s = read_state(file);
  CHECK(s.tokenizer == "a vocabulary");
  CHECK(s.recipe == r.toml.to_text());
  CHECK(s.seed == 5);
  CHECK(s.step == 0);
  CHECK(std::isinf(s.best_loss));
  CHECK(max_difference(file.tensor("parameters/layers.0.mixer.g_proj.weight"),
                       parameter(c, "layers.0.mixer.g_proj.weight")) == 0);
  // The table counts the numbers that have a source.
  int64_t with = 0, all = 0;
  for (const Origin& o : c.origins()) {
    all += o.shape.numel();
    with += o.from.empty() ? 0 : o.shape.numel();
  }
  REQUIRE(with < all);
  CHECK_THAT(c.table(), ContainsSubstring(concat("\n", count_text(double(with)), " of ",
                                                 count_text(double(all)),
                                                 " numbers are in parameters with a source\n")));
}

TEST_CASE("conversion: the hash of a teacher is of every number of it, and of nothing else") {
  const std::string text = recipe("attention", kGroups);
  const auto hash = [&](int64_t changed, const std::string& more = "") {
    const Folder f;
    RunState state;
    state.recipe = text + more;
    const layers::Model m(recipe_from_text(text, "t").toml, 11, Dtype::f64, kCpu, 3);
    int64_t n = 0;
    save_start(f / "teacher.h5", state, [&](const PutTensor& put) {
      for (const layers::Parameter& p : m.parameters()) {
        if (n++ == changed) p.master.data<double>()[p.master.numel() - 1] += 1;
        put(p.name, p.master);
      }
    });
    return hash_of(open_teacher(f / "teacher.h5"));
  };
  const layers::Model m(recipe_from_text(text, "t").toml, 11, Dtype::f64, kCpu, 3);
  std::set<std::string> seen{hash(-1)};
  CHECK(hash(-1, "[optimizer]\nlr = 0.5\n") == *seen.begin());
  const auto last = static_cast<int64_t>(m.parameters().size()) - 1;
  for (const int64_t changed : {int64_t{0}, last / 2, last})
    CHECK(seen.insert(hash(changed)).second);
}

TEST_CASE("conversion: a head of its own is that of the embedding, where the teacher ties them") {
  const Folder f;
  const Teacher teacher = open_teacher(teacher_at(f, recipe("attention", kGroups)));
  Conversion c(teacher, recipe_from_text(recipe("attention", kGroups), "student",
                                         {"model.tied_embeddings=false"}));
  CHECK(origin(c, "head.weight").from == "embedding.weight");
  CHECK(c.not_taken().empty());
}

TEST_CASE("conversion: a teacher of another vocabulary, width or depth is refused") {
  const Folder f;
  const Teacher teacher = open_teacher(teacher_at(f, recipe("attention", kGroups)));
  const auto refusal = [&](const std::string& text, const std::vector<std::string>& set = {}) {
    return message([&] { Conversion(teacher, recipe_from_text(text, "student", set)); });
  };
  CHECK_THAT(refusal(recipe("attention", kGroups), {"data.tokens=12"}),
             ContainsSubstring("another vocabulary: 11 there and 12"));
  CHECK_THAT(refusal(recipe("attention", kGroups, 16)),
             ContainsSubstring("another model.width: 8 there and 16"));
  CHECK_THAT(refusal(recipe("attention", kGroups, 8, 3)),
             ContainsSubstring("another number of layers: 2 there and 3"));
}

TEST_CASE("convert: what it writes begins a run, and a dry run writes nothing") {
  const Folder f;
  write_run(f, kSmallModel + "[train]\ndevice = \"cpu\"\nsteps = 1\nout = \"teacher\"\n");
  done(run_weft(f, {"train", "recipe.toml"}));
  f.write("student.toml", R"([model]
width = 16
layers = 1
pattern = ["gated_delta"]
context = 16
[gated_delta]
heads = 2
key_width = 8
value_width = 8
[data]
source = "text.txt"
[train]
device = "cpu"
steps = 1
out = "student"
)");
  says(run_weft(f, {"convert", "teacher", "student.toml", "--out", "start.h5", "--dry-run"}), 0,
       {"layers.0.mixer.q_proj.weight", "head by head", "the identity"});
  CHECK(!std::filesystem::exists(f / "start.h5"));
  says(run_weft(f, {"train", "student.toml", "--begin", "start.h5"}), 2, {"start.h5"});
  says(run_weft(f, {"convert", "teacher", "student.toml"}), 2, {"--out"});
  says(run_weft(f, {"convert", "teacher", "student.toml", "--out", "teacher/best.h5"}), 2,
       {"best.h5"});
  says(run_weft(f, {"convert", "teacher", "student.toml", "--dry-run", "--set", "model.layers=2"}),
       2, {"another number of layers: 1 there and 2"});
  done(run_weft(f, {"convert", "teacher", "student.toml", "--out", "start.h5"}));
  done(run_weft(f, {"train", "student.toml", "--begin", "start.h5"}));
}
