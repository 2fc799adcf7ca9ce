// Softmax attention whose density each document chooses. A router reads the opening of a document,
// its first tokens, and chooses one of K patterns for the rest of it, in each layer by itself. A
// pattern says how many blocks of keys a token sees: its own, the first ones of the document and
// the nearest before its own. No label says what a document is about.
//
//   m = mean over the opening of W x + b,   z = m / tau,   p = softmax(z)
//   y = o_proj(sum_k p_k y_k)          while the choice is soft: one call for each pattern
//   y = o_proj(y_k),  k the largest    once it is hard: one call, and what no row sees is not read
//
// A token of the opening has the densest pattern, whatever will be chosen. So what a router reads
// depends neither on its choice nor on that of a layer below, is the same in all phases, and costs
// little, for an opening has few keys. Its end is known when the rest begins, so training, a prompt
// and single tokens choose alike. In generation the state keeps what W x + b gave each token.
//
// Phases, noise, draws and the price are those of router.cpp (choice.h), but all tokens of a
// document have one draw, and C counts keys: what is seen by p, as a part of what attention sees.
#include <algorithm>

#include "autograd/kernel_op.h"
#include "autograd/ops.h"
#include "kernels/block_sparse/patterns.h"
#include "kernels/contract/flops.h"
#include "kernels/experts/routing.h"
#include "kernels/selection/block_means.h"
#include "kernels/selection/densities.h"
#include "layers/choice.h"
#include "layers/routes.h"
#include "layers/selection.h"

namespace weft::layers {
namespace {

using autograd::apply;
using autograd::reshape;

// Reads patterns and first_blocks.
kernels::Densities read_densities(const Spec& spec, const TomlTable& t, int64_t block) {
  const int64_t n = kernels::block_count(spec.context, block);
  const int64_t few = std::max<int64_t>(1, n / 16), some = std::max(few + 1, n / 4);
  kernels::Densities d{t.integers("patterns", kCount, {few, some, std::max(some + 1, n)}),
                       t.integer("first_blocks", kCount, 1)};
  const auto count = static_cast<int64_t>(d.blocks.size());
  if (count < 2 || count > kernels::kMostDensities)
    t.refuse("patterns", "patterns has ", count, " numbers, expected 2 to ",
             kernels::kMostDensities, ": how many blocks of keys a token sees by each");
  for (size_t i = 1; i < d.blocks.size(); ++i)
    if (d.blocks[i] <= d.blocks[i - 1])
      t.refuse("patterns", "patterns has ", d.blocks[i], " after ", d.blocks[i - 1],
               ", expected numbers of blocks that rise, the densest last");
  return d;
}

class DocumentRouter final : public Layer {
 public:
  DocumentRouter(const Spec& spec, const TomlTable& t, const Builder& b)
      : heads_(spec, t, b),
        selection_(spec, t, /*one_number=*/false),
        opening_(opening_of(t, selection_.block())),
        densities_(read_densities(spec, t, selection_.block())),
        weight_(b.parameter("router.weight", {patterns(), spec.width}, Init::constant(0), false)),
        bias_(b.parameter("router.bias", {patterns()}, Init::constant(0), false)),
        choice_(spec, t, b, "document_router", patterns()),
        densest_(b.wide().buffer({1, patterns()}, [n = patterns()](int64_t i) {
          return i == n - 1 ? 0.0 : kOpeningLogit;
        })) {}

  Var forward(const Var& x, Context& c) const override {
    const Var means = opening_means(x, c);
    const auto all = heads_(x, c, /*window=*/0);
    const int64_t B = x.size(0), T = x.size(1), S = all.k.size(1);
    const int64_t slots = means.size(1);
    const Tensor owner = kernels::opening_owners(B, T, S, opening_, slots, selection_.options(c),
                                                 x.value().device());
    const Var table = autograd::concat({Var(densest_), rows_of(means)}, 0);
    const Var raw = apply<kernels::PermuteRows>({table, {}}, {owner}).y, z = choice_.sharp(raw);
    if (c.losses && choice_.price() > 0 && !choice_.settled())
      c.losses->push_back(
          choice_.cost(z, kernels::density_parts(B, T, densities_, selection_.options(c), z.dtype(),
                                                 z.value().device())));
    const Var g = choice_.draws(c) ? choice_.noise(1 + B * slots, owner, z) : Var();
    const auto drawn = [&](const Var& x) { return g ? autograd::add(x, g) : x; };
    const Var y = choice_.hard() ? hard(all, z, drawn(z), c)
                                 : soft(all, g ? choice_.sharp(drawn(raw)) : z, c);
    return heads_.out(y, all.gate);
  }
  Ways ways() const override { return Ways::softmax; }

