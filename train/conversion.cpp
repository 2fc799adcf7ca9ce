#include "train/conversion.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <optional>

#include "core/text.h"
#include "core/units.h"

namespace weft::train {
namespace {

// A run of heads in a matrix: rows begin + h * stride .. + width - 1 are head h's; of an output,
// columns are.
struct Slab {
  std::string weight;  // the parameter, within the mixer: "q_proj"
  int64_t heads = 0, width = 0, begin = 0, stride = 0;
  bool columns = false;
};

// What a linear mixer starts with: it forgets 1 % of its state a token, and writes and passes on
// nearly all.
constexpr double kKept = 0.99;
constexpr double kSiluOne = 1.2784645427610738;  // silu of it is 1
constexpr double kNearOne = 4;                   // sigmoid: 0.982
constexpr double kBeta = 2;                      // sigmoid: 0.881

double inverse_softplus(double y) { return std::log(std::expm1(y)); }
double inverse_logsigmoid(double y) { return -std::log(std::expm1(-y)); }

}  // namespace

// A layer's mixer, by its kind and its sizes.
struct Conversion::Layer {
  std::string start;  // "layers.3.mixer."
  std::string type;
  std::map<char, Slab> slabs;  // of q, k, v and the output o
  bool softmax = false, doubled = false;
};

namespace {

// The keys that a mixer's table read.
class Sizes {
 public:
  Sizes(const std::map<std::string, TomlValue>& values, std::string table)
      : values_(values), table_(std::move(table)) {}
  std::string text(const char* key) const {
    const auto found = values_.find(table_ + "." + key);
    return found == values_.end() ? "" : found->second.text;
  }
  int64_t operator()(const char* key) const {
    const std::string value = text(key);
    return value.empty() ? 0 : std::stoll(value);
  }

