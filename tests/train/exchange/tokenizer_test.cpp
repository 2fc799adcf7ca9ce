// The tokenizer of a released model goes into the checkpoint and out again.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "core/safetensors.h"
#include "tests/paths.h"
#include "tests/train/said.h"

using namespace weft;
using namespace weft::tests;

namespace {

namespace fs = std::filesystem;

// A small Llama with as many tokens as the vocabulary of the oracle has.
void write_model(const Folder& f, int64_t tokens) {
  fs::copy(source_path("tests/oracles/hub/llama"), f / "m");
  auto config = nlohmann::json::parse(f.read("m/config.json"));
  config["vocab_size"] = tokens;
  f.write("m/config.json", config.dump());
  std::vector<std::pair<std::string, Tensor>> all;
  {
    const SafetensorsReader file(f / "m");
    for (const SafeTensor& t : file.entries()) {
      const bool outer = t.name == "lm_head.weight" || t.name == "model.embed_tokens.weight";
      all.emplace_back(t.name,
                       outer ? full({tokens, t.shape[1]}, 0.25, Dtype::f64) : file.read(t.name));
    }
  }
  std::vector<TensorInfo> infos;
  for (const auto& [name, t] : all) infos.push_back({name, t.shape(), t.dtype()});
  SafetensorsWriter out(f / "m/model.safetensors", infos, {{"format", "pt"}});
  for (const auto& [name, t] : all) out.tensor(name, t);
  out.commit();
  fs::copy_file(source_path("tests/oracles/tokenizers/llama3.json"), f / "m/tokenizer.json");
}

}  // namespace

TEST_CASE("import: a tokenizer.json comes into the checkpoint, and goes out as it was") {
  const Folder f;
  write_model(f, 352);  // some more than the tokens that have a text
  done(run_weft(f, {"import", "m", "m.h5"}));
  done(run_weft(f, {"generate", "m.h5", "--prompt", "the word", "--tokens", "3"}));
  f.write("text.txt", "the word was with the other 1234 and <|end|>\n");
  done(run_weft(f, {"data", "text.txt", "--tokenizer", "m/tokenizer.json", "--out", "text.h5"}));
  says(run_weft(f, {"eval", "m.h5", "--data", "text.h5"}), 0, {"loss"});
  says(run_weft(f, {"data", "text.txt", "--tokenizer", "m/config.json", "--out", "x.h5"}), 2,
       {"m/config.json: this is no tokenizer.json"});
  done(run_weft(f, {"export", "m.h5", "out"}));
  CHECK(f.read("out/tokenizer.json") == f.read("m/tokenizer.json"));
  CHECK(nlohmann::json::parse(f.read("out/tokenizer_config.json")).at("tokenizer_class") ==
        "PreTrainedTokenizerFast");
}

TEST_CASE("import: a tokenizer that cannot be read is told, and the model comes without") {
  const Folder f;
  write_model(f, 300);
  says(run_weft(f, {"import", "m", "m.h5"}), 0,
       {"m/tokenizer.json", "it has 349 tokens, and the model has 300", "token numbers"});
  auto json = nlohmann::json::parse(f.read("m/tokenizer.json"));
  json["model"]["type"] = "WordPiece";
  f.write("m/tokenizer.json", json.dump());
  says(run_weft(f, {"import", "m", "other.h5"}), 0, {"its model is WordPiece"});
  says(run_weft(f, {"generate", "other.h5", "--prompt", "a"}), 2, {"holds no tokenizer"});
}
