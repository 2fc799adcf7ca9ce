// What `weft logits` writes is what the model of a checkpoint computes, row by row.
#include "core/error.h"
#include "core/hdf5.h"
#include "tests/catch.h"
#include "tests/train/small_run.h"
#include "train/checkpoint.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;

namespace {

// Learned positions: a text has at most 16 tokens.
const std::string kRecipe = R"([model]
width = 16
layers = 2
pattern = ["attention", "gated_delta"]
context = 16
positions = "learned"
[mlp]
width = 16
[attention]
heads = 2
[gated_delta]
heads = 2
[data]
source = "text.txt"
[train]
device = "cpu"
steps = 3
batch = 2
out = "run"
[sample]
tokens = 0
)";

void make_run(const Folder& f) {
  write_run(f, kRecipe);
  const Ran ran = run_weft(f, {"train", "recipe.toml"});
  INFO(ran.text);
  REQUIRE(ran.status == 0);
}

layers::Model trained(const Folder& f, Dtype dtype) {
  const Hdf5Reader file = open_checkpoint(f / "run/best.h5");
  const Recipe r = recipe_from_text(read_state(file).recipe, "recipe");
  layers::Model model(r.toml, 256, dtype, kCpu, 1);
  load_parameters(file, model.parameters());
  return model;
}

Tensor some_tokens(int64_t rows, int64_t length) {
  const Tensor t = empty({rows, length}, Dtype::i32);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<int32_t>()[i] = static_cast<int32_t>(i * 37 % 256);
  return t;
}

void write_tokens(const Folder& f, const Tensor& tokens, const Tensor& borders = {}) {
  Hdf5Writer file(f / "in.h5");
  file.tensor("tokens", tokens);
  if (borders) file.tensor("cu_seqlens", borders);
  file.commit();
}

Tensor logits_of(const Folder& f, const std::vector<std::string>& more = {}) {
  std::vector<std::string> words{"logits", "run", "in.h5", "out.h5", "--device", "cpu"};
  words.insert(words.end(), more.begin(), more.end());
  const Ran ran = run_weft(f, words);
  INFO(ran.text);
  REQUIRE(ran.status == 0);
  return Hdf5Reader(f / "out.h5").tensor("logits");
}

void refused(const Folder& f, const std::vector<std::string>& parts,
             const std::vector<std::string>& more = {}) {
  std::filesystem::remove(f / "out.h5");
  std::vector<std::string> words{"logits", "run", "in.h5", "out.h5", "--device", "cpu"};
  words.insert(words.end(), more.begin(), more.end());
  const Ran ran = run_weft(f, words);
  INFO(ran.text);
  CHECK(ran.status == 2);
  for (const std::string& part : parts) CHECK_THAT(ran.text, ContainsSubstring(part));
  CHECK_FALSE(std::filesystem::exists(f / "out.h5"));
}

}  // namespace

TEST_CASE("logits: every row is what the model computes, bit for bit") {
  const Folder f;
  make_run(f);
  const Tensor tokens = some_tokens(3, 13);
  write_tokens(f, tokens);
  const Tensor written = logits_of(f);
  CHECK(written.dtype() == Dtype::f32);
  REQUIRE(written.shape() == Shape{3, 13, 256});
  const layers::Model model = trained(f, Dtype::f32);
  for (int64_t b = 0; b < 3; ++b)
    CHECK(to_doubles(written.select(0, b)) == to_doubles(model.logits(tokens.slice(0, b, b + 1))));
  const Hdf5Reader file(f / "out.h5");
  CHECK(file.text("", "format") == "weft logits 1");
  CHECK(file.text("", "dtype") == "f32");
  CHECK(file.integer("", "step") == 3);
  CHECK(to_doubles(logits_of(f, {"--dtype", "f32"})) == to_doubles(written));
}

