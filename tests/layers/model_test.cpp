// Whole models from recipes: gradients, recomputation, packing, memory, generation, and what a
// wrong recipe is told. The registry and the builder are tested here, where recipes meet them.
#include "layers/model.h"

#include "core/text.h"
#include "tests/catch.h"
#include "tests/layers/made.h"

using namespace weft;
using namespace weft::layers;

namespace {

constexpr int64_t kVocabulary = 11;

// Settings of a mixer in hybrid().
std::string table_of(const std::string& mixer) {
  if (mixer == "mamba") return "state = 3\n";
  if (mixer == "mamba2") return "head_dim = 4\nstate = 3\n";
  if (mixer == "attention") return "heads = 2\nqk_norm = true\n";
  if (mixer == "block_sparse") return "heads = 2\nblock = 4\n";
  if (mixer == "gated_linear") return "heads = 2\ngate_rank = 3\n";
  if (mixer == "side_by_side" || mixer == "gated_conv") return "";
  if (mixer == "router") return "heads = 2\nnoise = 0\n";  // draws differ between rows
  return "heads = 2\n";
}

// A hybrid of whatever mixers there are, with a mixture of experts in every second block. `half` 0
// or 1: every second mixer alone.
std::string hybrid(const std::string& more = "", int half = -1) {
  std::string pattern, tables;
  int number = 0;
  for (const std::string& name : mixer_names()) {
    // Its products make so deep a model too steep for differences; mixers_test.cpp checks it alone.
    if (half >= 0 && name == "gated_conv") continue;
    if (half >= 0 && number++ % 2 != half) continue;
    pattern += "\"" + name + "\", ";
    tables += "[" + name + "]\n" + table_of(name);
  }
  return "[model]\nwidth = 8\ncontext = 96\npattern = [" + pattern +
         "\"window\"]\nmlp = [\"swiglu\", \"moe\", \"gelu\"]\n" +
         (more.find("z_loss") == std::string::npos ? "z_loss = 0.01\n" : "") + more +
         "\n[window]\ntype = \"attention\"\nheads = 2\nwindow = 5\nsinks = true\n"
         "[moe]\nexperts = 4\ntop_k = 2\nwidth = 6\nshared = 1\nbalance_loss = 0.02\n"
         "[mlp]\nwidth = 10\n" +
         tables;
}

Model model_of(const std::string& text, Dtype dtype = Dtype::f64, Device device = kCpu) {
  Model m(toml_from_text(text, "r.toml"), kVocabulary, dtype, device, 5);
  stir(m.parameters(), 0.1);
  return m;
}

Tensor tokens_of(const Shape& shape, const std::string& name, Device device = kCpu) {
  const Tensor t = empty(shape, Dtype::i32, device);
  const Random random(17, stream_of(name));
  if (device.is_meta()) return t;
  for (int64_t i = 0; i < t.numel(); ++i)
    t.data<int32_t>()[i] =
        static_cast<int32_t>(random.below(kVocabulary, static_cast<uint64_t>(i)));
  return t;
}

Batch batch_of(int64_t B, int64_t T, Device device = kCpu) {
  return {tokens_of({B, T}, "tokens", device), tokens_of({B, T}, "targets", device), {}};
}

std::vector<Tensor> gradients(const Model& m) {
  std::vector<Tensor> list;
  for (const Parameter& p : m.parameters()) {
    list.push_back(p.var.grad().clone());
    p.var.drop_grad();
  }
  return list;
}

std::string refusal(const std::string& text) {
  try {
    const Model m(toml_from_text(text, "r.toml"), kVocabulary, Dtype::f32, kCpu, 1);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("model: a hybrid passes the gradient check over every parameter") {
  int number = 0;
  for (const char* more :
       {"",
        "norm = \"layer\"\nnorm_position = \"both\"\nlogit_softcap = 3.0\n"
        "tied_embeddings = false\npositions = \"learned\"",
        "norm_position = \"post\"\nembedding_scale = true\nrecompute = true",
        "norm_position = \"residual\"\nskip_scale = 1.3\nbranch_scale = 0.7\n"
        "embedding_scale = 3.0\nnorm_plus_one = true",
        "norm_position = \"both\"\nparallel = true\nrecompute = true\n"
        "norm = \"layer\"\nnorm_bias = true\nlogit_scale = 0.5\nskip_scale = 0.8",
        "norm_position = \"post\"\nparallel = true\nnorm_plus_one = true"}) {
    // Without experts: a step in a first layer may change who is chosen in a later one.
    std::string text = hybrid(more, number++ % 2);
    text.replace(text.find("\"moe\""), 5, "\"gelu\"");
    text = text.substr(0, text.find("[moe]")) + text.substr(text.find("[mlp]"));
    const Model m = model_of(text);
    const Batch batch = batch_of(2, 9);
    const auto report = check_gradients([&] { return m.loss(batch).total; }, {}, m.parameters(),
                                        /*largest=*/0);
    INFO(more << "\n" << failures(report));
    CHECK(report.passed());
  }
}

TEST_CASE("model: experts and their losses pass the gradient check, recomputed or not") {
  for (const char* more : {"", "recompute = true"}) {
    for (const char* activation : {"swiglu", "gelu"}) {
      const Model m = model_of(concat(
          "[model]\nwidth = 8\ncontext = 16\npattern = [\"attention\"]\nmlp = \"moe\"\n", more,
          "\n[moe]\nexperts = 4\ntop_k = 2\nwidth = 6\nshared = 1\nbalance_loss = 0.3\n"
          "z_loss = 0.2\nactivation = \"",
          activation, "\"\n"));
      const Batch batch = batch_of(2, 9);
      const auto report = check_gradients([&] { return m.loss(batch).total; }, {}, m.parameters(),
                                          /*largest=*/0);
      INFO(failures(report));
      CHECK(report.passed());
    }
  }
}

TEST_CASE("model: recomputation changes no bit of loss and gradients, packed or not") {
  const Model plain = model_of(hybrid(), Dtype::f32);
  const Model again = model_of(hybrid("recompute = true"), Dtype::f32);
  Batch packed = batch_of(1, 140);
  packed.cu_seqlens = tensor_of<int32_t>({0, 1, 9, 75, 140});
  for (const Batch& batch : {batch_of(2, 70), packed}) {
    const Var a = plain.loss(batch).total, b = again.loss(batch).total;
    CHECK(same_bits(a.value(), b.value()));
    autograd::backward(a);
    autograd::backward(b);
    const auto u = gradients(plain), v = gradients(again);
    for (size_t i = 0; i < u.size(); ++i) {
      INFO(plain.parameters()[i].name);
      CHECK(same_bits(u[i], v[i]));
    }
  }
}

TEST_CASE("model: the total is cross-entropy, z-loss and the losses of the experts") {
  const Batch batch = batch_of(2, 9);
  const auto loss = [&](const std::string& z, const std::string& balance,
                        const std::string& route) {
    const Model m = model_of(
        "[model]\nwidth = 8\ncontext = 16\npattern = [\"attention\"]\nmlp = \"moe\"\n"
        "z_loss = " +
        z + "\n[moe]\nbalance_loss = " + balance + "\nz_loss = " + route + "\n");
    const Loss l = m.loss(batch);
    return std::pair{l.total.value().item(), l.cross_entropy.item()};
  };
  const auto [bare, cross_entropy] = loss("0", "0", "0");
  CHECK(bare == cross_entropy);
  for (const auto& one : {loss("0.1", "0", "0"), loss("0", "0.1", "0"), loss("0", "0", "0.1")}) {
    CHECK(one.second == cross_entropy);
    CHECK(one.first > cross_entropy + 0.01);
  }
  CHECK(loss("0", "0.2", "0").first - bare == Approx(2 * (loss("0", "0.1", "0").first - bare)));
}

TEST_CASE("model: steps along the gradient learn a batch by heart") {
  for (const int half : {0, 1}) {
    Model m(toml_from_text(hybrid("z_loss = 0", half), "r.toml"), kVocabulary, Dtype::f32, kCpu, 5);
    const Batch batch = batch_of(2, 20);
    double first = 0, last = 0;
    for (int step = 0; step < 60; ++step) {
      const Loss loss = m.loss(batch);
      last = loss.cross_entropy.item();
      if (step == 0) first = last;
      autograd::backward(loss.total);
      for (const Parameter& p : m.parameters()) {
        const Tensor change = autograd::scale(p.var.grad(), -0.1).value();
        p.var.value().add_from(change);
        p.var.drop_grad();
      }
    }
    INFO("half " << half << ": " << first << " to " << last);
    CHECK(last < 0.8 * first);
  }
}

TEST_CASE("model: the start is a loss of log(vocabulary), the same for the same seed") {
  const TomlTable recipe = toml_from_text(hybrid(), "r.toml");
  const Model a(recipe, kVocabulary, Dtype::f32, kCpu, 5),
      b(recipe, kVocabulary, Dtype::f32, kCpu, 5);
  const Model c(recipe, kVocabulary, Dtype::f32, kCpu, 6);
  const Batch batch = batch_of(2, 70);
  const Tensor loss = a.loss(batch).cross_entropy;
  CHECK(loss.item() == Approx(std::log(double(kVocabulary))).margin(0.05));
  CHECK(same_bits(loss, b.loss(batch).cross_entropy));
  CHECK(!same_bits(loss, c.loss(batch).cross_entropy));
}

TEST_CASE("model: rows of a batch flattened with their borders give the same loss and gradients") {
  for (const char* more : {"", "positions = \"learned\""}) {
    const Model m = model_of(hybrid(more));
    const Batch rows = batch_of(3, 41);
    autograd::backward(m.loss(rows).total);
    const auto separate = gradients(m);
    const Batch packed{rows.tokens.reshape({1, 123}), rows.targets.reshape({1, 123}),
                       tensor_of<int32_t>({0, 41, 82, 123})};
    autograd::backward(m.loss(packed).total);
    const auto together = gradients(m);
    for (size_t i = 0; i < separate.size(); ++i) {
      INFO(m.parameters()[i].name);
      CHECK(distance(together[i], separate[i]) < 1e-10);
    }
    CHECK(distance(m.logits(packed.tokens, packed.cu_seqlens).reshape({3, 41, kVocabulary}),
                   m.logits(rows.tokens)) < 1e-11);
  }
}

TEST_CASE("model: a changed document leaves every bit of the others' logits as it was") {
  const Model m = model_of(hybrid(), Dtype::f32);
  const Tensor cu = tensor_of<int32_t>({0, 1, 9, 75, 80});
  const Tensor tokens = tokens_of({1, 80}, "tokens"), other = tokens.clone();
  other.slice(1, 9, 75).copy_from(tokens_of({1, 66}, "other"));
  const Tensor a = m.logits(tokens, cu), b = m.logits(other, cu);
  CHECK(same_bits(a.slice(1, 0, 9), b.slice(1, 0, 9)));
  CHECK(same_bits(a.slice(1, 75, 80), b.slice(1, 75, 80)));
  CHECK(!same_bits(a.slice(1, 9, 75), b.slice(1, 9, 75)));
}

TEST_CASE("model: generation goes on as one forward pass over the whole text") {
  for (const char* more : {"", "positions = \"learned\"\nlogit_softcap = 2.0"}) {
    const Model m = model_of(hybrid(more));
    const Tensor tokens = tokens_of({1, 90}, "tokens");
    const Tensor whole = m.logits(tokens).reshape({90, kVocabulary});
    Generation g;
    g.capacity = 90;
    for (int64_t at = 0, n = 50; at < 90; at += n, n = 1) {
      const Tensor last = m.next(tokens.slice(1, at, at + n), g);
      REQUIRE(distance(last, whole.select(0, at + n - 1)) < 1e-11);
    }
    CHECK(g.position == 90);
    CHECK(g.bytes() > 0);
  }
}

TEST_CASE("model: steps that read their position where it lies go on as one forward pass") {
  for (const char* more : {"", "positions = \"learned\"\nlogit_softcap = 2.0"}) {
    const Model m = model_of(hybrid(more));
    const Tensor tokens = tokens_of({1, 90}, "tokens");
    const Tensor whole = m.logits(tokens).reshape({90, kVocabulary});
    for (const int64_t prompt : {1, 4, 50}) {  // less than the window of 5, and more
      Generation g;
      g.capacity = 90;
      m.next(tokens.slice(1, 0, prompt), g);
      g.place = zeros({1}, Dtype::i32);
      std::vector<Tensor> held;
      for (int64_t at = prompt; at < 90; ++at) {
        *g.place.data<int32_t>() = static_cast<int32_t>(at);
        const Tensor last = m.next(tokens.slice(1, at, at + 1), g);
        REQUIRE(distance(last, whole.select(0, at)) < 1e-11);
        size_t i = 0;
        for (const State& s : g.states)  // states stay where they are
          for (const auto& [name, t] : s.tensors) {
            if (at == prompt) held.push_back(t);
            CHECK(held[i++].same_view(t));
          }
      }
      CHECK(g.position == 90);
      CHECK_THROWS_AS(m.next(tokens.slice(1, 0, 1), g), Error);  // no room for more
    }
  }
}

TEST_CASE("model: on a GPU such steps go on as one forward pass", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  const Model m = model_of(hybrid(), Dtype::f32, kCuda);
  const Tensor tokens = tokens_of({1, 90}, "tokens").to(kCuda);
  const Tensor whole = m.logits(tokens).reshape({90, kVocabulary}).to(kCpu);
  Generation g;
  g.capacity = 90;
  m.next(tokens.slice(1, 0, 50), g);
  for (int32_t at = 50; at < 90; ++at) {
    g.place = tensor_of<int32_t>({at}).to(kCuda);
    const Tensor last = m.next(tokens.slice(1, at, at + 1), g).to(kCpu);
    REQUIRE(distance(last, whole.select(0, at)) < 1e-4);
  }
}

TEST_CASE("model: the meta device foresees the peak of a training step to the byte") {
  for (const char* more :
       {"", "recompute = true", "positions = \"learned\"\nlogit_softcap = 4.0"}) {
    const auto peak = [&](Device device) {
      const Model m(toml_from_text(hybrid(more), "r.toml"), kVocabulary, Dtype::f32, device, 5);
      for (const Parameter& p : m.parameters()) p.var.zero_grad();
      const Batch batch = batch_of(2, 70, device);
      return peak_of(device, [&] { autograd::backward(m.loss(batch).total); });
    };
    INFO(more);
    CHECK(peak(kCpu) == peak(kMeta));
  }
}

TEST_CASE("model: recomputation keeps less") {
  const auto peak = [&](const std::string& more) {
    const Model m(toml_from_text(hybrid(more), "r.toml"), kVocabulary, Dtype::f32, kMeta, 5);
    for (const Parameter& p : m.parameters()) p.var.zero_grad();
    const Batch batch = batch_of(4, 96, kMeta);
    return peak_of(kMeta, [&] { autograd::backward(m.loss(batch).total); });
  };
  const std::string layers = concat("layers = ", mixer_names().size() + 1);  // the pattern once
  CHECK(peak(layers + "\nrecompute = true") < peak(layers) / 2);
}

TEST_CASE("model: memory is owned by the part that asked for it") {
  const Model m(toml_from_text(hybrid(), "r.toml"), kVocabulary, Dtype::f32, kMeta, 5);
  const Batch batch = batch_of(2, 70, kMeta);
  allocator(kMeta).reset_peak();
  autograd::backward(m.loss(batch).total);
  std::vector<std::string> owners;
  for (const Owned& o : allocator(kMeta).stats().at_peak) owners.push_back(o.owner);
  const auto owns = [&](const std::string& name) {
    return std::find(owners.begin(), owners.end(), name) != owners.end();
  };
  INFO(joined(owners));
  CHECK(owns("parameters"));
  CHECK(owns("embedding"));
  CHECK(owns("layers.1.mixer"));
  CHECK(owns("layers.0.mlp"));
}

TEST_CASE("model: a token meets the router, its experts and all else") {
  const std::string text =
      "[model]\nwidth = 8\ncontext = 16\npattern = [\"attention\"]\nmlp = \"moe\"\n"
      "[attention]\nheads = 2\n[moe]\nexperts = 5\ntop_k = 2\nwidth = 6\nshared = 1\n";
  const Model m = model_of(text);
  CHECK(m.parameter_count() - m.active_parameter_count() == 3 * 3 * 6 * 8);
  // 2 a parameter (the tied table works as the head), and scores and sums over (T + 1) / 2 keys.
  CHECK(m.flops_per_token() == Approx(2.0 * double(m.active_parameter_count()) + 4 * 8.5 * 8));
}

TEST_CASE("model: where a token meets all experts, their biases count too") {
  const TomlTable r = toml_from_text(
      "[model]\nwidth = 8\ncontext = 16\npattern = [\"attention\"]\nmlp = \"moe\"\n"
      "[moe]\nexperts = 3\ntop_k = 3\nwidth = 5\nshared = 2\nbias = true\n",
      "r");
  const Model m(r, 11, Dtype::f32, kMeta, 1);
  CHECK(m.parameter_count() == m.active_parameter_count());
}

TEST_CASE("model: norms, biases, decays and routers are kept out of weight decay") {
  const Model m = model_of(hybrid("norm = \"layer\""));
  for (const Parameter& p : m.parameters()) {
    const auto holds = [&](const char* part) { return p.name.find(part) != std::string::npos; };
    INFO(p.name);
    if (holds("norm") || holds("bias") || holds("A_log") || holds("router") || holds(".D") ||
        holds("sinks"))
      CHECK(!p.decay);
    if (holds("proj.weight") || holds("embedding.weight") || holds("fc1")) CHECK(p.decay);
    CHECK(!p.part.empty());
    CHECK(p.part != "other");
  }
}

TEST_CASE("model: a pattern repeats to fill the layers, and names may be tables") {
  const Model m = model_of(
      "[model]\nwidth = 8\ncontext = 16\nlayers = 5\npattern = [\"a*2\", \"attention\"]\n"
      "mlp = [\"none\", \"gelu\"]\n[attention]\nheads = 2\n"
      "[a]\ntype = \"attention\"\nheads = 2\nbias = true\n");
  std::string biased, gelu;
  for (const Parameter& p : m.parameters()) {
    if (p.name.ends_with("mixer.q_proj.bias")) biased += p.name[7];
    if (p.name.ends_with("mlp.fc1.weight")) gelu += p.name[7];
  }
  CHECK(biased == "0134");
  CHECK(gelu == "13");
}

TEST_CASE("model: a wrong recipe is told where, what is known and what is near") {
  const std::string good = "[model]\nwidth = 8\ncontext = 16\npattern = [\"attention\"]\n";
  CHECK(refusal(good + "[attention]\nheads = 2\n").empty());
  CHECK_THAT(refusal("[model]\nwidth = 8\ncontext = 9\npattern = [\"atention\"]\n"),
             ContainsSubstring("r.toml:4:") && ContainsSubstring("did you mean \"attention\"?"));
  CHECK_THAT(refusal("[model]\nwidth = 8\ncontext = 9\npattern = [\"windw\"]\n"
                     "[window]\ntype = \"attention\"\n"),
             ContainsSubstring("did you mean \"window\"?"));
  CHECK_THAT(refusal("[model]\nwidth = 8\ncontext = 9\npattern = [\"window\"]\n"
                     "[window]\ntype = \"attentoin\"\n"),
             ContainsSubstring("r.toml:6:") && ContainsSubstring("unknown mixer \"attentoin\""));
  CHECK_THAT(refusal("[model]\nwidth = 8\ncontext = 9\npattern = [\"attention*0\"]\n"),
             ContainsSubstring("\"attention*0\" is neither a name nor"));
  CHECK_THAT(refusal(good + "[attention]\nhead = 2\n"),
             ContainsSubstring("unknown key \"head\"") && ContainsSubstring("heads"));
  CHECK_THAT(refusal(good + "norm_postion = \"pre\"\n"), ContainsSubstring("norm_position"));
  CHECK_THAT(refusal(good + "norm = \"rsm\"\n"), ContainsSubstring("did you mean \"rms\"?"));
  CHECK_THAT(refusal(good + "mlp = [\"swiglu\", \"meo\"]\n"),
             ContainsSubstring("did you mean \"moe\"?"));
  CHECK_THAT(refusal(good + "[attention]\nheads = 4\nkey_heads = 3\n"),
             ContainsSubstring("r.toml:7:") && ContainsSubstring("4 heads cannot share 3"));
  CHECK_THAT(refusal(good + "[attention]\nheads = 0\n"), ContainsSubstring("at least 1"));
  CHECK_THAT(refusal(good + "mlp = \"moe\"\n[moe]\nexperts = 2\ntop_k = 3\n"),
             ContainsSubstring("top_k is 3 of 2 experts"));
  CHECK_THAT(refusal(good + "norm_position = [\"pre\", \"bth\"]\n"),
             ContainsSubstring("did you mean \"both\"?"));
  CHECK_THAT(refusal(good + "norm_bias = true\n"), ContainsSubstring("an RMS norm has no bias"));
  CHECK_THAT(refusal(good + "parallel = true\nmlp = \"none\"\n"),
             ContainsSubstring("r.toml:5:") && ContainsSubstring("no layer has an MLP"));
  CHECK_THAT(refusal(good + "embedding_scale = \"big\"\n"), ContainsSubstring("r.toml:5:"));
  CHECK_THAT(refusal(good + "embedding_scale = 0.0\n"), ContainsSubstring("above 0"));
  CHECK_THAT(refusal("[model]\ncontext = 9\npattern = [\"attention\"]\n"),
             ContainsSubstring("width"));
}

TEST_CASE("model: learned positions end with the context") {
  const Model m = model_of(
      "[model]\nwidth = 8\ncontext = 6\npattern = [\"attention\"]\npositions = \"learned\"\n");
  CHECK_NOTHROW(m.logits(tokens_of({1, 6}, "t")));
  CHECK_THROWS_WITH(m.logits(tokens_of({1, 7}, "t")), ContainsSubstring("context of 6"));
}

TEST_CASE("model: a key of attention that does nothing is refused, and so is half a pair") {
  const auto told = [](const std::string& keys) {
    return refusal(
        "[model]\nwidth = 12\ncontext = 16\npattern = [\"attention\"]\n[attention]\n"
        "heads = 2\n" +
        keys + "\n");
  };
  const std::string yarn = "rotary_scaling = \"yarn\"\nrotary_factor = 4\n";
  CHECK(told("rotary_fraction = 0.6666667\n" + yarn + "rotary_slow = 2").empty());
  for (const char* key : {"rotary_base = 100", "rotary_fraction = 0.5", "rotary_interleaved = true",
                          "rotary_scaling = \"yarn\"", "rotary_factor = 2"})
    CHECK_THAT(told(concat("rotary = false\n", key)),
               ContainsSubstring("r.toml:8:") && ContainsSubstring("rotary = false"));
  CHECK_THAT(told("rotary_factor = 2"), ContainsSubstring("rotary_scaling = none"));
  CHECK_THAT(told("rotary_scaling = \"linear\""), ContainsSubstring("rotary_factor"));
  CHECK_THAT(told("rotary_scaling = \"linear\"\nrotary_factor = 2\nrotary_slow = 2"),
             ContainsSubstring("rotary_scaling = linear"));
  CHECK_THAT(told("rotary_scaling = \"llama3\"\nrotary_factor = 2\nrotary_magnitude = 2"),
             ContainsSubstring("rotary_scaling = llama3"));
  CHECK_THAT(told(yarn + "rotary_slow = 40"), ContainsSubstring("less than rotary_fast"));
  CHECK_THAT(told(yarn + "rotary_base = 1"), ContainsSubstring("YaRN needs a larger one"));
  CHECK_THAT(told("rotary_fraction = 0.5"), ContainsSubstring("is 3 columns"));
  CHECK_THAT(told("rotary_fraction = 0.4"), ContainsSubstring("even number"));
  CHECK_THAT(told("qk_norm_whole = true"), ContainsSubstring("qk_norm = false"));
  const std::string blocks =
      "[model]\nwidth = 8\ncontext = 16\npattern = [\"block_sparse\"]\n"
      "[block_sparse]\nheads = 2\nblock = 4\ndensity = {}\n";
  CHECK(refusal(blocks).empty());
  CHECK_THAT(refusal(blocks + "window_blocks = 2\n"), ContainsSubstring("density says how wide"));
  CHECK_THAT(refusal(blocks + "pattern = \"strided\"\n"),
             ContainsSubstring("r.toml:8:") && ContainsSubstring("a strided row"));
}
