#include "train/evaluate.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numbers>

namespace weft::train {
namespace {

// What one batch adds.
struct Sums {
  double nats = 0, labelled = 0, bytes = 0;
  std::map<int64_t, std::pair<double, double>> hits;  // by slice: hits and labelled positions
  double domain = -1;
  double rows = 0, full_keys = 0;      // of a domain: its tokens, and the keys of their past
  std::vector<layers::Routes> routes;  // of a domain, on one rank
};

// Counts the rows' hits and labelled positions, by slice.
void count_hits(const Tensor& logits, const data::Batch& batch, Sums& sums) {
  const Tensor x = logits.to(kCpu).to(Dtype::f32).contiguous();
  const int64_t B = batch.tokens.size(0), T = batch.tokens.size(1), V = x.size(-1);
  const Tensor targets = batch.targets.to(kCpu);
  const int32_t* const target = targets.data<int32_t>();
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = 0; t < T; ++t) {
      const int64_t row = b * T + t;
      if (target[row] == data::kIgnored) continue;
      const float* const l = x.data<float>() + row * V;
      auto& [hits, all] =
          sums.hits[batch.slices.empty() ? 0 : batch.slices[static_cast<size_t>(b)]];
      hits += std::max_element(l, l + V) - l == target[row];
      all += 1;
    }
}

// The tokens of a batch that are text, and not filling: up to the last with a target in each row,
// and of packed documents the one that this target is.
std::vector<bool> text_rows(const data::Batch& batch) {
  const int64_t B = batch.tokens.size(0), T = batch.tokens.size(1);
  const Tensor targets = batch.targets.to(kCpu);
  std::vector<bool> rows(static_cast<size_t>(B * T));
  for (int64_t b = 0; b < B; ++b) {
    const int32_t* const target = targets.data<int32_t>() + b * T;
    int64_t end = T;
    while (end > 0 && target[end - 1] == data::kIgnored) --end;
    if (batch.cu_seqlens && end > 0) end = std::min(T, end + 1);
    std::fill_n(rows.begin() + b * T, end, true);
  }
  return rows;
}

// Adds tokens and the keys of all of their past.
void count_keys(const data::Batch& batch, const std::vector<bool>& rows, Sums& s) {
  const int64_t T = batch.tokens.size(1);
  const std::vector<int64_t> borders =
      batch.cu_seqlens ? to_ints(batch.cu_seqlens) : std::vector<int64_t>{0, T};
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!rows[i]) continue;
    const int64_t t = static_cast<int64_t>(i) % T;
    const int64_t start = *(std::upper_bound(borders.begin(), borders.end(), t) - 1);
    s.rows += 1;
    s.full_keys += static_cast<double>(t - start + 1);
  }
}

Sums sums_of(const layers::Model& model, const data::Batch& batch) {
  Sums s;
  if (batch.labelled == 0) return s;
  s.labelled = static_cast<double>(batch.labelled);
  if (!batch.slices.empty())  // a task
    count_hits(model.logits(batch.tokens, batch.cu_seqlens), batch, s);
  s.nats =
      model.loss({batch.tokens, batch.targets, batch.cu_seqlens}).cross_entropy.item() * s.labelled;
  s.bytes = static_cast<double>(batch.target_bytes);
  return s;
}

// The same, and of a batch of one domain what its mixers chose.
Sums domain_sums_of(const layers::Model& model, const data::Batch& batch) {
  if (batch.domain < 0 || batch.labelled == 0) return sums_of(model, batch);
  Sums s;
  const std::vector<bool> rows = text_rows(batch);
  const auto routes = layers::watch_routes([&] { s = sums_of(model, batch); }, rows);
  s.routes = routes;
  s.domain = static_cast<double>(batch.domain);
  count_keys(batch, rows, s);
  return s;
}

// As numbers: how many, then nats, labelled, bytes, domain, and three for each slice.
void append(std::vector<double>& to, const Sums& s) {
  to.push_back(4 + 3 * static_cast<double>(s.hits.size()));
  to.insert(to.end(), {s.nats, s.labelled, s.bytes, s.domain});
  for (const auto& [slice, n] : s.hits)
    to.insert(to.end(), {static_cast<double>(slice), n.first, n.second});
}

Sums taken(const std::vector<double>& from, size_t& at) {
  const size_t end = at + 1 + static_cast<size_t>(from[at]);
  Sums s{from[at + 1], from[at + 2], from[at + 3], {}};
  s.domain = from[at + 4];
  for (at += 5; at < end; at += 3)
    s.hits[static_cast<int64_t>(from[at])] = {from[at + 1], from[at + 2]};
  return s;
}

// The sums of this rank's batches among `count`: each n-th. Clears `whole` where stop() ended
// it.
std::vector<Sums> own_sums(const layers::Model& model, data::BatchSource& held_out, int64_t count,
                           Device device, const std::function<bool()>& stop, const Ranks& ranks,
                           bool& whole) {
  std::vector<Sums> sums;
  if (ranks.size() == 1) held_out.rewind();
  data::HostBatch host;
  for (int64_t i = ranks.rank(); i < count && whole; i += ranks.size()) {
    if (stop && stop()) {
      whole = false;
      break;
    }
    if (ranks.size() == 1) {
      sums.push_back(domain_sums_of(model, held_out.next(device)));
      continue;
    }
    held_out.batches().make(i, host);
    sums.push_back(sums_of(model, data::to_tensors(host, held_out.batches(), device)));
    sums.back().domain = static_cast<double>(host.domain);
  }
  return sums;
}

