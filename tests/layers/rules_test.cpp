// What a model's parts are to each other, by numbers that can be had in another way.
#include <algorithm>
#include <cmath>
#include <set>

#include "autograd/tape.h"
#include "core/random.h"
#include "layers/model.h"
#include "tests/catch.h"
#include "tests/layers/made.h"

using namespace weft;
using namespace weft::layers;

namespace {

constexpr int64_t kVocabulary = 11;

Model model_of(const std::string& text) {
  Model m(toml_from_text(text, "r.toml"), kVocabulary, Dtype::f64, kCpu, 5);
  stir(m.parameters(), 0.2);
  return m;
}

std::string recipe(const std::string& more, const std::string& tables) {
  return "[model]\nwidth = 8\ncontext = 48\npattern = [\"attention\"]\n" + more +
         "[attention]\nheads = 2\n" + tables;
}

Tensor value(const Model& m, const std::string& name) {
  for (const Parameter& p : m.parameters())
    if (p.name == name) return p.var.value();
  fail("the model has no parameter ", name);
}

// What both models have by the same name becomes equal; the others keep their numbers.
void copy_shared(const Model& from, const Model& to) {
  for (const Parameter& p : to.parameters())
    for (const Parameter& q : from.parameters())
      if (p.name == q.name) p.var.value().copy_from(q.var.value());
}

Tensor tokens_of(int64_t B, int64_t T, const char* name) {
  const Tensor t = empty({B, T}, Dtype::i32);
  const Random random(17, stream_of(name));
  for (int64_t i = 0; i < t.numel(); ++i)
    t.data<int32_t>()[i] =
        static_cast<int32_t>(random.below(kVocabulary, static_cast<uint64_t>(i)));
  return t;
}

// Mean of log(sum exp) minus the target's logit.
double cross_entropy(const std::vector<double>& logits, const Tensor& targets) {
  double sum = 0;
  for (int64_t r = 0; r < targets.numel(); ++r) {
    const double* const row = logits.data() + r * kVocabulary;
    double all = 0;
    for (int64_t v = 0; v < kVocabulary; ++v) all += std::exp(row[v]);
    sum += std::log(all) - row[targets.data<int32_t>()[r]];
  }
  return sum / static_cast<double>(targets.numel());
}

double last_of(const Model& m, const Tensor& tokens, int64_t v) {
  Generation g;
  g.capacity = tokens.size(1);
  const Tensor last = m.next(tokens, g);
  return last.data<double>()[v];
}

// The operations of each name between the loss and the parameters, counted on the tape.
std::map<std::string, int> operations_of(const Var& loss) {
  std::map<std::string, int> count;
  std::set<const autograd::Node*> seen;
  std::vector<std::shared_ptr<autograd::Node>> open{autograd::Edge(loss).node};
  while (!open.empty()) {
    const auto node = open.back();
    open.pop_back();
    if (!node || !seen.insert(node.get()).second) continue;
    ++count[node->name];
    for (const autograd::Edge& e : node->inputs) open.push_back(e.node);
  }
  return count;
}

}  // namespace

TEST_CASE("model: capped logits are cap * tanh(logit / cap), for the loss and for generation") {
  const double cap = 0.7;  // which the logits exceed
  const Model plain = model_of(recipe("", "")),
              capped = model_of(recipe("logit_softcap = 0.7\n", ""));
  const Tensor tokens = tokens_of(1, 9, "tokens"), targets = tokens_of(1, 9, "targets");
  std::vector<double> expected = to_doubles(plain.logits(tokens));
  const double largest = *std::max_element(expected.begin(), expected.end());
  for (double& x : expected) x = cap * std::tanh(x / cap);
  REQUIRE(largest > cap);
  CHECK(tests::gap(to_doubles(capped.logits(tokens)), expected).widest < 1e-13);
  CHECK(capped.loss({tokens, targets, {}}).cross_entropy.item() ==
        Approx(cross_entropy(expected, targets)).epsilon(1e-12));
  for (int64_t v = 0; v < kVocabulary; ++v)
    CHECK(last_of(capped, tokens, v) ==
          Approx(expected[static_cast<size_t>(8 * kVocabulary + v)]).epsilon(1e-12));
}

TEST_CASE("model: the loss is the mean cross-entropy of the logits that it shows") {
  for (const char* more : {"", "tied_embeddings = false\nembedding_scale = true\n"}) {
    const Model m = model_of(recipe(more, ""));
    const Tensor tokens = tokens_of(2, 9, "tokens"), targets = tokens_of(2, 9, "targets");
    CHECK(m.loss({tokens, targets, {}}).cross_entropy.item() ==
          Approx(cross_entropy(to_doubles(m.logits(tokens)), targets)).epsilon(1e-12));
  }
}

