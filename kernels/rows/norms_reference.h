// The definitions of the normalisations, and the cases worth testing.
#pragma once

#include "kernels/contract/gpu_shapes.h"
#include "kernels/contract/reference.h"
#include "kernels/rows/activation_reference.h"
#include "kernels/rows/norms.h"

namespace weft::kernels {

namespace definition {

// (mean over columns begin .. end - 1 of f(d) + eps)^-1/2
template <class S, class F>
S reciprocal_root(int64_t begin, int64_t end, double eps, const F& f) {
  using std::sqrt;
  S sum(0);
  for (int64_t d = begin; d < end; ++d) sum += f(d) * f(d);
  return S(1) / sqrt(sum / S(static_cast<double>(end - begin)) + S(eps));
}

// Calls f(row, first column, end) for each group of each row.
template <class F>
void groups(int64_t R, int64_t D, int64_t count, const F& f) {
  for (int64_t r = 0; r < R; ++r)
    for (int64_t g = 0; g < count; ++g) f(r, g * (D / count), (g + 1) * (D / count));
}

// What is normalised: x, or the sum of x and the residual.
template <class S, class X>
S summed(const X& x, int64_t r, int64_t d) {
  return x.residual ? x.x(r, d) + x.residual(r, d) : x.x(r, d);
}
template <class S, class X, class Y>
void write_sum(const X& x, const Y& y) {
  if (!x.residual) return;
  for (int64_t r = 0; r < x.x.size(0); ++r)
    for (int64_t d = 0; d < x.x.size(1); ++d) y.sum(r, d) = summed<S>(x, r, d);
}

// Rows with one of zeros, one of tiny numbers and one of large ones.
inline Tensor uneven(int64_t R, int64_t D) {
  const Tensor x = normal({R, D}, 5, "x");
  const double sizes[] = {1, 0, 1e-4, 1e4};
  for (int64_t r = 0; r < R; ++r)
    for (int64_t d = 0; d < D; ++d) x.data<double>()[r * D + d] *= sizes[r % 4];
  return x;
}

// Some of the cases again with a residual, in rows of its own or transposed as x may be.
template <class M>
void add_residuals(std::vector<Case<M>>& list) {
  const std::vector<Case<M>> plain = list;
  for (const char* name : {"odd sizes", "four groups", "no rows", "many rows", "wide rows",
                           "wider rows", "columns of a wider matrix", "transposed"})
    for (Case<M> c : plain) {
      if (c.name != name) continue;
      c.name += ", residual";
      c.x.residual = normal(c.x.x.shape(), 1, "residual");
      if (c.x.x.stride(1) != 1)
        c.x.residual = normal(c.x.x.transpose(0, 1).shape(), 1, "residual").transpose(0, 1);
      list.push_back(c);
    }
}

// As a model's blocks use it, alone and after a sum.
inline std::vector<GpuShape> norm_shapes(const std::string& name) {
  GpuShape after_sum = rows_shape(name + "_residual", 32768, 768, {"weight", "residual"});
  return {rows_shape(name, 32768, 768, {"weight"}), after_sum};
}

}  // namespace definition

template <>
struct Reference<RmsNorm> {
  template <class S>
  static void naive(Inputs<RmsNorm, View<S>> x, const RmsNorm::Options& o,
                    Outputs<RmsNorm, View<S>> y) {
    definition::write_sum<S>(x, y);
    definition::groups(x.x.size(0), x.x.size(1), o.groups, [&](int64_t r, int64_t a, int64_t b) {
      const auto in = [&](int64_t d) { return definition::summed<S>(x, r, d); };
      const S rstd = definition::reciprocal_root<S>(a, b, o.eps, in);
      for (int64_t d = a; d < b; ++d) y.y(r, d) = in(d)*rstd * (x.weight ? x.weight(d) : S(1));
    });
  }

