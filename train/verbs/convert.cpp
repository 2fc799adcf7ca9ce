// `weft convert`: a trained checkpoint becomes the start of a student with other mixers.
#include <cstdio>

#include "core/file.h"
#include "train/conversion.h"
#include "train/verbs/verbs.h"

namespace weft::train {

int run_convert(const ConvertArguments& a) {
  require(a.dry_run || !a.out.empty(),
          "convert: --out FILE says where the start of the student "
          "goes; --dry-run prints what would come from where");
  const Teacher teacher = open_teacher(a.teacher);
  Recipe recipe = read_recipe(a.recipe, a.set, "", /*planned=*/true);
  if (!a.dry_run) require_output(a.out, {teacher.path, a.recipe});
  const Conversion conversion(teacher, std::move(recipe));
  std::printf("%s, hash %s, as the start of %s\n\n%s", teacher.path.c_str(),
              hash_of(teacher).c_str(), a.recipe.c_str(), conversion.table().c_str());
  if (a.dry_run) return 0;
  conversion.save(a.out);
  std::printf("%s: begin with it by weft train %s --begin %s\n", a.out.c_str(), a.recipe.c_str(),
              a.out.c_str());
  return 0;
}

}  // namespace weft::train
