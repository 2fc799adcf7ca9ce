#include "data/batches.h"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>

#include "core/error.h"
#include "core/hash.h"
#include "core/random.h"
#include "data/permutation.h"

namespace weft::data {
namespace {

void check_shape(const BatchShape& shape) {
  require(shape.rows > 0 && shape.length > 0 && shape.rank >= 0 && shape.rank < shape.world,
          "a batch of ", shape.rows, " rows of ", shape.length, " tokens, share ", shape.rank,
          " of ", shape.world, ": expected positive numbers and a share that is there");
}

// Batches of text: counts what the targets stand for.
class TextBatches : public Batches {
 public:
  int64_t vocabulary() const override { return part_.tokenizer()->vocabulary(); }

 protected:
  TextBatches(const TokenPart& part, const BatchShape& shape, bool packed, std::string_view order,
              uint64_t seed)
      : Batches(shape, packed), part_(part) {
    check_shape(shape);
    for (int64_t i = 0; i < vocabulary(); ++i)
      piece_bytes_.push_back(static_cast<int32_t>(part.tokenizer()->piece(i).size()));
    Hash64 hash;
    hash.update(order);
    const std::array<uint64_t, 5> numbers = {seed, part.hash(), static_cast<uint64_t>(shape.rows),
                                             static_cast<uint64_t>(shape.length),
                                             static_cast<uint64_t>(shape.world)};
    hash.update(numbers.data(), sizeof numbers);
    fingerprint_ = hash.digest();
  }

  void clear(HostBatch& batch) const {
    const auto n = static_cast<size_t>(shape_.rows * shape_.length);
    batch.tokens.assign(n, 0);
    batch.targets.assign(n, kIgnored);
    batch.cu_seqlens.clear();
    batch.slices.clear();
    batch.domain = -1;
  }

  void count_targets(HostBatch& batch) const {
    batch.labelled = batch.target_bytes = 0;
    for (const int32_t target : batch.targets) {
      if (target == kIgnored) continue;
      ++batch.labelled;
      batch.target_bytes += piece_bytes_[static_cast<size_t>(target)];
    }
  }

  TokenPart part_;
  std::vector<int32_t> piece_bytes_;
};

// --- Windows -------------------------------------------------------------------------------------

// Row r of step s is window number s * rows * world + rank * rows + r of an endless row of windows,
// epoch behind epoch. So ranks share the rows that one rank with as many rows would have.
class Windows final : public TextBatches {
 public:
  Windows(const TokenPart& part, const BatchShape& shape, uint64_t seed, bool training)
      : TextBatches(part, shape, false, training ? "windows" : "held out windows", seed),
        seed_(seed),
        training_(training) {
    const int64_t T = shape.length, pairs = part.size() - 1;  // of a token and the next one
    if (training) {
      require(pairs >= T, "the text has ", part.size(), " tokens, fewer than one window of ", T,
              " tokens and the one that follows; shorten the length or add text");
      windows_ = std::max<int64_t>(1, (pairs - (T - 1)) / T);
      slack_ = std::min(T - 1, pairs - windows_ * T);
    } else {
      require(pairs >= 1, "the held-out text has ", part.size(), " tokens, expected at least 2");
      windows_ = (pairs + T - 1) / T;
    }
  }

  int64_t count() const override {
    const int64_t step = shape_.rows * shape_.world;
    return training_ ? -1 : (windows_ + step - 1) / step;
  }
  double epoch_steps() const override {
    return static_cast<double>(windows_) / static_cast<double>(shape_.rows * shape_.world);
  }

  void make(int64_t step, HostBatch& batch) const override {
    clear(batch);
    const int64_t T = shape_.length;
    std::vector<int32_t> window(static_cast<size_t>(T) + 1);
    for (int64_t row = 0; row < shape_.rows; ++row) {
      const int64_t number = (step * shape_.world + shape_.rank) * shape_.rows + row;
      const int64_t begin = begin_of(number);
      const int64_t end = std::min(begin + T + 1, part_.size());
      if (end - begin < 2) continue;  // behind the end of the held-out text
      part_.read(begin, end, window.data());
      const auto last = window.begin() + (end - begin);
      std::copy(window.begin(), std::min(last, window.begin() + T), batch.tokens.begin() + row * T);
      std::copy(window.begin() + 1, last, batch.targets.begin() + row * T);
    }
    count_targets(batch);
  }

