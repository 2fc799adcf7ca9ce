#include "train/exchange/tensor_map.h"

#include <algorithm>
#include <set>

#include "autograd/tape.h"
#include "core/text.h"

namespace weft::train {
namespace {

int64_t rows_of(const Shape& s, int64_t width) { return s.numel() / std::max<int64_t>(1, width); }

// "a|b" as a, b.
std::vector<std::string> spellings(const std::string& name) {
  std::vector<std::string> all;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t bar = std::min(name.find('|', begin), name.size());
    all.push_back(name.substr(begin, bar - begin));
    begin = bar + 1;
  }
  return all;
}

std::string with_end(const std::string& names, const std::string& end) {
  std::vector<std::string> all = spellings(names);
  for (std::string& name : all) name += end;
  return joined(all, "|");
}

// Does a name fit a pattern, in which * stands for anything?
bool fits(const std::string& pattern, const std::string& name, size_t p = 0, size_t n = 0) {
  for (; p < pattern.size(); ++p, ++n) {
    if (pattern[p] == '*') {
      for (size_t end = n; end <= name.size(); ++end)
        if (fits(pattern, name, p + 1, end)) return true;
      return false;
    }
    if (n >= name.size() || pattern[p] != name[n]) return false;
  }
  return n == name.size();
}

Shape lying(int64_t rows, int64_t width, int dims, const TensorRule& rule) {
  const bool turned = rule.lies == Lies::transposed;
  if (rule.stack > 0) {
    const int64_t own = rows / rule.stack;
    if (rule.single) return {rule.stack, own};
    return turned ? Shape{rule.stack, width, own} : Shape{rule.stack, own, width};
  }
  if (dims < 2) return {rows};
  if (turned) return {width, rows};
  if (rule.lies == Lies::conv) return {rows, 1, width};
  return {rows, width};
}

// A tensor of theirs that lies transposed, as it would lie otherwise; and back.
Tensor turned(const TensorRule& rule, const Tensor& t) {
  if (rule.lies != Lies::transposed || t.dims() < 2) return t;
  return t.transpose(t.dims() - 2, t.dims() - 1).contiguous();
}

}  // namespace

TensorMap::TensorMap(const std::vector<layers::Parameter>& parameters) {
  for (const layers::Parameter& p : parameters) {
    order_.push_back(p.name);
    shapes_[p.name] = p.var.shape();
  }
}

std::vector<std::string> TensorMap::under(const std::string& start) const {
  std::vector<std::string> names;
  for (const std::string& name : order_)
    if (name.starts_with(start)) names.push_back(name);
  return names;
}

void TensorMap::add(TensorRule rule) {
  for (const std::string& name : rule.ours)
    require(has(name), "the model has no parameter \"", name, "\" for ", weft::joined(rule.theirs));
  rules_.push_back(std::move(rule));
}

void TensorMap::linear(const std::string& theirs, const std::string& ours, Lies lies) {
  same(with_end(theirs, ".weight"), ours + ".weight", lies);
  if (has(ours + ".bias")) same(with_end(theirs, ".bias"), ours + ".bias");
}

void TensorMap::experts(const std::string& theirs, const std::string& ours) {
  TensorRule rule{{}, {ours}};
  const size_t at = theirs.find("{}");
  for (int64_t e = 0; e < shape(ours)[0]; ++e)
    rule.theirs.push_back(concat(theirs.substr(0, at), e, theirs.substr(at + 2)));
  add(std::move(rule));
}

void TensorMap::head(const std::string& theirs, const std::string& embedding) {
  if (has("head.weight")) return same(theirs, "head.weight");
  head_ = theirs;
  embedding_ = embedding;
}

int64_t TensorMap::width_of(const TensorRule& rule) const {
  const Shape& first = shape(rule.ours.front());
  return rule.single || first.dims() < 2 ? 1 : first[-1];
}

std::vector<Shape> TensorMap::their_shapes(const TensorRule& rule) const {
  std::vector<Shape> shapes;
  const Shape& first = shape(rule.ours.front());
  const int64_t width = width_of(rule);
  int64_t rows = 0;
  for (const std::string& name : rule.ours) rows += rows_of(shape(name), width);
  const auto n = static_cast<int64_t>(rule.theirs.size());
  for (size_t i = 0; i < rule.theirs.size(); ++i) {
    const bool one_by_one = rule.theirs.size() == rule.ours.size();
    const int64_t own = one_by_one ? rows_of(shape(rule.ours[i]), width) : rows / n;
    shapes.push_back(lying(own, width, first.dims(), rule));
  }
  return shapes;
}

