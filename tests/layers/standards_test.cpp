// What a recipe that says nothing of a mixer has, where its numbers start, and what a token costs.
#include <algorithm>
#include <cmath>
#include <map>

#include "layers/model.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::layers;

namespace {

using Values = std::map<std::string, std::string>;

std::string recipe(const std::string& mixer, int64_t width, int64_t context,
                   const std::string& more = "", const std::string& table = "") {
  return concat("[model]\nwidth = ", width, "\ncontext = ", context, "\npattern = [\"", mixer,
                "\"]\n", more, "[", mixer, "]\n", table);
}

// What the readers took for keys that the recipe does not give, but those of [model].
Values standards(const std::string& mixer, const std::string& table = "") {
  const TomlTable r = toml_from_text(recipe(mixer, 48, 64, "mlp = \"none\"\n", table), "r");
  const Model m(r, 11, Dtype::f32, kMeta, 1);
  Values found;
  for (const auto& [key, value] : r.values())
    if (key.starts_with(mixer + ".") && !value.given && !key.ends_with(".type"))
      found[key.substr(mixer.size() + 1)] = value.text;
  return found;
}

double flops(const std::string& text) {
  return Model(toml_from_text(text, "r"), 11, Dtype::f32, kMeta, 1).flops_per_token();
}

// Without the two for each parameter that a token meets.
double mixer_flops(const std::string& mixer, const std::string& table, int64_t T = 16) {
  const std::string text = recipe(mixer, 8, T, "mlp = \"none\"\n", table);
  const Model m(toml_from_text(text, "r"), 11, Dtype::f32, kMeta, 1);
  return m.flops_per_token() - 2.0 * static_cast<double>(m.parameter_count());
}

}  // namespace

TEST_CASE("standards: a mixer's table that says nothing has the manual's settings") {
  const Values softmax{{"bias", "false"},
                       {"head_dim", "12"},
                       {"heads", "4"},
                       {"key_heads", "4"},
                       {"output_gate", "false"},
                       {"qk_norm", "false"},
                       {"rotary", "true"},
                       {"rotary_base", "10000.0"},
                       {"rotary_fraction", "1.0"},
                       {"rotary_interleaved", "false"},
                       {"rotary_scaling", "\"none\""},
                       {"scale", "0.0"},
                       {"softcap", "0.0"}};
  Values attention = softmax, block_sparse = softmax;
  attention.insert({{"sinks", "false"}, {"window", "0"}});
  block_sparse.insert({{"pattern", "\"bigbird\""},
                       {"block", "64"},
                       {"window_blocks", "3"},
                       {"global_blocks", "1"},
                       {"random_blocks", "2"}});
  CHECK(standards("attention") == attention);
  CHECK(standards("block_sparse") == block_sparse);
  const auto sized = [](const char* key, const char* value, Values more) {
    more.insert({{"heads", "4"}, {"key_heads", "4"}, {"key_width", key}, {"value_width", value}});
    return more;
  };
  CHECK(standards("linear_attention") == sized("12", "12",
                                               {{"eps", "1e-06"},
                                                {"feature_map", "\"elu1\""},
                                                {"normalize", "true"},
                                                {"output_norm", "false"}}));
  CHECK(standards("retention") ==
        sized("12", "24", {{"norm_eps", "1e-05"}, {"rotary_base", "10000.0"}}));
  CHECK(standards("simple_gla") ==
        sized("12", "12", {{"conv", "4"}, {"gate_bias", "false"}, {"norm_eps", "1e-05"}}));
  CHECK(standards("gated_linear") ==
        sized("6", "12", {{"gate_bias", "false"}, {"gate_rank", "16"}, {"norm_eps", "1e-05"}}));
  const auto delta = [](const char* gate) {
    return Values{{"conv", "4"},
                  {"gate_bias", "false"},
                  {"negative_eigenvalues", "false"},
                  {"norm_eps", "1e-05"},
                  {"use_gate", gate}};
  };
  CHECK(standards("delta") == sized("12", "12", delta("false")));
  CHECK(standards("gated_delta") == sized("9", "18", delta("true")));
  CHECK(standards("kda") == sized("12", "12",
                                  {{"conv", "4"},
                                   {"gate_rank", "12"},
                                   {"negative_eigenvalues", "false"},
                                   {"norm_eps", "1e-05"}}));
  CHECK(standards("mamba") == Values{{"conv", "4"},
                                     {"dt_rank", "3"},
                                     {"expand", "2"},
                                     {"inner_norms", "false"},
                                     {"state", "16"}});
  const Values beside = standards("side_by_side");
  const std::vector<std::pair<std::string, std::string>> own = {{"join", "\"add\""},
                                                                {"norm", "false"},
                                                                {"shares", "[]"},
                                                                {"attention.input_scale", "1.0"},
                                                                {"attention.output_scale", "1.0"},
                                                                {"attention.head_dim", "12"},
                                                                {"gated_delta.value_width", "18"}};
  for (const auto& [key, value] : own) CHECK(beside.at(key) == value);
  CHECK(standards("mamba2") == Values{{"conv", "4"},
                                      {"expand", "2"},
                                      {"groups", "1"},
                                      {"head_dim", "48"},
                                      {"norm_eps", "1e-05"},
                                      {"state", "128"}});
}

