#include "data/dataset.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <list>
#include <mutex>
#include <span>
#include <sstream>
#include <type_traits>

#include "core/error.h"
#include "core/hash.h"
#include "core/hdf5.h"
#include "core/text.h"
#include "data/llmc.h"

namespace weft::data {
namespace {

constexpr const char* kFormat = "weft token dataset";
constexpr int64_t kVersion = 1;
constexpr int64_t kInMemory = int64_t{2} << 30;
constexpr int64_t kBlock = int64_t{1} << 18;  // tokens that a file store reads at once
constexpr size_t kBlocksKept = 64;

// Tokens in blocks: one row would be held twice while it grows. Block is of chars where the tokens
// are bytes, so that a text becomes a block as it is.
template <class Block>
class MemoryStore final : public TokenStore {
 public:
  int64_t size() const override { return starts_.back(); }
  void read(int64_t begin, int64_t end, int32_t* to) const override {
    auto i = static_cast<size_t>(std::upper_bound(starts_.begin(), starts_.end(), begin) -
                                 starts_.begin() - 1);
    for (; begin < end; ++i) {
      const int64_t stop = std::min(end, starts_[i + 1]);
      to = std::transform(
          blocks_[i].begin() + (begin - starts_[i]), blocks_[i].begin() + (stop - starts_[i]), to,
          [](auto token) {
            return static_cast<int32_t>(static_cast<std::make_unsigned_t<decltype(token)>>(token));
          });
      begin = stop;
    }
  }
  void add(std::span<const int32_t> tokens) {
    while (!tokens.empty()) {
      if (blocks_.empty() || blocks_.back().size() >= kInBlock) {
        add(Block());
        blocks_.back().reserve(kInBlock);
      }
      Block& block = blocks_.back();
      const size_t n = std::min(tokens.size(), kInBlock - block.size());
      for (const int32_t token : tokens.first(n))
        block.push_back(static_cast<typename Block::value_type>(token));
      starts_.back() += static_cast<int64_t>(n);
      tokens = tokens.subspan(n);
    }
  }
  void add(Block&& block) {
    starts_.push_back(starts_.back() + static_cast<int64_t>(block.size()));
    blocks_.push_back(std::move(block));
  }

 private:
  static constexpr size_t kInBlock = size_t{1} << 20;
  std::vector<Block> blocks_;
  std::vector<int64_t> starts_{0};  // of each block, and the end
};

using ByteStore = MemoryStore<std::string>;  // a vocabulary of 256
using ShortStore = MemoryStore<std::vector<uint16_t>>;
using LongStore = MemoryStore<std::vector<int32_t>>;

void check_tokens(const std::string& path, const std::vector<int32_t>& tokens, int64_t vocabulary) {
  for (const int32_t token : tokens)
    require(token >= 0 && token < vocabulary, path, ": it holds the token ", token,
            ", outside its vocabulary of ", vocabulary);
}

// Reads blocks of a file and keeps the last few dozen.
class FileStore final : public TokenStore {
 public:
  FileStore(Hdf5Reader file, TensorInfo info, int64_t vocabulary)
      : file_(std::move(file)), info_(std::move(info)), vocabulary_(vocabulary) {}
  int64_t size() const override { return info_.shape[0]; }
  void read(int64_t begin, int64_t end, int32_t* to) const override {
    const std::lock_guard lock(mutex_);
    while (begin < end) {
      const int64_t index = begin / kBlock;
      const std::vector<int32_t>& tokens = block(index);
      const int64_t stop = std::min(end, (index + 1) * kBlock);
      to = std::copy(tokens.begin() + (begin - index * kBlock),
                     tokens.begin() + (stop - index * kBlock), to);
      begin = stop;
    }
  }

 private:
  struct Block {
    int64_t index = 0;
    std::vector<int32_t> tokens;
  };

  const std::vector<int32_t>& block(int64_t index) const {
    const auto found = std::find_if(blocks_.begin(), blocks_.end(),
                                    [&](const Block& block) { return block.index == index; });
    if (found != blocks_.end()) {
      blocks_.splice(blocks_.begin(), blocks_, found);
      return blocks_.front().tokens;
    }
    const int64_t begin = index * kBlock, end = std::min(size(), begin + kBlock);
    std::vector<int32_t> tokens(static_cast<size_t>(end - begin));
    if (info_.dtype == Dtype::u8) {
      std::vector<uint8_t> bytes(tokens.size());
      file_.read_rows("tokens", begin, end, bytes.data());
      std::copy(bytes.begin(), bytes.end(), tokens.begin());
    } else {
      file_.read_rows("tokens", begin, end, tokens.data());
    }
    check_tokens(file_.path(), tokens, vocabulary_);
    if (blocks_.size() == kBlocksKept) blocks_.pop_back();
    blocks_.push_front({index, std::move(tokens)});
    return blocks_.front().tokens;
  }

