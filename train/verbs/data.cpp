// `weft data`: makes a token dataset from text, or describes one.
#include <cstdio>
#include <filesystem>

#include "core/file.h"
#include "data/byte_pairs.h"
#include "train/source.h"
#include "train/verbs/verbs.h"

namespace weft::train {
namespace {

data::TokenizerPtr of_file(const std::string& path) {
  const std::string model = read_file(path);
  try {
    return data::stored_tokenizer(model);
  } catch (const Error& e) {
    fail(path, ": ", e.what());
  }
}

}  // namespace

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
  const bool bytes = a.tokenizer == "bytes", trains = a.tokenizer == "sentencepiece";
  require(
      bytes || trains || std::filesystem::exists(a.tokenizer), "--tokenizer ", a.tokenizer,
      ": expected bytes, sentencepiece, or the file of a tokenizer.json or SentencePiece model");
  require(a.vocabulary >= 2 && a.vocabulary <= 1 << 24, "--vocabulary ", a.vocabulary,
          ": expected a number from 2 to ", 1 << 24);
  require_output(a.out, a.sources);
  const data::TextOptions options = text_options(a.document);
  const data::TokenizerPtr tokenizer =
      bytes    ? data::byte_tokenizer()
      : trains ? data::train_tokenizer(a.sources, options, {.size = a.vocabulary})
               : of_file(a.tokenizer);
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

}  // namespace weft::train