 private:
  int64_t begin_of(int64_t number) const {
    if (!training_) return std::min(number * shape_.length, part_.size());
    const int64_t epoch = number / windows_;
    const auto stream = static_cast<uint64_t>(epoch);
    const Permutation order(windows_, seed_, stream_of("windows") + stream);
    const int64_t shift = static_cast<int64_t>(
        Random(seed_, stream_of("window shift")).below(static_cast<uint64_t>(slack_) + 1, stream));
    return shift + order(number % windows_) * shape_.length;
  }

  uint64_t seed_;
  bool training_;
  int64_t windows_ = 0;  // of an epoch
  int64_t slack_ = 0;    // how far the grid can shift
};

// --- Packed documents ----------------------------------------------------------------------------

// A batch is a stretch of rows * length tokens of an endless row of documents, epoch behind epoch.
class Packed final : public TextBatches {
 public:
  Packed(const TokenPart& part, const BatchShape& shape, uint64_t seed, bool training)
      : TextBatches(part, shape, true, training ? "packed" : "held out packed", seed),
        seed_(seed),
        training_(training) {
    require(part.size() >= 2, "the text has ", part.size(), " tokens, expected at least 2");
    require(!training || has_targets(part), "nothing can be learned from this text: none of its ",
            part.documents(),
            " documents has two tokens, so that no token follows another; cut documents otherwise "
            "with data.document, or set data.packed = false, which leaves their borders out");
  }

  int64_t count() const override {
    const int64_t step = shape_.rows * shape_.length * shape_.world;
    return training_ ? -1 : (part_.size() + step - 1) / step;
  }
  double epoch_steps() const override {
    return static_cast<double>(part_.size()) /
           static_cast<double>(shape_.rows * shape_.length * shape_.world);
  }

  void make(int64_t step, HostBatch& batch) const override {
    clear(batch);
    const int64_t size = shape_.rows * shape_.length;
    const int64_t begin = (step * shape_.world + shape_.rank) * size;
    batch.cu_seqlens.push_back(0);
    int64_t at = 0;  // in the batch
    while (at < size) {
      const int64_t epoch = (begin + at) / part_.size();
      if (!training_ && epoch > 0) break;
      const auto order = order_of(epoch);
      for (int64_t place = (begin + at) % part_.size(); at < size && place < part_.size();) {
        const int64_t taken = take(*order, place, size - at, at, batch);
        // No row of attention is longer than T: a longer document is cut.
        for (int64_t cut = at + shape_.length; cut < at + taken; cut += shape_.length)
          batch.cu_seqlens.push_back(static_cast<int32_t>(cut));
        at += taken, place += taken;
        batch.cu_seqlens.push_back(static_cast<int32_t>(at));
      }
    }
    for (; at < size; at = std::min(size, at + shape_.length))  // filling
      batch.cu_seqlens.push_back(static_cast<int32_t>(std::min(size, at + shape_.length)));
    count_targets(batch);
  }

 private:
  // The documents of an epoch in their order, and where each begins.
  struct Order {
    int64_t epoch = 0;
    std::vector<int64_t> documents, begins;  // [N], [N+1]
  };

  std::shared_ptr<const Order> order_of(int64_t epoch) const {
    const std::lock_guard lock(mutex_);
    for (const auto& order : kept_)
      if (order && order->epoch == epoch) return order;
    const auto order = std::make_shared<Order>();
    order->epoch = epoch;
    order->begins.push_back(0);
    const Permutation shuffled(part_.documents(), seed_,
                               stream_of("documents") + static_cast<uint64_t>(epoch));
    for (int64_t i = 0; i < part_.documents(); ++i) {
      const int64_t document = training_ ? shuffled(i) : i;
      const auto d = static_cast<size_t>(document);
      order->documents.push_back(document);
      order->begins.push_back(order->begins.back() + part_.borders()[d + 1] - part_.borders()[d]);
    }
    kept_[static_cast<size_t>(epoch % 2)] = order;
    return order;
  }

