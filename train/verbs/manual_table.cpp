#include "train/verbs/manual_table.h"

#include <CLI/CLI.hpp>

#include "kernels/contract/operation.h"
#include "train/lessons/lesson.h"

namespace weft::train {
namespace {

bool takes_a_value(const CLI::Option& option) { return option.get_items_expected_max() > 0; }

// "UINT" of "UINT:NONNEGATIVE".
std::string type_of(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  return type.substr(0, type.find(':'));
}

ManualFlag flag_of(const CLI::Option& option) {
  const std::vector<std::string>& names = option.get_lnames();
  return {names.empty() ? option.get_name(true) : "--" + names.front(),
          takes_a_value(option) && !option.get_positional() ? type_of(option) : "",
          option.get_description()};
}

std::vector<std::string> operation_names() {
  std::vector<std::string> names;
  for (const kernels::Operation* op : kernels::operations()) names.push_back(op->name());
  return names;
}

// `op` reads its flags itself, because an operation's settings are flags too.
std::vector<ManualFlag> flags_of_op() {
  return {{"--list", "", "list all operations with their tensors"},
          {"--help", "", "every tensor and option of an operation"},
          {"--check", "FILE...", "compare a file's outputs and gradients with ours, in all forms"},
          {"--backward", "", "write gradients too"},
          {"--form", "FORM", "naive, recurrent or chunkwise"},
          {"--dtype", "TYPE", "f64, f32 or bf16"},
          {"--device", "DEVICE", "cpu or cuda"}};
}

std::vector<std::string> choices_of(const std::string& verb, const Manual& manual) {
  if (verb == "op" || verb == "bench" || verb == "cases") return operation_names();
  if (verb == "manual") return manual_kinds();
  std::vector<std::string> names;
  if (verb == "lesson")
    for (const Lesson& l : lessons()) names.push_back(l.name);
  if (verb == "help")
    for (const ManualVerb& v : manual.verbs) names.push_back(v.name);
  return names;
}

}  // namespace

Manual manual_of(const CLI::App& app) {
  Manual manual{app.get_description(), {}};
  for (const CLI::App* verb : app.get_subcommands([](const CLI::App*) { return true; })) {
    ManualVerb v{verb->get_name(), verb->get_description(), verb->get_footer(), {}, {}, {}};
    for (const CLI::Option* option : verb->get_options())
      (option->get_positional() ? v.words : v.flags).push_back(flag_of(*option));
    if (v.name == "op") {
      v.words = {
          {"NAME", "", "an operation"}, {"IN.h5", "", "its inputs"}, {"OUT.h5", "", "its results"}};
      v.flags = flags_of_op();
    }
    if (v.name == "help") v.words = {{"verb", "", "a verb (standard: all)"}};
    manual.verbs.push_back(v);
  }
  for (ManualVerb& v : manual.verbs) v.choices = choices_of(v.name, manual);
  return manual;
}

}  // namespace weft::train
