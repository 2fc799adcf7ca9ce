#include "train/workbench/cases.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/file.h"
#include "core/json.h"
#include "core/text.h"
#include "train/workbench/operation_file.h"
#include "train/workbench/report.h"

namespace weft::train {
namespace {

using namespace kernels;
namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kManifest = "cases.json";
constexpr const char* kFormat = "weft cases 1";

// A case's name as part of a file's name: "one token, far on" is "one_token_far_on".
std::string safe_name(const std::string& name) {
  std::string safe;
  for (const char c : name) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '.';
    if (plain)
      safe += c;
    else if (!safe.empty() && safe.back() != '_')
      safe += '_';
  }
  while (!safe.empty() && safe.back() == '_') safe.pop_back();
  return safe.empty() ? "case" : safe;
}

// Of all cases of an operation, so that a name does not depend on what is selected.
std::vector<std::string> safe_names(const std::vector<NamedCase>& cases) {
  std::vector<std::string> names;
  std::set<std::string> taken;
  for (const NamedCase& c : cases) {
    const std::string name = safe_name(c.name);
    std::string free = name;
    for (int n = 2; !taken.insert(free).second; ++n) free = concat(name, "_", n);
    names.push_back(free);
  }
  return names;
}

Json json_of(const std::string& setting) {
  if (setting == "true" || setting == "false") return setting == "true";
  return std::visit([](const auto& value) { return Json(value); }, attribute_of(setting));
}

void write_case(const std::string& folder, const CaseFile& c, const Question& q) {
  Hdf5Writer file(concat(folder, "/", c.file));
  file.attribute("", "operation", c.operation->name());
  file.attribute("", "case", c.named.name);
  file.attribute("", "dtype", std::string(name_of(c.dtype)));
  for (const auto& [name, t] : q.given) file.tensor("inputs/" + name, t.contiguous());
  for (const auto& [name, t] : q.expected.output_gradients)
    file.tensor("grad_outputs/" + name, t.contiguous());
  for (const auto& [name, text] : c.named.settings)
    file.attribute("options", name, attribute_of(text));
  file.commit();
}

Json json_of(const std::vector<Field>& fields) {
  Json list = Json::array();
  for (const Field& f : fields) {
    Json one = {{"name", f.name}, {"shape", f.shape}, {"gradient", gradient_name(f.name)}};
    if (f.optional) one["may_be_absent"] = true;
    if (f.wide) one["f32_beside_bf16"] = true;
    list.push_back(std::move(one));
  }
  return list;
}

// A mechanism has a page of its own; the operations with a recurrent form are the mechanisms.
std::string equations_of(const Operation& op) {
  const std::vector<Form> forms = op.forms();
  const bool mechanism = std::find(forms.begin(), forms.end(), Form::recurrent) != forms.end();
  return mechanism ? concat("kernels/", op.name(), "/README.md")
                   : "kernels/README.md, \"Other operations\"";
}

Json json_of(const Operation& op) {
  Json options = Json::array(), index = Json::array();
  for (const Setting& s : op.settings()) {
    if (s.tensor)
      index.push_back({{"name", s.name}, {"help", s.help}});
    else
      options.push_back({{"name", s.name}, {"standard", json_of(s.standard)}, {"help", s.help}});
  }
  return {{"operation", op.name()},
          {"equations", equations_of(op)},
          {"inputs", json_of(op.inputs())},
          {"index_tensors", index},
          {"options", options},
          {"outputs", json_of(op.outputs())}};
}

Json json_of(const Shape& shape) { return std::vector<int64_t>(shape.begin(), shape.end()); }

// What the page of a case says: its options, its answers, its file in each dtype.
Json json_of(const CaseFile& c, const Question& q) {
  Json inputs, outputs, gradients = Json::object(), options = Json::object();
  for (const auto& [name, t] : q.given) inputs[name] = json_of(t.shape());
  for (const Tensors& tensors : {q.expected.outputs, q.written})
    for (const auto& [name, t] : tensors) outputs[name] = json_of(t.shape());
  for (const auto& [name, t] : q.expected.gradients) gradients[name] = json_of(t.shape());
  for (const auto& [name, text] : c.named.settings) options[name] = json_of(text);
  return {{"operation", c.operation->name()},
          {"case", c.named.name},
          {"dtype", name_of(c.dtype)},
          {"file", c.file},
          {"result", "results/" + c.file},
          {"options", options},
          {"inputs", inputs},
          {"outputs", outputs},
          {"gradients", gradients}};
}

const std::vector<std::string> kSteps = {
    "Take each file of `files`. Its tensors lie in inputs/ (integer tensors with them) and in "
    "grad_outputs/, its options are attributes of options/. The numbers are rounded to the dtype "
    "of the file already.",
    "Compute the outputs, and the gradients of the sum of all outputs times their grad_outputs.",
    "Write outputs/NAME and gradients/NAME to results/FILE, a new HDF5 file of the same name. f64 "
    "is answered in f64, f32 in f32, bf16 in bf16 or f32; integer tensors in any integer type. "
    "What reads `f32_beside_bf16` is f32 there.",
    "An attribute `declined` at the root of a result says why whatever the file leaves out is left "
    "out. Without it what is left out counts as missing. Where some outputs are declined and "
    "others answered, the gradients are those of the outputs that are answered.",
    "A group inputs/ in a result may hold the inputs as they were after the run. They must not "
    "have changed.",
    "`weft judge DIR` compares."};

std::string manifest(const CaseSelection& s, const std::vector<Json>& files) {
  Json names = Json::array(), dtypes = Json::array();
  for (const Operation* op : s.operations) names.push_back(op->name());
  for (const Dtype t : s.dtypes) dtypes.push_back(name_of(t));
  std::string text =
      concat("{\n \"format\": ", json_line(kFormat), ",\n \"weft\": ", json_line(WEFT_VERSION),
             ",\n \"selection\": ",
             json_line({{"operations", names}, {"dtypes", dtypes}, {"case", s.case_text}}));
  const auto list = [&](const char* name, const auto& items, const auto& line) {
    text += concat(",\n \"", name, "\": [");
    bool first = true;
    for (const auto& item : items) {
      text += concat(first ? "\n  " : ",\n  ", json_line(line(item)));
      first = false;
    }
    text += "\n ]";
  };
  list("how", kSteps, [](const std::string& step) { return Json(step); });
  list("operations", s.operations, [](const Operation* op) { return json_of(*op); });
  list("files", files, [](const Json& file) { return file; });
  return text + "\n}\n";
}

CaseSelection selection_of(const CasesArguments& a) {
  CaseSelection s;
  std::vector<std::string> names;
  for (size_t i = 0; i + 1 < a.words.size(); ++i) {
    std::istringstream words(a.words[i]);
    for (std::string name; std::getline(words, name, ',');) names.push_back(name);
  }
  if (contains(names, "all")) {
    s.operations = operations();
  } else {
    std::set<std::string> seen;
    for (const std::string& name : names)
      if (const Operation& op = operation(name); seen.insert(name).second)
        s.operations.push_back(&op);
  }
  s.dtypes = dtypes_from(a.dtypes, "cases");
  s.case_text = a.case_text;
  return s;
}

// Throws Error unless the folder is new or empty.
void require_new(const std::string& folder) {
  std::error_code error;
  const fs::file_status status = fs::status(folder, error);
  if (status.type() == fs::file_type::not_found) return;
  require(status.type() == fs::file_type::directory, folder,
          ": is no folder; expected a new or empty one");
  const fs::directory_iterator at(folder, error);
  require(!error, folder, ": cannot be listed: ", error.message());
  if (at != fs::directory_iterator())
    fail(folder, ": holds ", as_utf8(at->path().filename().string()),
         " already; expected a new or empty folder");
}

// Files and folders that are under way: removed again unless they are kept.
class Made {
 public:
  ~Made() {
    std::error_code ignored;
    for (auto path = paths_.rbegin(); path != paths_.rend(); ++path) fs::remove(*path, ignored);
  }
  void folder(const std::string& path) {
    const bool there = fs::exists(path);
    make_folders(path);
    if (!there) paths_.push_back(path);
  }
  void file(const std::string& path) { paths_.push_back(path); }
  void keep() { paths_.clear(); }

