// Mixers side by side in one layer, on the same x:
//   y = sum of s_i f_i(e_i x)                        join = "add"; "mean" divides by their number
//   y = out_proj(sum of s_i norm_i(f_i(e_i x)))      with norm = true
// Each f_i ends with a projection of its heads to the model's width. The sum of those is one
// projection of all heads, so groups of heads of one layer that use different mechanisms are parts
// that are added; `shares` deals the model's width out to the heads of each part.
// Sources: outputs that are added with factors, as Falcon-H1 (arXiv:2507.22448); normalised and
// averaged before the projection out, as Hymba (2411.13676).
#include <algorithm>
#include <numeric>
#include <optional>

#include "autograd/ops.h"
#include "core/text.h"
#include "layers/blocks.h"

namespace weft::layers {
namespace {

struct Part {
  std::string name;
  std::unique_ptr<Layer> layer;
  double in = 1, out = 1;  // factors of x and of the result
  std::optional<Norm> norm;
};

std::vector<std::string> part_names(const TomlTable& t) {
  const std::vector<std::string> names =
      t.has("parts") ? t.strings("parts") : std::vector<std::string>{"attention", "gated_delta"};
  constexpr size_t kMost = 64;
  if (names.size() < 2 || names.size() > kMost)
    t.refuse("parts", "parts names ", names.size(), " mixers, expected 2 to ", kMost);
  for (size_t i = 0; i < names.size(); ++i)
    if (std::count(names.begin(), names.end(), names[i]) > 1)
      t.refuse("parts", "parts names \"", names[i],
               "\" twice; give each a table of its own, whose type says what it is");
  for (const std::string& key : t.keys())  // tables of parts that are not named
    if (t.type(key) == TomlType::table && !contains(names, key))
      t.unused(key, concat("parts names no \"", key, "\"; name it there, or leave the table out"),
               t.overridden("parts"));
  return names;
}

// The mixer of a part: the `type` of the table so named, else the name itself.
const Maker& maker_of(const TomlTable& t, const std::string& name) {
  const std::vector<std::string> known = mixer_names();
  const TomlTable own = t.table(name);
  const std::string type = own.string("type", name);
  if (!contains(known, type)) {
    if (own.has("type")) own.refuse("type", unknown_name("mixer", type, known));
    t.refuse("parts", unknown_name("mixer", name, known));
  }
  return mixer_maker(type);
}

// The width of the heads of each part together: 0 where each has the model's.
std::vector<int64_t> widths_of(const Spec& spec, const TomlTable& t, size_t parts) {
  const std::vector<int64_t> shares = t.integers("shares", kSize, {});
  if (shares.empty()) return std::vector<int64_t>(parts, 0);
  if (shares.size() != parts)
    t.refuse("shares", "shares has ", shares.size(), " numbers for ", parts,
             " parts, expected one for each");
  const int64_t all = std::accumulate(shares.begin(), shares.end(), int64_t{0});
  std::vector<int64_t> widths;
  for (const int64_t share : shares) {
    if (spec.heads_width() * share % all != 0)
      t.refuse("shares", share, " of ", all, " shares of a width of ", spec.heads_width(),
               " is no whole number");
    widths.push_back(spec.heads_width() * share / all);
  }
  return widths;
}

class SideBySide final : public Layer {
 public:
  SideBySide(const Spec& spec, const TomlTable& t, const Builder& b) {
    const std::vector<std::string> names = part_names(t);
    const std::vector<int64_t> widths = widths_of(spec, t, names.size());
    const bool mean = t.one_of("join", {"add", "mean"}, "add") == "mean";
    const bool norm = t.boolean("norm", false);
    for (size_t i = 0; i < names.size(); ++i) {
      Spec own = spec;
      own.spread = widths[i];
      const TomlTable table = t.table(names[i]);
      const Maker& make = maker_of(t, names[i]);
      Part p{names[i], make(own, table, b.within(names[i])), 1, 1, {}};
      p.in = table.number("input_scale", kFactor, 1);
      p.out = table.number("output_scale", kFactor, 1);
      if (mean) p.out /= static_cast<double>(names.size());
      if (norm)
        p.norm.emplace(b.within(names[i] + "_norm"), spec.width, Norm::Kind::rms, spec.norm_eps,
                       spec.norm_plus_one);
      parts_.push_back(std::move(p));
    }
    if (norm) out_.emplace(b.within("out_proj"), spec.width, spec.width, spec.residual_init());
  }

  Var forward(const Var& x, Context& c) const override {
    if (c.state) c.state->parts.resize(parts_.size());
    Var sum;
    for (size_t i = 0; i < parts_.size(); ++i) {
      if (left_out(*parts_[i].layer, c)) continue;
      Context own = c;
      if (c.state) own.state = &c.state->parts[i];
      const Var y = of(parts_[i], x, own);
      sum = sum ? autograd::add(sum, y) : y;
    }
    if (!sum) sum = zeros_like(x.value());
    return out_ ? (*out_)(sum) : sum;
  }
  Ways ways() const override {
    const Ways first = parts_[0].layer->ways();
    const bool alike = std::all_of(parts_.begin(), parts_.end(),
                                   [&](const Part& p) { return p.layer->ways() == first; });
    return alike ? first : Ways::both;
  }

  double flops_per_token(int64_t T) const override {
    double sum = 0;
    for (const Part& p : parts_) sum += p.layer->flops_per_token(T);
    return sum;
  }
  int64_t longest_text() const override {
    int64_t longest = std::numeric_limits<int32_t>::max();
    for (const Part& p : parts_) longest = std::min(longest, p.layer->longest_text());
    return longest;
  }
  void at_step(int64_t step) override {
    for (const Part& p : parts_) p.layer->at_step(step);
  }
  int64_t form() const override {
    uint64_t all = 0;
    for (const Part& p : parts_) all = all * 31 + static_cast<uint64_t>(p.layer->form());
    return static_cast<int64_t>(all);
  }

 private:
  // A part of both ways leaves out its own.
  static bool left_out(const Layer& part, const Context& c) {
    return (c.no_softmax && part.ways() == Ways::softmax) ||
           (c.no_linear && part.ways() == Ways::linear);
  }
  static Var of(const Part& p, const Var& x, Context& c) {
    const Var y = p.layer->forward(p.in == 1 ? x : autograd::scale(x, p.in), c);
    const Var z = p.norm ? (*p.norm)(y) : y;
    return p.out == 1 ? z : autograd::scale(z, p.out);
  }

  std::vector<Part> parts_;
  std::optional<Linear> out_;
};

const RegisteredMixer registered{"side_by_side", maker<SideBySide>()};

}  // namespace
}  // namespace weft::layers
