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
  for (const int64_t n : {kArriving - 1, kArriving, kArriving + 1, 2 * kArriving + 77}) {
    Ranks ranks;
    ranks.use_itself();
    const std::vector<layers::Parameter> one{
        {"w", autograd::Var::leaf(empty({n}, Dtype::f32, kCpu))}};
    const Slices slices(one, 1);
    Gradients gradients(one, slices, ranks, 1);
    gradients.begin_step();
    gradients.begin_shard();
    float* const g = one[0].var.grad().data<float>();
    for (int64_t i = 0; i < n; ++i) g[i] = static_cast<float>(i % 65537);
    gradients.end_shard();
    gradients.end_step();
    int64_t wrong = 0;
    const float* const sum = one[0].var.grad().data<float>();
    for (int64_t i = 0; i < n; ++i) wrong += sum[i] != static_cast<float>(i % 65537);
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
