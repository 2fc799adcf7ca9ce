// What `weft eval` tells of the choices of mixers is what these were while it ran.
#include "layers/routes.h"
#include "tests/train/said.h"
#include "tests/train/small_run.h"
#include "train/checkpoint.h"
#include "train/evaluate.h"
#include "train/source.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;

TEST_CASE("eval: the choices of each mixer are told by their names, in parts of a hundred") {
  const Folder f;
  write_run(f, R"([model]
width = 16
layers = 2
pattern = ["router", "moba"]
context = 32
mlp = "none"
init = 0.5
[router]
heads = 2
block = 4
window_blocks = 1
top_k = 2
[moba]
heads = 2
block = 4
top_k = 1
lost = 0.4
[data]
source = "text.txt"
[train]
device = "cpu"
steps = 1
batch = 2
out = "run"
[optimizer]
lr = 0.5
[sample]
tokens = 0
)");
  done(run_weft(f, {"train", "recipe.toml"}));
  const Hdf5Reader file = open_checkpoint(f / "run/best.h5");
  Recipe r = recipe_from_text(read_state(file).recipe, "recipe");
  r.toml.set("data.source", f / "text.txt");
  layers::Model model(r.toml, 256, Dtype::f32, kCpu, 1);
  load_parameters(file, model.parameters());
  model.at_step(1);
  Source source(read_data(r.toml), r, 32);
  const auto routes = layers::watch_routes([&] { evaluate(model, *source.held_out(), 1, kCpu); });
  REQUIRE(routes.size() == 2);
  const auto& s = routes[0].shares;
  REQUIRE((s[0] != s[1] && s[1] != s[2] && s[2] != s[3]));
  char lines[400];
  std::snprintf(
      lines, sizeof lines,
      "layers.0.mixer: no key %.1f %%, window %.1f %%, selected blocks %.1f %%, all %.1f "
      "%%; a token sees %.1f keys\nlayers.1.mixer: at most %.3g %% of a token's attention "
      "is lost, %.3g %% on average; a token sees %.1f keys\n",
      100 * s[0], 100 * s[1], 100 * s[2], 100 * s[3], routes[0].keys, 100 * routes[1].lost->most,
      100 * routes[1].lost->mean, routes[1].keys);
  says(run_weft(f, {"eval", "run", "--device", "cpu", "--batches", "1"}), 0, {lines});
}