std::string TensorMap::named(const TensorRule& rule) const {
  std::vector<std::string> names;
  for (const std::string& name : rule.ours) names.push_back(concat("\"", name, "\" ", shape(name)));
  return concat("our ", weft::joined(names));
}

std::string TensorMap::found(const SafetensorsReader& file, const TensorRule& rule,
                             size_t i) const {
  const std::vector<std::string> names = spellings(rule.theirs[i]);
  for (const std::string& name : names)
    if (file.has(name)) return name;
  std::vector<std::string> known, others;  // tensors there that nothing else needs
  for (const TensorRule& other : rules_)
    for (const std::string& name : other.theirs)
      for (const std::string& spelling : spellings(name)) known.push_back(spelling);
  std::sort(known.begin(), known.end());
  for (const SafeTensor& t : file.entries())
    if (!std::binary_search(known.begin(), known.end(), t.name)) others.push_back(t.name);
  const std::string nearest = nearest_name(names.front(), others);
  fail(
      file.path(), ": tensor \"", names.front(), "\" is missing, expected for ", named(rule),
      nearest.empty() ? "" : concat("; of those that have no place, \"", nearest, "\" is nearest"));
}

void TensorMap::require_shapes(const SafetensorsReader& file, const TensorRule& rule) const {
  const std::vector<Shape> shapes = their_shapes(rule);
  int64_t rows = 0, expected = 0;
  for (size_t i = 0; i < shapes.size(); ++i) {
    const std::string name = found(file, rule, i);
    Shape wanted = shapes[i];
    const Shape& there = file.entry(name).shape;
    if (rule.uneven && there.dims() == wanted.dims()) {
      rows += there[0];
      expected += wanted[0];
      wanted[0] = there[0];
    }
    require(there == wanted, file.place(name), " has shape ", there, ", expected ", wanted, " for ",
            named(rule));
  }
  require(rows == expected, file.place(found(file, rule, 0)), " and those that follow it have ",
          rows, " rows, expected ", expected, " for ", named(rule));
}

void TensorMap::require_same_head(const SafetensorsReader& file) const {
  if (head_.empty() || !file.has(head_) || !file.has(embedding_)) return;
  const Tensor one = file.read(head_), other = file.read(embedding_);
  require(one.shape() == other.shape() && to_doubles(one) == to_doubles(other), file.place(head_),
          " is not \"", embedding_, "\", but config.json says that they are one ",
          "(tie_word_embeddings)");
}

void TensorMap::require_fits(const SafetensorsReader& file) const {
  std::set<std::string> used, filled(zeros_.begin(), zeros_.end());
  for (const TensorRule& rule : rules_) {
    require_shapes(file, rule);
    for (size_t i = 0; i < rule.theirs.size(); ++i) used.insert(found(file, rule, i));
    filled.insert(rule.ours.begin(), rule.ours.end());
  }
  for (const std::string& name : order_)
    require(filled.count(name) > 0, file.path(), ": nothing there becomes our \"", name, "\" ",
            shape(name));
  if (!head_.empty()) used.insert(head_);
  std::vector<std::string> rest;
  for (const SafeTensor& t : file.entries())
    if (used.count(t.name) == 0 &&
        std::none_of(left_out_.begin(), left_out_.end(), [&](auto& p) { return fits(p, t.name); }))
      rest.push_back(t.name);
  if (!rest.empty())
    fail(file.place(rest.front()), " ", file.entry(rest.front()).shape,
         " has no place in the model that config.json describes",
         rest.size() == 1 ? "" : concat(" (and ", rest.size() - 1, " more)"));
  require_same_head(file);
}

