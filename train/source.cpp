#include "train/source.h"

#include "core/text.h"
#include "train/progress.h"

namespace weft::train {
namespace {

void read_task(const TomlTable& t, DataSettings& s) {
  s.is_task = true;
  s.task.name = t.string("task");
  const auto known = data::task_names();
  if (!contains(known, s.task.name)) t.refuse("task", unknown_name("task", s.task.name, known));
  s.task.vocabulary = t.integer("vocabulary", s.task.name == "mqar" ? 8192 : 16);
  s.task.pairs = t.integers("pairs", s.task.pairs);
  s.task.random_filler = t.boolean("random_filler", s.task.random_filler);
  s.task.power = t.number("power", s.task.power);
  s.task.marks = t.integer("marks", s.task.marks);
  s.task.examples = t.integer("examples", s.task.examples);
  s.test_examples = t.integer("test_examples", s.test_examples);
  s.vocabulary = s.task.vocabulary;
}

data::BatchShape rank_shape(const Recipe& recipe, int64_t context) {
  return {.rows = recipe.train.batch, .length = context, .rank = 0, .world = 1};
}

}  // namespace

data::TextOptions text_options(const std::string& document) {
  data::TextOptions options;
  if (document == "line") options.document = data::Cut::line;
  if (document == "blank") options.document = data::Cut::blank;
  return options;
}

DataSettings read_data(const TomlTable& t) {
  DataSettings s;
  if (t.has("task")) {
    read_task(t, s);
    return s;
  }
  if (t.has("dataset")) {
    s.sources = {t.string("dataset")};
    if (!data::is_token_dataset(s.sources))
      t.refuse("dataset", "dataset = \"", s.sources[0],
               "\", expected a file *.h5 made by `weft data`; text is named by source");
    s.vocabulary = t.integer("vocabulary", 0);
  } else {
    if (!t.has("source"))
      t.refuse("source",
               "[data] needs source (text files or folders, or \"kjv\"), dataset, or task");
    s.sources =
        t.type("source") == TomlType::array ? t.strings("source") : std::vector{t.string("source")};
    s.tokenizer = t.string("tokenizer", s.tokenizer);
    if (s.tokenizer != "bytes" && s.tokenizer != "sentencepiece")
      t.refuse("tokenizer", "tokenizer = \"", s.tokenizer,
               "\", expected \"bytes\" or \"sentencepiece\"");
    const bool bytes = s.tokenizer == "bytes";
    s.vocabulary = t.integer("vocabulary", bytes ? 256 : 4096);
    if (bytes && s.vocabulary != 256)
      t.refuse("vocabulary", "vocabulary = ", s.vocabulary,
               ", but bytes have 256 values; leave the ",
               "key out, or set tokenizer = \"sentencepiece\"");
    s.method = t.string("method", s.method);
    s.document = t.string("document", s.document);
    if (s.document != "file" && s.document != "blank" && s.document != "line")
      t.refuse("document", "document = \"", s.document,
               "\", expected \"file\", \"blank\" or \"line\"");
  }
  s.held_out = t.number("held_out", s.held_out);
  if (!(s.held_out >= 0 && s.held_out < 1))
    t.refuse("held_out", "held_out = ", s.held_out, ", expected a part from 0 to below 1");
  s.packed = t.boolean("packed", s.packed);
  return s;
}

int64_t vocabulary_of(const DataSettings& s) {
  return data::is_token_dataset(s.sources) && s.vocabulary == 0
             ? data::open_token_dataset(s.sources[0], data::Opened::in_file)
                   .tokenizer()
                   ->vocabulary()
             : s.vocabulary;
}

BatchShape batch_shape(const DataSettings& data, const Recipe& recipe, int64_t context) {
  const int64_t B = recipe.train.batch;
  if (!data.packed) return {{B, context}, context, 0};
  return {{1, B * context}, context, B * context + 1};
}

layers::Batch MetaBatches::next() {
  layers::Batch batch;
  batch.tokens = empty(shape_.tokens, Dtype::i32, kMeta);
  batch.targets = empty(shape_.tokens, Dtype::i32, kMeta);
  if (shape_.borders) {
    room_ = empty({shape_.borders}, Dtype::i32, kMeta);
    // Rows of the context's length, as long as documents can be.
    std::vector<int32_t> borders{0};
    while (borders.back() < shape_.tokens[1])
      borders.push_back(borders.back() + static_cast<int32_t>(shape_.length));
    batch.cu_seqlens = tensor_of(borders);
  }
  return batch;
}

layers::Batch model_batch(data::Batch&& b) { return {b.tokens, b.targets, b.cu_seqlens}; }

Source::Source(const DataSettings& settings, const Recipe& recipe, int64_t context,
               const data::TokenizerPtr& tokenizer)
    : tokenizer_(tokenizer) {
  if (settings.is_task)
    open_task(settings, recipe, context);
  else
    open_text(settings, recipe, context);
}

void Source::open_task(const DataSettings& s, const Recipe& recipe, int64_t context) {
  const data::BatchShape shape = rank_shape(recipe, context);
  train_ =
      std::make_unique<data::BatchSource>(data::training_task(s.task, shape, recipe.train.seed));
  data::HostBatch first;
  train_->batches().make(0, first);
  require(first.labelled > 0, "task ", s.task.name,
          ": nothing can be learned from it: its first batch asks for no token");
  held_out_ = std::make_unique<data::BatchSource>(
      data::test_task(s.task, shape, recipe.train.seed, s.test_examples));
  description_ = concat("task ", s.task.name, ", vocabulary ", s.vocabulary);
}

void Source::open_text(const DataSettings& s, const Recipe& recipe, int64_t context) {
  data::TextOptions options = text_options(s.document);
  options.run_folder = recipe.train.out;
  const bool dataset = data::is_token_dataset(s.sources);
  if (!tokenizer_ && !dataset) {
    tokenizer_ =
        s.tokenizer == "bytes"
            ? data::byte_tokenizer()
            : data::train_tokenizer(s.sources, options, {.size = s.vocabulary, .method = s.method});
  }
  const data::TokenDataset all = data::open_data(s.sources, options, tokenizer_);
  tokenizer_ = all.tokenizer();
  require(s.vocabulary == 0 || tokenizer_->vocabulary() <= s.vocabulary, joined(s.sources),
          ": has a vocabulary of ", tokenizer_->vocabulary(), ", the recipe's data.vocabulary is ",
          s.vocabulary, "; leave the key out, or set it to at least that");
  const auto [training, rest] = all.split(s.held_out);
  require(!s.packed || data::has_targets(training), joined(s.sources),
          ": nothing can be learned from this text: none of its ", training.documents(),
          " documents has two tokens, so that no token follows another; cut documents otherwise "
          "with data.document, or set data.packed = false, which leaves their borders out");
  const data::BatchShape shape = rank_shape(recipe, context);
  train_ = std::make_unique<data::BatchSource>(
      s.packed ? data::training_packed(training, shape, recipe.train.seed)
               : data::training_windows(training, shape, recipe.train.seed));
  const bool nothing = s.held_out > 0 && s.packed && !data::has_targets(rest);
  if (s.held_out > 0 && !nothing)
    held_out_ = std::make_unique<data::BatchSource>(s.packed ? data::held_out_packed(rest, shape)
                                                             : data::held_out_windows(rest, shape));
  description_ = concat(joined(s.sources), ": ", count_text(double(training.size())), " tokens (",
                        tokenizer_->kind(), ", vocabulary ", tokenizer_->vocabulary(), "), ",
                        count_text(double(rest.size())), " held out",
                        nothing ? " (never evaluated: no document of them has two tokens)" : "");
  if (!all.left_out().empty()) description_ += "; left out: " + all.left_out();
}

layers::Batch Source::next(Device device) { return model_batch(train_->next(device)); }

}  // namespace weft::train