TEST_CASE("standards: the density of a layer's blocks grows with its depth") {
  // Of 16 blocks: the blocks of a long row in each of five layers, one more where two are needed.
  const auto pairs = [](const std::string& density) {
    std::vector<double> all;
    for (int64_t layer = 0; layer < 5; ++layer) {
      Spec spec;
      spec.width = 8;
      spec.context = 64;
      spec.layers = 5;
      spec.layer = layer;
      std::vector<Parameter> parameters;
      const TomlTable t =
          toml_from_text("heads = 2\nblock = 4\npattern = \"window\"\ndensity = " + density, "t");
      const auto made =
          mixer_maker("block_sparse")(spec, t, Builder(Dtype::f32, kMeta, 1, &parameters));
      t.finish();
      all.push_back(made->flops_per_token(64));
    }
    return all;
  };
  const auto window = [&](int64_t blocks) {
    return mixer_flops(
        "block_sparse",
        concat("heads = 2\nblock = 4\npattern = \"window\"\nwindow_blocks = ", blocks, "\n"), 64);
  };
  const auto windows = [&](const std::vector<int64_t>& blocks) {
    std::vector<double> all;
    for (const int64_t n : blocks) all.push_back(window(n));
    return all;
  };
  CHECK(pairs("{}") == windows({1, 3, 5, 6, 8}));  // a sixteenth to a half: 1, 2.75, 4.5, 6.25, 8
  CHECK(pairs("{first = 0.125, last = 1, power = 2}") == windows({2, 3, 6, 10, 16}));
  CHECK(pairs("{first = 0.5, last = 0.25}") == windows({8, 7, 6, 5, 4}));
  CHECK(pairs("{first = 0.001, last = 0.001}") == windows({1, 1, 1, 1, 1}));
}

TEST_CASE("standards: the blocks of a density are global and random ones and those of a window") {
  // Half of 16 blocks, in every layer.
  const auto of = [](const std::string& pattern, const std::string& width) {
    return mixer_flops("block_sparse",
                       "heads = 2\nblock = 4\npattern = " + pattern + "\n" + width + "\n", 64);
  };
  const std::string half = "density = {first = 0.5, last = 0.5}";
  for (const auto& [pattern, blocks] :
       std::map<std::string, int>{{"\"longformer\"\nglobal_blocks = 3", 5},
                                  {"\"random\"\nrandom_blocks = 2", 6},
                                  {"\"bigbird\"\nglobal_blocks = 1\nrandom_blocks = 2", 5}}) {
    INFO(pattern);
    CHECK(of(pattern, half) == of(pattern, concat("window_blocks = ", blocks)));
    CHECK(of(pattern, half) != of(pattern, concat("window_blocks = ", 8)));
  }
}

