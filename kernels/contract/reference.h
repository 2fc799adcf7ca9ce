// How a folder's reference.h becomes an Operation.
//
// A folder specialises Reference<M> with
//   template <class S> static void naive(Inputs<M, View<S>> x, const Options<M>& o,
//                                        Outputs<M, View<S>> y)     S is double or Traced
//   template <class Real> static void recurrent(x, o, y)               optional, double or float
//   template <class Real> static void recurrent_backward(x, o, dy, dx) all dy there, dx zeroed
//   static std::vector<Case<M>> cases()                             f64 inputs worth testing
//   static Bench<M> bench(int64_t T)                                optional
//   static std::vector<GpuShape> gpu_shapes()                       optional
//   static std::vector<std::string> prepare_written(Tensors& in, Settings& settings)
//                                       optional, where forward writes index tensors
// The naive form is differentiated by the machine (kernels/contract/traced.h).
#pragma once

#include <iterator>
#include <sstream>
#include <type_traits>
#include <utility>

#include "core/text.h"
#include "kernels/contract/operation.h"
#include "kernels/contract/rounding.h"
#include "kernels/contract/traced.h"

namespace weft::kernels {

template <class M>
struct Reference;

template <class M>
struct Case {
  std::string name;
  Inputs<M> x;
  Options<M> o;
};

template <class M>
struct Bench {
  Inputs<M> x;
  Options<M> o;
  Flops flops;
};

template <class M>
concept HasRecurrent = requires(Inputs<M, View<double>> x, Outputs<M, View<double>> y,
                                Options<M> o) {
  Reference<M>::template recurrent<double>(x, o, y);
};
template <class M>
concept HasRecurrentBackward = requires(Inputs<M, View<double>> x, Outputs<M, View<double>> dy,
                                        Inputs<M, View<double>> dx, Options<M> o) {
  Reference<M>::template recurrent_backward<double>(x, o, dy, dx);
};
template <class M>
concept HasBench = requires {
  Reference<M>::bench(int64_t{1});
};
template <class M>
concept HasGpuShapes = requires {
  Reference<M>::gpu_shapes();
};
template <class M>
concept HasPrepareWritten = requires(Tensors& in, Settings& settings) {
  Reference<M>::prepare_written(in, settings);
};

namespace detail {

// Does Reference<M> have a member of a name, of whatever signature? A second base with the same
// member makes the name ambiguous.
struct WithRecurrent {
  int recurrent;
};
struct WithRecurrentBackward {
  int recurrent_backward;
};
struct WithBench {
  int bench;
};
struct WithGpuShapes {
  int gpu_shapes;
};
struct WithPrepareWritten {
  int prepare_written;
};
template <class M, class Second>
struct Both : Reference<M>, Second {};
template <class M>
concept NamesRecurrent = !requires {
  &Both<M, WithRecurrent>::recurrent;
};
template <class M>
concept NamesRecurrentBackward = !requires {
  &Both<M, WithRecurrentBackward>::recurrent_backward;
};
template <class M>
concept NamesBench = !requires {
  &Both<M, WithBench>::bench;
};
template <class M>
concept NamesGpuShapes = !requires {
  &Both<M, WithGpuShapes>::gpu_shapes;
};
template <class M>
concept NamesPrepareWritten = !requires {
  &Both<M, WithPrepareWritten>::prepare_written;
};

// The number of members of an aggregate: as many as it can be initialised from.
struct AnyMember {
  template <class Member>
  operator Member() const;
};
template <class Aggregate, size_t... I>
constexpr bool takes(std::index_sequence<I...>) {
  return requires { Aggregate{(static_cast<void>(I), AnyMember{})...}; };
}
template <class Aggregate, size_t N = 0>
constexpr size_t member_count() {
  if constexpr (takes<Aggregate>(std::make_index_sequence<N + 1>{}))
    return member_count<Aggregate, N + 1>();
  else
    return N;
}
template <class Aggregate>
constexpr size_t field_count() {
  return std::tuple_size_v<decltype(std::declval<Aggregate&>().fields())>;
}

template <class Value>
Value parsed(const std::string& name, const std::string& text) {
  if constexpr (std::is_same_v<Value, std::string>) {
    return text;
  } else if constexpr (std::is_same_v<Value, bool>) {
    if (text == "true" || text == "1") return true;
    require(text == "false" || text == "0", name, ": \"", text, "\" is not true or false");
    return false;
  } else {
    std::istringstream in(text);
    Value value{};
    require(static_cast<bool>(in >> value) && in.peek() == EOF, name, ": \"", text,
            "\" is not a number");
    return value;
  }
}

template <class Value>
std::string printed(const Value& value) {
  if constexpr (std::is_same_v<Value, std::string>) {
    return value;
  } else if constexpr (std::is_same_v<Value, bool>) {
    return value ? "true" : "false";
  } else {
    std::ostringstream out;
    out.precision(17);
    out << value;
    return out.str();
  }
}

}  // namespace detail

template <class M>
class OperationOf final : public Operation {
  static_assert(detail::field_count<Inputs<M, bool>>() == detail::member_count<Inputs<M, bool>>(),
                "fields() of Inputs must tie every member");
  static_assert(detail::field_count<Outputs<M, bool>>() == detail::member_count<Outputs<M, bool>>(),
                "fields() of Outputs must tie every member");
  static_assert(std::size(M::kInputs) == detail::member_count<Inputs<M, bool>>(),
                "kInputs must have a Field for every input");
  static_assert(std::size(M::kOutputs) == detail::member_count<Outputs<M, bool>>(),
                "kOutputs must have a Field for every output");
  static_assert(HasRecurrent<M> == detail::NamesRecurrent<M>,
                "recurrent has another signature than this file asks for");
  static_assert(HasRecurrentBackward<M> == detail::NamesRecurrentBackward<M>,
                "recurrent_backward has another signature than this file asks for");
  static_assert(HasRecurrent<M> == HasRecurrentBackward<M>,
                "recurrent and recurrent_backward go together");
  static_assert(HasBench<M> == detail::NamesBench<M>,
                "bench has another signature than this file asks for");
  static_assert(HasGpuShapes<M> == detail::NamesGpuShapes<M>,
                "gpu_shapes has another signature than this file asks for");
  static_assert(HasPrepareWritten<M> == detail::NamesPrepareWritten<M>,
                "prepare_written has another signature than this file asks for");