 private:
  const std::map<std::string, TomlValue>& values_;
  std::string table_;
};

std::map<char, Slab> softmax_slabs(const Sizes& of) {
  const int64_t H = of("heads"), Hk = of("key_heads"), K = of("head_dim");
  const int64_t stride = of.text("output_gate") == "true" ? 2 * K : K;
  return {{'q', {"q_proj", H, K, 0, stride, false}},
          {'k', {"k_proj", Hk, K, 0, K, false}},
          {'v', {"v_proj", Hk, K, 0, K, false}},
          {'o', {"o_proj", H, K, 0, K, true}}};
}

std::map<char, Slab> linear_slabs(const Sizes& of, const std::string& type) {
  const int64_t H = of("heads"), shared = of("key_heads"), Hk = shared ? shared : H;
  const int64_t K = of("key_width"), V = of("value_width");
  std::map<char, Slab> slabs = {
      {'q', {"q_proj", Hk, K, 0, K, false}},
      {'v', {type == "hgrn2" ? "i_proj" : "v_proj", H, V, 0, V, false}},
      {'o', {type == "lightning" ? "out_proj" : "o_proj", H, V, 0, V, true}}};
  if (type != "hgrn2") slabs['k'] = {"k_proj", Hk, K, 0, K, false};  // its keys are its gates
  return slabs;
}

// in_proj has the rows of z, x, B, C and dt.
std::map<char, Slab> mamba2_slabs(const Sizes& of, int64_t E) {
  const int64_t P = of("head_dim"), N = of("state"), G = of("groups");
  return {{'v', {"in_proj", E / P, P, E, P, false}},
          {'k', {"in_proj", G, N, 2 * E, N, false}},
          {'q', {"in_proj", G, N, 2 * E + G * N, N, false}},
          {'o', {"out_proj", E / P, P, 0, P, true}}};
}

// How many times each head is taken (> 0), or how many make one (< 0); 0: neither divides the
// other.
int64_t times(int64_t there, int64_t here) {
  if (here % there == 0) return here / there;
  return there % here == 0 ? -(there / here) : 0;
}

// Puts the heads of `in` [rows, D] (of an output, [D, columns]) where they belong in `out`.
void move_heads(const Tensor& in, const Slab& from, const Tensor& out, const Slab& to) {
  const int64_t n = times(from.heads, to.heads), one = std::abs(n);
  const auto source = view<const double>(in);
  const auto target = view<double>(out);
  const int64_t D = from.columns ? in.size(0) : in.size(1);
  const double factor = from.columns ? (n > 0 ? 1.0 / static_cast<double>(one) : 1.0)
                                     : (n > 0 ? 1.0 : 1.0 / static_cast<double>(one));
  for (int64_t h = 0; h < to.heads; ++h)
    for (int64_t i = 0; i < from.width; ++i)
      for (int64_t d = 0; d < D; ++d) {
        double sum = 0;
        for (int64_t j = 0; j < (n > 0 ? 1 : one); ++j) {
          const int64_t head = n > 0 ? h / one : h * one + j;
          const int64_t row = from.begin + head * from.stride + i;
          sum += from.columns ? source(d, row) : source(row, d);
        }
        const int64_t row = to.begin + h * to.stride + i;
        (to.columns ? target(d, row) : target(row, d)) = factor * sum;
      }
}

std::string told(const Slab& from, const Slab& to) {
  const int64_t n = times(from.heads, to.heads);
  std::string how = n == 1  ? "head by head"
                    : n > 1 ? concat("each head ", n, " times", to.columns ? ", divided" : "")
                            : concat(to.columns ? "the sum of " : "the mean of ", -n, " heads");
  if (to.width > from.width)
    how += concat(", ", from.width, " of ", to.width, " a head, the rest drawn");
  return how;
}

}  // namespace

Conversion::Conversion(const Teacher& teacher, Recipe student)
    : teacher_(teacher), recipe_(std::move(student)) {
  const DataSettings data = read_data(recipe_.toml);
  vocabulary_ = vocabulary_of(data);
  const Dtype dtype = recipe_.train.dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  plan_ = std::make_unique<layers::Model>(teacher.recipe.toml, teacher.vocabulary, dtype, kMeta, 1);
  require_parameters(teacher.file, plan_->parameters());
  model_ =
      std::make_unique<layers::Model>(recipe_.toml, vocabulary_, dtype, kCpu, recipe_.train.seed);
  recipe_.finish();
  require_fits(teacher, *plan_, recipe_, *model_);
  const size_t layers = layers::layer_names(recipe_.toml).mixers.size();
  std::vector<std::pair<Layer, Layer>> mixers;
  for (size_t i = 0; i < layers; ++i)
    mixers.emplace_back(layer_of(*plan_, teacher.recipe, i), layer_of(*model_, recipe_, i));
  for (const layers::Parameter& p : model_->parameters()) {
    const auto in = std::find_if(mixers.begin(), mixers.end(), [&](const auto& pair) {
      return p.name.starts_with(pair.second.start);
    });
    if (in == mixers.end())
      outside(p);
    else
      mixer(p, in->first, in->second);
  }
  for (const layers::Parameter& p : plan_->parameters())
    if (!contains(taken_, p.name)) not_taken_.push_back(p.name);
}

Conversion::Layer Conversion::layer_of(const layers::Model& model, const Recipe& recipe,
                                       size_t index) const {
  const std::string table = layers::layer_names(recipe.toml).mixers[index];
  const std::map<std::string, TomlValue> values = recipe.toml.values();
  const Sizes of(values, table);
  Layer layer;
  layer.start = concat("layers.", index, ".mixer.");
  layer.type = of.text("type");
  std::erase(layer.type, '"');
  layer.doubled = of.text("negative_eigenvalues") == "true";
  layer.softmax = of("head_dim") > 0 && of("heads") > 0;
  if (layer.softmax) {
    layer.slabs = softmax_slabs(of);
  } else if (of("key_width") > 0) {
    layer.slabs = linear_slabs(of, layer.type);
  } else if (layer.type == "mamba2") {
    for (const layers::Parameter& p : model.parameters())
      if (p.name == layer.start + "out_proj.weight")
        layer.slabs = mamba2_slabs(of, p.var.shape()[1]);
  }
  return layer;
}

bool Conversion::has(const std::string& name) const {
  return teacher_.file.has_tensor("parameters/" + name);
}

Tensor Conversion::take(const std::string& name) {
  if (!contains(taken_, name)) taken_.push_back(name);
  return teacher_.file.tensor("parameters/" + name);
}

void Conversion::note(const layers::Parameter& p, const std::string& from, const std::string& how) {
  origins_.push_back({p.name, p.var.shape(), from, how});
}

void Conversion::copy(const layers::Parameter& p, const std::string& from) {
  p.master.copy_from(take(from));
  note(p, from, from == p.name ? "the same" : "the same numbers");
}

void Conversion::outside(const layers::Parameter& p) {
  const std::string from = !has(p.name) && p.name == "head.weight" ? "embedding.weight" : p.name;
  if (!has(from)) return note(p, "", "drawn: the teacher has none");
  const Shape there = teacher_.file.info("parameters/" + from).shape;
  if (there == p.var.shape()) return copy(p, from);
  if (p.name == "positions.weight") {  // of another context
    const int64_t rows = std::min(there[0], p.var.shape()[0]);
    p.master.slice(0, 0, rows).copy_from(take(from).slice(0, 0, rows));
    return note(p, from, concat("the first ", rows, " positions"));
  }
  note(p, "", concat("drawn: the teacher's is ", there));
}

void Conversion::mixer(const layers::Parameter& p, const Layer& from, const Layer& to) {
  const std::string own = p.name.substr(to.start.size());
  const bool alike = from.type == to.type || (from.softmax && to.softmax);
  if (alike && has(p.name) && teacher_.file.info("parameters/" + p.name).shape == p.var.shape())
    return copy(p, p.name);
  std::string why;
  if (heads(p, own, from, to, why)) return;
  if (start(p, own, to)) return;
  note(p, "", why.empty() ? "as a new run starts it" : "as a new run starts it: " + why);
}

bool Conversion::heads(const layers::Parameter& p, const std::string& own, const Layer& from,
                       const Layer& to, std::string& why) {
  std::string names, how;
  Tensor numbers;
  for (const auto& [role, slab] : to.slabs) {
    const bool bias = own == slab.weight + ".bias";
    if (own != slab.weight + ".weight" && !(bias && !slab.columns)) continue;
    const auto found = from.slabs.find(role);
    if (found == from.slabs.end()) {
      why = concat("a teacher's ", from.type, " has no such heads");
      continue;
    }
    const Slab& there = found->second;
    const std::string name = from.start + there.weight + (bias ? ".bias" : ".weight");
    if (times(there.heads, slab.heads) == 0)
      why = concat(there.heads, " heads there and ", slab.heads, " here do not divide");
    else if (slab.width < there.width)
      why = concat("heads of ", there.width, " there and ", slab.width, " here");
    else if (has(name)) {
      if (!numbers) numbers = p.master.to(Dtype::f64).clone();
      const auto matrix = [](const Tensor& t) { return t.dims() == 1 ? t.reshape({-1, 1}) : t; };
      move_heads(matrix(take(name).to(Dtype::f64)), there, matrix(numbers), slab);
      names += (names.empty() ? "" : ", ") + name;
      how += concat(how.empty() ? "" : "; ",
                    to.slabs.size() > 1 && own == "in_proj.weight" ? concat(role, " ") : "",
                    told(there, slab));
    }
  }
  if (!numbers) return false;
  if (own == "in_proj.weight") {  // the rows of dt; those of the gate are drawn
    const int64_t H = to.slabs.at('o').heads, rows = numbers.size(0);
    numbers.slice(0, rows - H, rows).zero();
    how += "; dt zero; the gate drawn";
  }
  p.master.copy_from(numbers);
  note(p, names, how);
  return true;
}

// What has no source, but a start that lets the rest of the model go on working.
bool Conversion::start(const layers::Parameter& p, const std::string& own, const Layer& to) {
  const auto filled = [&](double value, const std::string& how) {
    p.master.copy_from(full(p.var.shape(), value, p.master.dtype()));
    note(p, "", how);
    return true;
  };
  const auto with_bias = [&](const std::string& weight) {
    for (const layers::Parameter& other : model_->parameters())
      if (other.name == to.start + weight + ".bias") return true;
    return false;
  };
  // A gate that its bias alone decides at first.
  const auto gate = [&](const std::string& name, double bias, const std::string& how) {
    if (own == name + ".weight" && with_bias(name)) return filled(0, "zero: the bias decides");
    return own == name + ".bias" && filled(bias, how);
  };
  if (own.ends_with("conv1d.weight")) {
    p.master.zero();
    const int64_t taps = p.var.shape()[1];
    p.master.slice(1, taps - 1, taps).copy_from(full({p.var.shape()[0], 1}, 1, p.master.dtype()));
    note(p, "", "the identity");
    return true;
  }
  const double step = -std::log(kKept);
  if (own == "A_log" && to.type != "mamba") return filled(0, "a rate of 1");
  if (own == "dt_bias") return filled(inverse_softplus(step), "0.99 of the state is kept");
  if (own == "a_proj.weight" || (to.type == "kda" && own == "f_proj.1.weight"))
    return filled(0, "zero: the bias decides");
  const double kept = inverse_logsigmoid(-16 * step);
  for (const char* name : {"gk_proj", "gk_proj.1"})
    if (gate(name, kept, "0.99 of the state is kept")) return true;
  if (own == "b_proj.weight" && to.doubled) return filled(0, "zero: beta is 1");
  if (own == "b_proj.bias" && to.doubled) return filled(0, "beta is 1");
  if (gate("b_proj", kBeta, "beta is 0.88")) return true;
  if (own == "b_proj.weight") {
    const bool delta = to.type == "delta" || to.type == "gated_delta";
    note(p, "",
         concat(
             "as a new run starts it: beta is about 1/2",
             delta ? "; gate_bias = true would start it at 0.88" : "",
             delta || to.type == "kda" ? "; negative_eigenvalues = true would start it at 1" : ""));
    return true;
  }
  if (gate("g_proj", kSiluOne, "the gate is 1")) return true;
  if (to.type == "kda" && gate("g_proj.1", kNearOne, "the gate is 0.98")) return true;
  return gate("alpha_proj", kNearOne, "alpha is near one");
}

std::string Conversion::table() const {
  size_t name = 9, shape = 5, from = 12;
  for (const Origin& o : origins_) {
    name = std::max(name, o.name.size());
    shape = std::max(shape, concat(o.shape).size());
    from = std::max(from, o.from.size());
  }
  std::string text;
  const auto line = [&](const std::string& a, const std::string& b, const std::string& c,
                        const std::string& d) {
    const auto padded = [](std::string s, size_t n) {
      return s += std::string(n - s.size() + 2, ' ');
    };
    text += padded(a, name) + padded(b, shape) + padded(c, from) + d + "\n";
  };
  line("parameter", "shape", "from", "how");
  int64_t with = 0, all = 0;
  for (const Origin& o : origins_) {
    line(o.name, concat(o.shape), o.from.empty() ? "-" : o.from, o.how);
    all += o.shape.numel();
    if (!o.from.empty()) with += o.shape.numel();
  }
  text +=
      concat(count_text(static_cast<double>(with)), " of ", count_text(static_cast<double>(all)),
             " numbers are in parameters with a source\n");
  for (const std::string& left : not_taken_) text += "not taken: " + left + "\n";
  return text;
}

void Conversion::save(const std::string& path) const {
  RunState state;
  state.recipe = recipe_.toml.to_text();
  state.recipe_name = recipe_.name;
  state.seed = recipe_.train.seed;
  state.best_loss = std::numeric_limits<double>::infinity();
  state.tokenizer = teacher_.state.tokenizer;
  save_start(path, state, [&](const PutTensor& put) {
    for (const layers::Parameter& p : model_->parameters()) put(p.name, p.master);
  });
}

}  // namespace weft::train
