#include "data/dataset.h"

#include <atomic>
#include <cstring>
#include <set>
#include <thread>

#include "core/file.h"
#include "core/random.h"
#include "tests/data/helpers.h"
#include "tests/system_calls.h"

using namespace weft;
using namespace weft::data;

namespace {

std::vector<Document> documents(const std::vector<int64_t>& sizes) {
  std::vector<Document> all;
  for (size_t i = 0; i < sizes.size(); ++i)
    all.push_back({std::to_string(i),
                   std::string(static_cast<size_t>(sizes[i]), static_cast<char>('a' + i % 26))});
  return all;
}

}  // namespace

TEST_CASE("dataset: tokens lie document by document with their borders") {
  const auto set = dataset_from_documents(documents({3, 0, 2, 1}), byte_tokenizer());
  CHECK(set.borders() == std::vector<int64_t>{0, 3, 5, 6});
  CHECK(set.all().text(0, 6) == "aaaccd");
  CHECK(set.all().text(2, 4) == "ac");
  CHECK(contains(message([&] { set.all().tokens(4, 7); }), "of a part with 6"));
}

TEST_CASE("dataset: split holds out the tail at a near border, else cuts") {
  const auto near = dataset_from_documents(documents({50, 39, 11}), byte_tokenizer());
  const auto [train, held_out] = near.split(0.1);
  CHECK(train.size() == 89);
  CHECK(held_out.text(0, held_out.size()) == std::string(11, 'c'));
  const auto one = dataset_from_documents(documents({1000}), byte_tokenizer());
  CHECK(one.split(0.1).first.size() == 900);
  CHECK(one.split(0.1).second.size() == 100);
  CHECK(one.split(0).second.size() == 0);
  CHECK(contains(message([&] { one.split(1.5); }), "not in [0, 1)"));
  CHECK(contains(message([&] { one.split(0.0001); }), "too short to hold out"));
}

TEST_CASE("dataset: split by spread holds out whole documents from everywhere") {
  std::vector<int64_t> sizes;
  for (uint64_t i = 0; i < 200; ++i)
    sizes.push_back(10 + static_cast<int64_t>(Random(3).below(90, i)));
  const auto set = dataset_from_documents(documents(sizes), byte_tokenizer());
  const auto [train, held_out] = set.split(0.1, HeldOut::spread);
  CHECK(train.size() + held_out.size() == set.size());
  CHECK(train.documents() + held_out.documents() == set.documents());
  CHECK(static_cast<double>(held_out.size()) / static_cast<double>(set.size()) ==
        Approx(0.1).margin(0.01));
  CHECK(train.hash() != held_out.hash());
}

TEST_CASE("dataset: a file gives the tokens, borders, vocabulary and origin back") {
  const Folder folder;
  write_file(folder / "a.txt", "first text\n");
  write_file(folder / "b.txt", "second\n");
  const std::vector<std::string> sources = {folder / "a.txt", folder / "b.txt"};
  build_token_dataset(sources, {}, byte_tokenizer(), folder / "out.h5");
  const auto set = open_token_dataset(folder / "out.h5");
  const auto direct = open_data(sources, {}, byte_tokenizer());
  CHECK(set.all().text(0, set.size()) == "first text\nsecond\n");
  CHECK(set.borders() == std::vector<int64_t>{0, 11, 18});
  CHECK(set.sources() == sources);
  CHECK(set.all().hash() == direct.all().hash());
  CHECK(set.tokenizer()->kind() == "bytes");
  CHECK(contains(set.describe(), "18 tokens in 2 documents"));
  CHECK(open_data({folder / "out.h5"}, {}, nullptr).size() == 18);
}

TEST_CASE("dataset: a SentencePiece dataset carries its vocabulary") {
  if (!has_sentencepiece()) SKIP("built without SentencePiece");
  const Folder folder;
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "word" + std::to_string(i * i % 97) + (i % 9 ? " " : "\n");
  write_file(folder / "a.txt", text);
  const auto tokenizer = train_tokenizer({folder / "a.txt"}, {}, {.size = 320});
  build_token_dataset({folder / "a.txt"}, {}, tokenizer, folder / "out.h5");
  const auto set = open_token_dataset(folder / "out.h5");
  CHECK(set.all().text(0, set.size()) == text);
  CHECK(set.tokenizer()->hash() == tokenizer->hash());
  CHECK(contains(message([&] { open_data({folder / "out.h5"}, {}, byte_tokenizer()); }),
                 "its vocabulary (sentencepiece, 320) is not the one expected (bytes, 256)"));
}