  // Copies from the document that covers `place` of an epoch; returns how many tokens.
  int64_t take(const Order& order, int64_t place, int64_t most, int64_t at,
               HostBatch& batch) const {
    const auto i =
        static_cast<size_t>(std::upper_bound(order.begins.begin(), order.begins.end(), place) -
                            order.begins.begin() - 1);
    const int64_t document = order.documents[i];
    const int64_t begin = part_.borders()[static_cast<size_t>(document)] + place - order.begins[i];
    const int64_t left = order.begins[i + 1] - place;
    const int64_t n = std::min(left, most);
    part_.read(begin, begin + n, batch.tokens.data() + at);
    const int64_t followed = std::min(left - 1, n);  // tokens with one behind them
    part_.read(begin + 1, begin + 1 + followed, batch.targets.data() + at);
    return n;
  }

  uint64_t seed_;
  bool training_;
  mutable std::mutex mutex_;
  mutable std::array<std::shared_ptr<const Order>, 2> kept_;
};

// --- Mixtures ------------------------------------------------------------------------------------

class ByTurns final : public Batches {
 public:
  explicit ByTurns(std::vector<BatchesPtr> domains)
      : Batches(domains.at(0)->shape(), domains.at(0)->packed()), domains_(std::move(domains)) {
    Hash64 hash;
    int64_t most = 0;
    for (const BatchesPtr& one : domains_) {
      const uint64_t own = one->fingerprint();
      hash.update(&own, sizeof own);
      most = std::max(most, one->count());
    }
    fingerprint_ = hash.digest();
    for (int64_t i = 0; i < most; ++i)
      for (size_t d = 0; d < domains_.size(); ++d)
        if (i < domains_[d]->count()) turns_.emplace_back(d, i);
  }
  void make(int64_t step, HostBatch& batch) const override {
    const auto& [domain, at] = turns_.at(static_cast<size_t>(step));
    domains_[domain]->make(at, batch);
    batch.domain = static_cast<int64_t>(domain);
  }
  int64_t count() const override { return static_cast<int64_t>(turns_.size()); }
  int64_t vocabulary() const override { return domains_[0]->vocabulary(); }

 private:
  std::vector<BatchesPtr> domains_;
  std::vector<std::pair<size_t, int64_t>> turns_;  // domain, and its batch
};

Tensor copied(const std::vector<int32_t>& values, const Shape& shape, Device device) {
  const Tensor t = empty(shape, Dtype::i32, kCpu);
  std::memcpy(t.raw(), values.data(), values.size() * sizeof(int32_t));
  return device.is_cpu() ? t : t.to(device);
}

}  // namespace

bool has_targets(const TokenPart& part) {
  const std::vector<int64_t>& at = part.borders();
  for (size_t i = 1; i < at.size(); ++i)
    if (at[i] - at[i - 1] > 1) return true;
  return false;
}

BatchesPtr training_windows(const TokenPart& part, const BatchShape& shape, uint64_t seed) {
  return std::make_shared<Windows>(part, shape, seed, true);
}
BatchesPtr training_packed(const TokenPart& part, const BatchShape& shape, uint64_t seed) {
  return std::make_shared<Packed>(part, shape, seed, true);
}
BatchesPtr held_out_windows(const TokenPart& part, const BatchShape& shape) {
  return std::make_shared<Windows>(part, shape, 0, false);
}
BatchesPtr held_out_packed(const TokenPart& part, const BatchShape& shape) {
  return std::make_shared<Packed>(part, shape, 0, false);
}

BatchesPtr by_turns(std::vector<BatchesPtr> domains) {
  return std::make_shared<ByTurns>(std::move(domains));
}

// --- Tensors -------------------------------------------------------------------------------------

namespace {

Shape tensor_shape(const Batches& batches) {
  const BatchShape& s = batches.shape();
  return batches.packed() ? Shape{1, s.rows * s.length} : Shape{s.rows, s.length};
}

Shape border_room(const Batches& batches) {
  return {batches.shape().rows * batches.shape().length + 1};
}

}  // namespace

Batch to_tensors(const HostBatch& from, const Batches& batches, Device device) {
  if (device.is_meta()) return blank_batch(batches, device);
  Batch batch;
  const Shape shape = tensor_shape(batches);
  batch.tokens = copied(from.tokens, shape, device);
  batch.targets = copied(from.targets, shape, device);
  if (batches.packed())
    batch.cu_seqlens = copied(from.cu_seqlens, border_room(batches), kCpu)
                           .slice(0, 0, static_cast<int64_t>(from.cu_seqlens.size()));
  batch.slices = from.slices;
  batch.domain = from.domain;
  batch.labelled = from.labelled, batch.target_bytes = from.target_bytes;
  return batch;
}

Batch blank_batch(const Batches& batches, Device device) {
  Batch batch;
  const Shape shape = tensor_shape(batches);
  batch.tokens = empty(shape, Dtype::i32, device);
  batch.targets = empty(shape, Dtype::i32, device);
  if (batches.packed())
    batch.cu_seqlens =
        empty(border_room(batches), Dtype::i32, device.is_meta() ? device : kCpu).slice(0, 0, 2);
  batch.labelled = shape.numel();
  return batch;
}

// --- Source --------------------------------------------------------------------------------------

struct BatchSource::State {
  BatchesPtr batches;
  size_t prefetch = 0;
  int64_t step = 0;  // of the next batch handed out

