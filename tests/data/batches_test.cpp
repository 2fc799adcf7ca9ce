#include "data/batches.h"

#include <map>
#include <set>

#include "core/random.h"
#include "data/permutation.h"
#include "data/tasks.h"
#include "tests/data/helpers.h"

using namespace weft;
using namespace weft::data;

namespace {

bool same(const HostBatch& a, const HostBatch& b) {
  return a.tokens == b.tokens && a.targets == b.targets && a.cu_seqlens == b.cu_seqlens &&
         a.slices == b.slices && a.labelled == b.labelled && a.target_bytes == b.target_bytes;
}

std::map<std::string, BatchesPtr> every_kind(const BatchShape& shape) {
  static const TokenDataset text = random_text({7, 1, 33, 20, 2, 90, 15, 64, 9});
  const TokenPart part = text.all();
  return {{"training_windows", training_windows(part, shape, 3)},
          {"training_packed", training_packed(part, shape, 3)},
          {"held_out_windows", held_out_windows(part, shape)},
          {"held_out_packed", held_out_packed(part, shape)},
          {"mqar", training_task({.name = "mqar", .pairs = {1, 2}}, shape, 3)},
          {"mqar again", training_task({.name = "mqar", .examples = 7}, shape, 3)},
          {"selective_copy", training_task({.name = "selective_copy", .marks = 3}, shape, 3)},
          {"induction", test_task({.name = "induction"}, shape, 3, 25)}};
}

}  // namespace

TEST_CASE("batches: a permutation holds every number once, and the seed changes it") {
  for (const int64_t n : {1, 2, 3, 5, 16, 17, 1000}) {
    std::set<int64_t> seen;
    for (int64_t i = 0; i < n; ++i) seen.insert(Permutation(n, 1, 2)(i));
    CHECK(static_cast<int64_t>(seen.size()) == n);
    CHECK(*seen.rbegin() == n - 1);
  }
  int moved = 0;
  for (int64_t i = 0; i < 1000; ++i)
    moved += Permutation(1000, 1, 2)(i) != Permutation(1000, 1, 3)(i);
  CHECK(moved > 980);
}

TEST_CASE("batches: a saved place continues with the very next batch, prefetch on or off") {
  for (const auto& [name, batches] : every_kind({.rows = 3, .length = 16})) {
    INFO(name);
    BatchSource unbroken(batches, 3);
    std::vector<HostBatch> all(30);
    for (HostBatch& batch : all) unbroken.next(batch);
    for (const int prefetch : {0, 1, 4}) {
      for (const size_t stop : {0, 1, 7, 20}) {
        BatchSource before(batches, prefetch);
        HostBatch batch;
        for (size_t i = 0; i < stop; ++i) {
          before.next(batch);
          CHECK(same(batch, all[i]));
        }
        BatchSource after(batches, prefetch);
        after.next(batch);  // it had begun elsewhere
        after.restore(before.state());
        for (size_t i = stop; i < all.size(); ++i) {
          after.next(batch);
          CHECK(same(batch, all[i]));
        }
      }
    }
  }
}

TEST_CASE("batches: the ranks' shares are the rows that one rank would have") {
  const auto whole = every_kind({.rows = 6, .length = 16});
  for (int64_t rank = 0; rank < 3; ++rank) {
    for (const auto& [name, batches] :
         every_kind({.rows = 2, .length = 16, .rank = rank, .world = 3})) {
      INFO(name << " rank " << rank);
      for (int64_t step = 0; step < 4; ++step) {
        const HostBatch all = made(*whole.at(name), step), share = made(*batches, step);
        const auto begin = all.tokens.begin() + rank * 32;
        CHECK(std::equal(share.tokens.begin(), share.tokens.end(), begin));
      }
      CHECK(whole.at(name)->count() == batches->count());
    }
  }
}