  // At the budget, or where nothing asks for one with all patterns alike.
  double flops_per_token(int64_t T) const override {
    const double K = static_cast<double>(heads_.K());
    double keys = choice_.budget() * static_cast<double>(T + 1) / 2;
    if (choice_.price() == 0) {
      keys = 0;
      for (const int64_t blocks : densities_.blocks)
        if (blocks > 0) keys += selection_.keys_seen(T, blocks) / static_cast<double>(patterns());
    }
    return static_cast<double>(heads_.H()) * kernels::softmax_flops(keys, K, K).forward;
  }

  void at_step(int64_t step) override { choice_.at_step(step); }
  int64_t form() const override { return choice_.form(); }

 private:
  static int64_t opening_of(const TomlTable& t, int64_t block) {
    const int64_t standard = kernels::block_count(64, block) * block;
    const int64_t opening = t.integer("opening", kSize, standard);
    if (opening % block != 0)
      t.refuse("opening", "opening = ", opening, ", expected whole blocks of ", block,
               " tokens, as ", standard, ": the tokens of a block see the same blocks");
    return opening;
  }
  int64_t patterns() const { return static_cast<int64_t>(densities_.blocks.size()); }
  static Var rows_of(const Var& x) { return reshape(x, {x.size(0) * x.size(1), x.size(3)}); }

  // The means of W x + b over blocks as long as the opening, [B, slots, 1, K]; of a text that goes
  // on from a state over the first.
  Var opening_means(const Var& x, Context& c) const {
    const Var own = wide(product(x, weight_, bias_));
    Var scores = reshape(own, {x.size(0), x.size(1), 1, patterns()});
    if (c.state) scores = held_scores(scores.value(), c);
    return apply<kernels::BlockMeans>({scores}, {opening_, c.cu_seqlens, c.place, {}}).y;
  }

  // Of the opening as far as it is there; the state keeps them in step with keys and values.
  Tensor held_scores(const Tensor& own, Context& c) const {
    State state;
    state.held = c.state->held;
    state.ring = c.state->ring;
    state.tensors["scores"] = c.state->tensors["scores"];
    Context inner = c;
    inner.state = &state;
    std::vector<CachedRows> list{{"scores", own}};
    append(inner, list, /*window=*/0);
    c.state->tensors["scores"] = state.tensors["scores"];
    const Tensor& all = list[0].rows;
    return all.slice(1, 0, std::min(opening_, all.size(1))).contiguous();
  }

  Var attend(const HeadProjections::Result& x, const Tensor& pattern, const Context& c) const {
    const int64_t B = x.q.size(0), T = x.q.size(1), S = x.k.size(1);
    const Tensor mask = empty({B, 1, T, kernels::block_count(S, selection_.block())}, Dtype::u8,
                              x.q.value().device());
    kernels::take_densities(mask, pattern, S, densities_, selection_.options(c));
    return selection_.attend(x, mask, /*by_block=*/true, heads_.scale(), c);
  }

  Var soft(const HeadProjections::Result& x, const Var& drawn, const Context& c) const {
    const int64_t R = drawn.size(0);
    const Var p = Choice::probabilities(drawn);
    Var y;
    for (int64_t k = 0; k < patterns(); ++k) {
      const Tensor all_k = full({R}, static_cast<double>(k), Dtype::i32, drawn.value().device());
      const Var share = reshape(autograd::slice(p, 1, k, k + 1), {R});
      const Var part = weighed(attend(x, all_k, c), share);
      y = y ? autograd::add(y, part) : part;
    }
    return y;
  }

  Var hard(const HeadProjections::Result& x, const Var& z, const Var& drawn,
           const Context& c) const {
    const Tensor pattern = Choice::largest(drawn);
    const Var y = attend(x, pattern, c);
    return choice_.draws(c) ? weighed(y, choice_.factor(z, pattern)) : y;
  }

  HeadProjections heads_;
  Selection selection_;
  int64_t opening_;
  kernels::Densities densities_;
  Var weight_, bias_;
  Choice choice_;
  Tensor densest_;  // [1, patterns], the logits of a token of the opening
};

const RegisteredMixer registered{"document_router", maker<DocumentRouter>()};

}  // namespace
}  // namespace weft::layers
