// One row at a time. Mean probabilities are summed in blocks of rows; the softmax is made again in
// the backward pass from the row's log-sum-exp.
#include "kernels/experts/routing.h"
#include "kernels/experts/routing_reference.h"
#include "kernels/rows/rows.h"
#include "kernels/tile/vmath.h"

namespace weft::kernels {
namespace {

const Registered<Router> registered;

// The k largest, the largest first, of equal ones the lower number first.
template <class Real>
void choose(const Real* row, int64_t E, int64_t k, int32_t* chosen) {
  int64_t filled = 0;
  for (int64_t e = 0; e < E; ++e) {
    int64_t at = filled;  // behind all that are not smaller
    while (at > 0 && row[chosen[at - 1]] < row[e]) --at;
    if (at == k) continue;
    filled = std::min(filled + 1, k);
    for (int64_t j = filled - 1; j > at; --j) chosen[j] = chosen[j - 1];
    chosen[at] = static_cast<int32_t>(e);
  }
}

// f [E]: the fraction of slots that went to each expert.
template <class Real>
void count_slots(const Tensor& index, int64_t E, Real* fraction) {
  std::fill_n(fraction, E, Real(0));
  for (int64_t q = 0; q < index.numel(); ++q) fraction[index.data<int32_t>()[q]] += 1;
  const Real slots = static_cast<Real>(std::max<int64_t>(1, index.numel()));
  for (int64_t e = 0; e < E; ++e) fraction[e] /= slots;
}

}  // namespace

void Router::check(const Inputs<Tensor>& x, const Options& o) {
  require(x.logits.dims() == 2, "router: logits has shape ", x.logits.shape(), ", expected [R, E]");
  const int64_t R = x.logits.size(0), E = x.logits.size(1);
  require(o.top_k >= 1 && o.top_k <= E, "router: top_k = ", o.top_k, ", expected 1 .. E = ", E);
  require(o.index.defined() || !o.forced,
          "router: forced, but index is missing; expected i32 [R, k]");
  if (!o.index) return;
  check_index_shape("router: index", o.index, {R, o.top_k});
  require(o.index.is_contiguous(), "router: index has strides ", o.index.strides(),
          ", expected contiguous rows, for it is written");
  if (o.forced) check_index("router: index", o.index.reshape({-1}), E, "the router");
}

Outputs<Router> Router::outputs(const Inputs<Tensor>& x, const Options& o) {
  const Dtype dtype = x.logits.dtype();
  const Device device = x.logits.device();
  return {empty({x.logits.size(0), o.top_k}, dtype, device), empty({1}, dtype, device),
          empty({1}, dtype, device)};
}

void Router::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                         Saved* saved) {
  const Tensor logits = with_rows(x.logits);
  const int64_t R = logits.size(0), E = logits.size(1), k = o.top_k;
  const Tensor index = o.index ? o.index : empty({R, k}, Dtype::i32, logits.device());
  const Tensor lse = empty({R}, logits.dtype(), logits.device());
  const RowBlocks blocks(R);
  const Tensor parts = empty({blocks.count, E}, logits.dtype(), logits.device());
  const Tensor mean = empty({E}, logits.dtype(), logits.device());
  const Tensor fraction = empty_like(mean);
  if (saved) *saved = {index, lse};
  if (!o.forced) index.mark_written();
  if (logits.is_meta()) return;
  for_real(logits.dtype(), [&]<class Real>() {
    const auto from = rows<const Real>(logits), sums = rows<Real>(parts);
    blocks.each([&](int64_t block, int64_t begin, int64_t end) {
      std::fill_n(sums[block], E, Real(0));
      for (int64_t r = begin; r < end; ++r) {
        int32_t* const chosen = index.data<int32_t>() + r * k;
        Real* const weight = y.weight.data<Real>() + r * k;
        if (!o.forced) choose(from[r], E, k, chosen);
        const Real log_sum = lse.data<Real>()[r] = log_sum_exp(from[r], E);
        for (int64_t e = 0; e < E; ++e) sums[block][e] += vexp(from[r][e] - log_sum);
        // Relative to the largest chosen, so that weights are exact where all of p is tiny.
        Real most = from[r][chosen[0]], total = 0;
        for (int64_t j = 1; j < k; ++j) most = std::max(most, from[r][chosen[j]]);
        for (int64_t j = 0; j < k; ++j)
          total += weight[j] = vexp(from[r][chosen[j]] - (o.normalize ? most : log_sum));
        if (o.normalize)
          for (int64_t j = 0; j < k; ++j) weight[j] /= total;
      }
    });
    sum_blocks(parts.data<Real>(), blocks.count, E, mean.data<Real>());
    count_slots(index, E, fraction.data<Real>());
    const double count = static_cast<double>(std::max<int64_t>(1, R));
    double balance = 0, z = 0;
    for (int64_t e = 0; e < E; ++e)
      balance += fraction.data<Real>()[e] * mean.data<Real>()[e] / count;
    for (int64_t r = 0; r < R; ++r) z += double{lse.data<Real>()[r]} * lse.data<Real>()[r];
    *y.balance.data<Real>() = static_cast<Real>(static_cast<double>(E) * balance);
    *y.z.data<Real>() = static_cast<Real>(z / count);
  });
}