 private:
  std::vector<std::string> paths_;
};

}  // namespace

Attribute attribute_of(const std::string& text) {
  if (text == "true" || text == "false") return int64_t{text == "true"};
  std::istringstream whole(text), real(text);
  int64_t i = 0;
  double d = 0;
  if (whole >> i && whole.peek() == EOF) return i;
  if (real >> d && real.peek() == EOF) return d;
  return text;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = a.contiguous(), y = b.contiguous();
  const size_t bytes = static_cast<size_t>(x.numel() * size_of(x.dtype()));
  return x.shape() == y.shape() && x.dtype() == y.dtype() &&
         (bytes == 0 || std::memcmp(x.raw(), y.raw(), bytes) == 0);
}

std::vector<Dtype> dtypes_from(const std::vector<std::string>& names, const std::string& verb) {
  std::vector<Dtype> list;
  for (const Dtype t : {Dtype::f64, Dtype::f32, Dtype::bf16})
    if (names.empty() || contains(names, std::string(name_of(t)))) list.push_back(t);
  for (const std::string& name : names)
    require(name == "f64" || name == "f32" || name == "bf16", verb, " --dtype ", name,
            ": expected f64, f32 or bf16");
  return list;
}

std::vector<CaseFile> case_files(const CaseSelection& s) {
  std::vector<CaseFile> files;
  for (const Operation* op : s.operations) {
    const std::vector<NamedCase> cases = op->cases();
    const std::vector<std::string> names = safe_names(cases);
    for (const Dtype dtype : s.dtypes)
      for (size_t i = 0; i < cases.size(); ++i)
        if (cases[i].name.find(s.case_text) != std::string::npos)
          files.push_back(
              {op, cases[i], dtype, concat(op->name(), ".", name_of(dtype), ".", names[i], ".h5")});
  }
  require(!files.empty(), "cases --case \"", s.case_text, "\": no case's name holds that");
  return files;
}

