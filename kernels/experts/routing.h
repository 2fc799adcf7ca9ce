// Mixtures of experts: who goes where, and the moves of rows that follow.
//   router          the top_k largest of each row's softmax, ties to the lower expert
//   grouped_matmul  rows sorted by expert, each times its expert's weight
//   permute_rows    gather;  combine_rows  weighted sum of gathered rows
// No row is dropped. Backward passes of gathers add up in the order of rows, whatever the threads.
// Sources: arXiv:2101.03961 (balance), 2202.08906 (z), 2401.04088 (weights renormalised).
#pragma once

#include "kernels/contract/mechanism.h"

namespace weft::kernels {

// With p = softmax(logits):
//   weight[r, j] = p[r, index[r, j]], divided by its sum over j if `normalize`
//   balance = E sum_e f_e P_e;  f_e the fraction of the R k slots that went to e (a constant in the
//             backward pass), P_e the mean of p[:, e].  Even routing gives 1.
//   z       = mean of (log-sum-exp of a row)^2
struct Router {
  static constexpr std::string_view name = "router";

  template <class X>
  struct Inputs {
    X logits;
    auto fields() { return std::tie(logits); }
  };
  static constexpr Field kInputs[] = {{"logits", "[R, E]"}};

  template <class X>
  struct Outputs {
    X weight, balance, z;
    auto fields() { return std::tie(weight, balance, z); }
  };
  static constexpr Field kOutputs[] = {{"weight", "[R, k]"},
                                       {"balance", "[1]", /*optional=*/false, /*wide=*/true},
                                       {"z", "[1]", /*optional=*/false, /*wide=*/true}};

  struct Options {
    int64_t top_k = 1;
    bool normalize = true;
    bool forced = false;
    // i32 [R, k], contiguous: the chosen experts, best first. The forward pass writes it; if
    // `forced`, it reads it. May be absent where nobody asks and nothing is forced.
    Tensor index;
    template <class F>
    void each(F&& f) {
      f("top_k", top_k, "k: experts a row goes to");
      f("normalize", normalize, "weights of a row add up to one");
      f("forced", forced, "index is given, not chosen");
      f("index", index, "[R, k]");
    }
  };
  struct Saved {
    Tensor index;   // i32 [R, k]
    Tensor lse;     // [R]
    Tensor counts;  // on a GPU, i32 [E]: the slots that went to each expert
  };

  static void check(const Inputs<Tensor>& x, const Options& o);
  static Outputs<Tensor> outputs(const Inputs<Tensor>& x, const Options& o);
  static void cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                          Saved* saved);
  static void cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                           const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
  static void cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                           Saved* saved);
  static void cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                            const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
};

// y[r] = w[e] x[r] for the expert e with offsets[e] <= r < offsets[e + 1].
struct GroupedMatmul {
  static constexpr std::string_view name = "grouped_matmul";

  template <class X>
  struct Inputs {
    X x, w;
    auto fields() { return std::tie(x, w); }
  };
  static constexpr Field kInputs[] = {{"x", "[R, I]"}, {"w", "[E, O, I]"}};

  template <class X>
  struct Outputs {
    X y;
    auto fields() { return std::tie(y); }
  };
  static constexpr Field kOutputs[] = {{"y", "[R, O]"}};

  struct Options {
    Tensor offsets;  // i64 [E + 1]: 0, ..., R, never falling
    template <class F>
    void each(F&& f) {
      f("offsets", offsets, "[E + 1]");
    }
  };
  struct Saved {};

  static void check(const Inputs<Tensor>& x, const Options& o);
  static Outputs<Tensor> outputs(const Inputs<Tensor>& x, const Options& o);
  static void cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                          Saved* saved);
  static void cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                           const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
  static void cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                           Saved* saved);
  static void cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                            const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
};

// y[q] = weight[q] x[index[q]]; weights absent are one.
struct PermuteRows {
  static constexpr std::string_view name = "permute_rows";

  template <class X>
  struct Inputs {
    X x, weight;
    auto fields() { return std::tie(x, weight); }
  };
  static constexpr Field kInputs[] = {{"x", "[R, D]"}, {"weight", "[Q]", /*optional=*/true}};

  template <class X>
  struct Outputs {
    X y;
    auto fields() { return std::tie(y); }
  };
  static constexpr Field kOutputs[] = {{"y", "[Q, D]"}};

  struct Options {
    Tensor index;  // i32 [Q], each in 0 .. R - 1
    template <class F>
    void each(F&& f) {
      f("index", index, "[Q]");
    }
  };
  struct Saved {};

  static void check(const Inputs<Tensor>& x, const Options& o);
  static Outputs<Tensor> outputs(const Inputs<Tensor>& x, const Options& o);
  static void cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                          Saved* saved);
  static void cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                           const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
  static void cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                           Saved* saved);
  static void cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                            const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
};

// y[r] = sum_j weight[r, j] x[index[r k + j]].
struct CombineRows {
  static constexpr std::string_view name = "combine_rows";

  template <class X>
  struct Inputs {
    X x, weight;
    auto fields() { return std::tie(x, weight); }
  };
  static constexpr Field kInputs[] = {{"x", "[Q, D]"}, {"weight", "[R, k]"}};

  template <class X>
  struct Outputs {
    X y;
    auto fields() { return std::tie(y); }
  };
  static constexpr Field kOutputs[] = {{"y", "[R, D]"}};

  struct Options {
    Tensor index;  // i32 [R k], each in 0 .. Q - 1
    template <class F>
    void each(F&& f) {
      f("index", index, "[R k]");
    }
  };
  struct Saved {};

  static void check(const Inputs<Tensor>& x, const Options& o);
  static Outputs<Tensor> outputs(const Inputs<Tensor>& x, const Options& o);
  static void cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                          Saved* saved);
  static void cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                           const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
  static void cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                           Saved* saved);
  static void cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                            const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
};

// Where rows go when they are sorted by expert, those of one expert in their order: position q of
// the sorted rows holds token[q]; slot[r k + j] is where the j-th choice of row r lies; the rows of
// expert e are offsets[e] .. offsets[e + 1].
struct ExpertOrder {
  Tensor token, slot;  // i32 [R k]
  Tensor offsets;      // i64 [E + 1]
};

// index: i32 [R, k], each in 0 .. E - 1; all stays on its device, and the host reads nothing of a
// GPU.
ExpertOrder sorted_by_expert(const Tensor& index, int64_t E);
// The form that sorted_by_expert takes there.
ExpertOrder cuda_sorted_by_expert(const Tensor& index, int64_t E);

}  // namespace weft::kernels
