#include "train/source.h"

#include <algorithm>
#include <limits>

#include "core/text.h"
#include "core/units.h"

namespace weft::train {
namespace {

// Tokens are 32 bits wide, and a table of them is held in memory.
constexpr Integers kVocabulary{2, 1 << 24};
// Numbers of examples lie in the upper 40 bits of their random numbers.
constexpr int64_t kMostExamples = (int64_t{1} << 40) - 1;

// What [domains] beside [data] are a kind of.
constexpr const char* kDomains = "[domains]";
constexpr size_t kMostDomains = 64;

// Which of its kinds [data] are: the one that is there, or that an override gives. Keys of the
// others alone are of no use.
std::string kind_of(const TomlTable& t, const TomlTable& domains) {
  static const std::vector<std::string> text = {"tokenizer", "vocabulary", "method", "document",
                                                "field",     "held_out",   "packed"};
  static const std::vector<std::pair<std::string, std::vector<std::string>>> keys = {
      {"task",
       {"vocabulary", "pairs", "random_filler", "power", "marks", "noise", "motif", "examples",
        "test_examples"}},
      {"dataset", {"vocabulary", "held_out", "packed"}},
      {"source", text},
      {"tokens", {}},
      {kDomains, text}};
  const std::vector<std::string> names = domains.keys();
  const auto overridden = [&](const std::string& name) {
    return name == kDomains ? std::any_of(names.begin(), names.end(),
                                          [&](const auto& n) { return domains.overridden(n); })
                            : t.overridden(name);
  };
  const auto there = [&](const std::string& name) {
    return name == kDomains ? !names.empty() : t.has(name);
  };
  std::string kind;
  for (const bool by_override : {true, false})
    for (const auto& [name, of_kind] : keys)
      if (kind.empty() && there(name) && (!by_override || overridden(name))) kind = name;
  if (kind.empty())
    t.refuse("source",
             "[data] needs source (text files or folders, or \"kjv\"), dataset, or task; "
             "or [domains] names sources");
  const std::string why = concat("[data] is read from ", kind == kDomains ? "" : "\"", kind,
                                 kind == kDomains ? "" : "\"", "; leave one of them out");
  const bool chosen = overridden(kind);
  const auto& used = std::find_if(keys.begin(), keys.end(), [&](const auto& k) {
                       return k.first == kind;
                     })->second;
  for (const auto& [name, of_kind] : keys) {
    if (name == kind) continue;
    if (name != kDomains) t.unused(name, why, chosen);
    for (const std::string& key : of_kind)
      if (!contains(used, key)) t.unused(key, why, chosen);
  }
  for (const std::string& name : names)
    if (kind != kDomains) domains.unused(name, why, chosen);
  return kind;
}

void read_task(const TomlTable& t, DataSettings& s) {
  s.is_task = true;
  s.task.name = t.one_of("task", data::task_names(), "");
  s.task.vocabulary = t.integer("vocabulary", kVocabulary, data::standard_vocabulary(s.task.name));
  s.task.pairs = t.integers("pairs", {1, 1 << 24}, s.task.pairs);
  if (s.task.pairs.empty()) t.refuse("pairs", "pairs is empty, expected numbers of pairs");
  s.task.random_filler = t.boolean("random_filler", s.task.random_filler);
  s.task.power = t.number("power", {.least = 0, .most = 10, .above = true}, s.task.power);
  s.task.marks = t.integer("marks", {1, 1 << 24}, s.task.marks);
  s.task.noise = t.number("noise", {.least = 0, .most = 1}, s.task.noise);
  s.task.motif = t.integer("motif", {1, 1 << 24}, s.task.motif);
  s.task.examples = t.integer("examples", {0, kMostExamples}, s.task.examples);
  s.test_examples = t.integer("test_examples", {1, kMostExamples}, s.test_examples);
  s.vocabulary = s.task.vocabulary;
}

std::vector<data::DomainSources> read_domains(const TomlTable& t) {
  std::vector<data::DomainSources> all;
  for (const std::string& name : t.keys()) {
    all.push_back({name, t.one_or_more(name)});
    if (all.back().sources.empty())
      t.refuse(name, name, " is empty, expected text files or folders");
    for (const std::string& source : all.back().sources)
      if (source.ends_with(".h5"))
        t.refuse(name, name, " names \"", source,
                 "\", expected text: a token dataset stands alone");
  }
  if (all.size() < 2 || all.size() > kMostDomains)
    t.refuse(all.at(0).name, "[domains] has ", all.size(), " of them, expected 2 to ", kMostDomains,
             "; a text without domains is named by data.source");
  return all;
}

// How text becomes tokens.
void read_text(const TomlTable& t, DataSettings& s) {
  s.tokenizer = t.one_of("tokenizer", {"bytes", "sentencepiece"}, s.tokenizer);
  const bool bytes = s.tokenizer == "bytes";
  s.vocabulary = t.integer("vocabulary", kVocabulary, bytes ? 256 : 4096);
  if (bytes && s.vocabulary != 256) {
    if (!t.overridden("tokenizer") || t.overridden("vocabulary"))
      t.refuse("vocabulary", "vocabulary = ", s.vocabulary, ", but bytes have 256 values; leave ",
               "the key out, or set tokenizer = \"sentencepiece\"");
    t.unused("vocabulary", "bytes have 256 values", /*dropped=*/true);
    s.vocabulary = 256;
  }
  s.method = t.one_of("method", {"bpe", "unigram"}, s.method);
  s.document = t.one_of("document", {"file", "blank", "line"}, s.document);
  s.field = t.string("field", s.field);
  if (!s.field.empty() && s.document != "file")
    t.refuse("document", "with data.field each record is a document; leave out document");
}

// The tokens of a micro-batch are numbered in 32 bits.
void check_batch(const Recipe& recipe, int64_t context) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int64_t B = recipe.train.batch;
  if (B > kMost / context)
    recipe.toml.table("train").refuse("batch", "batch = ", B, " rows of model.context = ", context,
                                      " are more than ", kMost, " tokens, the most that a ",
                                      "micro-batch holds");
}

data::BatchShape rank_shape(const Recipe& recipe, int64_t context) {
  check_batch(recipe, context);
  return {.rows = recipe.train.batch, .length = context, .rank = 0, .world = 1};
}

// One rank's part of the micro-batches of all, `per_step` of each step.
class SharedBatches final : public data::Batches {
 public:
  SharedBatches(data::BatchesPtr all, int64_t per_step, const Share& share)
      : Batches(all->shape(), all->packed()),
        all_(std::move(all)),
        per_step_(per_step),
        share_(share) {
    fingerprint_ = all_->fingerprint();
  }
  void make(int64_t n, data::HostBatch& batch) const override {
    const int64_t step = n / per_step_, within = n % per_step_;
    all_->make((step * share_.size + share_.rank) * per_step_ + within, batch);
  }
  int64_t count() const override { return -1; }
  int64_t vocabulary() const override { return all_->vocabulary(); }
  double epoch_steps() const override { return all_->epoch_steps() / share_.size; }