  static std::vector<Case<RmsNorm>> cases() {
    const auto make = [](const char* name, int64_t R, int64_t D, int64_t groups, bool weight) {
      Case<RmsNorm> c{name, {normal({R, D}, 1, "x"), {}, {}}, {D == 1 ? 0.5 : 1e-6, groups}};
      if (weight) c.x.weight = normal({D}, 1, "weight");
      return c;
    };
    std::vector<Case<RmsNorm>> list = {
        make("odd sizes", 7, 13, 1, true),   make("no weight", 3, 8, 1, false),
        make("two groups", 5, 14, 2, true),  make("four groups", 33, 12, 4, true),
        make("one column", 4, 1, 1, true),   make("one row", 1, 5, 1, true),
        make("no rows", 0, 6, 2, true),      make("many rows", 70, 5, 1, true),
        make("wide rows", 5, 768, 1, true),  make("wide groups", 9, 256, 4, true),
        make("wider rows", 2, 2304, 1, true)};
    list.push_back(
        {"uneven rows", {definition::uneven(5, 9), normal({9}, 1, "weight"), {}}, {1e-3, 1}});
    list.push_back({"columns of a wider matrix",
                    {normal({5, 11}, 1, "x").slice(1, 2, 8), normal({6}, 1, "weight"), {}},
                    {}});
    list.push_back(
        {"transposed",
         {normal({6, 4}, 1, "x").transpose(0, 1), normal({6, 2}, 1, "weight").select(1, 0), {}},
         {}});
    definition::add_residuals(list);
    return list;
  }

  static Bench<RmsNorm> bench(int64_t T) {
    return {{normal({T, 1024}, 1, "x"), normal({1024}, 1, "weight"), {}},
            {},
            rows_flops(4.0 * static_cast<double>(T * 1024))};
  }

  static std::vector<GpuShape> gpu_shapes() { return definition::norm_shapes("rms_norm"); }
};

template <>
struct Reference<LayerNorm> {
  template <class S>
  static void naive(Inputs<LayerNorm, View<S>> x, const LayerNorm::Options& o,
                    Outputs<LayerNorm, View<S>> y) {
    definition::write_sum<S>(x, y);
    definition::groups(x.x.size(0), x.x.size(1), o.groups, [&](int64_t r, int64_t a, int64_t b) {
      const auto in = [&](int64_t d) { return definition::summed<S>(x, r, d); };
      S mean(0);
      for (int64_t d = a; d < b; ++d) mean += in(d);
      mean /= S(static_cast<double>(b - a));
      const S rstd =
          definition::reciprocal_root<S>(a, b, o.eps, [&](int64_t d) { return in(d)-mean; });
      for (int64_t d = a; d < b; ++d)
        y.y(r, d) =
            (in(d)-mean) * rstd * (x.weight ? x.weight(d) : S(1)) + (x.bias ? x.bias(d) : S(0));
    });
  }

  static std::vector<Case<LayerNorm>> cases() {
    const auto make = [](const char* name, int64_t R, int64_t D, int64_t groups, bool weight,
                         bool bias) {
      Case<LayerNorm> c{name, {normal({R, D}, 1, "x"), {}, {}, {}}, {1e-5, groups}};
      if (weight) c.x.weight = normal({D}, 1, "weight");
      if (bias) c.x.bias = normal({D}, 1, "bias");
      return c;
    };
    std::vector<Case<LayerNorm>> list = {
        make("odd sizes", 7, 13, 1, true, true),    make("bare", 3, 8, 1, false, false),
        make("weight alone", 3, 5, 1, true, false), make("bias alone", 3, 5, 1, false, true),
        make("two groups", 5, 14, 2, true, true),   make("four groups", 33, 12, 4, true, true),
        make("one column", 4, 1, 1, true, true),    make("no rows", 0, 6, 2, true, true),
        make("many rows", 70, 5, 1, true, true),    make("wide rows", 5, 768, 1, true, true),
        make("wide groups", 9, 256, 4, true, true), make("wider rows", 2, 2304, 1, true, true)};
    list.push_back(
        {"uneven rows",
         {definition::uneven(5, 9), normal({9}, 1, "weight"), normal({9}, 1, "bias"), {}},
         {1e-3, 1}});
    list.push_back({"columns of a wider matrix",
                    {normal({5, 11}, 1, "x").slice(1, 2, 8), normal({6}, 1, "weight"), {}, {}},
                    {}});
    list.push_back({"transposed", {normal({6, 4}, 1, "x").transpose(0, 1), {}, {}, {}}, {}});
    definition::add_residuals(list);
    return list;
  }

  static Bench<LayerNorm> bench(int64_t T) {
    return {{normal({T, 1024}, 1, "x"), normal({1024}, 1, "weight"), normal({1024}, 1, "bias"), {}},
            {},
            rows_flops(7.0 * static_cast<double>(T * 1024))};
  }

