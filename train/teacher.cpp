#include "train/teacher.h"

#include "core/hash.h"
#include "core/text.h"

namespace weft::train {

std::string tokens_in_words(const DataSettings& data, const std::string& tokenizer) {
  if (data.is_task) return "the task " + data.task.name;
  if (!tokenizer.empty()) return "the vocabulary " + to_hex(hash64(tokenizer));
  return data.is_tokens ? "token numbers" : "bytes";
}

Teacher open_teacher(const std::string& where, Dtype dtype) {
  const std::string path = find_checkpoint(where);
  Hdf5Reader file = open_checkpoint(path);
  RunState state = read_state(file);
  require_guarded_recipe(file, state);
  const auto recipe = [&] {
    try {
      return recipe_from_text(state.recipe, path + ":recipe",
                              {"train.device=\"cpu\"", "train.dtype=\"f32\""});
    } catch (const Error& e) {
      fail(path, ": the teacher is of a recipe that this program does not take: ", e.what());
    }
  };
  Recipe r = recipe();
  r.train.dtype = dtype;
  const std::string embedding = "parameters/embedding.weight";
  require(file.has_tensor(embedding), path, ": tensor \"", embedding,
          "\" is missing: the checkpoint holds no model");
  const int64_t vocabulary = file.info(embedding).shape[0];
  const std::string tokens = tokens_in_words(read_data(r.toml), state.tokenizer);
  return {path, std::move(file), std::move(state), std::move(r), vocabulary, tokens};
}

std::string hash_of(const Teacher& t) {
  const layers::Model plan(t.recipe.toml, t.vocabulary, Dtype::f32, kMeta, 1);
  Hash64 hash;
  for (const layers::Parameter& p : plan.parameters()) {
    const Tensor values = t.file.tensor("parameters/" + p.name).contiguous();
    hash.update(p.name);
    hash.update(values.raw(), static_cast<size_t>(values.numel() * size_of(values.dtype())));
  }
  return to_hex(hash.digest());
}

void require_fits(const Teacher& t, const layers::Model& plan, const Recipe& recipe,
                  const layers::Model& student) {
  const auto same = [&](const char* what, int64_t there, int64_t here) {
    require(there == here, t.path, ": the teacher has another ", what, ": ", there, " there and ",
            here, " in ", recipe.path.empty() ? recipe.name : recipe.path,
            "; give the student the teacher's, or choose another teacher");
  };
  same("vocabulary", t.vocabulary, student.vocabulary());
  same("model.width", plan.width(), student.width());
  same("number of layers", static_cast<int64_t>(layers::layer_names(t.recipe.toml).mixers.size()),
       static_cast<int64_t>(layers::layer_names(recipe.toml).mixers.size()));
}

}  // namespace weft::train
