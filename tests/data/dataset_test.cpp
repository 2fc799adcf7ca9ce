#include "data/dataset.h"

#include <set>

#include "core/file.h"
#include "core/random.h"
#include "tests/data/helpers.h"

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