TEST_CASE(
    "model: embedding_scale multiplies embeddings by the root of the width, and nothing else") {
  const std::string head = "tied_embeddings = false\npositions = \"learned\"\n";
  const Model plain = model_of(recipe(head, ""));
  const Model scaled = model_of(recipe(head + "embedding_scale = true\n", ""));
  const Tensor tokens = tokens_of(2, 9, "tokens");
  CHECK(distance(scaled.logits(tokens), plain.logits(tokens)) > 1e-3);
  const Tensor table = value(plain, "embedding.weight");
  table.copy_from(autograd::scale(Var(table.clone()), std::sqrt(8.0)).value());
  CHECK(distance(scaled.logits(tokens), plain.logits(tokens)) < 1e-12);
}

TEST_CASE("model: the norm that the recipe names stands in every place of a norm") {
  for (const std::string norm : {"rms", "layer"})
    for (const std::string position : {"pre", "post", "both"})
      for (const std::string mlp : {"swiglu", "gelu", "moe", "none"}) {
        const Model m = model_of(recipe("norm = \"" + norm + "\"\nnorm_position = \"" + position +
                                            "\"\nmlp = \"" + mlp + "\"\nlayers = 2\n",
                                        mlp == "moe" ? "[moe]\nexperts = 2\n" : ""));
        int places = 0;
        for (const Parameter& p : m.parameters()) places += p.name.ends_with("norm.weight");
        CHECK(places == 1 + 2 * (mlp == "none" ? 1 : 2) * (position == "both" ? 2 : 1));
        const Tensor tokens = tokens_of(2, 9, "tokens"), targets = tokens_of(2, 9, "targets");
        auto count = operations_of(m.loss({tokens, targets, {}}).total);
        INFO(norm << ", " << position << ", " << mlp);
        CHECK(count["rms_norm"] == (norm == "rms" ? places : 0));
        CHECK(count["layer_norm"] == (norm == "layer" ? places : 0));
      }
}

TEST_CASE("model: what the head sees has a mean of zero with norm = \"layer\" alone") {
  for (const std::string norm : {"rms", "layer"}) {
    const Model m = model_of(recipe("tied_embeddings = false\nnorm = \"" + norm + "\"\n", ""));
    value(m, "norm.weight").fill(1);
    value(m, "head.weight").fill(1);
    double most = 0;
    for (const double x : to_doubles(m.logits(tokens_of(2, 9, "tokens"))))
      most = std::max(most, std::abs(x));
    CHECK((most < 1e-12) == (norm == "layer"));
    CHECK((most > 0.1) == (norm == "rms"));
    CHECK((std::abs(last_of(m, tokens_of(1, 9, "tokens"), 3)) < 1e-12) == (norm == "layer"));
  }
}

TEST_CASE("moe: experts that are shared are one MLP of their joint width, and count once") {
  for (const std::string kind : {"swiglu", "gelu"})
    for (const int64_t shared : {1, 2}) {
      const Model moe = model_of(
          recipe("mlp = \"moe\"\n", concat("[moe]\nexperts = 3\nwidth = 5\nshared = ", shared,
                                           "\nactivation = \"", kind, "\"\n")));
      const Model dense =
          model_of(recipe("mlp = \"" + kind + "\"\n", concat("[mlp]\nwidth = ", 5 * shared, "\n")));
      copy_shared(dense, moe);
      value(moe, "layers.0.mlp.experts.down_proj").zero();  // what is routed says nothing
      const auto names =
          kind == "swiglu"
              ? std::vector<std::pair<std::string, std::string>>{{"gate_proj", "gate_proj"},
                                                                 {"up_proj", "up_proj"},
                                                                 {"down_proj", "down_proj"}}
              : std::vector<std::pair<std::string, std::string>>{{"up_proj", "fc1"},
                                                                 {"down_proj", "fc2"}};
      for (const auto& [ours, theirs] : names)
        value(moe, "layers.0.mlp.shared_expert." + ours + ".weight")
            .copy_from(value(dense, "layers.0.mlp." + theirs + ".weight"));
      const Tensor tokens = tokens_of(2, 9, "tokens");
      INFO(kind << ", " << shared << " shared");
      CHECK(distance(moe.logits(tokens), dense.logits(tokens)) < 1e-12);
    }
}

TEST_CASE("moe: one expert of one is an MLP, whose weight is 1") {
  const Model moe =
      model_of(recipe("mlp = \"moe\"\n", "[moe]\nexperts = 1\ntop_k = 1\nwidth = 5\n"));
  const Model dense = model_of(recipe("mlp = \"swiglu\"\n", "[mlp]\nwidth = 5\n"));
  copy_shared(dense, moe);
  for (const std::string name : {"gate_proj", "up_proj", "down_proj"})
    value(moe, "layers.0.mlp.experts." + name)
        .select(0, 0)
        .copy_from(value(dense, "layers.0.mlp." + name + ".weight"));
  const Tensor tokens = tokens_of(2, 9, "tokens");
  CHECK(distance(moe.logits(tokens), dense.logits(tokens)) < 1e-12);
}