// The rows of one side, as a matrix in the order of that side.
Tensor TensorMap::joined(const TensorRule& rule, const std::function<Tensor(size_t)>& part,
                         Dtype dtype, bool theirs) const {
  const size_t n = theirs ? rule.theirs.size() : rule.ours.size();
  const int64_t width = width_of(rule);
  int64_t rows = 0;
  for (const std::string& name : rule.ours) rows += rows_of(shape(name), width);
  const Tensor all = empty({rows, width}, dtype);
  int64_t begin = 0;
  for (size_t i = 0; i < n; ++i) {
    const Tensor t = (theirs ? turned(rule, part(i)) : part(i)).reshape({-1, width});
    all.slice(0, begin, begin + t.size(0)).copy_from(t);
    begin += t.size(0);
  }
  return all;
}

namespace {

// Calls f(at in their order, at in our order, rows) for each stretch of rows.
template <class F>
void each_stretch(const std::vector<int64_t>& ours, int64_t groups, const F& f) {
  int64_t at = 0;
  for (int64_t g = 0; g < groups; ++g) {
    int64_t begin = 0;
    for (const int64_t rows : ours) {
      const int64_t n = rows / groups;
      f(at, begin + g * n, n);
      at += n;
      begin += rows;
    }
  }
}

Tensor reordered(const Tensor& from, const std::vector<int64_t>& ours, int64_t groups,
                 bool to_ours) {
  if (groups == 1) return from;
  const Tensor to = empty_like(from);
  each_stretch(ours, groups, [&](int64_t theirs, int64_t our, int64_t n) {
    const int64_t a = to_ours ? theirs : our, b = to_ours ? our : theirs;
    to.slice(0, b, b + n).copy_from(from.slice(0, a, a + n));
  });
  return to;
}

}  // namespace

void TensorMap::read(const SafetensorsReader& file, Dtype dtype, const Put& put) const {
  for (const TensorRule& rule : rules_) {
    const auto part = [&](size_t i) {
      const std::string name = found(file, rule, i);
      const Tensor t = file.read(name, dtype);
      require(autograd::all_finite(t), file.place(name),
              " holds a value that is not finite, or too large for ", dtype);
      return t;
    };
    std::vector<int64_t> rows;
    for (const std::string& name : rule.ours) rows.push_back(rows_of(shape(name), width_of(rule)));
    const Tensor all = reordered(joined(rule, part, dtype, true), rows, rule.groups, true);
    int64_t begin = 0;
    for (size_t i = 0; i < rule.ours.size(); ++i) {
      const std::string& name = rule.ours[i];
      put(name, all.slice(0, begin, begin + rows[i]).contiguous().reshape(shape(name)));
      begin += rows[i];
    }
  }
  for (const std::string& name : zeros_) put(name, zeros(shape(name), dtype));
}

std::vector<TensorInfo> TensorMap::announced(Dtype dtype) const {
  std::vector<TensorInfo> all;
  for (const TensorRule& rule : rules_) {
    const std::vector<Shape> shapes = their_shapes(rule);
    for (size_t i = 0; i < shapes.size(); ++i)
      all.push_back({spellings(rule.theirs[i]).front(), shapes[i], dtype});
  }
  return all;
}

void TensorMap::write(const std::string& path, Dtype dtype, const Get& get, const Put& put) const {
  for (const std::string& name : zeros_)
    for (const double x : to_doubles(get(name)))
      require(x == 0, path, ": \"", name, "\" is not zero, and the format has no such tensor");
  for (const TensorRule& rule : rules_) {
    std::vector<int64_t> rows;
    for (const std::string& name : rule.ours) rows.push_back(rows_of(shape(name), width_of(rule)));
    const auto part = [&](size_t i) { return get(rule.ours[i]).to(dtype); };
    const Tensor all = reordered(joined(rule, part, dtype, false), rows, rule.groups, false);
    const std::vector<Shape> shapes = their_shapes(rule);
    int64_t begin = 0;
    for (size_t i = 0; i < shapes.size(); ++i) {
      const int64_t n = rows_of(shapes[i], width_of(rule));
      const Tensor own = all.slice(0, begin, begin + n).contiguous();
      Shape upright = shapes[i];
      if (rule.lies == Lies::transposed && upright.dims() > 1) std::swap(upright[-1], upright[-2]);
      put(spellings(rule.theirs[i]).front(), turned(rule, own.reshape(upright)).reshape(shapes[i]));
      begin += n;
    }
  }
}

}  // namespace weft::train