TEST_CASE("batches: an epoch of windows shows every window once, each followed by its target") {
  const TokenDataset text = random_text({1000});
  const TokenPart part = text.all();
  const auto tokens = part.tokens(0, part.size());
  const auto batches = training_windows(part, {.rows = 1, .length = 10}, 7);
  const auto windows = static_cast<int64_t>(batches->epoch_steps());
  CHECK(windows == 99);
  std::set<int64_t> shifts;
  for (int64_t epoch = 0; epoch < 6; ++epoch) {
    std::set<int64_t> begins;
    for (int64_t i = 0; i < windows; ++i) {
      const HostBatch batch = made(*batches, epoch * windows + i);
      const auto at =
          std::search(tokens.begin(), tokens.end(), batch.tokens.begin(), batch.tokens.end());
      REQUIRE(at != tokens.end());
      CHECK(std::equal(batch.targets.begin(), batch.targets.end(), at + 1));
      begins.insert(at - tokens.begin());
    }
    CHECK(static_cast<int64_t>(begins.size()) == windows);
    shifts.insert(*begins.begin());
  }
  CHECK(shifts.size() > 1);
}

TEST_CASE("batches: held-out text is predicted from first to last token, each once") {
  const TokenPart part = random_text({30, 1, 22, 80}).all();
  const auto tokens = part.tokens(0, part.size());
  const auto windows = held_out_windows(part, {.rows = 3, .length = 16});
  std::vector<int32_t> targets;
  int64_t labelled = 0, bytes = 0;
  for (int64_t step = 0; step < windows->count(); ++step) {
    const HostBatch batch = made(*windows, step);
    labelled += batch.labelled, bytes += batch.target_bytes;
    for (const int32_t target : batch.targets)
      if (target != kIgnored) targets.push_back(target);
  }
  CHECK(labelled == part.size() - 1);
  CHECK(bytes == part.size() - 1);
  CHECK(targets == std::vector<int32_t>(tokens.begin() + 1, tokens.end()));
  CHECK(made(*windows, windows->count()).labelled == 0);

  const auto packed = held_out_packed(part, {.rows = 3, .length = 16});
  labelled = 0;
  for (int64_t step = 0; step < packed->count(); ++step) labelled += made(*packed, step).labelled;
  CHECK(labelled == part.size() - part.documents());
}

TEST_CASE("batches: packed documents keep their borders and never look across") {
  const std::vector<int64_t> sizes = {7, 1, 33, 20, 2, 90, 15, 64, 9};
  const TokenPart part = random_text(sizes).all();
  const int64_t size = 40;
  const auto batches = training_packed(part, {.rows = 2, .length = size / 2}, 11);
  // The endless row, put together again from documents found by their text.
  std::vector<int32_t> stream, targets;
  std::vector<int64_t> borders;
  for (int64_t step = 0; step < 18; ++step) {
    const HostBatch batch = made(*batches, step);
    CHECK(batch.cu_seqlens.front() == 0);
    CHECK(batch.cu_seqlens.back() == size);
    CHECK(std::is_sorted(batch.cu_seqlens.begin(), batch.cu_seqlens.end(), std::less_equal<>()));
    for (const int32_t border : batch.cu_seqlens)
      if (border < size) borders.push_back(step * size + border);
    stream.insert(stream.end(), batch.tokens.begin(), batch.tokens.end());
    targets.insert(targets.end(), batch.targets.begin(), batch.targets.end());
  }
  const int64_t epoch = part.size();  // 241
  for (int64_t n = 0; n + 1 < 18 * size / epoch; ++n) {
    std::multiset<int64_t> found;
    int64_t at = n * epoch;
    while (at < (n + 1) * epoch) {
      // A document ends at the next token without target; it begins at a border.
      int64_t end = at;
      while (targets[static_cast<size_t>(end)] != kIgnored) ++end;
      CHECK(std::count(borders.begin(), borders.end(), at) == 1);
      for (int64_t i = at; i < end; ++i)
        CHECK(targets[static_cast<size_t>(i)] == stream[static_cast<size_t>(i + 1)]);
      found.insert(end + 1 - at);
      at = end + 1;
    }
    CHECK(at == (n + 1) * epoch);
    CHECK(found == std::multiset<int64_t>(sizes.begin(), sizes.end()));
  }
}

