// Rows of a table by number: y[r] = weight[ids[r]]. The backward pass adds up rows that were taken
// more than once, in the order of r, whatever the number of threads.
#pragma once

#include "kernels/contract/mechanism.h"

namespace weft::kernels {

struct Embedding {
  static constexpr std::string_view name = "embedding";

  template <class X>
  struct Inputs {
    X weight;
    auto fields() { return std::tie(weight); }
  };
  static constexpr Field kInputs[] = {{"weight", "[V, D]"}};

  template <class X>
  struct Outputs {
    X y;
    auto fields() { return std::tie(y); }
  };
  static constexpr Field kOutputs[] = {{"y", "[R, D]"}};

  struct Options {
    Tensor ids;  // i32 [R], each in 0 .. V - 1
    template <class F>
    void each(F&& f) {
      f("ids", ids, "[R]");
    }
  };
  struct Saved {};

  // Throws Error that names the first position whose id is outside the vocabulary.
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

// i32 [T] on `device`: how far each token is into its document. cu_seqlens: i32 [N + 1] on the CPU.
Tensor places_in_documents(const Tensor& cu_seqlens, int64_t T, Device device);
// The same on a GPU, where it comes to. In builds that have CUDA.
void cuda_places_in_documents(const Tensor& cu_seqlens, const Tensor& places);

}  // namespace weft::kernels
