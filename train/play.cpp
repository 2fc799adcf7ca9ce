// The verbs that use a finished checkpoint: eval and generate. And data, version.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <limits>

#include "core/file.h"
#include "core/parallel.h"
#include "kernels/operation.h"
#include "train/checkpoint.h"
#include "train/evaluate.h"
#include "train/generate.h"
#include "train/progress.h"
#include "train/report.h"
#include "train/verbs.h"

namespace weft::train {
namespace {

// A model as a checkpoint has it.
struct Loaded {
  std::string path;
  Recipe recipe;
  DataSettings data;
  data::TokenizerPtr tokenizer;  // null for tasks
  std::unique_ptr<layers::Model> model;
  RunState state;
};

// The checkpoint's recipe, for the device at hand. A checkpoint holds f32 whatever it was trained in.
Recipe recipe_for(const std::string& text, const std::string& name, const std::string& device) {
  TomlTable toml = toml_from_text(text, name);
  const Device at = device_from(device.empty() ? "auto" : device);
  const std::string dtype = toml.table("train").string("dtype", "f32");
  std::vector<std::string> set = {
      concat("train.device=\"", at.is_cuda() ? concat(at) : "cpu", "\"")};
  if (dtype == (at.is_cuda() ? "f64" : "bf16")) set.emplace_back("train.dtype=\"f32\"");
  return recipe_from_text(text, name, set);
}

Loaded load(const std::string& where, const std::string& device) {
  Loaded l;
  l.path = find_checkpoint(where);
  const Hdf5Reader file = open_checkpoint(l.path);
  l.state = read_state(file);
  l.recipe = recipe_for(l.state.recipe, l.path + ":recipe", device);
  set_products(l.recipe.train);
  // The vocabulary is the checkpoint's own: the data need not be here.
  l.data = read_data(l.recipe.toml.table("data"));
  if (!l.data.is_task) {
    l.tokenizer = l.state.tokenizer.empty() ? data::byte_tokenizer()
                                            : data::sentencepiece_tokenizer(l.state.tokenizer);
    const bool given = data::is_token_dataset(l.data.sources) && l.data.vocabulary > 0;
    if (!given) l.data.vocabulary = l.tokenizer->vocabulary();
  }
  l.model = std::make_unique<layers::Model>(l.recipe.toml, l.data.vocabulary, l.recipe.train.dtype,
                                            l.recipe.train.device, l.recipe.train.seed);
  load_parameters(file, l.model->parameters());
  return l;
}

}  // namespace

int run_eval(const EvalArguments& a) {
  require(a.batches >= 0, "--batches ", a.batches, ": expected at least 1, or 0 for all");
  Loaded l = load(a.checkpoint, a.device);
  if (!a.data.empty()) {
    require(!l.data.is_task, l.path, ": was trained on a task; --data takes text");
    l.data = {.sources = {a.data}, .document = l.data.document, .packed = l.data.packed};
    const data::TokenDataset all =
        data::open_data(l.data.sources, text_options(l.data.document), l.tokenizer);
    if (!all.left_out().empty()) std::printf("left out: %s\n", all.left_out().c_str());
    const data::BatchShape shape{.rows = l.recipe.train.batch, .length = l.model->context()};
    data::BatchSource held_out(l.data.packed ? data::held_out_packed(all.all(), shape)
                                             : data::held_out_windows(all.all(), shape));
    std::printf("%s\n",
                evaluate(*l.model, held_out, a.batches, l.recipe.train.device).text().c_str());
    return 0;
  }
  Source source(l.data, l.recipe, l.model->context(), l.tokenizer);
  require(source.held_out() != nullptr, l.path,
          ": the recipe holds out nothing that can be predicted; name a text with --data");
  const Evaluation e = evaluate(*l.model, *source.held_out(), a.batches, l.recipe.train.device);
  std::printf("%s, step %ld: %s\n", l.path.c_str(), static_cast<long>(l.state.step),
              e.text().c_str());
  return 0;
}

int run_generate(const GenerateArguments& a) {
  require(!a.prompt.empty(), "--prompt is empty, expected some text to go on from");
  require(a.tokens > 0, "--tokens ", a.tokens, ": expected at least 1");
  require(a.temperature >= 0 && a.temperature <= 100, "--temperature ", a.temperature,
          ": expected a number from 0 to 100");
  require(a.top_p > 0 && a.top_p <= 1, "--top-p ", a.top_p, ": expected above 0 and up to 1");
  require(a.top_k >= 0, "--top-k ", a.top_k, ": expected at least 0");
  const Loaded l = load(a.checkpoint, a.device);
  require(l.tokenizer != nullptr, l.path, ": was trained on a task and writes no text");
  // A GPU counts in 32 bits, and no vocabulary is larger.
  const int64_t top_k = std::min<int64_t>(a.top_k, std::numeric_limits<int32_t>::max());
  const std::vector<int32_t> prompt = l.tokenizer->encode(a.prompt);
  check_length(*l.model, static_cast<int64_t>(prompt.size()), a.tokens);
  std::printf("%s", a.prompt.c_str());
  flush_output();
  const auto show = [&](int32_t token) {
    const std::string& piece = l.tokenizer->piece(token);
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    flush_output();
    return true;
  };
  const Generated g =
      generate(*l.model, prompt, a.tokens,
               {a.temperature, top_k, a.top_p, a.seed, l.tokenizer->vocabulary()}, show);
  std::printf("\n");
  flush_output();
  std::fprintf(stderr, "%zu tokens, %.0f tokens a second, %s of state%s%s\n", g.tokens.size(),
               g.tokens_per_second, bytes_text(double(g.state_bytes)).c_str(),
               g.how.empty() ? "" : "; ", g.how.c_str());
  return 0;
}

int run_data(const DataArguments& a) {
  if (!a.describe.empty()) {
    std::printf("%s\n",
                data::open_token_dataset(a.describe, data::Opened::in_file).describe().c_str());
    return 0;
  }
  require(!a.sources.empty(), "data: name at least one text file or folder, or --describe FILE");
  require(!a.out.empty(), "data: name the dataset to write with --out FILE.h5");
  require(a.document == "file" || a.document == "blank" || a.document == "line", "--document ",
          a.document, ": expected file, blank or line");
  require(a.tokenizer == "bytes" || a.tokenizer == "sentencepiece", "--tokenizer ", a.tokenizer,
          ": expected bytes or sentencepiece");
  require(a.vocabulary >= 2 && a.vocabulary <= 1 << 24, "--vocabulary ", a.vocabulary,
          ": expected a number from 2 to ", 1 << 24);
  require_output(a.out, a.sources);
  const data::TextOptions options = text_options(a.document);
  const data::TokenizerPtr tokenizer =
      a.tokenizer == "bytes" ? data::byte_tokenizer()
                             : data::train_tokenizer(a.sources, options, {.size = a.vocabulary});
  const data::LeftOut left_out = data::build_token_dataset(a.sources, options, tokenizer, a.out);
  std::error_code ignored;
  const bool read_again =
      !is_standard_output(a.out) && std::filesystem::is_regular_file(a.out, ignored);
  std::FILE* const to = read_again ? stdout : stderr;
  if (!left_out.empty()) std::fprintf(to, "left out: %s\n", left_out.text().c_str());
  if (read_again)
    std::printf("%s\n%s\n", a.out.c_str(),
                data::open_token_dataset(a.out, data::Opened::in_file).describe().c_str());
  else
    std::fprintf(stderr, "%s: written\n", a.out.c_str());
  return 0;
}

int run_version() {
  std::printf("weft %s\n", WEFT_VERSION);
  std::printf("compiler: %s\n", __VERSION__);
  std::printf("devices: cpu (%d threads), meta\n", thread_count());
  std::printf("vocabularies: bytes%s\n",
              data::has_sentencepiece() ? ", SentencePiece" : " (built without SentencePiece)");
  std::printf("operations: %zu\n", kernels::operations().size());
  return 0;
}

}  // namespace weft::train
