// Attention over the blocks of keys that embeddings of low width choose, one choice for all queries
// of a block and of a group of heads.
//
// e = index_q x and f = index_k x have `index_width` numbers a head. A block is scored by the mean
// of its f against the mean of e over the block before the query's own: then the choice for a block
// is known before its first token, and is the same in training, for a prompt and token by token.
//
// A choice has no gradient, so the scores must also do what has one. They are those of a coarse
// attention: each block before the query's own gives its mean value, by a softmax over the same
// scores, and a gate of the token adds the result to what the chosen blocks give:
//   y = sparse + sigmoid(gate x) coarse
// What the loss says of coarse raises the score of blocks that help and lowers that of others, for
// every candidate and not only for those chosen. The gradient is that of the function computed,
// wherever no choice changes; no straight-through step and no second loss. In this it is the
// compressed branch of NSA (arXiv:2502.11089), per block and at low width.
#include "autograd/kernel_op.h"
#include "autograd/ops.h"
#include "kernels/attention/attention.h"
#include "kernels/experts/routing.h"
#include "layers/selection.h"

namespace weft::layers {
namespace {

class TopK final : public Layer {
 public:
  TopK(const Spec& spec, const TomlTable& t, const Builder& b)
      : heads_(spec, t, b),
        key_heads_(t.integer("key_heads", kSize, heads_.H())),
        width_(t.integer("index_width", kSize, 16)),
        first_(t.integer("first_blocks", kCount, 1)),
        recent_(t.integer("recent_blocks", kSize, 1)),
        selection_(spec, t),
        index_q_(b.within("index_q"), spec.width, heads_.H() * width_, spec.init),
        index_k_(b.within("index_k"), spec.width, key_heads_ * width_, spec.init),
        gate_(b.within("gate_proj"), spec.width, heads_.H(), spec.init) {}

  Var forward(const Var& x, Context& c) const override {
    const Embeddings e = embedded(x, c);
    const auto all = heads_(x, c, /*window=*/0);
    const Var queries = selection_.means(e.q, c), keys = selection_.means(e.k, c);
    const Var sparse =
        selection_.attend(all, chosen(queries, keys, all, c), /*by_block=*/true, heads_.scale(), c);
    return heads_.out(autograd::add(sparse, coarse(x, queries, keys, all, c)), all.gate);
  }

  Ways ways() const override { return Ways::softmax; }
  double flops_per_token(int64_t T) const override {
    const double H = static_cast<double>(heads_.H()), K = static_cast<double>(heads_.K());
    const double d = static_cast<double>(width_), block = static_cast<double>(selection_.block());
    const double blocks = static_cast<double>(T) / (2 * block);  // before a token, on average
    return H * (4 * selection_.keys_seen(T) * K + blocks * 2 * (2 * d + K) / block);
  }

 private:
  struct Embeddings {
    Var q, k;  // [B, S, H, d], [B, S, Hk, d]
  };

  // Those of all tokens up to now; the state keeps them beside keys and values, in step with them.
  Embeddings embedded(const Var& x, Context& c) const {
    const Embeddings e{heads(index_q_(x), heads_.H()), heads(index_k_(x), key_heads_)};
    if (!c.state) return e;
    State own;
    own.held = c.state->held;
    own.ring = c.state->ring;
    own.tensors = {{"k", c.state->tensors["index_q"]}, {"v", c.state->tensors["index_k"]}};
    Context inner = c;
    inner.state = &own;
    const KeysAndValues all = appended(inner, e.q.value(), e.k.value(), /*window=*/0);
    c.state->tensors["index_q"] = own.tensors["k"];
    c.state->tensors["index_k"] = own.tensors["v"];
    return {all.k, all.v};
  }

  Tensor chosen(const Var& queries, const Var& keys, const HeadProjections::Result& x,
                const Context& c) const {
    kernels::SelectBlocks o = selection_.options(c);
    o.by_block = true;
    o.heads = key_heads_;
    o.first = first_;
    o.recent = recent_;
    return kernels::select_blocks(queries.value(), keys.value(), x.q.size(1), x.k.size(1), o);
  }

  // Each token takes what attention over means gives for the block before its own.
  Var coarse(const Var& x, const Var& queries, const Var& keys, const HeadProjections::Result& all,
             const Context& c) const {
    const int64_t B = all.q.size(0), T = all.q.size(1), S = all.k.size(1), H = heads_.H();
    kernels::Attention::Options o;
    o.cu_seqlens = kernels::slot_borders(c.cu_seqlens, S, selection_.block());
    // A plan of the CPU counts the borders where it counts all else.
    Tensor held = o.cu_seqlens;
    if (held && x.value().is_meta() && !x.value().device().takes_cuda_forms())
      held = empty(held.shape(), Dtype::i32, x.value().device());
    const Var means = selection_.means(all.v, c, held);
    const Var y = autograd::apply<kernels::Attention>({queries, keys, means, {}}, o).o;
    const kernels::BlocksBefore before =
        kernels::blocks_before(B, T, S, H, selection_.options(c), y.dtype(), x.value().device());
    const Var weight = autograd::multiply(activation(gate_(x), "sigmoid"), Var(before.there));
    const Var taken = autograd::apply<kernels::PermuteRows>(
                          {rows(y), autograd::reshape(weight, {-1})}, {before.index})
                          .y;
    return autograd::reshape(taken, all.q.shape());
  }

  HeadProjections heads_;
  int64_t key_heads_, width_, first_, recent_;
  Selection selection_;
  Linear index_q_, index_k_, gate_;
};

const RegisteredMixer registered{"topk", maker<TopK>()};

}  // namespace
}  // namespace weft::layers