TEST_CASE("dataset: what is no token dataset, or a damaged one, is told") {
  const Folder folder;
  write_file(folder / "a.txt", "some text that is long enough to be found again\n");
  build_token_dataset({folder / "a.txt"}, {}, byte_tokenizer(), folder / "a.h5");
  std::string bytes = read_file(folder / "a.h5");
  const size_t at = bytes.find("some text");
  REQUIRE(at != std::string::npos);
  bytes[at] = 'S';
  write_file(folder / "bad.h5", bytes);
  const auto open = [](const std::string& path) {
    return message([&] { open_token_dataset(path); });
  };
  CHECK(contains(open(folder / "bad.h5"), "bad.h5: tensor \"tokens\" is damaged"));
  CHECK(contains(open(folder / "bad.h5"), "use an earlier token dataset"));
  CHECK(contains(open(folder / "a.txt"), "is not an HDF5 file, expected a token dataset"));
  { Hdf5Writer(folder / "other.h5").commit(); }
  CHECK(contains(open(folder / "other.h5"), "is HDF5, but not a token dataset"));
  const auto mixed = message([&] { open_data({folder / "a.h5", "x"}, {}, byte_tokenizer()); });
  CHECK(contains(mixed, "a token dataset stands alone"));
}

TEST_CASE("dataset: tokens in blocks read as one row") {
  // Documents above and below what becomes a block as it is.
  const Random random(11);
  std::vector<Document> all;
  std::string text;
  for (const size_t size : {1000u, 1'500'000u, 3u, 700'000u, 600'000u, 2'000'000u, 1u}) {
    std::string part(size, '\0');
    for (size_t i = 0; i < size; ++i)
      part[i] = static_cast<char>(random.below(256, text.size() + i));
    text += part;
    all.push_back({"", part});
  }
  const TokenPart part = dataset_from_documents(all, byte_tokenizer()).all();
  REQUIRE(part.size() == static_cast<int64_t>(text.size()));
  CHECK(part.text(0, part.size()) == text);
  for (const int64_t at : {0, 999, 1048575, 1501000, 2201003, 2801003, 4801003})
    CHECK(part.text(at, std::min(part.size(), at + 5)) == text.substr(static_cast<size_t>(at), 5));
}

TEST_CASE("dataset: a look at a file tells what reading it does") {
  const Folder folder;
  write_file(folder / "a.txt", "one\n\ntwo\n");
  const LeftOut none = build_token_dataset({folder / "a.txt"}, {.document = Cut::blank},
                                           byte_tokenizer(), folder / "a.h5");
  CHECK(none.empty());
  const TokenDataset look = open_token_dataset(folder / "a.h5", Opened::in_file);
  CHECK(look.describe() == open_token_dataset(folder / "a.h5").describe());
  CHECK(look.all().text(0, look.size()) == "onetwo\n");
}

namespace {

// A token dataset of bytes as another program might write it.
void write_tokens(const std::string& path, const std::vector<int32_t>& tokens,
                  const std::vector<int64_t>& borders, const std::string& format = "",
                  int64_t version = 1) {
  Hdf5Writer out(path);
  out.tensor("tokens", Dtype::i32, {static_cast<int64_t>(tokens.size())}, tokens.data());
  out.tensor("documents", Dtype::i64, {static_cast<int64_t>(borders.size())}, borders.data());
  save_tokenizer(out, "tokenizer", *byte_tokenizer());
  out.attribute("", "format", format.empty() ? std::string("weft token dataset") : format);
  out.attribute("", "version", version);
  out.attribute("", "sources", std::vector<std::string>{"elsewhere"});
  out.attribute("", "text_bytes", static_cast<int64_t>(tokens.size()));
  out.attribute("", "text_hash", int64_t{7});
  out.commit();
}

}  // namespace

