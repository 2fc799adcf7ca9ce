// The tree along which the gradients of a step's shards are added.
#include "train/gradients.h"

#include "kernels/optimizer/adamw.h"
#include "layers/model.h"
#include "tests/catch.h"
#include "train/recipe.h"

using namespace weft;
using namespace weft::train;

namespace {

// The sum of all shards in words, as n ranks make it.
std::string order_of_sums(int64_t shards, int64_t ranks) {
  struct Held {
    TreeNode node;
    std::string sum;
  };
  const auto add = [](std::vector<Held>& list, const Held& one) {
    list.push_back(one);
    while (list.size() > 1 && joins(list[list.size() - 2].node, list.back().node)) {
      Held& left = list[list.size() - 2];
      left = {{left.node.begin, 2 * left.node.count}, "(" + left.sum + "+" + list.back().sum + ")"};
      list.pop_back();
    }
  };
  std::vector<Held> all;
  const int64_t each = shards / ranks;
  for (int64_t r = 0; r < ranks; ++r) {
    std::vector<Held> own;
    for (int64_t i = r * each; i < (r + 1) * each; ++i) add(own, {{i, 1}, std::to_string(i)});
    std::vector<TreeNode> nodes;
    for (const Held& h : own) nodes.push_back(h.node);
    CHECK(nodes == nodes_within(r * each, each));
    for (const Held& h : own) add(all, h);
  }
  for (; all.size() > 1; all.pop_back())
    all[all.size() - 2].sum = "(" + all[all.size() - 2].sum + "+" + all.back().sum + ")";
  return all.front().sum;
}

}  // namespace

TEST_CASE("gradients: the order of the sums is one tree, however many ranks share the shards") {
  CHECK(order_of_sums(1, 1) == "0");
  CHECK(order_of_sums(8, 1) == "(((0+1)+(2+3))+((4+5)+(6+7)))");
  CHECK(order_of_sums(3, 1) == "((0+1)+2)");
  for (int64_t shards = 1; shards <= 48; ++shards)
    for (int64_t n = 2; n <= shards; ++n)
      if (shards % n == 0) CHECK(order_of_sums(shards, n) == order_of_sums(shards, 1));
}

TEST_CASE("gradients: a rank holds as many sums as the tree is deep, and no more") {
  size_t most = 0;
  nodes_within(0, 1, &most);
  CHECK(most == 1);
  nodes_within(0, 8, &most);
  CHECK(most == 4);
  CHECK(nodes_within(8, 8, &most).size() == 1);
  CHECK(most == 4);
  CHECK(nodes_within(3, 3, &most).size() == 2);
}

TEST_CASE("gradients: a slice of more numbers than travel at a time arrives whole") {
  // Of three shards the third is added to the other two as it arrives.
  for (const auto& [n, shards] : std::vector<std::pair<int64_t, int>>{
           {kArriving - 1, 1}, {kArriving, 1}, {kArriving + 1, 3}, {2 * kArriving + 77, 1}}) {
    const auto number = [](int64_t i) { return static_cast<float>((i + 7 * (i >> 24)) & 0xffff); };
    Ranks ranks;
    ranks.use_itself();
    const std::vector<layers::Parameter> one{
        {"w", autograd::Var::leaf(empty({n}, Dtype::f32, kCpu))}};
    const Slices slices(one, 1);
    Gradients gradients(one, slices, ranks, shards);
    gradients.begin_step();
    for (int shard = 0; shard < shards; ++shard) {
      gradients.begin_shard();
      float* const g = one[0].var.grad().data<float>();
      for (int64_t i = 0; i < n; ++i) g[i] = number(i);
      gradients.end_shard();
    }
    gradients.end_step();
    int64_t wrong = 0;
    const float* const sum = one[0].var.grad().data<float>();
    for (int64_t i = 0; i < n; ++i) wrong += sum[i] != static_cast<float>(shards) * number(i);
    CHECK(wrong == 0);
  }
}

TEST_CASE("slices: they cover every number once, in order, cut where the norm's pieces are") {
  const Recipe recipe = recipe_from_text(
      "[model]\nwidth = 64\nlayers = 2\npattern = [\"attention\"]\ncontext = 8\n"
      "[attention]\nheads = 2\n",
      "recipe.toml");
  const layers::Model model(recipe.toml, 600, Dtype::f32, kCpu, 1);
  const auto& parameters = model.parameters();
  for (const int n : {1, 2, 3, 4, 7, 64}) {
    const Slices slices(parameters, n);
    size_t parameter = 0;
    int64_t at = 0;
    for (int r = 0; r < n; ++r)
      for (const train::View& v : slices.of(r)) {
        CHECK((v.parameter == parameter && v.begin == at && v.end > at));
        CHECK(v.begin % kernels::kAdamwCut == 0);
        at = v.end;
        if (at == parameters[parameter].var.value().numel()) ++parameter, at = 0;
      }
    CHECK(parameter == parameters.size());
  }
}

TEST_CASE("slices: a border within a parameter moves no border in a block that leaves it out") {
  constexpr int64_t kCut = kernels::kAdamwCut;
  std::vector<layers::Parameter> parameters;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f32})
    parameters.push_back({"w", autograd::Var::leaf(empty({2 * kCut}, dtype, kMeta))});
  const Slices slices(parameters, 4);  // in the middle of the last two
  const Layout wide(parameters, 64, {true, false, true}),
      narrow(parameters, 128, {false, true, false});
  const auto borders = [&](const Layout& layout) {
    std::vector<int64_t> all;
    for (int r = 0; r <= 4; ++r) all.push_back(layout.at(slices.border(r)));
    return all;
  };
  CHECK(borders(wide) == std::vector<int64_t>{0, 2 * kCut, 2 * kCut, 3 * kCut, 4 * kCut});
  CHECK(borders(narrow) == std::vector<int64_t>{0, 0, kCut, 2 * kCut, 2 * kCut});
}