 public:
  std::string name() const override { return std::string(M::name); }
  std::vector<Field> inputs() const override {
    return {std::begin(M::kInputs), std::end(M::kInputs)};
  }
  std::vector<Field> outputs() const override {
    return {std::begin(M::kOutputs), std::end(M::kOutputs)};
  }

  std::vector<Setting> settings() const override {
    std::vector<Setting> list;
    Options<M> o;
    o.each([&]<class Value>(const char* name, Value& member, const char* help) {
      if constexpr (std::is_same_v<Value, Tensor>)
        list.push_back({name, "", help, true});
      else
        list.push_back({name, detail::printed(member), help, false});
    });
    return list;
  }

  std::vector<Form> forms() const override {
    if constexpr (HasRecurrent<M>) return {Form::naive, Form::recurrent, Form::chunkwise};
    return {Form::naive, Form::chunkwise};
  }

  std::vector<NamedCase> cases() const override {
    std::vector<NamedCase> list;
    for (const Case<M>& c : Reference<M>::cases()) {
      NamedCase named{c.name, {}, {}};
      unpack(c.x, c.o, named.inputs, named.settings);
      list.push_back(named);
    }
    return list;
  }

  BenchCase bench(int64_t length) const override {
    BenchCase out;
    if constexpr (HasBench<M>) {
      const Bench<M> b = Reference<M>::bench(length);
      unpack(b.x, b.o, out.inputs, out.settings);
      out.flops = b.flops;
    }
    return out;
  }

  std::vector<std::string> prepare_written(Tensors& in, Settings& settings) const override {
    if constexpr (HasPrepareWritten<M>) return Reference<M>::prepare_written(in, settings);
    return {};
  }

