// What every layer is made of: named parameters, a forward pass on Vars, and a state for
// generation. A mixer lives in a .cpp file without a header: it puts its maker on the list by
//   const RegisteredMixer registered{"gated_linear", make_gated_linear};
// and from then on a recipe's pattern may name it.
#pragma once

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "autograd/tape.h"
#include "core/toml.h"

namespace weft::layers {

using autograd::Var;

// How a parameter starts. The numbers depend on the seed and on the parameter's full name alone.
struct Init {
  enum class Kind { constant, normal, uniform, function };
  Kind kind = Kind::constant;
  double a = 0;  // constant: the value; normal: deviation; uniform: lower bound
  double b = 0;  // uniform: upper bound
  // function: the value of element `index` from a uniform number in [0, 1)
  std::function<double(int64_t index, double uniform)> of;

  static Init constant(double value) { return {Kind::constant, value, 0, {}}; }
  static Init normal(double deviation) { return {Kind::normal, deviation, 0, {}}; }
  static Init uniform(double low, double high) { return {Kind::uniform, low, high, {}}; }
  static Init function(std::function<double(int64_t, double)> f) {
    return {Kind::function, 0, 0, std::move(f)};
  }
};

struct Parameter {
  std::string name;   // "layers.3.mixer.q_proj.weight", as in checkpoints
  Var var;            // a leaf
  Tensor master;      // its exact numbers: f32 beside a bf16 leaf, else the leaf's own
  bool decay = true;  // weight decay: not for norms, biases, A_log, dt_bias
  std::string part;   // for reports: "embedding", "mixer", "mlp", "norm", "head"
};

// Makes parameters and remembers them in order. A path is added in front of every name.
class Builder {
 public:
  Builder(Dtype dtype, Device device, uint64_t seed, std::vector<Parameter>* list);

  // decay: pass false for what is not a matrix in spirit (A_log, a router). A tensor with one
  // dimension is never decayed.
  Var parameter(const std::string& name, const Shape& shape, const Init& init,
                bool decay = true) const;
  // Fixed numbers of a layer, which are no parameters: element i is value(i).
  Tensor buffer(const Shape& shape, const std::function<double(int64_t)>& value) const;
  // The same builder one step down: within("mixer") names "mixer.q_proj.weight".
  Builder within(const std::string& path) const;
  // The same builder for parameters that stay f32 in a model of bf16: gates, decays, step sizes.
  Builder wide() const;
  // The same builder for another part of the model ("mixer", "mlp", ...; see Parameter).
  Builder part(const std::string& name) const;

  Dtype dtype() const { return dtype_; }
  Device device() const { return device_; }
  // Parameters on the list so far.
  size_t made() const { return list_->size(); }

 private:
  Dtype dtype_;
  Device device_;
  uint64_t seed_;
  std::vector<Parameter>* list_;
  std::shared_ptr<std::unordered_set<std::string>> names_;  // of those on the list
  std::string path_, part_ = "other";
};

// What one layer keeps between calls when text is generated: KV caches, states, convolution taps.
// A layer makes its tensors on its first call with a state and names them as it likes.
struct State {
  std::map<std::string, Tensor> tensors;
  int64_t held = 0;          // rows in use of a cache of keys
  bool ring = false;         // rows of that cache stand at their position modulo their number
  std::vector<State> parts;  // of layers within this one
  int64_t bytes() const;     // of its tensors, and of its parts
};

// What a mixer read and gave, [B, T, D].
struct Mixed {
  Tensor x, y;
};

// Which ways a mixer moves what it reads between tokens.
enum class Ways : uint8_t { linear, softmax, both };

// What a forward pass needs beside x.
struct Context {
  Tensor cu_seqlens;       // i32 [N+1]: borders of packed documents; absent where rows are whole
  State* state = nullptr;  // generation: this layer's state; x continues what it has seen
  int64_t position = 0;    // generation: how many tokens came before x
  // Generation one token at a time: i32 [1] on the device of x, the position of x where it is to be
  // read as the work runs; `position` may not count then. What is held has one size from there on.
  Tensor place;
  int64_t capacity = 0;  // generation: the longest text that will come, for caches that grow
  std::vector<Var>* losses = nullptr;  // auxiliary losses [1], already weighted, are appended here
  // A step of training: what a layer draws at random or estimates is for these alone. Blocks that
  // are computed again for their gradients see it the first time too.
  bool training = false;
  std::vector<Mixed>* mixed = nullptr;  // what each mixer read and gave is appended here
  // An evaluation that asks what a way is worth: nothing comes of it.
  bool no_softmax = false, no_linear = false;
};

class Layer {
 public:
  virtual ~Layer() = default;
  // x and result: [B, T, D]
  virtual Var forward(const Var& x, Context& c) const = 0;
  // FLOPs of a forward pass a token at length T that are not products with parameters (attention
  // scores, states), for `weft inspect`.
  virtual double flops_per_token(int64_t T) const = 0;
  // Parameters a token actually meets (less than all in a mixture of experts); -1 means all.
  virtual int64_t active_parameters() const { return -1; }
  // The longest text that the layer can be fed.
  virtual int64_t longest_text() const { return std::numeric_limits<int32_t>::max(); }
  // `step` optimizer steps were taken; for layers that draw numbers anew every so many of them. It
  // is called between steps, and what it does depends on the number alone, not on earlier calls.
  virtual void at_step(int64_t step) { static_cast<void>(step); }
  // A mixer of both ways leaves out what the context says; for others the model does it.
  virtual Ways ways() const { return Ways::linear; }
  // Which operations forward() runs: where two steps have two numbers, work that was recorded at
  // one is not that of the other.
  virtual int64_t form() const { return 0; }
};

// What a maker may know of the model around it.
struct Spec {
  int64_t width = 0;    // D
  int64_t spread = 0;   // what the widths of heads follow from; 0: width
  int64_t context = 0;  // longest sequence
  int64_t layer = 0;    // index of this layer, and how many there are
  int64_t layers = 1;
  uint64_t seed = 0;
  double init = 0.02;  // deviation of weights
  // Of the norms that a released model keeps like those of its blocks (queries, keys, dt, B, C):
  double norm_eps = 0;         // 0: the usual one
  bool norm_plus_one = false;  // they multiply by 1 + weight
  // What the heads of a mixer have together where its table does not say how wide they are.
  int64_t heads_width() const { return spread > 0 ? spread : width; }
  // That of the matrices that write into the residual stream: smaller the more of them there are.
  double residual_init() const { return init / std::sqrt(2.0 * static_cast<double>(layers)); }
};

// Reads its settings from the recipe's table; throws Error with the place of what it cannot take.
using Maker = std::function<std::unique_ptr<Layer>(const Spec& spec, const TomlTable& table,
                                                   const Builder& builder)>;

// What a recipe's pattern may name. mixer_maker() throws Error naming the nearest known name.
void add_mixer(const std::string& name, Maker maker);
std::vector<std::string> mixer_names();
const Maker& mixer_maker(const std::string& name);

// The maker of a class with the constructor (spec, table, builder).
template <class L>
Maker maker() {
  return [](const Spec& spec, const TomlTable& table, const Builder& builder) {
    return std::make_unique<L>(spec, table, builder);
  };
}

struct RegisteredMixer {
  RegisteredMixer(const std::string& name, Maker maker) { add_mixer(name, std::move(maker)); }
};

}  // namespace weft::layers