  Hdf5Reader file_;
  TensorInfo info_;
  int64_t vocabulary_;
  mutable std::mutex mutex_;
  mutable std::list<Block> blocks_;  // the last used first
};

// A store with room for a vocabulary, and what fills it.
template <class Fill>
std::shared_ptr<const TokenStore> filled(int64_t vocabulary, const Fill& fill) {
  const auto fill_one = [&](auto store) {
    fill(*store);
    return store;
  };
  if (vocabulary <= 256) return fill_one(std::make_shared<ByteStore>());
  if (vocabulary <= 65536) return fill_one(std::make_shared<ShortStore>());
  return fill_one(std::make_shared<LongStore>());
}

std::shared_ptr<const TokenStore> in_memory(const FileStore& file, int64_t vocabulary) {
  return filled(vocabulary, [&](auto& store) {
    std::vector<int32_t> tokens;
    for (int64_t begin = 0; begin < file.size(); begin += kBlock) {
      tokens.resize(static_cast<size_t>(std::min(kBlock, file.size() - begin)));
      file.read(begin, begin + static_cast<int64_t>(tokens.size()), tokens.data());
      store.add(tokens);
    }
  });
}

std::shared_ptr<const TokenStore> store_of(Hdf5Reader file, int64_t vocabulary, Opened how) {
  const TensorInfo info = file.info("tokens");
  require(info.shape.dims() == 1 && (info.dtype == Dtype::u8 || info.dtype == Dtype::i32),
          file.path(), ": its tokens are ", info.dtype, " ", info.shape,
          ", expected u8 or i32 in one row");
  const int64_t n = info.shape[0];
  if (n * size_of(info.dtype) > kInMemory)
    return std::make_shared<FileStore>(std::move(file), info, vocabulary);
  if (how == Opened::in_file) return std::make_shared<FileStore>(std::move(file), info, vocabulary);
  return in_memory(FileStore(std::move(file), info, vocabulary), vocabulary);
}

// Of all documents: where each begins, and what tells one text from another.
struct Borders {
  std::vector<int64_t> borders{0};
  int64_t text_bytes = 0;
  Hash64 hash;