  bool has_cuda_form() const override { return detail::HasCudaForm<M>; }

  std::vector<GpuShape> gpu_shapes() const override {
    if constexpr (HasGpuShapes<M>) return Reference<M>::gpu_shapes();
    return {};
  }

  Tensors forward(Form form, const Tensors& in, const Settings& settings) const override {
    const auto [x, o] = pack(in, settings);
    if (form == Form::chunkwise) {
      Outputs<M> y = kernels::forward<M>(x, o);
      round_outputs(y);
      return named(y, M::kOutputs, false);
    }
    Outputs<M> y = reference_outputs(x, o, form);
    const Dtype t = detail::leading<M>(x).dtype();
    if (form == Form::naive)
      run<double>(x, o, y, [](auto xs, auto& os, auto ys) { Reference<M>::naive(xs, os, ys); });
    else if (t == Dtype::f64)
      recurrent<double>(x, o, y);
    else
      recurrent<float>(x, o, y);
    return named(rounded(y, t), M::kOutputs, false);
  }

  Tensors backward(Form form, const Tensors& in, const Settings& settings,
                   const Tensors& output_gradients,
                   const std::vector<std::string>& constants) const override {
    const auto [x, o] = pack(in, settings);
    Inputs<M, bool> wanted;
    size_t input = 0;
    for_fields([&](bool& want) { want = !contains(constants, M::kInputs[input++].name); }, wanted);
    Outputs<M> dy;
    size_t i = 0, used = 0;
    for_fields(
        [&](Tensor& d) {
          const auto found = output_gradients.find(gradient_name(M::kOutputs[i++].name));
          if (found == output_gradients.end()) return;
          d = found->second;
          ++used;
        },
        dy);
    require(used == output_gradients.size(), M::name,
            ": a gradient was given for no output of it; known: ", known_gradients());
    if (form == Form::chunkwise) {
      typename M::Saved saved;
      Outputs<M> y = kernels::forward<M>(x, o, &saved);
      require_like_outputs(dy, y);
      round_outputs(y);
      Tensor& first = std::get<0>(dy.fields());
      if (!first) first = zeros_like(std::get<0>(y.fields()));
      return named(kernels::backward<M>(x, o, saved, dy, wanted), M::kInputs, true);
    }
    const Dtype t = detail::leading<M>(x).dtype();
    Inputs<M> dx;
    if (form == Form::naive)
      dx = naive_backward(x, o, dy);
    else if (t == Dtype::f64)
      dx = recurrent_backward<double>(x, o, dy);
    else
      dx = recurrent_backward<float>(x, o, dy);
    for_fields([](Tensor& d, const Tensor& value,
                  bool want) { d = d && want ? d.to(value.dtype()) : Tensor(); },
               dx, const_cast<Inputs<M>&>(x), wanted);
    return named(dx, M::kInputs, true);
  }

 private:
  static void unpack(const Inputs<M>& x, Options<M> o, Tensors& tensors, Settings& settings) {
    tensors = named(x, M::kInputs, false);
    o.each([&]<class Value>(const char* name, Value& member, const char*) {
      if constexpr (std::is_same_v<Value, Tensor>) {
        if (member) tensors[name] = member;
      } else {
        settings[name] = detail::printed(member);
      }
    });
  }

  static std::pair<Inputs<M>, Options<M>> pack(const Tensors& in, const Settings& settings) {
    Inputs<M> x;
    Options<M> o;
    std::vector<std::string> tensors, flags;
    size_t i = 0;
    for_fields(
        [&](Tensor& t) {
          const char* name = M::kInputs[i++].name;
          tensors.push_back(name);
          if (const auto found = in.find(name); found != in.end()) t = found->second;
        },
        x);
    o.each([&]<class Value>(const char* name, Value& member, const char*) {
      if constexpr (std::is_same_v<Value, Tensor>) {
        tensors.push_back(name);
        if (const auto found = in.find(name); found != in.end()) member = found->second;
      } else {
        flags.push_back(name);
        if (const auto found = settings.find(name); found != settings.end())
          member = detail::parsed<Value>(concat(M::name, ": ", name), found->second);
      }
    });
    for (const auto& [name, tensor] : in)
      if (!contains(tensors, name)) fail(M::name, ": ", unknown_name("tensor", name, tensors));
    for (const auto& [name, value] : settings)
      if (!contains(flags, name)) fail(M::name, ": ", unknown_name("option", name, flags));
    return {x, o};
  }