// Of two layers one says nothing; the same weights stand in the first or in the second.
TEST_CASE("block_sparse: each layer has random blocks of its own, and chosen ones in common") {
  for (const std::string pattern : {"random", "bigbird", "window", "longformer"}) {
    const auto logits = [&](int64_t speaks) {
      const Model m = model_of(
          "[model]\nwidth = 8\ncontext = 48\nlayers = 2\npattern = [\"block_sparse\"]\n"
          "mlp = \"none\"\n[block_sparse]\nheads = 2\nblock = 2\npattern = \"" +
          pattern + "\"\n");
      const std::string from = "layers.0.", to = concat("layers.", speaks, ".");
      for (const Parameter& p : m.parameters())
        if (p.name.starts_with(from))
          value(m, to + p.name.substr(from.size())).copy_from(p.var.value());
      value(m, concat("layers.", 1 - speaks, ".mixer.o_proj.weight")).zero();
      return m.logits(tokens_of(1, 48, "tokens"));
    };
    const double apart = distance(logits(0), logits(1));
    INFO(pattern << ": " << apart);
    CHECK((apart > 1e-6) == (pattern == "random" || pattern == "bigbird"));
    CHECK((apart < 1e-12) == (pattern == "window" || pattern == "longformer"));
  }
}

TEST_CASE("block_sparse: a text beyond the context keeps the rows that it had, in every layer") {
  for (const std::string pattern : {"random", "bigbird"}) {
    const auto fresh = [&] {
      return model_of(
          "[model]\nwidth = 8\ncontext = 16\nlayers = 3\npattern = [\"block_sparse\"]\n"
          "mlp = \"none\"\n[block_sparse]\nheads = 2\nblock = 2\npattern = \"" +
          pattern + "\"\n");
    };
    const Tensor tokens = tokens_of(1, 40, "tokens");
    const Tensor whole = fresh().logits(tokens), part = fresh().logits(tokens.slice(1, 0, 16));
    CHECK(distance(whole.slice(1, 0, 16), part) < 1e-12);
  }
}

TEST_CASE("model: learned positions are those of a batch's own rows, whatever came before") {
  const auto fresh = [] {
    return model_of(
        "[model]\nwidth = 8\ncontext = 16\npositions = \"learned\"\npattern = [\"attention\"]\n"
        "[attention]\nheads = 2\nrotary = false\n");
  };
  const Model used = fresh();
  used.logits(tokens_of(4, 4, "before"));
  const Tensor tokens = tokens_of(2, 8, "tokens");
  CHECK(distance(used.logits(tokens), fresh().logits(tokens)) == 0);
}

TEST_CASE("kda: the rank of a gate is that of the decay and of the output") {
  const Model m = model_of(
      "[model]\nwidth = 8\ncontext = 8\npattern = [\"kda\"]\n[kda]\nheads = 2\ngate_rank = 3\n");
  for (const std::string gate : {"f_proj", "g_proj"}) {
    CHECK(value(m, "layers.0.mixer." + gate + ".0.weight").shape() == Shape{3, 8});
    CHECK(value(m, "layers.0.mixer." + gate + ".1.weight").size(1) == 3);
  }
}

TEST_CASE("model: what a mixer read and gave is its own, without the factors of its path") {
  const Tensor tokens = tokens_of(2, 13, "tokens");
  const Batch batch{tokens, tokens, {}};
  for (const std::string position : {"pre", "post", "both", "residual"}) {
    const Model m =
        model_of(recipe("layers = 2\nbranch_scale = 0.4\nskip_scale = 1.3\n"
                        "norm_position = \"" +
                            position + "\"\n",
                        ""));
    const std::vector<Mixed> seen = m.mixed(batch);
    REQUIRE(seen.size() == 2);
    for (size_t layer = 0; layer < 2; ++layer) {
      INFO("norm_position = " << position << ", layer " << layer);
      std::vector<Var> losses;
      const autograd::NoGrad no_grad;
      CHECK(same_bits(m.mix(layer, Var(seen[layer].x), batch, losses).value(), seen[layer].y));
    }
  }
}

TEST_CASE("attention: YaRN's magnitude multiplies queries and keys, also where it is one or less") {
  const auto given = [](double magnitude, double scale) {
    const Made m = made({"", "attention",
                         concat("heads = 2\nhead_dim = 8\nrotary_base = 20\nrotary_factor = 4\n"
                                "rotary_scaling = \"yarn\"\nrotary_context = 16\nscale = ",
                                scale, "\nrotary_magnitude = ", magnitude, "\n")});
    return run(*m.layer, Var(sample({1, 19, 12}, "x"))).value();
  };
  const Tensor twice = given(2, 0.3);
  for (const double magnitude : {1.0, 0.5, 0.125}) {
    INFO(magnitude);
    CHECK(distance(given(magnitude, 0.3 * 4 / (magnitude * magnitude)), twice) < 1e-12);
  }
}
