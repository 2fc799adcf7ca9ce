// Token datasets: the tokens of all documents in one row, the borders between documents, the
// vocabulary, and where the text came from. In memory, or in an HDF5 file:
//   tokens              u8 or i32 [n]     document by document
//   documents           i64 [N+1]         document i is tokens documents[i] .. documents[i+1]
//   tokenizer/...                         see tokenizer.h
//   attributes          format, version, sources, text_bytes, text_hash
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/text.h"
#include "data/tokenizer.h"

namespace weft::data {

// Where tokens lie: in memory, or in a file that is read as needed. May be read by many threads.
class TokenStore {
 public:
  virtual ~TokenStore() = default;
  virtual int64_t size() const = 0;
  virtual void read(int64_t begin, int64_t end, int32_t* to) const = 0;
};

// Some documents of a dataset, read as if they stood one behind the other.
class TokenPart {
 public:
  struct Range {
    int64_t begin = 0, end = 0;  // in the store; not empty
  };

  TokenPart() = default;
  // `domains`: of each range, or empty.
  TokenPart(std::shared_ptr<const TokenStore> store, std::vector<Range> ranges,
            TokenizerPtr tokenizer, uint64_t hash, std::vector<int64_t> domains = {});

  int64_t size() const { return borders_.back(); }
  int64_t documents() const { return static_cast<int64_t>(ranges_.size()); }
  // [N+1]: document i is tokens borders()[i] .. borders()[i+1] of this part.
  const std::vector<int64_t>& borders() const { return borders_; }
  void read(int64_t begin, int64_t end, int32_t* to) const;
  std::vector<int32_t> tokens(int64_t begin, int64_t end) const;
  // The text of some tokens.
  std::string text(int64_t begin, int64_t end) const;
  const TokenizerPtr& tokenizer() const { return tokenizer_; }
  // The documents of one domain of the dataset.
  TokenPart of_domain(int64_t domain) const;
  // Tells parts apart: of the text, the vocabulary and the choice of documents.
  uint64_t hash() const { return hash_; }

 private:
  std::shared_ptr<const TokenStore> store_;
  std::vector<Range> ranges_;
  std::vector<int64_t> domains_;  // of each range
  std::vector<int64_t> borders_{0};
  TokenizerPtr tokenizer_;
  uint64_t text_hash_ = 0, hash_ = 0;
};

// A domain of a text that is a mixture: its name, and what it is read from.
struct DomainSources {
  std::string name;
  std::vector<std::string> sources;
};

// How a held-out part is taken.
enum class HeldOut : uint8_t {
  tail,   // the end of the text, cut at a document's border where one is near
  spread  // whole documents at even distances
};

enum class Opened : uint8_t {
  as_fits,  // in memory up to 2 GiB
  in_file   // read as needed, whatever the size: for a look at what it holds
};

class TokenDataset {
 public:
  const TokenizerPtr& tokenizer() const { return tokenizer_; }
  int64_t size() const { return store_ ? store_->size() : 0; }
  int64_t documents() const { return static_cast<int64_t>(borders_.size()) - 1; }
  const std::vector<int64_t>& borders() const { return borders_; }
  const std::vector<std::string>& sources() const { return sources_; }
  int64_t text_bytes() const { return text_bytes_; }
  // The names of the domains that the text is a mixture of; none where it is not.
  const std::vector<std::string>& domains() const { return domains_; }
  // What of the sources' folders was no text, as LeftOut says it; "" for nothing.
  const std::string& left_out() const { return left_out_; }

  TokenPart all() const;
  // {training part, held-out part}. A fraction of 0 holds nothing out. Throws Error unless
  // 0 <= fraction < 1 and both parts that are asked for have two tokens or more. Of a mixture each
  // domain is split by itself.
  std::pair<TokenPart, TokenPart> split(double fraction, HeldOut how = HeldOut::tail) const;

  // Several lines for people: size, vocabulary, bytes a token, sources.
  std::string describe() const;

 private:
  friend TokenDataset dataset_from(
      const std::function<void(const std::function<void(Document&&)>&)>& each, const TokenizerPtr&,
      const std::vector<std::string>&);
  friend TokenDataset open_token_dataset(const std::string&, Opened);
  friend TokenDataset open_data(const std::vector<std::string>&, const TextOptions&,
                                const TokenizerPtr&);
  friend TokenDataset open_domains(const std::vector<DomainSources>&, const TextOptions&,
                                   const TokenizerPtr&);
  struct Documents {
    size_t begin, end;
  };
  using Ranges = std::vector<TokenPart::Range>;
  std::vector<Documents> domain_documents() const;  // of each; all where there are none
  void split_documents(Documents of, double fraction, HeldOut how, Ranges& train,
                       Ranges& held_out) const;
  TokenPart part(Ranges ranges) const;

  std::shared_ptr<const TokenStore> store_;
  std::vector<int64_t> borders_{0};
  TokenizerPtr tokenizer_;
  std::vector<std::string> sources_;
  std::vector<std::string> domains_;
  std::vector<int64_t> domain_ends_;  // in documents, of each domain
  std::string left_out_;
  int64_t text_bytes_ = 0;
  uint64_t text_hash_ = 0;
};

// In memory, encoded now. Empty documents are left out; throws Error if none is left.
TokenDataset dataset_from_documents(const std::vector<Document>& documents,
                                    const TokenizerPtr& tokenizer,
                                    const std::vector<std::string>& sources = {});

// Writes a token dataset, one document in memory at a time. Returns what of the folders was no
// text.
LeftOut build_token_dataset(const std::vector<std::string>& sources, const TextOptions& options,
                            const TokenizerPtr& tokenizer, const std::string& path);

// Files up to 2 GiB are read whole and checked; larger ones are read as needed, a chunk at a time.
// Throws Error for what is no token dataset, or a damaged one.
TokenDataset open_token_dataset(const std::string& path, Opened how = Opened::as_fits);

// What a recipe names: one token dataset (*.h5), whose vocabulary is inside, or text. `tokenizer`
// is for text; where a token dataset is named and a tokenizer given, they must be the same.
TokenDataset open_data(const std::vector<std::string>& sources, const TextOptions& options,
                       const TokenizerPtr& tokenizer);
bool is_token_dataset(const std::vector<std::string>& sources);
// Text that is a mixture of domains, one behind the other. Throws Error for one without documents.
TokenDataset open_domains(const std::vector<DomainSources>& domains, const TextOptions& options,
                          const TokenizerPtr& tokenizer);

}  // namespace weft::data