  // Where operands of products are rounded outputs are too, but for wide ones: in place, since
  // backward may have kept them.
  static void round_outputs(Outputs<M>& y) {
    if (!OperandRounding::on()) return;
    size_t i = 0;
    for_fields(
        [&](Tensor& t) {
          if (t && !M::kOutputs[i].wide) t.copy_from(t.to(Dtype::bf16));
          ++i;
        },
        y);
  }

  template <class Fields, size_t N>
  static Tensors named(Fields fields, const Field (&info)[N], bool gradients) {
    Tensors out;
    size_t i = 0;
    for_fields(
        [&](const Tensor& t) {
          const char* name = info[i++].name;
          if (t) out[gradients ? gradient_name(name) : name] = t;
        },
        fields);
    return out;
  }

  static std::string known_gradients() {
    std::vector<std::string> names;
    for (const Field& f : M::kOutputs) names.push_back(gradient_name(f.name));
    return joined(names);
  }

  // An output's gradient is read as far as the output goes.
  static void require_like_outputs(const Outputs<M>& dy, const Outputs<M>& y) {
    size_t i = 0;
    for_fields(
        [&](const Tensor& d, const Tensor& t) {
          const char* name = M::kOutputs[i++].name;
          if (!d) return;
          require(t.defined(), M::name, ": ", gradient_name(name), " was given, and ", name,
                  " is not made with these options");
          require(d.shape() == t.shape(), M::name, ": ", gradient_name(name), " has shape ",
                  d.shape(), ", expected ", t.shape(), " as ", name);
        },
        const_cast<Outputs<M>&>(dy), const_cast<Outputs<M>&>(y));
  }

  template <class Real, class Fields>
  static Fields cast_to(Fields fields) {
    for_fields(
        [](Tensor& t) {
          if (t) t = t.to(dtype_of<Real>());
        },
        fields);
    return fields;
  }

  template <class Real>
  static Inputs<M, View<Real>> views_of(const Inputs<M>& x) {
    Inputs<M, View<Real>> v;
    for_fields([](View<Real>& to, const Tensor& t) { to = view<Real>(t); }, v,
               const_cast<Inputs<M>&>(x));
    return v;
  }
  template <class Real>
  static Outputs<M, View<Real>> output_views(const Outputs<M>& y) {
    Outputs<M, View<Real>> v;
    for_fields([](View<Real>& to, const Tensor& t) { to = view<Real>(t); }, v,
               const_cast<Outputs<M>&>(y));
    return v;
  }

  // Outputs in the dtype that a reference form computes in.
  static Outputs<M> reference_outputs(const Inputs<M>& x, const Options<M>& o, Form form) {
    detail::check_common<M>(x);
    M::check(x, o);
    const bool f64 = form == Form::naive || detail::leading<M>(x).dtype() == Dtype::f64;
    return f64 ? M::outputs(cast_to<double>(x), o) : M::outputs(cast_to<float>(x), o);
  }

  // Rounds f64 results to the dtype asked for; wide ones only to f32.
  static Outputs<M> rounded(Outputs<M> y, Dtype t) {
    size_t i = 0;
    for_fields(
        [&](Tensor& out) {
          const bool wide = M::kOutputs[i++].wide;
          if (out) out = out.to(wide && t == Dtype::bf16 ? Dtype::f32 : t);
        },
        y);
    return y;
  }

  template <class Real, class F>
  static void run(const Inputs<M>& x, const Options<M>& o, Outputs<M>& y, const F& f) {
    const Inputs<M> cast = cast_to<Real>(x);
    f(views_of<Real>(cast), o, output_views<Real>(y));
  }

