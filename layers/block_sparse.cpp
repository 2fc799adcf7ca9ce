// Softmax attention over blocks of keys that a pattern chooses: window, dilated, strided, random,
// longformer or bigbird. A row of the pattern depends on its position alone, so that decoding and
// longer texts see the blocks that training saw; random ones belong to the layer and not to the
// run. Sources: arXiv:1904.10509 (strided), 2004.05150 (Longformer), 2007.14062 (BigBird).
#include "kernels/block_sparse/block_sparse.h"

#include <algorithm>
#include <cmath>

#include "autograd/kernel_op.h"
#include "kernels/block_sparse/patterns.h"
#include "layers/softmax.h"

namespace weft::layers {
namespace {

using namespace kernels;

// The union of a window (dilated if `stride` > 1 and the pattern says so), strides to the start,
// the first blocks and random ones; what a pattern does not have is 0.
struct Pattern {
  int64_t window = 1, dilation = 1, stride = 0, global = 0, random = 0;

  // n blocks in the context.
  Pattern(const TomlTable& t, const Spec& spec, int64_t n) {
    const std::string name = t.one_of(
        "pattern", {"window", "dilated", "strided", "random", "longformer", "bigbird"}, "bigbird");
    const bool bigbird = name == "bigbird";
    const auto of = [&](bool used, const char* key, const Integers& range, int64_t standard) {
      if (used) return t.integer(key, range, standard);
      t.unused(key, concat("the pattern \"", name, "\" has none; choose another pattern"),
               t.overridden("pattern"));
      return int64_t{0};
    };
    const bool dilated = name == "dilated";
    const int64_t step = of(dilated || name == "strided", "stride", kSize, dilated ? 2 : 4);
    (dilated ? dilation : stride) = step;
    const bool by_depth = t.has("density");
    if (!by_depth)
      window = t.integer("window_blocks", kSize, bigbird ? 3 : name == "random" ? 1 : 2);
    global = of(bigbird || name == "longformer", "global_blocks", kCount, 1);
    random = of(bigbird || name == "random", "random_blocks", kCount, 2);
    if (!by_depth) return;
    if (name == "strided") t.refuse("density", "a strided row has as many blocks as it is long");
    t.unused("window_blocks", "density says how wide the window is; leave one of them out",
             t.overridden("density"));
    window = std::max<int64_t>(1, blocks_at_depth(t.table("density"), spec, n) - global - random);
  }

  // The blocks of a row at this depth: from the part `first` of the context's to the part `last`.
  static int64_t blocks_at_depth(const TomlTable& t, const Spec& spec, int64_t n) {
    constexpr Numbers kPart{.least = 0, .most = 1, .above = true};
    const double first = t.number("first", kPart, 1.0 / 16), last = t.number("last", kPart, 0.5),
                 power = t.number("power", {.least = 0, .most = 100, .above = true}, 1);
    const double depth =
        spec.layers < 2 ? 0
                        : static_cast<double>(spec.layer) / static_cast<double>(spec.layers - 1);
    const double part = first + (last - first) * std::pow(depth, power);
    return std::llround(part * static_cast<double>(n));
  }

  Tensor mask(int64_t n, int64_t heads, int64_t layer) const {
    std::vector<Tensor> parts{dilated_blocks(n, window, dilation)};
    if (stride > 0) parts.push_back(strided_blocks(n, stride));
    if (global > 0) parts.push_back(global_blocks(n, global));
    if (random > 0) parts.push_back(random_blocks(united(parts), heads, random, /*seed=*/1, layer));
    return united(parts);
  }
};

int64_t longest_document(const Context& c, int64_t T) {
  if (!c.cu_seqlens) return T;
  const View<const int32_t> cu = view<const int32_t>(c.cu_seqlens);
  int64_t longest = 0;
  for (int64_t n = 0; n + 1 < cu.size(0); ++n)
    longest = std::max<int64_t>(longest, cu(n + 1) - cu(n));
  return longest;
}

class BlockSparseMixer final : public Layer {
 public:
  BlockSparseMixer(const Spec& spec, const TomlTable& t, const Builder& b)
      : heads_(spec, t, b),
        block_(t.integer("block", kSize, 64)),
        pattern_(t, spec, block_count(spec.context, block_)),
        softcap_(t.number("softcap", kCap, 0)),
        layer_(spec.layer),
        mask_(pattern_.mask(blocks_of(spec, t), heads_.H(), layer_)),
        placed_(mask_.to(b.device())) {}

  Var forward(const Var& x, Context& c) const override {
    const auto [q, k, v, gate] = heads_(x, c, /*window=*/0);
    const int64_t blocks = block_count(longest_document(c, k.size(1)), block_);
    if (blocks > mask_.size(1)) {  // a text longer than the context
      mask_ = pattern_.mask(2 * blocks, heads_.H(), layer_);
      placed_ = mask_.to(x.value().device());
    }
    BlockSparse::Options o;
    o.block_mask = placed_;
    o.block = block_;
    o.softcap = softcap_;
    o.scale = heads_.scale();
    o.cu_seqlens = c.cu_seqlens;
    o.position = c.place;
    return heads_.out(autograd::apply<BlockSparse>({q, k, v}, o).o, gate);
  }

  Ways ways() const override { return Ways::softmax; }
  double flops_per_token(int64_t T) const override {
    const int64_t n = block_count(T, block_), heads = mask_.size(0);
    const Tensor mask = n > mask_.size(1) ? pattern_.mask(n, heads_.H(), layer_) : mask_;
    double pairs = 0;  // of all heads
    for (int64_t h = 0; h < heads; ++h) pairs += causal_pairs(mask, h, block_, T);
    pairs *= static_cast<double>(heads_.H()) / static_cast<double>(heads);
    const double K = static_cast<double>(heads_.K());
    return kernels::softmax_flops(pairs / static_cast<double>(T), K, K).forward;
  }

 private:
  // Blocks in the context, whose pattern is a mask of their square.
  int64_t blocks_of(const Spec& spec, const TomlTable& t) const {
    const int64_t n = block_count(spec.context, block_);
    constexpr int64_t kMost = 8192;
    if (n > kMost)
      t.refuse("block", "a context of ", spec.context, " has ", n, " blocks of ", block_,
               ", expected at most ", kMost, "; set a larger block");
    return n;
  }

  HeadProjections heads_;
  int64_t block_;
  Pattern pattern_;
  double softcap_;
  int64_t layer_;
  mutable Tensor mask_;    // u8 [1 or H, n, n], on the host
  mutable Tensor placed_;  // the same where the model lies
};

const RegisteredMixer registered{"block_sparse", maker<BlockSparseMixer>()};

}  // namespace
}  // namespace weft::layers
