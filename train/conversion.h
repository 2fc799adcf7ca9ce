// A trained model becomes the start of a student whose recipe names other mixers: which parameter
// comes from where, and the student's numbers.
//
// What stands outside the mixers has the teacher's numbers under the same name. So have layers that
// keep their mixer. Queries, keys, values and outputs go head by head from one kind of mixer to
// another: where the student has more heads, each of the teacher's is taken several times (an
// output is divided by that number); where it has fewer, the mean of neighbours is taken (of
// outputs, the sum). Short convolutions start as the identity, and gates so that they keep.
// Everything else starts as the recipe's seed draws it.
// Sources: arXiv:2408.15237, 2505.03005.
#pragma once

#include <string>
#include <vector>

#include "train/teacher.h"

namespace weft::train {

struct Origin {
  std::string name;  // of the student's parameter
  Shape shape;
  std::string from;  // the teacher's parameter; empty where it has none
  std::string how;   // "the same", "each head 2 times"; where there is none, how it starts
};

class Conversion {
 public:
  // Throws Error where teacher and student do not fit.
  Conversion(const Teacher& teacher, Recipe student);

  const std::vector<Origin>& origins() const { return origins_; }
  // The teacher's parameters that nothing of the student has.
  const std::vector<std::string>& not_taken() const { return not_taken_; }
  layers::Model& student() { return *model_; }
  // A line for each parameter, and how many numbers have a source.
  std::string table() const;
  // A checkpoint for `weft train --begin`.
  void save(const std::string& path) const;

 private:
  struct Layer;
  void outside(const layers::Parameter& p);
  void mixer(const layers::Parameter& p, const Layer& from, const Layer& to);
  bool heads(const layers::Parameter& p, const std::string& own, const Layer& from, const Layer& to,
             std::string& why);
  bool start(const layers::Parameter& p, const std::string& own, const Layer& to);
  Layer layer_of(const layers::Model& model, const Recipe& recipe, size_t index) const;
  bool has(const std::string& name) const;
  Tensor take(const std::string& name);
  void copy(const layers::Parameter& p, const std::string& from);
  void note(const layers::Parameter& p, const std::string& from, const std::string& how);

  const Teacher& teacher_;
  Recipe recipe_;
  int64_t vocabulary_;
  std::unique_ptr<layers::Model> plan_, model_;  // the teacher's shapes; the student
  std::vector<Origin> origins_;
  std::vector<std::string> taken_, not_taken_;
};

}  // namespace weft::train