  template <class Real>
  static void recurrent(const Inputs<M>& x, const Options<M>& o, Outputs<M>& y) {
    if constexpr (HasRecurrent<M>)
      run<Real>(x, o, y, [](auto xs, auto& os, auto ys) {
        Reference<M>::template recurrent<Real>(xs, os, ys);
      });
    else
      fail(M::name, ": has no recurrent form; known: naive chunkwise");
  }

  template <class Real>
  static Inputs<M> recurrent_backward(const Inputs<M>& x, const Options<M>& o,
                                      const Outputs<M>& dy) {
    if constexpr (HasRecurrent<M>) {
      const Inputs<M> cast = cast_to<Real>(x);
      Outputs<M> all = M::outputs(cast, o);
      require_like_outputs(dy, all);
      for_fields(
          [](Tensor& d, const Tensor& given) {
            if (!d) return;
            if (given)
              d.copy_from(given);
            else
              d.zero();
          },
          all, const_cast<Outputs<M>&>(dy));
      Inputs<M> dx;
      for_fields(
          [](Tensor& d, const Tensor& t) {
            if (t) d = zeros_like(t);
          },
          dx, const_cast<Inputs<M>&>(cast));
      Reference<M>::template recurrent_backward<Real>(views_of<Real>(cast), o,
                                                      output_views<Real>(all), views_of<Real>(dx));
      return dx;
    } else {
      fail(M::name, ": has no recurrent form; known: naive chunkwise");
    }
  }

  static Inputs<M> naive_backward(const Inputs<M>& x, const Options<M>& o, const Outputs<M>& dy) {
    Traced::reset();
    const Inputs<M> cast = cast_to<double>(x);
    Outputs<M> y = reference_outputs(x, o, Form::naive);
    require_like_outputs(dy, y);
    std::vector<std::vector<Traced>> memory;
    memory.reserve(64);
    const auto traced = [&](const Tensor& t, bool input) {
      View<Traced> v;
      if (!t) return v;
      const std::vector<double> numbers = to_doubles(t);
      auto& cells = memory.emplace_back();
      cells.reserve(numbers.size() + 1);
      for (const double n : numbers) cells.push_back(input ? Traced::input(n) : Traced(0.0));
      const View<double> like = view<double>(empty(t.shape(), Dtype::f64));
      v.data = cells.data();
      v.sizes = like.sizes;
      v.strides = like.strides;
      v.dims = like.dims;
      return v;
    };
    Inputs<M, View<Traced>> xs;
    for_fields([&](View<Traced>& v, const Tensor& t) { v = traced(t, true); }, xs,
               const_cast<Inputs<M>&>(cast));
    Outputs<M, View<Traced>> ys;
    for_fields([&](View<Traced>& v, const Tensor& t) { v = traced(t, false); }, ys, y);
    Reference<M>::naive(xs, o, ys);
    for_fields(
        [](const View<Traced>& v, const Tensor& d) {
          if (!d || !v) return;
          const std::vector<double> numbers = to_doubles(d);
          for (size_t i = 0; i < numbers.size(); ++i) Traced::seed(v.data[i], numbers[i]);
        },
        ys, const_cast<Outputs<M>&>(dy));
    Traced::run();
    Inputs<M> dx;
    for_fields(
        [](Tensor& d, const View<Traced>& v, const Tensor& t) {
          if (!t) return;
          d = empty(t.shape(), Dtype::f64);
          for (int64_t i = 0; i < d.numel(); ++i) d.data<double>()[i] = v.data[i].gradient();
        },
        dx, xs, const_cast<Inputs<M>&>(cast));
    Traced::reset();
    return dx;
  }
};

// Put one in an unnamed namespace of the folder's cpu.cpp: the operation is then on the list.
template <class M>
struct Registered {
  Registered() { add_operation(std::make_unique<OperationOf<M>>()); }
};

}  // namespace weft::kernels