// The sums of all batches, in order. All ranks have them, or throw what one of them met.
std::vector<Sums> all_sums(Ranks& ranks, int64_t count, bool& whole,
                           const std::function<std::vector<Sums>()>& own) {
  if (ranks.size() == 1) return own();
  std::vector<Sums> mine;
  std::string failed;
  try {
    mine = own();
  } catch (const std::exception& e) {
    failed = concat(ranks.name(ranks.rank()), ": ", e.what());
  }
  for (const std::string& f : ranks.exchange("an evaluation", failed)) require(f.empty(), f);
  std::vector<double> numbers{whole ? 1.0 : 0.0};
  for (const Sums& s : mine) append(numbers, s);
  const auto all = ranks.exchange_numbers("the sums of an evaluation", numbers);
  for (const auto& x : all) whole = whole && x[0] != 0;
  std::vector<Sums> sums;
  std::vector<size_t> at(all.size(), 1);
  for (int64_t i = 0; i < count && whole; ++i) {
    const auto r = static_cast<size_t>(i % ranks.size());
    sums.push_back(taken(all[r], at[r]));
  }
  return sums;
}

// What all batches of each domain say.
std::map<int64_t, DomainEvaluation> by_domain(const std::vector<Sums>& sums) {
  std::map<int64_t, Sums> all;
  for (const Sums& s : sums) {
    if (s.domain < 0 || s.labelled == 0) continue;
    Sums& to = all[static_cast<int64_t>(s.domain)];
    to.nats += s.nats, to.labelled += s.labelled, to.bytes += s.bytes;
    to.rows += s.rows, to.full_keys += s.full_keys;
    layers::add_routes(to.routes, s.routes);
  }
  std::map<int64_t, DomainEvaluation> domains;
  for (const auto& [domain, s] : all) {
    DomainEvaluation& d = domains[domain];
    d.loss = s.nats / s.labelled;
    if (s.bytes > 0) d.bits_per_byte = s.nats / std::numbers::ln2 / s.bytes;
    d.tokens = s.labelled;
    d.full_keys = s.rows > 0 ? s.full_keys / s.rows : 0;
    d.routes = s.routes;
  }
  return domains;
}

}  // namespace

Evaluation evaluate(const layers::Model& model, data::BatchSource& held_out, int64_t batches,
                    Device device, const std::function<bool()>& stop, Ranks* ranks) {
  const autograd::NoGrad no_grad;
  int64_t count = held_out.batches().count();
  if (batches > 0) count = std::min(count, batches);
  Ranks alone;
  Ranks& all = ranks ? *ranks : alone;
  Evaluation e;
  const std::vector<Sums> sums = all_sums(all, count, e.whole, [&] {
    return own_sums(model, held_out, count, device, stop, all, e.whole);
  });
  if (!e.whole) return e;
  Sums total;
  for (const Sums& s : sums) {
    total.nats += s.nats, total.labelled += s.labelled, total.bytes += s.bytes;
    for (const auto& [slice, n] : s.hits) {
      total.hits[slice].first += n.first;
      total.hits[slice].second += n.second;
    }
  }
  e.domains = by_domain(sums);
  e.tokens = total.labelled;
  require(e.tokens > 0, "the held-out part has no token to predict in ", count,
          count == 1 ? " batch" : " batches",
          " (no document of it has two tokens); hold out more with data.held_out, or cut documents "
          "otherwise with data.document");
  e.loss = total.nats / e.tokens;
  e.perplexity = std::exp(e.loss);
  if (total.bytes > 0) e.bits_per_byte = total.nats / std::numbers::ln2 / total.bytes;
  double right = 0, seen = 0;
  for (const auto& [slice, n] : total.hits) {
    e.slices[slice] = n.first / n.second;
    right += n.first;
    seen += n.second;
  }
  if (seen > 0) e.accuracy = right / seen;
  return e;
}

std::string Evaluation::text() const {
  char line[160];
  if (bits_per_byte >= 0)
    std::snprintf(line, sizeof line, "held-out loss %.4f, %.4f bits per byte, perplexity %.3f",
                  loss, bits_per_byte, perplexity);
  else if (accuracy >= 0)
    std::snprintf(line, sizeof line, "held-out loss %.4f, accuracy %.4f", loss, accuracy);
  else  // text whose tokens stand for no bytes
    std::snprintf(line, sizeof line, "held-out loss %.4f, perplexity %.3f", loss, perplexity);
  std::string all = line;
  if (slices.size() > 1)
    for (const auto& [slice, part] : slices) {
      std::snprintf(line, sizeof line, ", %ld: %.3f", static_cast<long>(slice), part);
      all += line;
    }
  return all;
}

}  // namespace weft::train