// Of a logit, with c the gradient of a probability from the balance, E f_e / R, and m = sum_e c_e
// p_e:
//   p_e (c_e - m) + 2 z' lse p_e / R, and of the weights u, with s = sum_j du_j u_j:
//   normalised   u_j (du_j - s) on the chosen
//   else         u_j du_j on the chosen, - s p_e on all
void Router::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                          const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Tensor logits = with_rows(x.logits), flow = dy.weight.contiguous();
  const int64_t R = logits.size(0), E = logits.size(1), k = o.top_k;
  const Tensor fraction = empty({E}, logits.dtype(), logits.device());
  const Tensor weights = empty({thread_count(), k}, logits.dtype(), logits.device());
  if (logits.is_meta() || !dx.logits) return;
  for_real(logits.dtype(), [&]<class Real>() {
    const auto from = rows<const Real>(logits);
    const Real count = static_cast<Real>(std::max<int64_t>(1, R));
    const Real dbalance =
        dy.balance ? *dy.balance.data<Real>() * static_cast<Real>(E) / count : Real(0);
    const Real dz = dy.z ? 2 * *dy.z.data<Real>() / count : Real(0);
    Real* const f = fraction.data<Real>();
    count_slots(saved.index, E, f);
    parallel_ranges(R, row_grain(E), [&](int64_t begin, int64_t end) {
      Real* const u = weights.data<Real>() + thread_index() * k;
      for (int64_t r = begin; r < end; ++r) {
        const int32_t* const chosen = saved.index.data<int32_t>() + r * k;
        const Real* const du = flow.data<Real>() + r * k;
        Real* __restrict__ out = dx.logits.data<Real>() + r * E;
        const Real lse = saved.lse.data<Real>()[r];
        Real most = o.normalize ? from[r][chosen[0]] : lse, total = 0, s = 0, m = 0;
        if (o.normalize)
          for (int64_t j = 1; j < k; ++j) most = std::max(most, from[r][chosen[j]]);
        for (int64_t j = 0; j < k; ++j) total += u[j] = vexp(from[r][chosen[j]] - most);
        if (o.normalize)
          for (int64_t j = 0; j < k; ++j) u[j] /= total;
        for (int64_t j = 0; j < k; ++j) s += du[j] * u[j];
        for (int64_t e = 0; e < E; ++e) {
          out[e] = vexp(from[r][e] - lse);
          m += out[e] * f[e];
        }
        const Real all = dz * lse - dbalance * m - (o.normalize ? Real(0) : s);
        for (int64_t e = 0; e < E; ++e) out[e] *= dbalance * f[e] + all;
        for (int64_t j = 0; j < k; ++j)
          out[chosen[j]] += u[j] * (du[j] - (o.normalize ? s : Real(0)));
      }
    });
  });
}

}  // namespace weft::kernels