TEST_CASE("standards: what follows from another key follows from that") {
  CHECK(standards("attention", "heads = 6\n").at("head_dim") == "8");
  CHECK(standards("attention", "heads = 6\n").at("key_heads") == "6");
  CHECK(standards("retention", "heads = 2\n").at("value_width") == "48");
  const std::string factor = "rotary_factor = 2\nrotary_scaling = ";
  const Values yarn = standards("attention", factor + "\"yarn\"\n");
  CHECK(yarn.at("rotary_context") == "64");
  CHECK(yarn.at("rotary_slow") == "1.0");
  CHECK(yarn.at("rotary_fast") == "32.0");
  CHECK(yarn.at("rotary_truncate") == "true");
  CHECK(yarn.at("rotary_magnitude") == "0.0");
  CHECK(standards("attention", factor + "\"llama3\"\n").at("rotary_fast") == "4.0");
  CHECK(standards("attention", "qk_norm = true\n").at("qk_norm_whole") == "false");
  CHECK(standards("kda", "value_width = 5\n").at("gate_rank") == "5");
  CHECK(standards("linear_attention", "feature_map = \"none\"\n").at("normalize") == "false");
  CHECK(standards("linear_attention", "normalize = false\n").at("output_norm") == "true");
  const auto pattern = [](const std::string& name) {
    Values v = standards("block_sparse", "pattern = \"" + name + "\"\n");
    Values kept;
    for (const char* key : {"window_blocks", "global_blocks", "random_blocks", "stride"})
      if (v.count(key)) kept[key] = v.at(key);
    return kept;
  };
  CHECK(pattern("window") == Values{{"window_blocks", "2"}});
  CHECK(pattern("dilated") == Values{{"window_blocks", "2"}, {"stride", "2"}});
  CHECK(pattern("strided") == Values{{"window_blocks", "2"}, {"stride", "4"}});
  CHECK(pattern("random") == Values{{"window_blocks", "1"}, {"random_blocks", "2"}});
  CHECK(pattern("longformer") == Values{{"window_blocks", "2"}, {"global_blocks", "1"}});
}

TEST_CASE("standards: [model], [mlp] and [moe] that say nothing have the manual's settings") {
  const TomlTable r = toml_from_text(
      "[model]\nwidth = 48\ncontext = 64\npattern = [\"mamba*2\", \"retention\"]\n"
      "mlp = [\"moe\", \"swiglu\", \"gelu\"]\n",
      "r");
  const Model m(r, 11, Dtype::f32, kMeta, 1);
  Values found;
  for (const auto& [key, value] : r.values())
    if (!value.given && key.starts_with("m")) found[key] = value.text;
  std::erase_if(found, [](const auto& entry) { return entry.first.starts_with("mamba"); });
  found.erase("mlp.width");
  CHECK(found == Values{{"model.embedding_scale", "false"},
                        {"mlp.bias", "false"},
                        {"model.branch_scale", "1.0"},
                        {"model.init", "0.02"},
                        {"model.layers", "3"},
                        {"model.logit_scale", "1.0"},
                        {"model.logit_softcap", "0.0"},
                        {"model.norm", "\"rms\""},
                        {"model.norm_eps", "0.0"},
                        {"model.norm_plus_one", "false"},
                        {"model.norm_position", "[\"pre\"]"},
                        {"model.parallel", "false"},
                        {"model.positions", "\"none\""},
                        {"model.recompute", "false"},
                        {"model.skip_scale", "1.0"},
                        {"model.tied_embeddings", "true"},
                        {"model.z_loss", "0.0"},
                        {"moe.activation", "\"swiglu\""},
                        {"moe.balance_loss", "0.01"},
                        {"moe.experts", "8"},
                        {"moe.normalize", "true"},
                        {"moe.shared", "0"},
                        {"moe.top_k", "2"},
                        {"moe.width", "48"},
                        {"moe.z_loss", "0.001"}});
}

