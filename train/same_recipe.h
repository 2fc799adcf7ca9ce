// Do two recipes mean the same run? Compared is what a run reads of them, not how they are written:
// standards are filled in, numbers are values, the pattern is spelled out layer by layer.
#pragma once

#include <string>

#include "train/recipe.h"

namespace weft::train {

// Throws Error that names the first key whose value differs between the recipe (TOML) in a
// checkpoint and ours, with both values. `vocabulary` is that of our model. Left out are:
//   - train.steps and what changes no number (logging, folders, samples, device);
//   - keys without effect, as those of a table that the pattern does not name;
//   - where text lies, if it is the same text (`same_data`).
void require_same_recipe(const std::string& checkpoint, const std::string& theirs,
                         const Recipe& ours, int64_t vocabulary, bool same_data);

// The same of the model alone, whose parameters a run begins with: [train], [optimizer],
// [schedule], [data] and what changes no logit (model.context, model.init, weights of losses) may
// differ.
void require_same_model(const std::string& checkpoint, const std::string& theirs,
                        const Recipe& ours, int64_t vocabulary);

}  // namespace weft::train