TEST_CASE("dataset: a token lies below the vocabulary, however the file is opened") {
  const Folder folder;
  const std::string path = folder / "t.h5";
  const auto opened = [&](int32_t token) {
    write_tokens(path, {0, 17, token}, {0, 3});
    const std::string whole = message([&] { open_token_dataset(path); });
    const std::string part =
        message([&] { open_token_dataset(path, Opened::in_file).all().tokens(0, 3); });
    CHECK(part == whole);
    return whole;
  };
  CHECK(opened(255) == "no error");
  CHECK(open_token_dataset(path).all().tokens(0, 3) == std::vector<int32_t>{0, 17, 255});
  CHECK(contains(opened(256), "it holds the token 256, outside its vocabulary of 256"));
  CHECK(contains(opened(-1), "it holds the token -1, outside"));
  CHECK(contains(opened(100000), "it holds the token 100000, outside"));
}

TEST_CASE("dataset: borders go from the first token to the last, each document with a token") {
  const Folder folder;
  const auto opened = [&](const std::vector<int64_t>& borders) {
    write_tokens(folder / "t.h5", {1, 2, 3, 4}, borders);
    return message([&] { open_token_dataset(folder / "t.h5"); });
  };
  CHECK(opened({0, 4}) == "no error");
  CHECK(opened({0, 1, 2, 3, 4}) == "no error");
  for (const std::vector<int64_t>& borders : std::vector<std::vector<int64_t>>{
           {0}, {0, 3}, {0, 5}, {1, 4}, {0, 2, 2, 4}, {0, 3, 1, 4}, {-1, 4}})
    CHECK(contains(opened(borders), "documents' borders do not fit its 4 tokens"));
}

TEST_CASE("dataset: another format or version is refused by name") {
  const Folder folder;
  write_tokens(folder / "t.h5", {1, 2}, {0, 2}, "something else");
  CHECK(contains(message([&] { open_token_dataset(folder / "t.h5"); }), "not a token dataset"));
  for (const int64_t version : {0, 2}) {
    write_tokens(folder / "t.h5", {1, 2}, {0, 2}, "", version);
    CHECK(contains(message([&] { open_token_dataset(folder / "t.h5"); }),
                   "of version " + std::to_string(version) + ", this program reads version 1"));
  }
}

TEST_CASE("dataset: a vocabulary of the same size is not the same vocabulary") {
  if (!has_sentencepiece()) SKIP("built without SentencePiece");
  const Folder folder;
  const auto trained = [&](const std::string& name, int factor) {
    std::string text;
    for (int i = 0; i < 3000; ++i)
      text += name + std::to_string(i * factor % 97) + (i % 9 ? " " : "\n");
    write_file(folder / (name + ".txt"), text);
    return train_tokenizer({folder / (name + ".txt")}, {}, {.size = 320});
  };
  const TokenizerPtr own = trained("word", 3), other = trained("number", 5);
  REQUIRE(own->vocabulary() == other->vocabulary());
  build_token_dataset({folder / "word.txt"}, {}, own, folder / "out.h5");
  CHECK(message([&] { open_data({folder / "out.h5"}, {}, own); }) == "no error");
  CHECK(contains(message([&] { open_data({folder / "out.h5"}, {}, other); }),
                 "its vocabulary (sentencepiece, 320) is not the one expected (sentencepiece, "
                 "320)"));
}

