// Every key of a layer's table does something: two values of it give different numbers in training
// and in generation, which goes on as one forward pass with either. The keys are those that the
// readers ask for, so that a new one without another value here fails.
#include <set>

#include "core/random.h"
#include "layers/model.h"
#include "tests/catch.h"
#include "tests/layers/made.h"

using namespace weft;
using namespace weft::layers;

namespace {

constexpr int64_t kVocabulary = 11, kLength = 40, kPrompt = 9;

// What a key changes: logits (and so the loss), the loss alone, memory alone, the longest text, or
// where the parameters start, or nothing before the model has taken steps.
enum class Changes { logits, loss, draw, memory, length, start, later };

struct Other {
  const char* value;
  Changes what = Changes::logits;
  std::vector<std::pair<std::string, std::string>> with = {};  // settings of both
};

// None and linear. The factor is of no use where an override says none, and is left out there.
Other scaled(const std::string& mixer) {
  return {"linear",
          Changes::logits,
          {{mixer + ".rotary_scaling", "none"}, {mixer + ".rotary_factor", "4"}}};
}

// Of a part, whose table is of use only where it is named.
Other beside(const char* value) {
  return {value, Changes::logits, {{"side_by_side.parts", "[\"gated_linear\", \"simple_gla\"]"}}};
}

// By path, else by the last part of it.
const std::map<std::string, Other>& others() {
  static const std::map<std::string, Other> list = {
      {"model.width", {"12"}},
      {"model.context", {"48", Changes::length, {{"model.positions", "learned"}}}},
      {"model.layers", {"3"}},
      {"model.pattern", {"[\"retention\"]"}},
      {"model.init", {"0.5"}},
      {"model.norm", {"layer"}},
      {"model.norm_position", {"post"}},
      {"model.norm_eps", {"0.5"}},
      {"model.norm_bias", {"true"}},
      {"model.norm_plus_one", {"true", Changes::start}},
      {"model.parallel", {"true"}},
      {"model.branch_scale", {"0.5"}},
      {"model.skip_scale", {"1.5"}},
      {"model.logit_scale", {"0.5"}},
      {"model.mlp", {"gelu"}},
      {"model.tied_embeddings", {"false"}},
      {"model.positions", {"learned"}},
      {"model.z_loss", {"0.1", Changes::loss}},
      {"model.logit_softcap", {"2.0"}},
      {"model.embedding_scale", {"true"}},
      {"model.recompute", {"true", Changes::memory}},
      {"mlp.width", {"5"}},
      {"mlp.bias", {"true"}},
      {"mlp.gate_scale", {"0.5"}},
      {"mlp.out_scale", {"0.5"}},
      {"moe.experts", {"3"}},
      {"moe.top_k", {"1"}},
      {"top_k", {"2"}},
      {"lost", {"0.3"}},
      {"first_blocks", {"2"}},
      {"recent_blocks", {"2"}},
      {"index_width", {"5"}},
      {"linear", {"none"}},
      {"soft_steps", {"0", Changes::logits, {{"router.anneal_steps", "0"}}}},
      {"anneal_steps", {"0", Changes::logits, {{"router.soft_steps", "0"}}}},
      {"temperature", {"0.5", Changes::later}},
      {"budget",
       {"0.1",
        Changes::loss,
        {{"router.soft_steps", "0"}, {"router.anneal_steps", "0"}, {"router.draw_steps", "9"}}}},
      {"price",
       {"3",
        Changes::loss,
        {{"router.soft_steps", "0"}, {"router.anneal_steps", "0"}, {"router.draw_steps", "9"}}}},
      {"draw_steps",
       {"9", Changes::draw, {{"router.soft_steps", "0"}, {"router.anneal_steps", "0"}}}},
      {"noise", {"0", Changes::draw}},
      {"document_router.soft_steps",
       {"0", Changes::logits, {{"document_router.anneal_steps", "0"}}}},
      {"document_router.anneal_steps",
       {"0", Changes::logits, {{"document_router.soft_steps", "0"}}}},
      {"document_router.draw_steps",
       {"9",
        Changes::draw,
        {{"document_router.soft_steps", "0"},
         {"document_router.anneal_steps", "0"},
         {"document_router.noise", "10"}}}},
      {"document_router.budget",
       {"0.1",
        Changes::loss,
        {{"document_router.soft_steps", "0"},
         {"document_router.anneal_steps", "0"},
         {"document_router.draw_steps", "9"}}}},
      {"document_router.price",
       {"3",
        Changes::loss,
        {{"document_router.soft_steps", "0"},
         {"document_router.anneal_steps", "0"},
         {"document_router.draw_steps", "9"}}}},
      {"document_router.rotary_scaling", scaled("document_router")},
      {"patterns", {"[1, 3, 10]"}},
      {"opening", {"12"}},
      {"document_router.first_blocks", {"0"}},
      {"moe.width", {"5"}},
      {"moe.shared", {"1"}},
      {"moe.shared_gate", {"true"}},
      {"moe.normalize", {"false"}},
      {"moe.balance_loss", {"0.5", Changes::loss}},
      {"moe.z_loss", {"0.5", Changes::loss}},
      {"moe.activation", {"gelu"}},
      {"moe.bias", {"true"}},
      {"moe.limit", {"0.01"}},
      {"moe.alpha", {"3"}},
      {"retention.type", {"linear_attention"}},
      {"latent_attention.rotary_scaling", scaled("latent_attention")},
      {"nsa.rotary_scaling", scaled("nsa")},
      {"token_sparse.rotary_scaling", scaled("token_sparse")},
      {"token_sparse.pattern", {"strided"}},
      {"shared_width", {"4"}},
      {"latent_width", {"5"}},
      {"query_rank", {"3"}},
      {"global_tokens", {"3"}},
      {"global_projections", {"true"}},
      {"random_tokens", {"3"}},
      {"pattern_seed", {"2"}},
      {"nsa.recent_blocks", {"1"}},
      {"side_by_side.parts", {"[\"gated_linear\", \"delta\"]"}},
      {"side_by_side.gated_linear.type", beside("retention")},
      {"side_by_side.simple_gla.type", beside("retention")},
      {"shares", {"[3, 1]"}},
      {"join", {"mean"}},
      {"side_by_side.norm", {"true"}},
      {"input_scale", {"0.5"}},
      {"output_scale", {"0.5"}},
      {"type", {"retention"}},
      {"heads", {"4"}},
      {"key_heads", {"1"}},
      {"head_dim", {"2"}},
      {"key_width", {"6"}},
      {"value_width", {"3"}},
      {"rotary", {"false"}},
      {"rotary_base", {"100"}},
      {"attention.rotary_scaling", scaled("attention")},
      {"block_sparse.rotary_scaling", scaled("block_sparse")},
      {"moba.rotary_scaling", scaled("moba")},
      {"topk.rotary_scaling", scaled("topk")},
      {"router.rotary_scaling", scaled("router")},
      {"rotary_fraction", {"0.5"}},
      {"rotary_interleaved", {"true"}},
      {"rotary_factor", {"8"}},
      {"rotary_context", {"8"}},
      {"rotary_slow", {"0.5"}},
      {"rotary_fast", {"2"}},
      {"rotary_truncate", {"true"}},
      {"rotary_magnitude", {"2"}},
      {"scale", {"0.1"}},
      {"output_gate", {"true"}},
      {"bias", {"true"}},
      {"qk_norm", {"true"}},
      {"qk_norm_whole", {"true"}},
      {"window", {"3"}},
      {"softcap", {"0.5"}},
      {"sinks", {"true"}},
      {"pattern", {"window"}},
      {"block", {"2"}},
      {"window_blocks", {"1"}},
      {"global_blocks", {"2"}},
      {"random_blocks", {"1"}},
      {"stride", {"3"}},
      {"block_sparse.density.first", {"0.3"}},
      {"block_sparse.density.last", {"0.9"}},
      {"block_sparse.density.power", {"2", Changes::logits, {{"model.layers", "3"}}}},
      {"feature_map", {"relu"}},
      {"normalize", {"false"}},
      {"fast_weights.normalize", {"true"}},
      {"fast_weights.output_norm", {"false"}},
      {"fast_weights.eps", {"0.5", Changes::logits, {{"fast_weights.normalize", "true"}}}},
      {"alpha", {"softplus"}},
      {"features", {"5"}},
      {"orthogonal", {"false"}},
      {"redraw", {"3", Changes::later}},
      {"horizon", {"80"}},
      {"learned_horizon", {"true"}},
      {"lower_bound", {"0.7"}},
      {"eps", {"0.5"}},
      {"output_norm", {"true"}},
      {"conv", {"2"}},
      {"gate_rank", {"2"}},
      {"gate_bias", {"true"}},
      {"negative_eigenvalues", {"true"}},
      {"norm_eps", {"0.1"}},
      {"delta.use_gate", {"true"}},
      {"use_gate", {"false"}},
      {"expand", {"1"}},
      {"state", {"5"}},
      {"dt_rank", {"2"}},
      {"inner_norms", {"true"}},
      {"inner_norm_weights", {"false"}},
      {"inner_norm_eps", {"0.5"}},
      {"mamba2.heads", {"3"}},
      {"mamba2.norm", {"none"}},
      {"z_scale", {"0.5"}},
      {"x_scale", {"0.5"}},
      {"b_scale", {"0.5"}},
      {"c_scale", {"0.5"}},
      {"dt_scale", {"0.5"}},
      {"step_least", {"0.5"}},
      {"step_most", {"0.01"}},
      {"groups", {"2"}},
  };
  return list;
}

const Other* other_of(const std::string& path) {
  for (const std::string& name : {path, path.substr(path.rfind('.') + 1)})
    if (const auto found = others().find(name); found != others().end()) return &found->second;
  return nullptr;
}

struct Base {
  std::string mixer, model, table;
};

// Each mixer with each MLP that has keys, and the patterns that have keys of their own.
std::vector<Base> bases() {
  std::vector<Base> list;
  for (const std::string& mixer : mixer_names()) {
    Base b{mixer, "", "heads = 2\n"};
    if (mixer == "gated_conv") b.table = "";
    if (mixer == "mamba") b.table = "state = 3\n";
    if (mixer == "mamba2") b.table = "state = 3\nhead_dim = 4\n";
    if (mixer == "block_sparse") b.table += "block = 4\n";
    if (mixer == "side_by_side")
      b.table =
          "parts = [\"gated_linear\", \"simple_gla\"]\n[side_by_side.gated_linear]\nheads = 2\n"
          "[side_by_side.simple_gla]\nheads = 2\n";
    if (mixer == "latent_attention") b.table += "shared_width = 8\n";
    if (mixer == "token_sparse") b.table += "window = 4\nglobal_tokens = 2\n";
    if (mixer == "moba" || mixer == "topk" || mixer == "router")
      b.table += "block = 4\ntop_k = 3\n";
    if (mixer == "document_router") b.table += "block = 4\nopening = 8\n";
    if (mixer == "nsa") b.table += "block = 4\ntop_k = 4\n";  // three are always seen
    list.push_back(b);
  }
  list.push_back({"attention", "mlp = \"moe\"\n", "heads = 2\n"});
  list.push_back({"attention", "mlp = \"moe\"\n", "heads = 2\n[moe]\nshared = 1\n"});
  list.push_back(
      {"attention", "mlp = \"moe\"\n", "heads = 2\n[moe]\nactivation = \"clamped_swiglu\"\n"});
  list.push_back({"mamba", "", "state = 3\ninner_norms = true\n"});
  list.push_back({"attention", "norm = \"layer\"\n", "heads = 2\nqk_norm = true\n"});
  for (const char* mixer : {"attention", "block_sparse"})
    list.push_back({mixer, "",
                    "heads = 2\nhead_dim = 8\nrotary_base = 10\nrotary_scaling = \"yarn\"\n"
                    "rotary_factor = 4\nrotary_context = 16\nrotary_truncate = false\n"
                    "qk_norm = true\n"});
  for (const char* map : {"favor+", "cosine"})
    list.push_back({"linear_attention", "", concat("heads = 2\nfeature_map = \"", map, "\"\n")});
  list.push_back({"block_sparse", "",
                  "heads = 2\nblock = 4\npattern = \"window\"\n"
                  "density = {first = 0.1, last = 0.5}\n"});
  list.push_back({"token_sparse", "", "heads = 2\npattern = \"random\"\nrandom_tokens = 2\n"});
  for (const char* pattern : {"strided", "dilated"})
    list.push_back(
        {"block_sparse", "", concat("heads = 2\nblock = 4\npattern = \"", pattern, "\"\n")});
  return list;
}

TomlTable recipe_of(const Base& b, bool bare) {
  std::string text = "[model]\nwidth = 8\ncontext = 40\nlayers = 2\ninit = 0.3\npattern = [\"" +
                     b.mixer + "\"]\n" + b.model;
  if (!bare) text += "[" + b.mixer + "]\n" + b.table;
  return toml_from_text(text, "r.toml");
}

Tensor tokens_of(int64_t n, const char* name) {
  const Tensor t = empty({1, n}, Dtype::i32);
  const Random random(17, stream_of(name));
  for (int64_t i = 0; i < n; ++i)
    t.data<int32_t>()[i] =
        static_cast<int32_t>(random.below(kVocabulary, static_cast<uint64_t>(i)));
  return t;
}

struct Seen {
  Tensor logits, prompt, steps, placed;  // the last three: of generation
  double loss = 0, total = 0;
  int64_t memory = 0, longest = 0;
  double start = 0;  // the sum of the parameters
};

Seen seen(const TomlTable& recipe) {
  Model m(recipe, kVocabulary, Dtype::f64, kCpu, 5);
  Seen s;
  for (const Parameter& p : m.parameters())
    for (const double v : to_doubles(p.var.value())) s.start += v;
  for (const Parameter& p : m.parameters())  // biases and norms do something
    if (p.var.value().dims() == 1)
      p.var.value().add_from(kernels::normal(p.var.value().shape(), 7, p.name, 0.3));
  const Tensor tokens = tokens_of(kLength, "tokens"), targets = tokens_of(kLength, "targets");
  s.logits = m.logits(tokens).reshape({kLength, kVocabulary});
  {
    const Loss loss = m.loss({tokens, targets, {}});
    s.loss = loss.cross_entropy.item();
    s.total = loss.total.value().item();
  }
  s.memory = peak_of(kCpu, [&] { autograd::backward(m.loss({tokens, targets, {}}).total); });
  s.longest = m.longest_text();
  for (Tensor* rows : {&s.steps, &s.placed}) {
    Generation g;
    g.capacity = kLength;
    s.prompt = m.next(tokens.slice(1, 0, kPrompt), g).clone();
    *rows = empty({kLength - kPrompt, kVocabulary}, Dtype::f64);
    for (int64_t at = kPrompt; at < kLength; ++at) {
      if (rows == &s.placed) g.place = tensor_of<int32_t>({static_cast<int32_t>(at)});
      rows->select(0, at - kPrompt).copy_from(m.next(tokens.slice(1, at, at + 1), g));
    }
  }
  return s;
}

void check_one_pass(const Seen& s) {
  CHECK(distance(s.prompt, s.logits.select(0, kPrompt - 1)) < 1e-10);
  CHECK(distance(s.steps, s.logits.slice(0, kPrompt, kLength)) < 1e-10);
  CHECK(distance(s.placed, s.logits.slice(0, kPrompt, kLength)) < 1e-10);
}

void check_differ(const Seen& a, const Seen& b, Changes what) {
  const bool logits = what == Changes::logits;
  CHECK((distance(a.logits, b.logits) > 1e-6) == logits);
  CHECK((distance(a.steps, b.steps) > 1e-6) == logits);
  CHECK((distance(a.placed, b.placed) > 1e-6) == logits);
  const bool loss = logits || what == Changes::draw;  // that of a step of training
  CHECK((std::abs(a.loss - b.loss) > 1e-9) == loss);
  CHECK((std::abs(a.total - b.total) > 1e-9) == (loss || what == Changes::loss));
  if (what == Changes::memory) CHECK(a.memory > b.memory);
  if (what == Changes::start) CHECK(std::abs(a.start - b.start) > 1);
  if (what == Changes::length) CHECK(a.longest < b.longest);
}

}  // namespace

TEST_CASE("layers: two values of every key differ, in training and in generation") {
  std::set<std::string> tried;
  for (const Base& base : bases()) {
    const TomlTable first = recipe_of(base, false);
    { const Model asks(first, kVocabulary, Dtype::f32, kMeta, 1); }
    for (const TomlKey& key : first.known()) {
      if (!tried.insert(key.path).second) continue;
      const Other* const other = other_of(key.path);
      INFO(key.path << ": others() of tests/layers/keys_test.cpp has no second value for it");
      REQUIRE(other);
      const bool type = key.path.ends_with(".type");  // the other mixer has other keys
      TomlTable a = recipe_of(base, type), b = recipe_of(base, type);
      for (const auto& [path, value] : other->with) {
        a.set(path, value);
        b.set(path, value);
      }
      b.set(key.path, other->value);
      INFO(key.path << " = " << other->value << " in\n" << b.to_text());
      const Seen x = seen(a), y = seen(b);
      check_one_pass(x);
      check_one_pass(y);
      check_differ(x, y, other->what);
    }
  }
  CHECK(tried.size() > 80);
}
