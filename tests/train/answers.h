// Folders of cases, and answers to them: by our own forms, whole or spoilt.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <sstream>

#include "core/hdf5.h"
#include "tests/folder.h"
#include "train/workbench/cases.h"
#include "train/workbench/judge.h"

namespace weft::tests {

// What a result holds, before it is written.
struct Answer {
  std::map<std::string, Tensor> tensors;  // "outputs/o", "gradients/dq", "inputs/q"
  std::string declined;
  bool written = true;
};
using Spoil = std::function<void(const train::CaseFile&, Answer&)>;

inline void make_cases(const std::string& folder, const std::vector<std::string>& operations,
                       const std::vector<std::string>& dtypes = {}, const std::string& text = "") {
  std::vector<std::string> words = operations;
  words.push_back(folder);
  std::ostringstream out;
  train::run_cases({words, dtypes, text}, out);
}

inline Answer right_answer(const train::CaseFile& c, kernels::Form form) {
  const train::Question q = train::question_of(c);
  kernels::Tensors in = q.given;
  for (const auto& [name, t] : q.written) in[name] = zeros_like(t);
  Answer a;
  for (const auto& [name, t] : c.operation->forward(form, in, c.named.settings))
    a.tensors["outputs/" + name] = t;
  for (const auto& [name, t] : q.written) a.tensors["outputs/" + name] = in.at(name);
  for (const auto& [name, t] :
       c.operation->backward(form, in, c.named.settings, q.expected.output_gradients))
    a.tensors["gradients/" + name] = t;
  return a;
}

// Answers every case; `spoil` may change each answer first.
inline void answer(const std::string& folder, const Spoil& spoil = nullptr,
                   kernels::Form form = kernels::Form::chunkwise) {
  for (const train::CaseFile& c : train::case_files(train::read_selection(folder))) {
    Answer a = right_answer(c, form);
    if (spoil) spoil(c, a);
    const std::string path = folder + "/results/" + c.file;
    std::filesystem::remove(path);
    if (!a.written) continue;
    Hdf5Writer file(path);
    for (const auto& [name, t] : a.tensors) file.tensor(name, t.contiguous());
    if (!a.declined.empty()) file.attribute("", "declined", a.declined);
    file.commit();
  }
}

struct Judged {
  int status = -1;
  std::string text;
};
inline Judged judged(const train::JudgeArguments& arguments) {
  std::ostringstream out;
  const int status = train::run_judge(arguments, out);
  return {status, out.str()};
}

}  // namespace weft::tests