 private:
  data::BatchesPtr all_;
  int64_t per_step_;
  Share share_;
};

}  // namespace

data::TextOptions text_options(const std::string& document) {
  data::TextOptions options;
  if (document == "line") options.document = data::Cut::line;
  if (document == "blank") options.document = data::Cut::blank;
  return options;
}

DataSettings read_data(const TomlTable& recipe) {
  const TomlTable t = recipe.table("data"), domains = recipe.table("domains");
  DataSettings s;
  const std::string kind = kind_of(t, domains);
  if (kind == "task") {
    read_task(t, s);
    return s;
  }
  if (kind == "tokens") {
    s.is_tokens = true;
    s.vocabulary = t.integer("tokens", kVocabulary);
    return s;
  }
  if (kind == "dataset") {
    s.sources = {t.string("dataset")};
    if (!data::is_token_dataset(s.sources))
      t.refuse("dataset", "dataset = \"", s.sources[0],
               "\", expected a file *.h5 made by `weft data`; text is named by source");
    s.vocabulary = t.integer("vocabulary", kVocabulary, 0);
  } else {
    if (kind == kDomains) s.domains = read_domains(domains);
    for (const data::DomainSources& domain : s.domains)
      s.sources.insert(s.sources.end(), domain.sources.begin(), domain.sources.end());
    if (kind == "source") s.sources = t.one_or_more("source");
    if (s.sources.empty()) t.refuse("source", "source is empty, expected text files or folders");
    read_text(t, s);
  }
  s.held_out = t.number("held_out", {.least = 0, .most = 1, .below = true}, s.held_out);
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
  check_batch(recipe, context);
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
               const data::TokenizerPtr& tokenizer, const Share& share)
    : share_(share), tokenizer_(tokenizer) {
  if (settings.is_tokens)
    recipe.toml.table("data").refuse("tokens", "the recipe's data are token numbers that it does ",
                                     "not hold; name data with --set data.source=TEXT or ",
                                     "--set data.dataset=FILE.h5");
  if (settings.is_task)
    open_task(settings, recipe, context);
  else
    open_text(settings, recipe, context);
}

