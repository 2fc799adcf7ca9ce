// The CUDA forms at sizes that the cases of the references are too small for: the widths of models,
// which other kernels serve; 100,000 tokens; more than 2^31 elements. What is expected is the CPU's
// chunkwise form in f64, which tests/kernels/forms_test.cpp holds to the definition, or the same
// rows computed alone.
#include "tests/kernels/cuda_checks.h"
#include "tests/kernels/sampled.h"

namespace weft::kernels {
namespace {

using tests::sampled;
using tests::Sized;

void check_agreement(const Sized& s) {
  const NamedCase c = sampled(s);
  tests::check_on_gpu(operation(s.operation), c, Form::chunkwise, c.name);
}

Sized heads(const std::string& op, std::map<std::string, int64_t> sizes,
            std::vector<std::string> with = {}, Settings settings = {},
            std::vector<int32_t> documents = {}) {
  for (const auto& [letter, size] : std::map<std::string, int64_t>{
           {"B", 1}, {"H", 2}, {"Hk", 2}, {"V", sizes.at("K")}, {"S", sizes.at("T")}})
    sizes.emplace(letter, size);
  sizes.emplace("N",
                documents.empty() ? sizes.at("B") : static_cast<int64_t>(documents.size()) - 1);
  return {op, std::move(sizes), std::move(with), std::move(settings), std::move(documents)};
}

std::vector<Sized> widths_of_models() {
  const std::vector<int32_t> packed = {0, 1, 64, 130, 200};
  std::vector<Sized> list;
  for (const int64_t K : {64, 128, 256}) {
    for (const auto& [op, gate] : std::vector<std::pair<std::string, std::vector<std::string>>>{
             {"linear", {"g"}}, {"gated_linear", {}}, {"delta", {"g"}}, {"kda", {}}}) {
      std::vector<std::string> with = gate;
      with.emplace_back("initial_state");
      list.push_back(heads(op, {{"B", 2}, {"T", 200}, {"Hk", 1}, {"K", K}}, with));
      list.push_back(heads(op, {{"T", 200}, {"K", K}}, with, {}, packed));
    }
    list.push_back(heads("linear", {{"T", 140}, {"K", K}}, {"log_gamma"}));
    list.push_back(heads("delta", {{"T", 140}, {"K", K}}));
    list.push_back(heads("attention", {{"B", 2}, {"T", 300}, {"Hk", 1}, {"K", K}}));
    list.push_back(heads("attention", {{"T", 300}, {"K", K}}, {}, {{"window", "100"}}));
    list.push_back(heads("attention", {{"T", 130}, {"S", 300}, {"K", K}}, {"sink"}));
    list.push_back(heads("attention", {{"T", 200}, {"K", K}}, {}, {}, packed));
    list.push_back(heads("attention", {{"T", 200}, {"K", K}}, {}, {{"causal", "false"}}));
    list.push_back(heads("block_sparse", {{"B", 2}, {"T", 333}, {"Hk", 1}, {"K", K}}));
    list.push_back(heads("block_sparse", {{"T", 200}, {"K", K}}, {}, {}, packed));
  }
  list.push_back(heads("gated_linear", {{"T", 150}, {"K", 64}, {"V", 128}}, {"initial_state"}));
  list.push_back(heads("kda", {{"T", 150}, {"K", 128}, {"V", 64}}, {"initial_state"}));
  list.push_back(heads("rotary", {{"T", 50}, {"K", 128}}));
  for (const int64_t K : {64, 128, 256}) {
    list.push_back(heads("random_features", {{"T", 70}, {"K", K}, {"M", 200}}, {"shift"}));
    list.push_back(heads("cosine_features", {{"B", 2}, {"T", 200}, {"K", K}}));
  }
  list.push_back(heads("random_features", {{"T", 70}, {"K", 64}, {"M", 256}}, {},
                       {{"kind", "trigonometric"}}));
  list.push_back(heads("cosine_features", {{"T", 200}, {"K", 64}}, {}, {}, packed));
  list.push_back({"forget_gate", {{"R", 37}, {"D", 768}}, {}, {{"bound", "0.5"}}});
  const std::vector<std::string> all = {"D", "z", "dt_bias", "initial_state"};
  list.push_back({"selective_scan", {{"B", 2}, {"T", 300}, {"E", 160}, {"K", 16}, {"N", 2}}, all});
  list.push_back(
      {"selective_scan", {{"B", 1}, {"T", 200}, {"E", 64}, {"K", 16}, {"N", 4}}, all, {}, packed});
  list.push_back({"short_conv",
                  {{"B", 2}, {"T", 300}, {"D", 512}, {"W", 4}, {"W - 1", 3}, {"N", 2}},
                  {"bias", "initial_state"}});
  list.push_back({"short_conv",
                  {{"B", 1}, {"T", 200}, {"D", 256}, {"W", 4}, {"W - 1", 3}, {"N", 4}},
                  {"bias", "initial_state"},
                  {},
                  packed});
  for (const int64_t D : {128, 768, 4096}) {
    list.push_back({"rms_norm", {{"R", 37}, {"D", D}}, {"weight"}});
    list.push_back({"rms_norm", {{"R", 37}, {"D", D}}, {"weight", "residual"}});
    list.push_back({"layer_norm", {{"R", 37}, {"D", D}}, {"weight", "bias"}});
    list.push_back({"layer_norm", {{"R", 37}, {"D", D}}, {"weight", "bias", "residual"}});
    list.push_back({"gated_norm", {{"R", 37}, {"D", D}}, {"weight"}});
    list.push_back({"l2_norm", {{"R", 37}, {"D", D}}});
    list.push_back({"activation", {{"R", 37}, {"D", D}}});
    list.push_back({"gated_activation", {{"R", 37}, {"D", D}}});
    list.push_back({"embedding", {{"R", 300}, {"V", 100}, {"D", D}}});
  }
  list.push_back({"cross_entropy", {{"R", 70}, {"V", 3000}, {"D", 128}}});
  list.push_back({"matmul", {{"R", 200}, {"I", 256}, {"O", 192}}, {"bias"}});
  list.push_back({"grouped_matmul", {{"R", 300}, {"I", 128}, {"O", 192}, {"E", 4}}});
  list.push_back({"grouped_matmul", {{"R", 300}, {"I", 256}, {"O", 64}, {"E", 3}}});
  return list;
}

std::vector<Sized> hundred_thousand_tokens() {
  constexpr int64_t T = 100'000;
  const std::map<std::string, int64_t> one_head = {{"T", T}, {"H", 1}, {"Hk", 1}, {"K", 32}};
  std::vector<Sized> list = {heads("linear", one_head),
                             heads("linear", one_head, {"g", "initial_state"}),
                             heads("gated_linear", one_head, {"initial_state"}),
                             heads("delta", one_head),
                             heads("delta", one_head, {"g", "initial_state"}),
                             heads("kda", one_head, {"initial_state"}),
                             heads("attention", one_head, {}, {{"window", "256"}}),
                             heads("block_sparse", one_head),
                             {"selective_scan",
                              {{"B", 1}, {"T", T}, {"E", 32}, {"K", 16}, {"N", 1}},
                              {"D", "z", "dt_bias", "initial_state"}},
                             {"short_conv",
                              {{"B", 1}, {"T", T}, {"D", 32}, {"W", 4}, {"W - 1", 3}, {"N", 1}},
                              {"bias", "initial_state"}}};
  // So many rows that none is cut into segments.
  list.push_back(heads("linear", {{"B", 64}, {"T", 20'000}, {"H", 1}, {"Hk", 1}, {"K", 16}}));
  for (Sized& s : list) s.decay = 1e-3;  // a memory of a thousand tokens
  return list;
}

// --- More than 2^31 elements ---------------------------------------------------------------------

// Rows (or tokens of one sequence) that are computed alone, and those of them that the rest does
// not reach: decays, windows and taps have let go of what is further off.
constexpr int64_t kPart = 2048, kSure = 256;

int row_dimension(const std::string& shape) {
  const std::vector<std::string> letters = letters_of(shape);
  for (size_t i = 0; i < letters.size(); ++i)
    if (letters[i] == "T" || letters[i] == "S" || letters[i] == "R") return static_cast<int>(i);
  return -1;
}

// `head` over and over until there are `rows` of them, the last ones those of `tail`.
Tensor grown(const Tensor& head, const Tensor& tail, int dim, int64_t rows) {
  Shape shape = head.shape();
  shape[dim] = rows;
  const Tensor t = empty(shape, head.dtype(), kCuda);
  t.slice(dim, 0, kPart).copy_from(head);
  for (int64_t done = kPart; done < rows;) {
    const int64_t n = std::min(done, rows - done);
    t.slice(dim, done, done + n).copy_from(t.slice(dim, 0, n));
    done += n;
  }
  t.slice(dim, rows - kPart, rows).copy_from(tail);
  return t;
}

struct Run {
  Tensors inputs, output_gradients, all;  // all: outputs and gradients
  Run(const Operation& op, const Settings& settings, Tensors in, Tensors dy)
      : inputs(std::move(in)), output_gradients(std::move(dy)) {
    all = op.forward(Form::chunkwise, inputs, settings);
    for (const auto& [name, t] : op.backward(Form::chunkwise, inputs, settings, output_gradients))
      all[name] = t;
  }
};

// Weights and the like, which have no rows, are those of `shared`.
Run alone(const Operation& op, const Sized& s, uint64_t seed, const Tensors& shared = {}) {
  const NamedCase c = sampled(s, seed);
  const Expected e = expected_of(op, c, Dtype::bf16, Form::chunkwise);
  Tensors in = on_device(kCuda, e.inputs);
  for (const Field& f : op.inputs())
    if (shared.count(f.name) && row_dimension(f.shape) < 0) in[f.name] = shared.at(f.name);
  return {op, c.settings, in, on_device(kCuda, e.output_gradients)};
}

void check_edges(Sized s, int64_t rows) {
  for (const char* letter : {"T", "S", "R"}) s.sizes[letter] = kPart;
  const Operation& op = operation(s.operation);
  const Run head = alone(op, s, 1), tail = alone(op, s, 2, head.inputs);
  std::map<std::string, int> dims;
  for (const Field& f : op.inputs())
    dims[f.name] = dims[gradient_name(f.name)] = row_dimension(f.shape);
  for (const Field& f : op.outputs())
    dims[f.name] = dims[gradient_name(f.name)] = row_dimension(f.shape);
  const auto all_grown = [&](const Tensors& a, const Tensors& b) {
    Tensors t;
    for (const auto& [name, part] : a)
      t[name] = dims.at(name) < 0 ? part : grown(part, b.at(name), dims.at(name), rows);
    return t;
  };
  const Run whole(op, s.settings, all_grown(head.inputs, tail.inputs),
                  all_grown(head.output_gradients, tail.output_gradients));
  int64_t most = 0;
  for (const auto& [name, t] : whole.all) {
    const int dim = dims.at(name);
    if (dim < 0) continue;
    most = std::max(most, t.numel());
    const int64_t n = t.size(dim);
    const auto check = [&](const char* where, const Tensor& got, const Tensor& want) {
      INFO(s.operation << " " << name << " " << t.shape() << ", " << where << " rows");
      CHECK(difference(got.clone(), want.clone(), 1e-2).error < 2e-3);
    };
    check("first", t.slice(dim, 0, kSure), head.all.at(name).slice(dim, 0, kSure));
    check("last", t.slice(dim, n - kSure, n), tail.all.at(name).slice(dim, kPart - kSure, kPart));
  }
  CHECK(most > int64_t{1} << 31);
}

}  // namespace

TEST_CASE("cuda: heads and rows of the widths of models agree with the CPU's form", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  for (const Operation* op : operations()) {
    DYNAMIC_SECTION(op->name()) {
      for (const Sized& s : widths_of_models()) {
        if (s.operation != op->name()) continue;
        DYNAMIC_SECTION(tests::label(s)) { check_agreement(s); }
      }
    }
  }
}

TEST_CASE("cuda: a hundred thousand tokens agree with the CPU's form", "[.long]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  for (const Sized& s : hundred_thousand_tokens()) {
    DYNAMIC_SECTION(tests::label(s)) { check_agreement(s); }
  }
}

TEST_CASE("cuda: the first and last rows of more than 2^31 elements are those computed alone",
          "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  if (memory_of(kCuda) < int64_t{64} << 30) SKIP("the GPU has less than 64 GiB");
  const Settings no_state = {{"return_state", "false"}};
  const std::map<std::string, int64_t> wide_keys = {{"T", 0},   {"H", 16}, {"Hk", 16},
                                                    {"K", 128}, {"V", 16}, {"N", 1}};
  const int64_t rows = (1 << 21) + kPart, tokens = (1 << 20) + kPart;
  const auto check = [](const Sized& s, int64_t n) {
    DYNAMIC_SECTION(tests::label(s)) {
      check_edges(s, n);
      allocator(kCuda).empty_cache();
    }
  };
  check({"activation", {{"D", 1024}}}, rows);
  check({"rms_norm", {{"D", 1024}}, {"weight"}}, rows);
  check({"short_conv", {{"B", 1}, {"D", 1024}, {"W", 4}}, {"bias"}, no_state}, rows);
  check(heads("linear", wide_keys, {"g"}, no_state), tokens);
  check(heads("delta", wide_keys, {"g"}, no_state), tokens);
  check(heads("attention", wide_keys, {}, {{"window", "128"}}), tokens);
  check({"selective_scan", {{"B", 1}, {"E", 2048}, {"K", 16}}, {"D", "dt_bias"}, no_state}, tokens);
}

}  // namespace weft::kernels