TEST_CASE("batches: another seed, text or shape is another order, and its place is refused") {
  const TokenPart part = random_text({500}).all(), other = random_text({501}).all();
  const BatchShape shape{.rows = 2, .length = 8};
  const auto a = training_windows(part, shape, 1);
  CHECK(!same(made(*a, 0), made(*training_windows(part, shape, 2), 0)));
  const auto state = BatchSource(a).state();
  const auto restore = [&](const BatchesPtr& batches) {
    return message([&] { BatchSource(batches).restore(state); });
  };
  CHECK(restore(training_windows(part, shape, 1)) == "no error");
  for (const BatchesPtr& b :
       {training_windows(part, shape, 2), training_windows(other, shape, 1),
        training_windows(part, {.rows = 3, .length = 8}, 1), training_packed(part, shape, 1)})
    CHECK(contains(restore(b), "is of other data"));
}

TEST_CASE("batches: text shorter than a window is told") {
  const TokenPart part = random_text({16}).all();
  CHECK(made(*training_windows(part, {.length = 15}, 1), 5).labelled == 15);
  CHECK(contains(message([&] { training_windows(part, {.length = 16}, 1); }),
                 "16 tokens, fewer than one window of 16 tokens and the one that follows"));
}

TEST_CASE("batches: what fails in the background is thrown to the caller") {
  struct Failing final : Batches {
    Failing() : Batches({}, false) {}
    void make(int64_t step, HostBatch& batch) const override {
      require(step < 2, "no step 2");
      batch.labelled = step;
    }
    int64_t count() const override { return -1; }
    int64_t vocabulary() const override { return 1; }
  };
  BatchSource source(std::make_shared<Failing>(), 2);
  HostBatch batch;
  source.next(batch);
  source.next(batch);
  CHECK(batch.labelled == 1);
  CHECK(message([&] { source.next(batch); }) == "no step 2");
  CHECK(message([&] { source.next(batch); }) == "no step 2");
  source.rewind();
  source.next(batch);
  CHECK(batch.labelled == 0);
}

TEST_CASE("batches: tensors on the meta device take the memory of real ones") {
  for (const auto& [name, batches] : every_kind({.rows = 3, .length = 16})) {
    INFO(name);
    const auto real_before = allocator(kCpu).stats().current;
    const auto plan_before = allocator(kMeta).stats().current;
    const Batch real = BatchSource(batches).next(), plan = blank_batch(*batches, kMeta);
    CHECK(allocator(kCpu).stats().current - real_before ==
          allocator(kMeta).stats().current - plan_before);
    CHECK(real.tokens.shape() == plan.tokens.shape());
    CHECK(real.cu_seqlens.defined() == batches->packed());
    CHECK(plan.tokens.is_meta());
    if (batches->packed()) CHECK(to_ints(real.cu_seqlens).back() == 48);
  }
}

TEST_CASE("batches: a packed document longer than T is cut into pieces that all have targets") {
  const TokenDataset all =
      dataset_from_documents({{"long", std::string(100, 'a')}, {"short", "bc"}}, byte_tokenizer());
  const auto batches = training_packed(all.all(), {.rows = 4, .length = 16}, 2);
  HostBatch batch;
  for (int64_t step = 0; step < 5; ++step) {
    batches->make(step, batch);
    REQUIRE(batch.cu_seqlens.back() == 64);
    for (size_t i = 0; i + 1 < batch.cu_seqlens.size(); ++i) {
      const int32_t begin = batch.cu_seqlens[i], end = batch.cu_seqlens[i + 1];
      CHECK(begin < end);
      CHECK(end - begin <= 16);
      // A piece that ends in the middle of the document still predicts what follows.
      if (end - begin == 16 && end < 64 && batch.tokens[static_cast<size_t>(end)] == 'a')
        CHECK(batch.targets[static_cast<size_t>(end) - 1] == 'a');
    }
  }
}