TEST_CASE("logits: f64 is computed and written in f64") {
  const Folder f;
  make_run(f);
  const Tensor tokens = some_tokens(1, 16);
  write_tokens(f, tokens);
  const Tensor written = logits_of(f, {"--dtype", "f64"});
  CHECK(written.dtype() == Dtype::f64);
  CHECK(to_doubles(written) == to_doubles(trained(f, Dtype::f64).logits(tokens)));
  refused(f, {"--dtype", "bf16", "f32 or f64"}, {"--dtype", "bf16"});
}

TEST_CASE("logits: a row of several documents is computed as these are alone") {
  const Folder f;
  make_run(f);
  const Tensor tokens = some_tokens(1, 29);  // longer than any text, but no document is
  write_tokens(f, tokens, tensor_of(std::vector<int32_t>{0, 11, 13, 29}));
  const Tensor written = logits_of(f, {"--dtype", "f64"});
  const layers::Model model = trained(f, Dtype::f64);
  for (const auto& [begin, end] : {std::pair{0, 11}, {11, 13}, {13, 29}}) {
    const auto packed = to_doubles(written.slice(1, begin, end).clone());
    const auto alone = to_doubles(model.logits(tokens.slice(1, begin, end).clone()));
    REQUIRE(packed.size() == alone.size());
    double most = 0;
    for (size_t i = 0; i < alone.size(); ++i) most = std::max(most, std::abs(packed[i] - alone[i]));
    CHECK(most < 1e-12);
  }
}

TEST_CASE("logits: what cannot be read or computed is refused with its place") {
  const Folder f;
  make_run(f);
  const Tensor tokens = some_tokens(2, 9);
  for (const int32_t wrong : {-1, 256}) {
    tokens.data<int32_t>()[13] = wrong;
    write_tokens(f, tokens);
    refused(f, {"in.h5", concat("tokens[1, 4] is ", wrong), "0 to 255"});
  }
  write_tokens(f, some_tokens(1, 17));
  refused(f, {"in.h5", "17 long", "at most 16"});
  write_tokens(f, some_tokens(1, 9).to(Dtype::i64));
  refused(f, {"in.h5", "tokens is i64", "i32"});
  write_tokens(f, some_tokens(1, 9).to(Dtype::f32));
  refused(f, {"in.h5", "tokens is f32", "i32"});
  write_tokens(f, some_tokens(1, 9).reshape({9}));
  refused(f, {"in.h5", "tokens has shape [9]", "[B, T]"});
  write_tokens(f, empty({0, 9}, Dtype::i32));
  refused(f, {"in.h5", "tokens has shape [0, 9]"});
  const auto borders = [&](const std::vector<int32_t>& cu, const std::vector<std::string>& parts,
                           int64_t rows = 1, int64_t length = 9) {
    write_tokens(f, some_tokens(rows, length), tensor_of(cu));
    refused(f, parts);
  };
  borders({0, 9}, {"in.h5", "2 rows", "cu_seqlens"}, 2);
  borders({1, 9}, {"in.h5", "cu_seqlens", "from 1 to 9"});
  borders({0, 8}, {"in.h5", "cu_seqlens", "from 0 to 8", "9 tokens"});
  borders({0}, {"in.h5", "cu_seqlens"});
  borders({0, 5, 4, 9}, {"in.h5", "cu_seqlens[2] is 4", "more than the 5"});
  borders({0, 5, 5, 9}, {"in.h5", "cu_seqlens[2] is 5", "more than the 5"});
  borders({0, 3, 20}, {"in.h5", "document 1 has 17", "at most 16"}, 1, 20);
  {
    Hdf5Writer file(f / "in.h5");
    file.tensor("token", some_tokens(1, 9));
    file.tensor("tokens/a", some_tokens(1, 9));
    file.commit();
  }
  refused(f, {"in.h5", "tokens is a group"});
  f.write("in.h5", "no HDF5");
  refused(f, {"in.h5"});
  std::filesystem::remove(f / "in.h5");
  refused(f, {"in.h5"});
}
