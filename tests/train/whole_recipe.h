// A recipe with every mixer, every MLP, and the patterns of block_sparse that have keys of their
// own: its readers ask for nearly every key that there is.
#pragma once

#include <string>

#include "layers/model.h"
#include "train/recipe.h"
#include "train/source.h"

namespace weft::tests {

constexpr const char* kWholeText = "[data]\nsource = \"text.txt\"\n";
constexpr const char* kWholeTask = "[data]\ntask = \"mqar\"\nvocabulary = 32\n";

inline std::string whole_recipe(const std::string& data) {
  std::string pattern;
  for (const std::string& name : layers::mixer_names()) pattern += "\"" + name + "\", ";
  return "[model]\nwidth = 8\ncontext = 16\npattern = [" + pattern +
         "\"strided\"]\nmlp = [\"swiglu\", \"moe\", \"none\"]\n"
         "[attention]\nheads = 2\n[block_sparse]\nheads = 2\nblock = 8\n"
         "[strided]\ntype = \"block_sparse\"\nheads = 2\nblock = 8\npattern = \"strided\"\n"
         "[moba]\nheads = 2\nblock = 4\n[topk]\nheads = 2\nblock = 4\n[router]\nheads = 2\nblock = "
         "4\n"
         "[document_router]\nheads = 2\nblock = 4\nopening = 4\n"
         "[nsa]\nheads = 2\nblock = 4\n[token_sparse]\nheads = 2\nglobal_tokens = 1\n"
         "[latent_attention]\nheads = 2\n"
         "[linear_attention]\nheads = 2\n[retention]\nheads = 2\n[simple_gla]\nheads = 2\n"
         "[gated_linear]\nheads = 2\n[delta]\nheads = 2\n[gated_delta]\nheads = 2\n[kda]\nheads = "
         "2\n"
         "[mamba2]\nhead_dim = 8\n[moe]\nexperts = 2\ntop_k = 2\nwidth = 8\n" +
         data + "[train]\nbatch = 2\neval_batches = 1\nsteps = 1\n[sample]\ntokens = 2\n";
}

// Reads a recipe as `inspect` and `train` do.
inline train::Recipe read_whole(const std::string& text, const std::vector<std::string>& set = {}) {
  train::Recipe r = train::recipe_from_text(text, "r.toml", set);
  const train::DataSettings data = train::read_data(r.toml);
  const layers::Model m(r.toml, data.vocabulary, Dtype::f32, kMeta, 1);
  r.finish();
  batch_shape(data, r, m.context());
  return r;
}

}  // namespace weft::tests