TEST_CASE("dataset: many threads read many blocks of one file at once") {
  const Folder folder;
  const int64_t n = 70 * (int64_t{1} << 18) + 11;  // more blocks than are kept
  const auto byte = [](int64_t i) { return static_cast<uint8_t>((i * 2654435761) >> 13); };
  {
    Hdf5Writer out(folder / "t.h5");
    std::vector<uint8_t> row(1 << 18);
    out.begin_rows("tokens", Dtype::u8, {});
    for (int64_t at = 0; at < n; at += static_cast<int64_t>(row.size())) {
      const auto rows = std::min<int64_t>(static_cast<int64_t>(row.size()), n - at);
      for (int64_t i = 0; i < rows; ++i) row[static_cast<size_t>(i)] = byte(at + i);
      out.append_rows("tokens", row.data(), rows);
    }
    const std::vector<int64_t> borders{0, n};
    out.tensor("documents", Dtype::i64, {2}, borders.data());
    save_tokenizer(out, "tokenizer", *byte_tokenizer());
    out.attribute("", "format", std::string("weft token dataset"));
    out.attribute("", "version", int64_t{1});
    out.attribute("", "sources", std::vector<std::string>{"elsewhere"});
    out.attribute("", "text_bytes", n);
    out.attribute("", "text_hash", int64_t{7});
    out.commit();
  }
  // In a process of its own, and not for ever: a list that threads have torn may have no end.
  const int status = tests::in_child([&] {
    ::alarm(60);
    const TokenPart part = open_token_dataset(folder / "t.h5", Opened::in_file).all();
    std::atomic<int64_t> wrong = 0;
    {
      std::vector<std::jthread> threads;
      for (uint64_t t = 0; t < 3; ++t)
        threads.emplace_back([&, t] {
          uint64_t state = t;
          for (int64_t i = 0; i < 500'000; ++i) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            // Mostly one of three blocks, whose order this changes; now and then any.
            const int64_t block =
                i % 5000 == 0 ? i / 5000 % 70 : static_cast<int64_t>(state >> 62) % 3;
            const int64_t at = (block << 18) + static_cast<int64_t>(state >> 40) % 1000;
            int32_t got = 0;
            part.read(at, at + 1, &got);
            wrong += got != byte(at);
          }
        });
    }
    return wrong == 0 ? 0 : 1;
  });
  CHECK(status == 0);
  const TokenPart part = open_token_dataset(folder / "t.h5", Opened::in_file).all();
  // Reads over the border of two blocks, and over the whole of a block.
  for (const int64_t at : {(int64_t{1} << 18) - 2, (int64_t{69} << 18) - 1, n - 5}) {
    const auto got = part.tokens(at, at + 5);
    for (int64_t k = 0; k < 5; ++k) CHECK(got[static_cast<size_t>(k)] == byte(at + k));
  }
}