TEST_CASE("standards: an MLP is 8/3 of the width, rounded up to 32s, without a gate four times") {
  const auto width = [](int64_t D, const std::string& mlp) {
    const TomlTable r = toml_from_text(recipe("mamba", D, 16, "mlp = \"" + mlp + "\"\n"), "r");
    const Model m(r, 11, Dtype::f32, kMeta, 1);
    return r.values().at("mlp.width").text;
  };
  CHECK(width(48, "swiglu") == "128");
  CHECK(width(49, "swiglu") == "160");  // of 130
  CHECK(width(12, "swiglu") == "32");
  CHECK(width(768, "swiglu") == "2048");
  CHECK(width(48, "gelu") == "192");
}

TEST_CASE("standards: a token costs two for each number it meets, and its mixer's sums") {
  // Attention of 2 heads of 4 columns: scores and sums over the mean number of keys.
  CHECK(mixer_flops("attention", "heads = 2\n") == Approx(4 * 8.5 * 8));
  CHECK(mixer_flops("attention", "heads = 2\n", 1) == Approx(4 * 1.0 * 8));
  // A window of 5: 1 + 2 + 3 + 4 + 12 times 5 keys of 16 tokens.
  CHECK(mixer_flops("attention", "heads = 2\nwindow = 5\n") == Approx(4 * 70.0 / 16 * 8));
  CHECK(mixer_flops("attention", "heads = 2\nwindow = 1\n") == Approx(4 * 1.0 * 8));
  CHECK(mixer_flops("attention", "heads = 2\nwindow = 16\n") == Approx(4 * 8.5 * 8));
  CHECK(mixer_flops("attention", "heads = 2\nwindow = 99\n") == Approx(4 * 8.5 * 8));
  // Blocks of four, each of which sees itself: 4 * 10 pairs of 16 tokens; with the one before it,
  // 3 * 16 more.
  const std::string blocks = "heads = 2\nblock = 4\npattern = \"window\"\nwindow_blocks = ";
  CHECK(mixer_flops("block_sparse", blocks + "1\n") == Approx(4 * 40.0 / 16 * 8));
  CHECK(mixer_flops("block_sparse", blocks + "2\n") == Approx(4 * 88.0 / 16 * 8));
  // As the pages of the mechanisms say, a head: triangles by half, in chunks of 64 or of 16.
  const std::string sizes = "heads = 2\nkey_width = 3\nvalue_width = 5\n";
  for (const char* mixer : {"linear_attention", "simple_gla"})
    CHECK(mixer_flops(mixer, sizes) == Approx(2 * (60 + 64 * 8.0)));
  CHECK(mixer_flops("gated_linear", sizes) == Approx(2 * (60 + 16 * 11.0)));
  for (const char* mixer : {"delta", "gated_delta"})
    CHECK(mixer_flops(mixer, sizes) == Approx(2 * (90 + 64 * 16.0)));
  CHECK(mixer_flops("kda", sizes) == Approx(2 * (90 + 16 * 19.0)));
  CHECK(mixer_flops("retention", "heads = 2\nkey_width = 4\nvalue_width = 5\n") ==
        Approx(2 * (80 + 64 * 9.0)));
  CHECK(mixer_flops("mamba", "state = 3\n") == Approx((7 * 3 + 10) * 16));
  CHECK(mixer_flops("mamba2", "state = 3\nhead_dim = 4\n") == Approx(4 * (48 + 64 * 7.0)));
}

