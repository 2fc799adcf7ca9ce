// What is asked of every mixer: right gradients, the same result however a text is cut into calls,
// documents that do not see each other, and memory that the meta device foresees.
#include "tests/catch.h"
#include "tests/layers/made.h"

using namespace weft;
using namespace weft::layers;

namespace {

// Documents of length 1, one longer and one shorter than a chunk of 64, and a few between.
const std::vector<int32_t> kBorders = {0, 1, 9, 10, 75, 80};

// The layer's output when x [B, T, D] comes in calls of the given lengths, the last repeated.
Tensor in_calls(const Layer& layer, const Tensor& x, const std::vector<int64_t>& lengths) {
  const autograd::NoGrad no_grad;
  const int64_t T = x.size(1);
  const Tensor out = empty_like(x);
  State state;
  Context c;
  c.state = &state;
  c.capacity = T / 2;  // too little on purpose: a cache grows where it must
  for (size_t i = 0; c.position < T; ++i) {
    const int64_t n = std::min(T - c.position, lengths[std::min(i, lengths.size() - 1)]);
    const int64_t end = c.position + n;
    out.slice(1, c.position, end)
        .copy_from(layer.forward(x.slice(1, c.position, end).contiguous(), c).value());
    c.position = end;
  }
  return out;
}

// Zeros of a parameter that no result depends on, as that of a choice once it is hard.
Tensor gradient_of(const Parameter& p) {
  return p.var.grad() ? p.var.grad() : zeros_like(p.var.value());
}

}  // namespace

TEST_CASE("mixers: every one passes the gradient check over input and parameters") {
  for (const MixerCase& c : mixer_cases()) {
    const Made m = made(c);
    const Var x = Var::leaf(sample({2, 7, c.width}, "x"));
    const auto report =
        check_gradients([&] { return weighted(run(*m.layer, x)); }, x, m.parameters);
    INFO(c.name << "\n" << failures(report));
    CHECK(report.passed());
  }
}

TEST_CASE("mixers: gradients are right across chunks and documents") {
  const Tensor cu = tensor_of(kBorders);
  for (const MixerCase& c : mixer_cases()) {
    const Made m = made(c);
    const Var x = Var::leaf(sample({1, kBorders.back(), c.width}, "x"));
    const auto report = check_gradients([&] { return weighted(run(*m.layer, x, cu)); }, x,
                                        m.parameters, /*largest=*/0);
    INFO(c.name << "\n" << failures(report));
    CHECK(report.passed());
  }
}

TEST_CASE("mixers: token by token, in pieces and at once give the same") {
  for (const MixerCase& c : mixer_cases()) {
    const Made m = made(c);
    const Tensor x = sample({2, 71, c.width}, "x");
    const Tensor whole = run(*m.layer, x).value();
    INFO(c.name);
    CHECK(distance(in_calls(*m.layer, x, {1}), whole) < 1e-12);
    CHECK(distance(in_calls(*m.layer, x, {30, 1}), whole) < 1e-12);
    CHECK(distance(in_calls(*m.layer, x, {1, 2, 3, 11, 1, 40}), whole) < 1e-12);
    CHECK(distance(in_calls(*m.layer, x, {3}), whole) < 1e-12);
  }
}

TEST_CASE("mixers: memory of a state does not grow with the text, but for full attention") {
  for (const MixerCase& c : mixer_cases()) {
    const Made m = made(c, Dtype::f32);
    const bool grows = (c.mixer == "attention" && c.toml.find("window") == std::string::npos) ||
                       c.mixer == "block_sparse" || c.mixer == "moba" || c.mixer == "topk" ||
                       c.mixer == "router" || c.mixer == "document_router" ||
                       c.mixer == "latent_attention" || c.mixer == "nsa" ||
                       c.name == "token_sparse, strided" || c.name == "token_sparse, random" ||
                       (c.mixer == "side_by_side" && c.name.find("norms") == std::string::npos);
    if (grows) continue;
    const autograd::NoGrad no_grad;
    State state;
    Context context;
    context.state = &state;
    int64_t early = 0, early_peak = 0;
    const Tensor x = sample({1, 1, c.width}, "x", Dtype::f32);
    INFO(c.name);
    for (int64_t t = 0; t < 200; ++t) {
      context.position = t;
      const int64_t peak = peak_of(kCpu, [&] { m.layer->forward(x, context); });
      if (t == 20) {
        early = state.bytes();
        early_peak = peak;
      }
      if (t > 20) {
        REQUIRE(state.bytes() == early);
        REQUIRE(peak <= 2 * early_peak);
      }
    }
  }
}