void Source::set_training(data::BatchesPtr all, int64_t shards) {
  if (share_.size > 1)
    all = std::make_shared<SharedBatches>(std::move(all), shards / share_.size, share_);
  train_ = std::make_unique<data::BatchSource>(std::move(all));
}

std::map<std::string, int64_t> Source::state() const {
  std::map<std::string, int64_t> state = train_->state();
  state.at("step") *= share_.size;
  return state;
}

void Source::restore(std::map<std::string, int64_t> state) {
  if (const auto step = state.find("step"); step != state.end()) step->second /= share_.size;
  train_->restore(state);
}

void Source::open_task(const DataSettings& s, const Recipe& recipe, int64_t context) {
  const data::BatchShape shape = rank_shape(recipe, context);
  set_training(data::training_task(s.task, shape, recipe.train.seed), recipe.train.accumulate);
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
  options.field = s.field;
  options.run_folder = recipe.train.out;
  const bool dataset = data::is_token_dataset(s.sources);
  if (!tokenizer_ && !dataset) {
    tokenizer_ =
        s.tokenizer == "bytes"
            ? data::byte_tokenizer()
            : data::train_tokenizer(s.sources, options, {.size = s.vocabulary, .method = s.method});
  }
  const data::TokenDataset all = s.domains.empty()
                                     ? data::open_data(s.sources, options, tokenizer_)
                                     : data::open_domains(s.domains, options, tokenizer_);
  domains_ = all.domains();
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
  set_training(s.packed ? data::training_packed(training, shape, recipe.train.seed)
                        : data::training_windows(training, shape, recipe.train.seed),
               recipe.train.accumulate);
  if (s.held_out > 0) hold_out(rest, s, shape);
  const bool nothing = s.held_out > 0 && !held_out_;
  description_ = concat(joined(s.sources), ": ", count_text(double(training.size())), " tokens (",
                        tokenizer_->kind(), ", vocabulary ", tokenizer_->vocabulary(), "), ",
                        count_text(double(rest.size())), " held out",
                        nothing ? " (never evaluated: no document of them has two tokens)" : "");
  if (!all.left_out().empty()) description_ += "; left out: " + all.left_out();
}

void Source::hold_out(const data::TokenPart& rest, const DataSettings& s,
                      const data::BatchShape& shape) {
  std::vector<data::BatchesPtr> domains;
  const auto size = static_cast<int64_t>(domains_.size());
  for (int64_t d = 0; d < std::max<int64_t>(1, size); ++d) {
    const data::TokenPart part = size > 0 ? rest.of_domain(d) : rest;
    const bool nothing = s.packed && !data::has_targets(part);
    require(!nothing || size == 0, "domain ", size > 0 ? domains_[static_cast<size_t>(d)] : "",
            ": nothing of its held-out part can be predicted, as none of its documents has two "
            "tokens; hold out more with data.held_out, or cut documents otherwise");
    if (nothing) return;
    domains.push_back(s.packed ? data::held_out_packed(part, shape)
                               : data::held_out_windows(part, shape));
  }
  held_out_ = std::make_unique<data::BatchSource>(size > 0 ? data::by_turns(std::move(domains))
                                                           : domains[0]);
}

layers::Batch Source::next(Device device) { return model_batch(train_->next(device)); }

}  // namespace weft::train
