#include "data/cutter.h"

#include <algorithm>
#include <utility>

namespace weft::data {
namespace {

constexpr size_t kNone = std::string_view::npos;

// What stands between two documents. `complete` is false where more text may make it longer; `end`
// is none where what follows `begin` so far is no separator yet.
struct Gap {
  size_t begin = kNone, end = kNone;
  bool complete = true;
};

bool ends_line(char c) { return c == '\n' || c == '\r'; }

// The end of a line that begins at `at`: CR LF is one.
size_t after_line_end(std::string_view text, size_t at) {
  return at + (text.substr(at, 2) == "\r\n" ? 2 : 1);
}

// A CR that the text ends with may be half of CR LF.
bool is_cut_short(std::string_view text, size_t at) {
  return text[at] == '\r' && at + 1 == text.size();
}

// The first separator that begins at `from` or later.
Gap next_gap(std::string_view text, size_t from, Cut how) {
  for (size_t at = from; (at = text.find_first_of("\r\n", at)) != kNone;) {
    if (is_cut_short(text, at)) return {at, how == Cut::line ? at + 1 : kNone, false};
    const size_t end = after_line_end(text, at);
    if (how == Cut::line) return {at, end};
    const size_t next = text.find_first_not_of(" \t", end);
    if (next == kNone) return {at, kNone, false};
    if (ends_line(text[next])) {
      if (is_cut_short(text, next)) return {at, next + 1, false};
      return {at, after_line_end(text, next)};
    }
    at = next;
  }
  return {};
}

// Nothing, or a blank line.
bool is_blank(std::string_view text) { return text.find_first_not_of(" \t") == kNone; }

}  // namespace

Cutter::Cutter(std::string name, size_t bytes, Cut how, std::function<void(Document&&)> take)
    : name_(std::move(name)), bytes_(bytes), how_(how), take_(std::move(take)) {
  if (how_ == Cut::file) text_.reserve(bytes_);
}

void Cutter::add(std::string_view block) {
  // A document that is much of the file gets room for all of it at once: growing by doubling would
  // hold it twice.
  const size_t needed = text_.size() + block.size();
  if (needed > text_.capacity() && needed > bytes_ / 8 && needed <= bytes_) text_.reserve(bytes_);
  text_ += block;
  if (how_ != Cut::file) cut(false);
}

void Cutter::finish() {
  if (how_ != Cut::file) cut(true);
  give(std::move(text_));
}

void Cutter::cut(bool last) {
  size_t begin = 0;
  for (;;) {
    const Gap gap = next_gap(text_, looked_, how_);
    looked_ = std::min(gap.begin, text_.size());
    if (gap.end == kNone || (!gap.complete && !last)) break;
    if (begin == 0 && gap.begin > text_.size() / 2) {  // a long one is not copied
      std::string rest = text_.substr(gap.end);
      text_.resize(gap.begin);
      give(std::exchange(text_, std::move(rest)));
      looked_ = 0;
    } else {
      give(text_.substr(begin, gap.begin - begin));
      begin = looked_ = gap.end;
    }
    ++nth_;
  }
  text_.erase(0, begin);
  looked_ -= begin;
}

void Cutter::give(std::string&& document) {
  if (how_ == Cut::file)
    take_({name_, std::move(document)});
  else if (!is_blank(document))
    take_({name_ + "#" + std::to_string(nth_), std::move(document)});
}

}  // namespace weft::data
