// Text that is a mixture of domains: each keeps its documents, holds out a part of its own, and is
// evaluated in batches of its own.
#include "tests/data/helpers.h"

using namespace weft;
using namespace weft::data;

namespace {

// a: 30 documents of 10 letters, b: one of 100, c: two of 40 and 60.
TokenDataset mixture(const Folder& f) {
  std::string lines;
  for (int i = 0; i < 30; ++i) lines += std::string(10, 'a') + "\n";
  f.write("a.txt", lines);
  f.write("b.txt", std::string(100, 'b') + "\n");
  f.write("c1.txt", std::string(40, 'c') + "\n");
  f.write("c2.txt", std::string(60, 'C') + "\n");
  TextOptions options;
  options.document = Cut::line;
  return open_domains({{"first", {f / "a.txt"}},
                       {"second", {f / "b.txt"}},
                       {"third", {f / "c1.txt", f / "c2.txt"}}},
                      options, byte_tokenizer());
}

}  // namespace

TEST_CASE("domains: a dataset keeps which document is of which domain") {
  const Folder f;
  const TokenDataset set = mixture(f);
  CHECK(set.domains() == std::vector<std::string>{"first", "second", "third"});
  CHECK(set.documents() == 33);
  CHECK(set.sources().size() == 4);
  const TokenPart all = set.all();
  CHECK(all.of_domain(0).documents() == 30);
  CHECK(all.of_domain(1).text(0, 100) == std::string(100, 'b'));
  CHECK(all.of_domain(2).text(0, 100) == std::string(40, 'c') + std::string(60, 'C'));
  CHECK(all.of_domain(3).size() == 0);
}

TEST_CASE("domains: each holds out the end of its own text") {
  const Folder f;
  const auto [train, held_out] = mixture(f).split(0.1);
  CHECK(held_out.of_domain(0).text(0, 30) == std::string(30, 'a'));
  CHECK(held_out.of_domain(1).text(0, 10) == std::string(10, 'b'));
  CHECK(held_out.of_domain(2).text(0, 10) == std::string(10, 'C'));
  CHECK(held_out.size() == 50);
  CHECK(train.size() == 450);
  CHECK(train.of_domain(2).size() == 90);
  TextOptions lines;
  lines.document = Cut::line;
  const auto [more, spread] =
      open_domains({{"first", {f / "a.txt"}}, {"same", {f / "a.txt"}}}, lines, byte_tokenizer())
          .split(0.4, HeldOut::spread);
  for (const int64_t domain : {0, 1}) {
    CHECK(spread.of_domain(domain).documents() == 12);
    CHECK(more.of_domain(domain).documents() == 18);
  }
}

TEST_CASE("domains: one without documents, or too short to hold out, is named") {
  const Folder f;
  f.write("a.txt", std::string(300, 'a'));
  f.write("b.txt", "bbb");
  f.write("blank.txt", "\n\n");
  TextOptions lines;
  lines.document = Cut::line;
  const auto open = [&](const std::string& second) {
    return open_domains({{"long", {f / "a.txt"}}, {"short", {f / second}}}, lines,
                        byte_tokenizer());
  };
  contains(message([&] { open("blank.txt"); }), "domain short: the text named holds no documents");
  contains(message([&] { open("b.txt").split(0.1); }),
           "domain short: the text of 3 tokens in 1 documents is too short to hold out");
}

TEST_CASE("domains: an evaluation takes them by turns, each batch of one, all of each") {
  const Folder f;
  const TokenPart all = mixture(f).all();
  for (const bool packed : {false, true}) {
    INFO("packed " << packed);
    const data::BatchShape shape{.rows = 2, .length = 16};
    std::vector<BatchesPtr> each;
    for (int64_t d = 0; d < 3; ++d)
      each.push_back(packed ? held_out_packed(all.of_domain(d), shape)
                            : held_out_windows(all.of_domain(d), shape));
    const BatchesPtr turns = by_turns(each);
    CHECK(turns->packed() == packed);
    std::vector<int64_t> order, at(3, 0);
    for (int64_t i = 0; i < turns->count(); ++i) {
      const HostBatch batch = made(*turns, i);
      order.push_back(batch.domain);
      const HostBatch own =
          made(*each[static_cast<size_t>(batch.domain)], at[static_cast<size_t>(batch.domain)]++);
      CHECK(batch.tokens == own.tokens);
      CHECK(batch.targets == own.targets);
      CHECK(own.domain == -1);
      CHECK(to_tensors(batch, *turns).domain == batch.domain);
    }
    for (size_t d = 0; d < 3; ++d) CHECK(at[d] == each[d]->count());
    CHECK(std::vector<int64_t>(order.begin(), order.begin() + 6) ==
          std::vector<int64_t>{0, 1, 2, 0, 1, 2});
    CHECK(order.back() == 0);  // the longest
    const BatchesPtr other = by_turns({each[1], each[0], each[2]});
    CHECK(other->fingerprint() != turns->fingerprint());
  }
}