  static std::vector<GpuShape> gpu_shapes() { return definition::norm_shapes("layer_norm"); }
};

template <>
struct Reference<GatedNorm> {
  template <class S>
  static void naive(Inputs<GatedNorm, View<S>> x, const GatedNorm::Options& o,
                    Outputs<GatedNorm, View<S>> y) {
    definition::groups(x.x.size(0), x.x.size(1), o.groups, [&](int64_t r, int64_t a, int64_t b) {
      const auto gate = [&](int64_t d) { return definition::activation(o.gate, x.z(r, d)); };
      const auto normed = [&](int64_t d) { return o.gate_first ? x.x(r, d) * gate(d) : x.x(r, d); };
      const S rstd = definition::reciprocal_root<S>(a, b, o.eps, normed);
      for (int64_t d = a; d < b; ++d) {
        const S n = normed(d) * rstd * (x.weight ? x.weight(d) : S(1));
        y.y(r, d) = o.gate_first ? n : n * gate(d);
      }
    });
  }

  static std::vector<Case<GatedNorm>> cases() {
    const auto make = [](const std::string& name, int64_t R, int64_t D, int64_t groups, bool weight,
                         bool gate_first, const char* gate) {
      Case<GatedNorm> c{name,
                        {normal({R, D}, 1, "x"), normal({R, D}, 1, "z"), {}},
                        {1e-6, groups, gate_first, gate}};
      if (weight) c.x.weight = normal({D}, 1, "weight");
      return c;
    };
    std::vector<Case<GatedNorm>> list;
    for (const bool first : {false, true}) {
      const std::string when = first ? ", gate first" : ", gate last";
      list.push_back(make("silu" + when, 7, 13, 1, true, first, "silu"));
      list.push_back(make("sigmoid" + when, 5, 9, 1, true, first, "sigmoid"));
      list.push_back(make("no weight" + when, 3, 8, 1, false, first, "silu"));
      list.push_back(make("two groups" + when, 5, 14, 2, true, first, "silu"));
      list.push_back(make("four groups" + when, 33, 12, 4, true, first, "sigmoid"));
      list.push_back(make("no rows" + when, 0, 6, 1, true, first, "silu"));
      list.push_back(make("many rows" + when, 70, 5, 1, true, first, "silu"));
      list.push_back(make("wide rows" + when, 3, 768, 1, true, first, "sigmoid"));
      list.push_back(make("wide groups" + when, 9, 256, 2, true, first, "silu"));
      const Tensor both = normal({5, 14}, 1, "both");
      list.push_back({"halves of one matrix" + when,
                      {both.slice(1, 0, 7), both.slice(1, 7, 14), normal({7}, 1, "weight")},
                      {1e-6, 1, first, "silu"}});
      list.push_back({"uneven rows" + when,
                      {definition::uneven(5, 9), definition::spread(5, 9, "z", 20), {}},
                      {1e-3, 1, first, "silu"}});
    }
    return list;
  }

  static Bench<GatedNorm> bench(int64_t T) {
    return {{normal({T, 1024}, 1, "x"), normal({T, 1024}, 1, "z"), normal({1024}, 1, "weight")},
            {},
            rows_flops(8.0 * static_cast<double>(T * 1024))};
  }

  static std::vector<GpuShape> gpu_shapes() {
    return {rows_shape("gated_norm", 131072, 128, {"weight"})};
  }
};

template <>
struct Reference<L2Norm> {
  template <class S>
  static void naive(Inputs<L2Norm, View<S>> x, const L2Norm::Options& o,
                    Outputs<L2Norm, View<S>> y) {
    using std::sqrt;
    for (int64_t r = 0; r < x.x.size(0); ++r) {
      S sum(0);
      for (int64_t d = 0; d < x.x.size(1); ++d) sum += x.x(r, d) * x.x(r, d);
      for (int64_t d = 0; d < x.x.size(1); ++d) y.y(r, d) = x.x(r, d) / sqrt(sum + S(o.eps));
    }
  }

  static std::vector<Case<L2Norm>> cases() {
    return {{"odd sizes", {normal({7, 13}, 1, "x")}, {}},
            {"one column", {normal({4, 1}, 1, "x")}, {0.5}},
            {"no rows", {normal({0, 6}, 1, "x")}, {}},
            {"wide rows", {normal({9, 128}, 1, "x")}, {}},
            {"uneven rows", {definition::uneven(5, 9)}, {1e-3}},
            {"columns of a wider matrix", {normal({5, 11}, 1, "x").slice(1, 2, 8)}, {}},
            {"transposed", {normal({6, 4}, 1, "x").transpose(0, 1)}, {}}};
  }

  static Bench<L2Norm> bench(int64_t T) {
    return {{normal({T * 8, 128}, 1, "x")}, {}, rows_flops(3.0 * static_cast<double>(T * 1024))};
  }

  static std::vector<GpuShape> gpu_shapes() { return {rows_shape("l2_norm", 262144, 128)}; }
};

}  // namespace weft::kernels