TEST_CASE("mixers: packed documents give what they give alone, forward and backward") {
  const Tensor cu = tensor_of(kBorders);
  for (const MixerCase& c : mixer_cases()) {
    INFO(c.name);
    const Made m = made(c);
    const Tensor x = sample({1, kBorders.back(), c.width}, "x");
    const Var packed = Var::leaf(x);
    const Var y = run(*m.layer, packed, cu);
    for (const Parameter& p : m.parameters) p.var.drop_grad();
    autograd::backward(weighted(y));
    std::vector<Tensor> together;
    for (const Parameter& p : m.parameters) together.push_back(gradient_of(p).clone());
    for (const Parameter& p : m.parameters) p.var.drop_grad();
    const Tensor w = kernels::normal(y.shape(), 13, "weight");
    for (size_t n = 0; n + 1 < kBorders.size(); ++n) {
      const int64_t a = kBorders[n], b = kBorders[n + 1];
      const Var alone = Var::leaf(x.slice(1, a, b).contiguous());
      const Var one = run(*m.layer, alone);
      CHECK(distance(one.value(), y.value().slice(1, a, b)) < 1e-12);
      autograd::backward(
          autograd::sum(autograd::multiply(one, Var(w.slice(1, a, b).contiguous()))));
      CHECK(distance(alone.grad(), packed.grad().slice(1, a, b)) < 1e-11);
    }
    for (size_t i = 0; i < together.size(); ++i) {
      INFO(m.parameters[i].name);
      CHECK(distance(gradient_of(m.parameters[i]), together[i]) < 1e-11);
    }
  }
}

TEST_CASE("mixers: a changed document leaves every bit of the others as it was") {
  const Tensor cu = tensor_of(kBorders);
  const size_t changed = 3;  // of kBorders
  for (const MixerCase& c : mixer_cases()) {
    INFO(c.name);
    const Made m = made(c, Dtype::f32);
    const Tensor x = sample({1, kBorders.back(), c.width}, "x", Dtype::f32);
    const Tensor other = x.clone();
    other.slice(1, kBorders[changed], kBorders[changed + 1]).fill(3.25);
    const Tensor w = sample(x.shape(), "w", Dtype::f32);
    const auto outcome = [&](const Tensor& input) {
      const Var leaf = Var::leaf(input);
      const Var y = run(*m.layer, leaf, cu);
      autograd::backward(autograd::sum(autograd::multiply(y, Var(w))));
      return std::pair{y.value(), leaf.grad()};
    };
    const auto before = outcome(x), after = outcome(other);
    for (size_t n = 0; n + 1 < kBorders.size(); ++n) {
      if (n == changed) continue;
      const auto part = [&](const Tensor& t) { return t.slice(1, kBorders[n], kBorders[n + 1]); };
      CHECK(same_bits(part(before.first), part(after.first)));
      CHECK(same_bits(part(before.second), part(after.second)));
    }
  }
}