TEST_CASE("dataset: what it holds is described with the numbers written out") {
  const auto set = dataset_from_documents(
      {{"", std::string(1'200'000, 'x')}, {"", std::string(34'567, 'y')}, {"", "z"}},
      byte_tokenizer(), {"a.txt", "b.txt"});
  const std::string text = set.describe();
  CHECK(contains(text,
                 "1 234 568 tokens in 3 documents\n1 234 568 bytes of text, 1 a token\n"
                 "vocabulary: 256 (bytes)\ntext hash: "));
  CHECK(contains(text, "\nsources: a.txt, b.txt\n"));
}

TEST_CASE("dataset: texts that are cut otherwise have another hash, and so have other texts") {
  const auto hash_of = [](const std::vector<Document>& documents) {
    const std::string text = dataset_from_documents(documents, byte_tokenizer()).describe();
    return text.substr(text.find("text hash: "), 11 + 16);
  };
  std::set<std::string> all;
  for (const std::vector<Document>& documents : {std::vector<Document>{{"", "abc"}},
                                                 {{"", "a"}, {"", "bc"}},
                                                 {{"", "ab"}, {"", "c"}},
                                                 {{"", "bc"}, {"", "a"}},
                                                 {{"", "abd"}}})
    all.insert(hash_of(documents));
  CHECK(all.size() == 5);
  CHECK(hash_of({{"x", "abc"}}) == hash_of({{"y", "abc"}}));
}

TEST_CASE("dataset: a border is near where it is a quarter of the held-out part away, or less") {
  const auto held_out = [](const std::vector<int64_t>& sizes, double fraction) {
    return dataset_from_documents(documents(sizes), byte_tokenizer()).split(fraction).second;
  };
  CHECK(held_out({925, 75}, 0.1).size() == 75);
  CHECK(held_out({926, 74}, 0.1).size() == 100);
  CHECK(held_out({875, 125}, 0.1).size() == 125);
  CHECK(held_out({874, 126}, 0.1).size() == 100);
  CHECK(held_out({874, 126}, 0.1).documents() == 1);
  CHECK(held_out({926, 74}, 0.1).documents() == 2);  // the end of the first, and the second
}

TEST_CASE("dataset: each part of a split has two tokens at least") {
  const auto one = dataset_from_documents(documents({100}), byte_tokenizer());
  CHECK(one.split(0.02).second.size() == 2);
  const auto two = dataset_from_documents(documents({8}), byte_tokenizer());
  CHECK(two.split(0.75).first.size() == 2);
  const auto small = dataset_from_documents(documents({4}), byte_tokenizer());
  CHECK(contains(message([&] { small.split(0.75); }), "too short to hold out"));
  CHECK(contains(message([&] { one.split(0.01); }),
                 "the text of 100 tokens in 1 documents is too short to hold out"));
  CHECK(contains(message([&] { one.split(0.99); }), "too short to hold out"));
  CHECK(contains(message([&] { one.split(1); }), "not in [0, 1)"));
  CHECK(contains(message([&] { one.split(-0.1); }), "not in [0, 1)"));
}

TEST_CASE("dataset: by spread a document is held out where too little was up to its middle") {
  const auto set =
      dataset_from_documents(documents(std::vector<int64_t>(10, 10)), byte_tokenizer());
  const auto [train, held_out] = set.split(0.25, HeldOut::spread);
  CHECK(held_out.text(0, held_out.size()) == std::string(10, 'c') + std::string(10, 'g'));
  CHECK(train.documents() == 8);
}

TEST_CASE("dataset: a part is read within itself, over its documents' borders") {
  const auto set = dataset_from_documents(documents({4, 3, 5, 2}), byte_tokenizer());
  const TokenPart part = set.split(0.25, HeldOut::spread).first;
  REQUIRE(part.borders().back() == part.size());
  CHECK(part.tokens(part.size(), part.size()).empty());
  for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{
           {-1, 2}, {3, 2}, {0, part.size() + 1}, {part.size() + 1, part.size() + 1}}) {
    int32_t to[20];
    CHECK(contains(message([&] { part.read(begin, end, to); }), "are asked of a part with"));
  }
  const std::string whole = part.text(0, part.size());
  for (int64_t begin = 0; begin < part.size(); ++begin)
    for (int64_t end = begin; end <= part.size(); ++end)
      CHECK(part.text(begin, end) ==
            whole.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
}

namespace {

// A vocabulary of `size` whose text is the token itself, four bytes each.
struct FourBytes final : Tokenizer {
  explicit FourBytes(int64_t size) { pieces_.assign(static_cast<size_t>(size), "four"); }
  std::string kind() const override { return "wide"; }
  void encode(std::string_view text, const Give& give) const override {
    std::vector<int32_t> tokens(text.size() / 4);
    std::memcpy(tokens.data(), text.data(), 4 * tokens.size());
    give(tokens);
  }
};

}  // namespace

TEST_CASE("dataset: tokens of any vocabulary come back as they went in") {
  for (const int64_t size : {2, 255, 256, 257, 65535, 65536, 65537, 100000}) {
    INFO("a vocabulary of " << size);
    const auto most = static_cast<int32_t>(size - 1);
    const std::vector<int32_t> tokens{0, most, 1, most / 2, most};
    std::string text(4 * tokens.size(), '\0');
    std::memcpy(text.data(), tokens.data(), text.size());
    const auto set = dataset_from_documents({{"", text}}, std::make_shared<FourBytes>(size));
    CHECK(set.all().tokens(0, 5) == tokens);
    CHECK(set.text_bytes() == 20);
    CHECK(contains(set.describe(), "20 bytes of text, 4 a token"));
  }
}

TEST_CASE("dataset: a file is one where it alone is named, and by its ending") {
  CHECK(is_token_dataset({"a.h5"}));
  CHECK_FALSE(is_token_dataset({"a.h5", "b.h5"}));
  CHECK_FALSE(is_token_dataset({"a.h5.txt"}));
  CHECK_FALSE(is_token_dataset({}));
  CHECK(contains(message([] {
                   open_data({"a.txt", "b.h5"}, {}, byte_tokenizer());
                 }),
                 "b.h5: a token dataset stands alone"));
  CHECK(contains(message([] { open_data({"a.txt"}, {}, nullptr); }), "text needs a vocabulary"));
}
