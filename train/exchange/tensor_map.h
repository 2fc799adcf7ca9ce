// Which tensors of a released model are which parameters of ours: one list for both directions.
//
// A rule joins some of their tensors and some of ours. Each side, with what is not the last
// dimension made one, is a matrix of rows, one tensor's rows behind the other's; both hold the same
// rows. With `groups` = G the order differs: their matrix has G groups, each with a G-th of every
// tensor of ours, as where a fused projection is laid out head by head.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/safetensors.h"
#include "layers/model.h"

namespace weft::train {

// How a tensor of theirs lies: [rows, width]; [width, rows], as GPT-2 has its matrices;
// [rows, 1, width], as torch has convolutions.
enum class Lies : uint8_t { plain, transposed, conv };

struct TensorRule {
  std::vector<std::string> theirs;  // "a|b": two names of one tensor, of which a is written
  std::vector<std::string> ours;
  Lies lies = Lies::plain;
  int64_t groups = 1;
  bool uneven = false;  // theirs may be cut elsewhere: the sum of their rows counts
  int64_t stack = 0;    // above 0: theirs is so many matrices in one tensor, each with its rows
  bool single = false;  // every number is a row: the biases of several experts
};

class TensorMap {
 public:
  explicit TensorMap(const std::vector<layers::Parameter>& parameters);

  void add(TensorRule rule);
  void same(const std::string& theirs, const std::string& ours, Lies lies = Lies::plain) {
    add({{theirs}, {ours}, lies});
  }
  // theirs.weight, and theirs.bias where ours has one. Names of theirs may be "a|b".
  void linear(const std::string& theirs, const std::string& ours, Lies lies = Lies::plain);
  // One tensor an expert, of a name with {} for its number, and ours with all experts in one.
  void experts(const std::string& theirs, const std::string& ours);
  // A head of its own; or a name under which a file may hold the embedding once more.
  void head(const std::string& theirs, const std::string& embedding);
  // A parameter of ours that they do not have: zero, and not to be written where it is not.
  void zero(const std::string& ours) { zeros_.push_back(ours); }
  // Tensors of files that are no parameters; * stands for anything.
  void left_out(const std::string& pattern) { left_out_.push_back(pattern); }

  bool has(const std::string& ours) const { return shapes_.count(ours) > 0; }
  // The names of ours that begin so, in the order of the model.
  std::vector<std::string> under(const std::string& start) const;
  const Shape& shape(const std::string& ours) const { return shapes_.at(ours); }

  // From their file: every tensor is used or left out, every parameter is filled, all shapes are as
  // expected. Throws Error that names the first that is not.
  void require_fits(const SafetensorsReader& file) const;
  using Put = std::function<void(const std::string& name, const Tensor& value)>;
  using Get = std::function<Tensor(const std::string& name)>;
  // Gives every parameter of ours in this dtype. Throws Error for a number that is not finite.
  void read(const SafetensorsReader& file, Dtype dtype, const Put& put) const;
  // To their file: names and shapes, then the tensors. Throws Error where a parameter that they do
  // not have is not zero; `path` names the checkpoint.
  std::vector<TensorInfo> announced(Dtype dtype) const;
  void write(const std::string& path, Dtype dtype, const Get& get, const Put& put) const;

 private:
  int64_t width_of(const TensorRule& rule) const;
  std::vector<Shape> their_shapes(const TensorRule& rule) const;
  std::string named(const TensorRule& rule) const;  // our side, for messages
  std::string found(const SafetensorsReader& file, const TensorRule& rule, size_t i) const;
  void require_shapes(const SafetensorsReader& file, const TensorRule& rule) const;
  void require_same_head(const SafetensorsReader& file) const;
  Tensor joined(const TensorRule& rule, const std::function<Tensor(size_t)>& part, Dtype dtype,
                bool theirs) const;

  std::vector<std::string> order_;  // of our parameters
  std::map<std::string, Shape> shapes_;
  std::vector<TensorRule> rules_;
  std::vector<std::string> zeros_, left_out_;
  std::string head_, embedding_;  // of tied ones: their names
};

}  // namespace weft::train
