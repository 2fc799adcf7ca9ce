// Byte-level vocabularies beside the tokenizers library (tests/oracles/make_tokenizers.py).
#include "data/byte_pairs.h"

#include <nlohmann/json.hpp>

#include "core/file.h"
#include "core/random.h"
#include "data/unicode.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/message.h"
#include "tests/paths.h"

using namespace weft;
using namespace weft::data;
using namespace weft::tests;

namespace {

using nlohmann::json;

constexpr const char* kNames[] = {"gpt2", "llama3", "qwen2"};

std::string oracle(const std::string& file) {
  return source_path("tests/oracles/tokenizers/" + file);
}
std::string text_of(const std::string& name) { return read_file(oracle(name + ".json")); }

// What a change of a tokenizer.json is refused with; "" where it is taken.
std::string refused(const std::function<void(json&)>& change) {
  json j = json::parse(text_of("llama3"));
  change(j);
  return message([&] { byte_pair_tokenizer(j.dump()); });
}

}  // namespace

TEST_CASE("byte pairs: tokens and texts of hostile texts are those of tokenizers") {
  for (const std::string name : kNames) {
    const TokenizerPtr t = byte_pair_tokenizer(text_of(name));
    const Hdf5Reader file(oracle(name + ".h5"));
    const Tensor bytes = file.tensor("text");
    const std::string all(reinterpret_cast<const char*>(bytes.data<uint8_t>()),
                          static_cast<size_t>(bytes.numel()));
    const std::vector<int64_t> at = to_ints(file.tensor("text_at")),
                               tokens = to_ints(file.tensor("tokens")),
                               tokens_at = to_ints(file.tensor("tokens_at"));
    REQUIRE(at.size() == tokens_at.size());
    for (size_t i = 0; i + 1 < at.size(); ++i) {
      const std::string text =
          all.substr(static_cast<size_t>(at[i]), static_cast<size_t>(at[i + 1] - at[i]));
      INFO(name << ", text " << i << ": " << text.substr(0, 200));
      const std::vector<int32_t> wanted(tokens.begin() + tokens_at[i],
                                        tokens.begin() + tokens_at[i + 1]);
      CHECK(t->encode(text) == wanted);
      const bool composes = name == "qwen2";
      CHECK(t->decode(wanted) == (composes ? composed(text) : text));
    }
  }
}

TEST_CASE("byte pairs: bytes that are no UTF-8 come back as they were") {
  const Random random(5, stream_of("bytes"));
  std::string text = "a\xff \xc3( \xe2\x82 \xf0\x9f\x98 \xed\xa0\x80 \xf8\x88 the\xc0\x80word";
  for (uint64_t i = 0; i < 2000; ++i) text += static_cast<char>(random.below(256, i));
  for (const std::string name : {"gpt2", "llama3"}) {
    INFO(name);
    const TokenizerPtr t = byte_pair_tokenizer(text_of(name));
    CHECK(t->decode(t->encode(text)) == text);
  }
}

TEST_CASE("byte pairs: special tokens in a text are one token, the longest first") {
  const TokenizerPtr t = byte_pair_tokenizer(text_of("gpt2"));
  const std::vector<int32_t> tokens = t->encode("<|end|><|end|><|end|>");
  CHECK(tokens.size() == 2);
  CHECK(t->piece(tokens[0]) == "<|end|><|end|>");
  CHECK(t->encode("").empty());
}

TEST_CASE("byte pairs: ranks of tiktoken are refused by their name") {
  CHECK(message([] {
          tokenizer_from("IQ== 0\nIg== 1\n", "it");
        }).starts_with("these are ranks of tik"));
}

TEST_CASE("byte pairs: a vocabulary lies in a file and is the same again") {
  const Folder f;
  const TokenizerPtr t = byte_pair_tokenizer(text_of("qwen2"));
  {
    Hdf5Writer out(f / "t.h5");
    save_tokenizer(out, "tokenizer", *t);
    out.commit();
  }
  const TokenizerPtr again = load_tokenizer(Hdf5Reader(f / "t.h5"), "tokenizer");
  CHECK(again->kind() == "byte_pairs");
  CHECK(again->hash() == t->hash());
  CHECK(again->encode("the word 12") == t->encode("the word 12"));
  // The same pieces with other cuts are another vocabulary.
  json j = json::parse(text_of("qwen2"));
  j["normalizer"] = nullptr;
  CHECK(byte_pair_tokenizer(j.dump())->hash() != t->hash());
}

TEST_CASE("byte pairs: a setting that is not known is refused by its name") {
  const auto says = [](const std::function<void(json&)>& change, const std::string& part) {
    CHECK_THAT(refused(change), ContainsSubstring(part));
  };
  says([](json&) {}, "no error");
  says([](json& j) { j["normalizer"] = {{"type", "Lowercase"}}; }, "normalizer is Lowercase");
  says([](json& j) { j["pre_tokenizer"] = {{"type", "Metaspace"}}; }, "pre_tokenizer is Metaspace");
  says([](json& j) { j["pre_tokenizer"] = nullptr; }, "pre_tokenizer is null");
  says([](json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\w+"; },
       "expression that is not known here, \"\\w+\"");
  says([](json& j) { j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; }, "behavior");
  says([](json& j) { j["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true; },
       "add_prefix_space is true");
  says([](json& j) { j["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = true; },
       "use_regex is true");
  says([](json& j) { j["decoder"] = {{"type", "Metaspace"}}; }, "decoder is Metaspace");
  says([](json& j) { j["model"]["type"] = "Unigram"; }, "model is Unigram");
  says([](json& j) { j["model"]["byte_fallback"] = true; }, "byte_fallback is true");
  says([](json& j) { j["model"]["dropout"] = 0.1; }, "dropout is 0.1");
  says([](json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }, "end_of_word_suffix");
  says([](json& j) { j["model"]["vocab"].erase("a"); }, "no token for the byte 97");
  says([](json& j) { j["model"]["vocab"]["\u4e00"] = 7; }, "token 7 is not written");
  says([](json& j) { j["model"]["vocab"]["zz"] = -1; }, "token -1 is out of range");
  says([](json& j) { j["model"]["vocab"]["zz"] = "x"; }, "cannot be read");
  says([](json& j) { j["model"]["merges"][0] = {"q", "zq"}; }, "names \"zq\"");
  says([](json& j) { j["model"]["merges"] = "x"; }, "no merges");
  says([](json& j) { j["added_tokens"][0]["lstrip"] = true; }, "lstrip is true");
  for (const char* text : {"{", "[]", "", "{\"model\": 3}"})
    CHECK(message([&] { byte_pair_tokenizer(text); }).starts_with("this is no tokenizer.json"));
}

TEST_CASE("byte pairs: a token looked for in the composed text may be written decomposed") {
  json j = json::parse(text_of("qwen2"));
  const int64_t id = byte_pair_tokenizer(j.dump())->vocabulary();
  json token = j["added_tokens"][0];
  token["id"] = id;
  token["content"] = "<cafe\u0301>";
  token["normalized"] = true;
  j["added_tokens"].push_back(token);
  const TokenizerPtr t = byte_pair_tokenizer(j.dump());
  const std::vector<int32_t> alone{static_cast<int32_t>(id)};
  CHECK(t->encode("<cafe\u0301>") == alone);
  CHECK(t->encode("<caf\u00e9>") == alone);
  CHECK(t->encode("<cafe>") != alone);
}