  std::mutex mutex;
  std::condition_variable_any changed;
  std::deque<HostBatch> ready, spare;
  std::exception_ptr error;
  std::jthread thread;  // last: it ends before what it uses

  int64_t wrapped(int64_t n) const {
    return batches->count() < 0 ? n : n % std::max<int64_t>(1, batches->count());
  }

  void work(const std::stop_token& stop, int64_t at) {
    for (;; ++at) {
      HostBatch batch;
      {
        std::unique_lock lock(mutex);
        if (!changed.wait(lock, stop, [&] { return ready.size() < prefetch; })) return;
        if (!spare.empty()) batch = std::move(spare.front()), spare.pop_front();
      }
      std::exception_ptr failed;
      try {
        batches->make(wrapped(at), batch);
      } catch (...) {
        failed = std::current_exception();
      }
      const std::lock_guard lock(mutex);
      if (failed)
        error = failed;
      else
        ready.push_back(std::move(batch));
      changed.notify_all();
      if (failed) return;
    }
  }

  void start() {
    if (!thread.joinable())
      thread = std::jthread([this, at = step](const std::stop_token& stop) { work(stop, at); });
  }
  void stop() {
    if (thread.joinable()) thread.request_stop(), thread.join();
    ready.clear();
    error = nullptr;
  }
  void move_to(int64_t to) {
    stop();
    step = to;
  }
};

BatchSource::BatchSource(BatchesPtr batches, int prefetch) : state_(std::make_unique<State>()) {
  state_->batches = std::move(batches);
  state_->prefetch = static_cast<size_t>(std::max(0, prefetch));
}

BatchSource::~BatchSource() { state_->stop(); }

void BatchSource::next(HostBatch& batch) {
  State& s = *state_;
  if (s.prefetch == 0) {
    s.batches->make(s.wrapped(s.step), batch);
    ++s.step;
    return;
  }
  s.start();
  std::unique_lock lock(s.mutex);
  s.changed.wait(lock, [&] { return !s.ready.empty() || s.error; });
  if (s.ready.empty()) std::rethrow_exception(s.error);
  std::swap(batch, s.ready.front());
  s.spare.push_back(std::move(s.ready.front()));
  s.ready.pop_front();
  s.changed.notify_all();
  ++s.step;
}

Batch BatchSource::next(Device device) {
  HostBatch batch;
  next(batch);
  return to_tensors(batch, *state_->batches, device);
}

const Batches& BatchSource::batches() const { return *state_->batches; }
int64_t BatchSource::step() const { return state_->step; }
void BatchSource::rewind() { state_->move_to(0); }

std::map<std::string, int64_t> BatchSource::state() const {
  return {{"step", state_->step},
          {"fingerprint", static_cast<int64_t>(state_->batches->fingerprint())}};
}

void BatchSource::restore(const std::map<std::string, int64_t>& state) {
  const auto step = state.find("step"), fingerprint = state.find("fingerprint");
  require(step != state.end() && fingerprint != state.end() && step->second >= 0,
          "the saved place in the data is incomplete");
  require(fingerprint->second == static_cast<int64_t>(state_->batches->fingerprint()),
          "the saved place in the data is of other data: the text, the vocabulary, the seed or the "
          "batch's shape has changed since");
  state_->move_to(step->second);
}

}  // namespace weft::data
