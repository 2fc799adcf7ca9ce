// The data of a recipe: [data] read and checked, its sources opened, its batches made into tensors.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data/batches.h"
#include "data/tasks.h"
#include "layers/model.h"
#include "train/recipe.h"

namespace weft::train {

struct DataSettings {
  std::vector<std::string> sources;  // text files, folders, "kjv", or one token dataset (*.h5)
  std::vector<data::DomainSources> domains;  // of a mixture: the same sources by domain; else none
  bool is_task = false;
  bool is_tokens =
      false;  // no data, but a vocabulary: what texts its tokens stand for is elsewhere
  data::TaskOptions task;
  int64_t test_examples = 512;  // tasks: how many examples the held-out part has
  std::string tokenizer = "bytes", method = "bpe", document = "file";
  std::string field;         // of JSON lines: what a document is; empty for plain text
  int64_t vocabulary = 256;  // of text; a dataset has its own
  double held_out = 0.05;
  bool packed = false;
};

// Reads [data] and [domains] of a recipe and opens nothing.
DataSettings read_data(const TomlTable& recipe);
// How many tokens there are; opens a token dataset for it.
int64_t vocabulary_of(const DataSettings& data);

// The shape of every micro-batch of a recipe.
struct BatchShape {
  Shape tokens;         // [B, T], or [1, B T] where documents are packed
  int64_t length = 0;   // T, the longest document
  int64_t borders = 0;  // room for cu_seqlens; 0: none
};
BatchShape batch_shape(const DataSettings& data, const Recipe& recipe, int64_t context);

// Batches without numbers, for a plan: they hold on the meta device what real ones do on the CPU.
class MetaBatches {
 public:
  explicit MetaBatches(const BatchShape& shape) : shape_(shape) {}
  layers::Batch next();

 private:
  BatchShape shape_;
  Tensor room_;  // stands for the memory of cu_seqlens, whose numbers must be readable
};

// Which of a step's micro-batches are whose: rank `rank` of `size` has train.accumulate / size of
// them, one behind the other.
struct Share {
  int rank = 0, size = 1;
};

class Source {
 public:
  // Opens text, dataset or task. Throws Error for what is missing, or too short for one batch.
  Source(const DataSettings& settings, const Recipe& recipe, int64_t context,
         const data::TokenizerPtr& tokenizer = nullptr, const Share& share = {});

  layers::Batch next(Device device);  // of training
  // The place in the training data between two steps, the same on all ranks.
  std::map<std::string, int64_t> state() const;
  void restore(std::map<std::string, int64_t> state);

  // The held-out part; null where the recipe holds nothing out, or nothing that can be predicted.
  data::BatchSource* held_out() { return held_out_.get(); }

  // The names of the domains of a mixture, whose numbers held-out batches bear; else none.
  const std::vector<std::string>& domains() const { return domains_; }

  bool is_text() const { return tokenizer_ != nullptr; }
  const data::TokenizerPtr& tokenizer() const { return tokenizer_; }
  std::vector<int32_t> encode(const std::string& text) const { return tokenizer_->encode(text); }
  std::string decode(const std::vector<int32_t>& t) const { return tokenizer_->decode(t); }
  const std::string& describe() const { return description_; }

 private:
  void set_training(data::BatchesPtr all, int64_t shards);
  void open_task(const DataSettings& settings, const Recipe& recipe, int64_t context);
  void open_text(const DataSettings& settings, const Recipe& recipe, int64_t context);
  void hold_out(const data::TokenPart& rest, const DataSettings& s, const data::BatchShape& shape);

  Share share_;
  std::unique_ptr<data::BatchSource> train_, held_out_;
  data::TokenizerPtr tokenizer_;
  std::vector<std::string> domains_;
  std::string description_;
};

layers::Batch model_batch(data::Batch&& batch);

// How the settings cut text into documents.
data::TextOptions text_options(const std::string& document);

}  // namespace weft::train