  void add(const std::string& text, int64_t tokens) {
    borders.push_back(borders.back() + tokens);
    text_bytes += static_cast<int64_t>(text.size());
    const uint64_t size = text.size();
    hash.update(&size, sizeof size);
    hash.update(text);
  }
};

// Encodes a document into a store; a large text of bytes becomes a block of it as it is.
template <class Store>
void store_document(const Tokenizer& tokenizer, std::string&& text, Store& store,
                    Borders& borders) {
  if constexpr (std::is_same_v<Store, ByteStore>) {
    if (tokenizer.kind() == "bytes" && text.size() > static_cast<size_t>(kBlock)) {
      borders.add(text, static_cast<int64_t>(text.size()));
      store.add(std::move(text));
      return;
    }
  }
  const int64_t before = store.size();
  tokenizer.encode(text, [&](std::span<const int32_t> tokens) { store.add(tokens); });
  borders.add(text, store.size() - before);
}

std::string thousands(int64_t n) {
  std::string text = std::to_string(n);
  for (int64_t at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3)
    text.insert(static_cast<size_t>(at), 1, ' ');
  return text;
}

}  // namespace

// --- Parts ---------------------------------------------------------------------------------------

TokenPart::TokenPart(std::shared_ptr<const TokenStore> store, std::vector<Range> ranges,
                     TokenizerPtr tokenizer, uint64_t hash, std::vector<int64_t> domains)
    : store_(std::move(store)),
      ranges_(std::move(ranges)),
      domains_(std::move(domains)),
      tokenizer_(std::move(tokenizer)),
      text_hash_(hash) {
  Hash64 all;
  all.update(&hash, sizeof hash);
  for (const Range& range : ranges_) {
    borders_.push_back(borders_.back() + range.end - range.begin);
    all.update(&range, sizeof range);
  }
  hash_ = all.digest();
}

TokenPart TokenPart::of_domain(int64_t domain) const {
  std::vector<Range> ranges;
  for (size_t i = 0; i < ranges_.size(); ++i)
    if (domains_.empty() || domains_[i] == domain) ranges.push_back(ranges_[i]);
  return {store_, std::move(ranges), tokenizer_, text_hash_};
}

void TokenPart::read(int64_t begin, int64_t end, int32_t* to) const {
  require(begin >= 0 && begin <= end && end <= size(), "tokens ", begin, " to ", end,
          " are asked of a part with ", size());
  auto document = std::upper_bound(borders_.begin(), borders_.end(), begin) - borders_.begin() - 1;
  for (; begin < end; ++document) {
    const auto i = static_cast<size_t>(document);
    const int64_t stop = std::min(end, borders_[i + 1]);
    const int64_t shift = ranges_[i].begin - borders_[i];
    store_->read(begin + shift, stop + shift, to);
    to += stop - begin;
    begin = stop;
  }
}

std::vector<int32_t> TokenPart::tokens(int64_t begin, int64_t end) const {
  std::vector<int32_t> found(static_cast<size_t>(std::max<int64_t>(0, end - begin)));
  read(begin, end, found.data());
  return found;
}

std::string TokenPart::text(int64_t begin, int64_t end) const {
  return tokenizer_->decode(tokens(begin, end));
}

TokenPart TokenDataset::part(Ranges ranges) const {
  std::vector<int64_t> domains;
  for (const TokenPart::Range& range : ranges) {
    if (domains_.empty()) break;
    const auto document = std::upper_bound(borders_.begin(), borders_.end(), range.begin) - 1;
    domains.push_back(
        std::upper_bound(domain_ends_.begin(), domain_ends_.end(), document - borders_.begin()) -
        domain_ends_.begin());
  }
  return {store_, std::move(ranges), tokenizer_, text_hash_ ^ tokenizer_->hash(),
          std::move(domains)};
}

TokenPart TokenDataset::all() const {
  Ranges ranges;
  for (size_t i = 0; i + 1 < borders_.size(); ++i) ranges.push_back({borders_[i], borders_[i + 1]});
  return part(std::move(ranges));
}

std::vector<TokenDataset::Documents> TokenDataset::domain_documents() const {
  if (domains_.empty()) return {{0, borders_.size() - 1}};
  std::vector<Documents> all;
  for (size_t d = 0, begin = 0; d < domains_.size(); begin = all.back().end, ++d)
    all.push_back({begin, static_cast<size_t>(domain_ends_[d])});
  return all;
}

void TokenDataset::split_documents(Documents of, double fraction, HeldOut how, Ranges& train,
                                   Ranges& held_out) const {
  const int64_t begin = borders_[of.begin], end = borders_[of.end];
  const double n = static_cast<double>(end - begin);
  int64_t cut = end;  // of the tail
  if (how == HeldOut::tail) {
    cut = begin + std::llround(n * (1 - fraction));
    const auto distance = [&](int64_t border) { return std::abs(border - cut); };
    const auto at = [&](size_t i) { return borders_.begin() + static_cast<std::ptrdiff_t>(i); };
    const int64_t nearest =
        *std::min_element(at(of.begin), at(of.end + 1),
                          [&](int64_t a, int64_t b) { return distance(a) < distance(b); });
    // Near enough: at most a quarter of the held-out part away.
    if (static_cast<double>(distance(nearest)) <= n * fraction / 4) cut = nearest;
  }
  double held = 0;
  for (size_t i = of.begin; i < of.end; ++i) {
    const TokenPart::Range whole{borders_[i], borders_[i + 1]};
    if (how == HeldOut::tail) {
      if (whole.begin < cut) train.push_back({whole.begin, std::min(cut, whole.end)});
      if (whole.end > cut) held_out.push_back({std::max(cut, whole.begin), whole.end});
      continue;
    }
    // A document is held out when, up to its middle, too little has been.
    const double middle = static_cast<double>(whole.begin + whole.end - 2 * begin) / 2;
    const bool hold = held + static_cast<double>(whole.end - whole.begin) / 2 <= middle * fraction;
    if (hold) held += static_cast<double>(whole.end - whole.begin);
    (hold ? held_out : train).push_back(whole);
  }
}

std::pair<TokenPart, TokenPart> TokenDataset::split(double fraction, HeldOut how) const {
  require(fraction >= 0 && fraction < 1, "held-out fraction ", fraction,
          " is not in [0, 1), expected as in 0.05");
  if (fraction == 0) return {all(), part({})};
  const std::vector<Documents> each = domain_documents();
  Ranges train, held_out;
  const auto size_from = [](const Ranges& ranges, size_t first) {
    int64_t n = 0;
    for (size_t i = first; i < ranges.size(); ++i) n += ranges[i].end - ranges[i].begin;
    return n;
  };
  for (size_t d = 0; d < each.size(); ++d) {
    const size_t trained = train.size(), held = held_out.size();
    split_documents(each[d], fraction, how, train, held_out);
    require(size_from(train, trained) >= 2 && size_from(held_out, held) >= 2,
            domains_.empty() ? "" : concat("domain ", domains_[d], ": "), "the text of ",
            borders_[each[d].end] - borders_[each[d].begin], " tokens in ",
            each[d].end - each[d].begin, " documents is too short to hold out the fraction ",
            fraction);
  }
  return {part(std::move(train)), part(std::move(held_out))};
}

std::string TokenDataset::describe() const {
  std::ostringstream out;
  out << thousands(size()) << " tokens in " << thousands(documents()) << " documents\n"
      << thousands(text_bytes_) << " bytes of text, "
      << static_cast<double>(std::llround(100.0 * static_cast<double>(text_bytes_) /
                                          static_cast<double>(std::max<int64_t>(1, size())))) /
             100
      << " a token\n"
      << "vocabulary: " << thousands(tokenizer_->vocabulary()) << " (" << tokenizer_->kind()
      << ")\n"
      << "text hash: " << to_hex(text_hash_) << "\n"
      << "sources: " << joined(sources_) << "\n";
  return out.str();
}

// --- Making and opening --------------------------------------------------------------------------

// `each` calls what it is given for each document.
TokenDataset dataset_from(const std::function<void(const std::function<void(Document&&)>&)>& each,
                          const TokenizerPtr& tokenizer, const std::vector<std::string>& sources) {
  TokenDataset set;
  set.tokenizer_ = tokenizer;
  set.sources_ = sources;
  Borders borders;
  set.store_ = filled(tokenizer->vocabulary(), [&](auto& store) {
    each([&](Document&& document) {
      if (!document.text.empty())
        store_document(*tokenizer, std::move(document.text), store, borders);
    });
  });
  require(borders.borders.size() > 1, "the text holds no documents");
  set.borders_ = std::move(borders.borders);
  set.text_bytes_ = borders.text_bytes;
  set.text_hash_ = borders.hash.digest();
  return set;
}

TokenDataset dataset_from_documents(const std::vector<Document>& documents,
                                    const TokenizerPtr& tokenizer,
                                    const std::vector<std::string>& sources) {
  return dataset_from(
      [&](const auto& take) {
        for (const Document& document : documents) take(Document(document));
      },
      tokenizer, sources);
}

LeftOut build_token_dataset(const std::vector<std::string>& sources, const TextOptions& options,
                            const TokenizerPtr& tokenizer, const std::string& path) {
  Hdf5Writer out(path);
  const bool small = tokenizer->vocabulary() <= 256;
  out.begin_rows("tokens", small ? Dtype::u8 : Dtype::i32, {});
  Borders borders;
  std::vector<int32_t> waiting;  // short documents are written together
  std::vector<uint8_t> bytes;
  const auto write = [&] {
    if (small) bytes.assign(waiting.begin(), waiting.end());
    const void* data = small ? static_cast<const void*>(bytes.data()) : waiting.data();
    out.append_rows("tokens", data, static_cast<int64_t>(waiting.size()));
    waiting.clear();
  };
  const auto add = [&](std::span<const int32_t> tokens) {
    waiting.insert(waiting.end(), tokens.begin(), tokens.end());
    if (static_cast<int64_t>(waiting.size()) >= kBlock) write();
    return static_cast<int64_t>(tokens.size());
  };
  LeftOut left_out;
  if (tokenizer->kind() == kLlmc) {
    for (const std::string& source : sources)
      for_each_llmc_document(source, *tokenizer, [&](std::vector<int32_t>&& document) {
        borders.add(tokenizer->decode(document), add(document));
      });
  } else {
    left_out = for_each_document(sources, options, [&](Document&& document) {
      int64_t n = 0;
      tokenizer->encode(document.text, [&](std::span<const int32_t> tokens) { n += add(tokens); });
      if (n > 0) borders.add(document.text, n);
    });
  }
  if (!waiting.empty()) write();
  require(borders.borders.size() > 1, "the text named holds no documents");
  out.tensor("documents", Dtype::i64, {static_cast<int64_t>(borders.borders.size())},
             borders.borders.data());
  save_tokenizer(out, "tokenizer", *tokenizer);
  out.attribute("", "format", std::string(kFormat));
  out.attribute("", "version", kVersion);
  std::vector<std::string> named;
  for (const std::string& source : sources) named.push_back(as_utf8(source));
  out.attribute("", "sources", named);
  out.attribute("", "text_bytes", borders.text_bytes);
  out.attribute("", "text_hash", static_cast<int64_t>(borders.hash.digest()));
  out.commit();
  return left_out;
}

TokenDataset open_token_dataset(const std::string& path, Opened how) {
  Hdf5Reader in(path, "token dataset");
  require(in.has_attribute("", "format") && in.text("", "format") == kFormat, path,
          ": is HDF5, but not a token dataset; `weft data` makes them");
  require(in.integer("", "version") == kVersion, path, ": is a token dataset of version ",
          in.integer("", "version"), ", this program reads version ", kVersion);
  TokenDataset set;
  set.tokenizer_ = load_tokenizer(in, "tokenizer");
  set.sources_ = in.texts("", "sources");
  set.text_bytes_ = in.integer("", "text_bytes");
  set.text_hash_ = static_cast<uint64_t>(in.integer("", "text_hash"));
  set.borders_ = to_ints(in.tensor("documents"));
  set.store_ = store_of(std::move(in), set.tokenizer_->vocabulary(), how);
  const auto& borders = set.borders_;
  require(borders.size() > 1 && borders.front() == 0 && borders.back() == set.size() &&
              std::adjacent_find(borders.begin(), borders.end(), std::greater_equal<>()) ==
                  borders.end(),
          path, ": its documents' borders do not fit its ", set.size(), " tokens");
  return set;
}

bool is_token_dataset(const std::vector<std::string>& sources) {
  return sources.size() == 1 && sources.front().ends_with(".h5");
}

TokenDataset open_data(const std::vector<std::string>& sources, const TextOptions& options,
                       const TokenizerPtr& tokenizer) {
  if (!is_token_dataset(sources)) {
    for (const std::string& source : sources)
      require(!source.ends_with(".h5"), source,
              ": a token dataset stands alone; expected one *.h5, or text");
    require(tokenizer != nullptr, "text needs a vocabulary");
    LeftOut left_out;
    TokenDataset set = dataset_from(
        [&](const auto& take) { left_out = for_each_document(sources, options, take); }, tokenizer,
        sources);
    set.left_out_ = left_out.text();
    return set;
  }
  TokenDataset set = open_token_dataset(sources.front());
  require(!tokenizer || tokenizer->hash() == set.tokenizer()->hash(), sources.front(),
          ": its vocabulary (", set.tokenizer()->kind(), ", ", set.tokenizer()->vocabulary(),
          ") is not the one expected (", tokenizer ? tokenizer->kind() : "", ", ",
          tokenizer ? tokenizer->vocabulary() : 0, ")");
  return set;
}

TokenDataset open_domains(const std::vector<DomainSources>& domains, const TextOptions& options,
                          const TokenizerPtr& tokenizer) {
  require(tokenizer != nullptr, "text needs a vocabulary");
  int64_t documents = 0;
  std::vector<int64_t> ends;
  std::string left_out;
  TokenDataset set = dataset_from(
      [&](const auto& take) {
        for (const DomainSources& domain : domains) {
          const int64_t before = documents;
          const LeftOut left = for_each_document(domain.sources, options, [&](Document&& document) {
            documents += document.text.empty() ? 0 : 1;
            take(std::move(document));
          });
          require(documents > before, "domain ", domain.name,
                  ": the text named holds no documents");
          if (!left.empty()) left_out += concat(left_out.empty() ? "" : "; ", left.text());
          ends.push_back(documents);
        }
      },
      tokenizer, {});
  for (const DomainSources& domain : domains) {
    set.domains_.push_back(domain.name);
    set.sources_.insert(set.sources_.end(), domain.sources.begin(), domain.sources.end());
  }
  set.domain_ends_ = std::move(ends);
  set.left_out_ = left_out;
  return set;
}

}  // namespace weft::data