TEST_CASE("mixers: the meta device foresees the peak of a step to the byte") {
  for (const MixerCase& c : mixer_cases()) {
    INFO(c.name);
    const auto peak = [&](Device device) {
      const Made m = made(c, Dtype::f32, device, 130);
      const Tensor x = empty({2, 130, c.width}, Dtype::f32, device);
      if (device.is_cpu()) x.copy_from(sample(x.shape(), "x"));
      const Var leaf = Var::leaf(x);
      for (const Parameter& p : m.parameters) p.var.zero_grad();
      leaf.zero_grad();
      return peak_of(device, [&] {
        const Var y = run(*m.layer, leaf);
        autograd::backward({{y, full(y.shape(), 1, y.dtype(), device)}});
      });
    };
    CHECK(peak(kCpu) == peak(kMeta));
  }
}

TEST_CASE("mixers: the meta device foresees the state of generation to the byte") {
  for (const MixerCase& c : mixer_cases()) {
    INFO(c.name);
    const autograd::NoGrad no_grad;
    const auto bytes = [&](Device device) {
      const Made m = made(c, Dtype::f32, device);
      State state;
      Context context;
      context.state = &state;
      context.capacity = 64;
      for (const int64_t n : {17, 1, 1}) {
        m.layer->forward(full({1, n, c.width}, 0.5, Dtype::f32, device), context);
        context.position += n;
      }
      return state.bytes();
    };
    CHECK(bytes(kCpu) == bytes(kMeta));
    CHECK(bytes(kCpu) > 0);
  }
}

// A convolution with one tap, that of the token itself, leaves its input as it is. Mixers that can
// do without a convolution then give the same without one; its silu stays.
TEST_CASE("mixers: a convolution that sees its own token alone is none, whatever its length") {
  const auto taps_of = [](const Made& m) {
    std::vector<Parameter> list;
    for (const Parameter& p : m.parameters)
      if (p.name.find("conv1d.weight") != std::string::npos) list.push_back(p);
    return list;
  };
  std::vector<std::string> with_convolution;
  for (const std::string& mixer : mixer_names()) {
    MixerCase c{mixer, mixer, mixer == "mamba" ? "state = 3\n" : "heads = 2\n"};
    if (mixer == "mamba2") c.toml = "head_dim = 6\nstate = 3\n";
    if (mixer == "block_sparse") c.toml += "block = 4\n";
    if (mixer == "side_by_side") continue;  // its parts have them
    if (mixer == "gated_conv") c.toml = "";
    if (taps_of(made(c)).empty()) continue;
    with_convolution.push_back(mixer);
    const bool can_be_none = !mixer.starts_with("mamba") && mixer != "gated_conv";
    const std::string table = c.toml;
    const auto of_length = [&](int64_t taps) {
      c.toml = table + concat("conv = ", taps, "\n");
      Made m = made(c);
      for (const Parameter& p : taps_of(m)) {
        p.var.value().zero();
        p.var.value().slice(1, taps - 1, taps).fill(1);
      }
      for (const Parameter& p : m.parameters)
        if (p.name.find("conv1d.bias") != std::string::npos) p.var.value().zero();
      CHECK(taps_of(m).empty() == (taps == 0));
      return m;
    };
    const Made least = of_length(can_be_none ? 0 : 1);
    const Tensor x = sample({2, 23, c.width}, "x");
    const Var in = Var::leaf(x);
    const Var y = run(*least.layer, in);
    autograd::backward(weighted(y));
    for (const int64_t taps : {1, 2, 3, 4, 5}) {
      INFO(mixer << ", conv = " << taps);
      const Made m = of_length(taps);
      const Var same = Var::leaf(x);
      const Var z = run(*m.layer, same);
      autograd::backward(weighted(z));
      CHECK(distance(z.value(), y.value()) < 1e-12);
      CHECK(distance(same.grad(), in.grad()) < 1e-11);
      CHECK(distance(in_calls(*m.layer, x, {5, 1}), in_calls(*least.layer, x, {5, 1})) < 1e-12);
    }
  }
  CHECK(with_convolution == std::vector<std::string>{"delta", "gated_conv", "gated_delta", "kda",
                                                     "mamba", "mamba2", "simple_gla"});
}