TEST_CASE("standards: of mixers that choose, a token costs the keys it sees and the choice") {
  // Of 16 tokens, each sees 5.5 keys of two blocks of four, the own one up to itself; two blocks
  // stand before a token on average. 4 times 2 heads of 4 columns for each key.
  const std::string two = "heads = 2\nblock = 4\ntop_k = 2\n";
  CHECK(mixer_flops("moba", two) == Approx(32 * 5.5 + 2 * 2 * 8));
  // The coarse attention is that of a token by block: 16 numbers of the index, scores and values.
  CHECK(mixer_flops("topk", two) == Approx(32 * 5.5 + 2 * 2 * 2 * (2 * 16 + 4) / 4.0));
  CHECK(mixer_flops("nsa", two + "window = 5\n") == Approx(32 * (5.5 + 2 + 70.0 / 16)));
  // A router at its budget of a quarter; without a price all routes alike.
  const std::string alone = two + "linear = \"none\"\n";
  CHECK(mixer_flops("router", alone) == Approx(32 * 8.5 / 4 + 2 * 2 * 8));
  CHECK(mixer_flops("router", alone + "budget = 0.5\n") == Approx(32 * 8.5 / 2 + 2 * 2 * 8));
  CHECK(mixer_flops("router", alone + "price = 0\nwindow_blocks = 1\n") ==
        Approx(32 * (2.5 + 5.5 + 8.5) / 4 + 2 * 2 * 8));
  CHECK(mixer_flops("router", two) - mixer_flops("router", alone) == Approx(2 * (64 + 64 * 8.0)));
  CHECK(mixer_flops("token_sparse", "heads = 2\nwindow = 3\nstride = 2\nglobal_tokens = 2\n") ==
        Approx(32 * 71.0 / 16));
  CHECK(mixer_flops("token_sparse", "heads = 2\npattern = \"random\"\nrandom_tokens = 3\n") ==
        Approx(32 * 58.0 / 16));
  CHECK(mixer_flops("token_sparse", "heads = 2\npattern = \"strided\"\nstride = 5\n") ==
        Approx(32 * 34.0 / 16));
  CHECK(mixer_flops("latent_attention",
                    "heads = 2\nhead_dim = 4\nshared_width = 2\nvalue_width = 3\n") ==
        Approx(2 * 2 * 8.5 * (6 + 3)));
  CHECK(mixer_flops("side_by_side",
                    "parts = [\"attention\", \"moba\"]\n[side_by_side.attention]\nheads = 2\n"
                    "[side_by_side.moba]\n" +
                        two) == Approx(32 * 8.5 + 32 * 5.5 + 2 * 2 * 8));
}

TEST_CASE("standards: tables that are looked up cost nothing, the head's does") {
  const std::string tied = recipe("attention", 8, 16, "mlp = \"none\"\n", "heads = 2\n");
  const std::string own =
      recipe("attention", 8, 16, "mlp = \"none\"\ntied_embeddings = false\n", "heads = 2\n");
  const std::string learned =
      recipe("attention", 8, 16, "mlp = \"none\"\npositions = \"learned\"\n", "heads = 2\n");
  CHECK(flops(own) == flops(tied));
  CHECK(flops(learned) == flops(tied));
  const std::string gelu =
      recipe("attention", 8, 16, "mlp = \"gelu\"\n", "heads = 2\n[mlp]\nwidth = 5\n");
  CHECK(flops(gelu) == flops(tied) + 2 * (2 * 5 * 8 + 8));  // two matrices and a norm
}

TEST_CASE(
    "standards: every matrix starts at init, those into the residual stream by depth smaller") {
  const double init = 0.3;
  const int64_t layers = 8;
  int inner = 0, outer = 0;
  const auto check = [&](const std::string& mixer, const std::string& more,
                         const std::string& tables) {
    const std::string table = mixer == "mamba" || mixer == "side_by_side" ? ""
                              : mixer == "mamba2"                         ? "head_dim = 8\n"
                                                                          : "heads = 4\n";
    const Model m(toml_from_text(recipe(mixer, 48, 16,
                                        concat("layers = ", layers, "\ninit = ", init, "\n", more),
                                        table + tables),
                                 "r"),
                  97, Dtype::f64, kCpu, 1);
    for (const Parameter& p : m.parameters()) {
      const auto ends = [&](const char* end) { return p.name.ends_with(end); };
      const Tensor& t = p.var.value();
      if (t.dims() < 2 || t.numel() < 500 || ends("conv1d.weight")) continue;
      const bool out = ends("o_proj.weight") || ends("out_proj.weight") || ends("fc2.weight") ||
                       ends("down_proj.weight") || ends("down_proj");
      double expected = out ? init / std::sqrt(2.0 * layers) : init;
      if (mixer.starts_with("mamba") && p.name.find(".mixer.") != std::string::npos) {
        if (!ends("in_proj.weight") && !ends("out_proj.weight")) continue;
        // Uniform up to 1 / sqrt(inputs); a layer of the papers has one residual part.
        expected = 1 / std::sqrt(3.0 * static_cast<double>(t.size(1)) * (out ? layers : 1));
      }
      double squares = 0;
      for (const double x : to_doubles(t)) squares += x * x;
      INFO(mixer << ", " << p.name);
      CHECK(std::sqrt(squares / static_cast<double>(t.numel())) == Approx(expected).epsilon(0.15));
      ++(out ? outer : inner);
    }
  };
  for (const std::string& mixer : mixer_names()) check(mixer, "mlp = \"none\"\n", "");
  check("attention", "tied_embeddings = false\npositions = \"learned\"\n", "");
  check("attention", "mlp = \"gelu\"\n", "");
  for (const char* kind : {"swiglu", "gelu"})
    check("attention", "mlp = \"moe\"\n",
          concat("[moe]\nexperts = 2\nshared = 1\nactivation = \"", kind, "\"\n"));
  CHECK(inner > 250);
  CHECK(outer > 100);
}

