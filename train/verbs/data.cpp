// `weft data`: makes a token dataset from text, or describes one.
#include <cstdio>
#include <filesystem>

#include "core/file.h"
#include "data/llmc.h"
#include "train/source.h"
#include "train/verbs/verbs.h"

namespace weft::train {
namespace {

// "bytes", or the vocabulary of a file.
data::TokenizerPtr of_name(const std::string& name) {
  if (name == "bytes") return data::byte_tokenizer();
  const std::string model = read_file(name);
  require(!model.empty(), name, ": is empty, expected a vocabulary");
  try {
    return name.ends_with(".bin") ? data::llmc_tokenizer(model, name)
                                  : data::tokenizer_from(model, name);
  } catch (const Error& e) {
    const std::string what = e.what();
    fail(what.starts_with(name) ? "" : name + ": ", what);
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
  const bool trains = a.tokenizer == "sentencepiece";
  require(trains || a.tokenizer == "bytes" || std::filesystem::exists(a.tokenizer), "--tokenizer ",
          a.tokenizer,
          ": expected bytes, sentencepiece, or a file: a tokenizer.json, a model of SentencePiece, "
          "or a vocabulary of llm.c");
  const data::TokenizerPtr given = trains ? nullptr : of_name(a.tokenizer);
  const bool llmc = given && given->kind() == data::kLlmc;
  for (const std::string& source : a.sources)
    require(llmc || !data::is_llmc_tokens(source), source,
            ": holds tokens of llm.c; name the vocabulary that they were made with, as "
            "--tokenizer gpt2_tokenizer.bin");
  require(!llmc || (a.field.empty() && a.document == "file"), "--tokenizer ", a.tokenizer,
          ": the sources hold tokens; leave out --document and --field");
  require(a.vocabulary >= 2 && a.vocabulary <= 1 << 24, "--vocabulary ", a.vocabulary,
          ": expected a number from 2 to ", 1 << 24);
  require_output(a.out, a.sources);
  require(a.field.empty() || a.document == "file",
          "--field: each record is a document; leave out --document");
  data::TextOptions options = text_options(a.document);
  options.field = a.field;
  const data::TokenizerPtr tokenizer =
      given ? given : data::train_tokenizer(a.sources, options, {.size = a.vocabulary});
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