Question question_of(const CaseFile& c) {
  NamedCase asked{c.named.name, {}, c.named.settings};
  for (const auto& [name, t] : c.named.inputs) asked.inputs[name] = t.clone();
  const std::vector<std::string> places =
      c.operation->prepare_written(asked.inputs, asked.settings);
  Question q;
  q.expected = expected_of(*c.operation, asked, c.dtype);
  q.given = q.expected.inputs;
  for (const std::string& name : places) {
    const auto before = c.named.inputs.find(name);
    const Tensor& after = q.expected.inputs.at(name);
    if (before != c.named.inputs.end() && same_bits(before->second, after)) continue;
    q.written[name] = after.clone();  // another form may write into that of `expected`
    q.given.erase(name);
  }
  return q;
}

CaseSelection read_selection(const std::string& folder) {
  const std::string path = concat(folder, "/", kManifest);
  require(fs::is_directory(folder), folder, ": is no folder; expected one that `weft cases` made");
  require(fs::exists(path), folder, ": has no ", kManifest,
          "; expected a folder that `weft cases` made and finished");
  const auto json = nlohmann::json::parse(read_file(path), nullptr, false);
  require(json.is_object() && json.value("format", nlohmann::json()) == kFormat, path,
          ": is no list of cases of this version (\"format\": \"", kFormat,
          "\"); make the folder anew with `weft cases`");
  CaseSelection s;
  try {
    const auto& selection = json.at("selection");
    for (const auto& name : selection.at("operations"))
      s.operations.push_back(&operation(name.get<std::string>()));
    s.dtypes = dtypes_from(selection.at("dtypes").get<std::vector<std::string>>(), path);
    s.case_text = selection.at("case").get<std::string>();
  } catch (const nlohmann::json::exception& e) {
    fail(path, ": \"selection\" cannot be read (", e.what(),
         "); make the folder anew with `weft cases`");
  }
  return s;
}

int run_cases(const CasesArguments& a, std::ostream& out) {
  require(a.words.size() >= 2,
          "cases: expected OPERATION... DIR; `weft op --list` shows the names");
  const std::string& folder = a.words.back();
  const CaseSelection selection = selection_of(a);
  const std::vector<CaseFile> files = case_files(selection);
  require_new(folder);
  Made made;
  made.folder(folder);
  made.folder(folder + "/results");
  std::vector<Json> told;
  {
    TaskProgress line("cases");
    for (size_t i = 0; i < files.size(); ++i) {
      line.show(static_cast<double>(i) / static_cast<double>(files.size()),
                files[i].operation->name());
      const Question q = question_of(files[i]);
      made.file(concat(folder, "/", files[i].file));
      write_case(folder, files[i], q);
      told.push_back(json_of(files[i], q));
    }
  }
  write_file(concat(folder, "/", kManifest), manifest(selection, told));
  made.keep();
  out << folder << ": " << files.size() << " cases of " << selection.operations.size()
      << " operations; answers go to " << folder << "/results, then `weft judge " << folder
      << "`\n";
  return 0;
}

}  // namespace weft::train