TEST_CASE("standards: the numbers of state spaces start where the papers start them") {
  const auto parameters = [](const std::string& mixer, const std::string& table) {
    const Model m(toml_from_text(recipe(mixer, 64, 16, "layers = 4\nmlp = \"none\"\n", table), "r"),
                  11, Dtype::f64, kCpu, 1);
    std::map<std::string, std::vector<double>> all;
    for (const Parameter& p : m.parameters())
      if (p.name.starts_with("layers.2.mixer.")) all[p.name.substr(15)] = to_doubles(p.master);
    return all;
  };
  const auto within = [](const std::vector<double>& x, double low, double high) {
    REQUIRE_FALSE(x.empty());
    const auto [least, most] = std::minmax_element(x.begin(), x.end());
    const double slack = (high - low) / 8;  // of so many numbers some come near each end
    CHECK(*least >= low);
    CHECK(*most <= high);
    CHECK(*least <= low + slack);
    CHECK(*most >= high - slack);
  };
  const auto steps = [](std::vector<double> bias) {
    for (double& x : bias) x = std::log(std::log1p(std::exp(x)));  // of softplus, its logarithm
    return bias;
  };
  const auto decays = [](std::vector<double> log) {
    for (double& x : log) x = std::exp(x);
    return log;
  };
  const auto mamba = parameters("mamba", "state = 5\n");
  for (size_t i = 0; i < mamba.at("A_log").size(); ++i)
    CHECK(mamba.at("A_log")[i] == Approx(std::log(static_cast<double>(i % 5 + 1))));
  for (const double d : mamba.at("D")) CHECK(d == 1);
  within(steps(mamba.at("dt_proj.bias")), std::log(1e-3), std::log(0.1));
  within(mamba.at("in_proj.weight"), -1.0 / 8, 1.0 / 8);
  within(mamba.at("x_proj.weight"), -1 / std::sqrt(128.0), 1 / std::sqrt(128.0));
  within(mamba.at("dt_proj.weight"), -0.5, 0.5);  // a rank of 64 / 16
  within(mamba.at("out_proj.weight"), -0.5 / std::sqrt(128.0), 0.5 / std::sqrt(128.0));
  within(mamba.at("conv1d.weight"), -0.5, 0.5);
  for (const double b : mamba.at("conv1d.bias")) CHECK(b == 0);

  const auto mamba2 = parameters("mamba2", "state = 5\nhead_dim = 1\n");
  within(decays(mamba2.at("A_log")), 1, 16);
  within(steps(mamba2.at("dt_bias")), std::log(1e-3), std::log(0.1));
  for (const double d : mamba2.at("D")) CHECK(d == 1);
  for (const double w : mamba2.at("norm.weight")) CHECK(w == 1);

  const std::string many = "heads = 64\nkey_width = 2\nvalue_width = 2\n";
  within(decays(parameters("gated_delta", many).at("A_log")), 0.01, 16);
  within(steps(parameters("gated_delta", many).at("dt_bias")), std::log(1e-3), std::log(0.1));
  within(decays(parameters("kda", many).at("A_log")), 1, 16);
  within(steps(parameters("kda", many).at("dt_bias")), std::log(1e-3), std::log(0.1));
}
