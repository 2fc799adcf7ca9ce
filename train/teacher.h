// A trained checkpoint that another model learns from: what it is, and whether it fits.
#pragma once

#include <string>

#include "train/checkpoint.h"
#include "train/source.h"

namespace weft::train {

// A checkpoint as a teacher. Its data need not be here: the vocabulary is that of its embedding.
struct Teacher {
  std::string path;
  Hdf5Reader file;
  RunState state;
  Recipe recipe;
  int64_t vocabulary = 0;
  std::string tokens;  // what its token numbers stand for, in words
};

// `where` is a checkpoint, or the folder of a run; `dtype` is that of the recipe, for a model made
// of it. Throws Error for what is missing, damaged or of a recipe that this program does not take.
Teacher open_teacher(const std::string& where, Dtype dtype = Dtype::f32);

// "bytes", "the vocabulary 5f0c...", "the task mqar", "token numbers".
std::string tokens_in_words(const DataSettings& data, const std::string& tokenizer);

// 64 bits over all parameters, in their order, names included: `hash` of metrics.jsonl, where the
// run computed in the dtype of the file.
std::string hash_of(const Teacher& teacher);

// Throws Error that names the first difference that keeps the student from learning of it:
// vocabulary, width, layers. `student` is on any device.
void require_fits(const Teacher& teacher, const layers::Model& plan, const Recipe& recipe,
                  const layers::Model& student);

}  // namespace weft::train
