// `weft logits`: what a checkpoint predicts at every position of given tokens, from one HDF5 file
// to another, so that any program can compare its own logits or measure with ours.
#include <cstdio>

#include "core/file.h"
#include "core/hdf5.h"
#include "core/units.h"
#include "train/verbs/loaded.h"
#include "train/verbs/verbs.h"
#include "train/workbench/report.h"

namespace weft::train {
namespace {

// `FILE: tokens` where the file has i32 of so many dimensions under that name.
TensorInfo index_tensor(const Hdf5Reader& file, const std::string& name, int dims,
                        const char* shape) {
  std::string what = "absent";
  for (const Hdf5Entry& entry : file.entries())
    if (entry.name == name && entry.kind != Hdf5Entry::Kind::tensor) what = entry.what;
  require(file.has_tensor(name), file.path(), ": ", name, " is ", what, ", expected i32 ", shape);
  TensorInfo info = file.info(name);
  require(info.dtype == Dtype::i32, file.path(), ": ", name, " is ", info.dtype, ", expected i32 ",
          shape, "; in NumPy: .astype(\"int32\")");
  require(info.shape.dims() == dims && info.shape.numel() > 0, file.path(), ": ", name,
          " has shape ", info.shape, ", expected ", shape, ", and not empty");
  return info;
}

bool holds(const Hdf5Reader& file, const std::string& name) {
  for (const Hdf5Entry& entry : file.entries())
    if (entry.name == name) return true;
  return false;
}

// The borders of the documents of one row of T tokens, or nothing.
Tensor read_borders(const Hdf5Reader& file, const Shape& tokens, int64_t longest) {
  if (!holds(file, "cu_seqlens")) {
    require(tokens[1] <= longest, file.path(), ": the rows of tokens are ", tokens[1],
            " long, expected at most ", longest, " for this model");
    return {};
  }
  const Shape shape = index_tensor(file, "cu_seqlens", 1, "[N+1]").shape;
  require(tokens[0] == 1, file.path(), ": tokens has ", tokens[0],
          " rows, expected 1 beside cu_seqlens, which cuts one row into documents");
  const Tensor borders = file.tensor("cu_seqlens");
  const int32_t* const cu = borders.data<int32_t>();
  const int64_t n = shape[0] - 1;
  require(n >= 1 && cu[0] == 0 && cu[n] == tokens[1], file.path(), ": cu_seqlens goes from ", cu[0],
          " to ", cu[n], ", expected from 0 to the ", tokens[1], " tokens, in two numbers or more");
  for (int64_t i = 0; i < n; ++i) {
    require(cu[i] < cu[i + 1], file.path(), ": cu_seqlens[", i + 1, "] is ", cu[i + 1],
            ", expected more than the ", cu[i], " before it: no document is empty");
    require(cu[i + 1] - cu[i] <= longest, file.path(), ": document ", i, " has ", cu[i + 1] - cu[i],
            " tokens, expected at most ", longest, " for this model");
  }
  return borders;
}

void require_known(const Hdf5Reader& file, const Shape& shape, int64_t vocabulary) {
  for (int64_t b = 0; b < shape[0]; ++b) {
    const Tensor row = file.rows("tokens", b, b + 1);
    for (int64_t t = 0; t < shape[1]; ++t) {
      const int32_t token = row.data<int32_t>()[t];
      require(token >= 0 && token < vocabulary, file.path(), ": tokens[", b, ", ", t, "] is ",
              token, ", expected 0 to ", vocabulary - 1);
    }
  }
}

}  // namespace

int run_logits(const LogitsArguments& a) {
  const std::string checkpoint = find_checkpoint(a.checkpoint);
  require_output(a.out, {checkpoint, a.in});
  const Loaded l = load(checkpoint, a.device, a.dtype);
  const Hdf5Reader in(a.in);
  const Shape shape = index_tensor(in, "tokens", 2, "[B, T]").shape;
  const Tensor borders = read_borders(in, shape, l.model->longest_text());
  const int64_t vocabulary = l.model->vocabulary();
  require_known(in, shape, vocabulary);
  const Dtype dtype = l.recipe.train.dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  Hdf5Writer out(a.out);
  out.attribute("", "format", std::string("weft logits 1"));
  out.attribute("", "step", l.state.step);
  out.attribute("", "dtype", std::string(name_of(l.recipe.train.dtype)));
  out.begin_rows("logits", dtype, {shape[1], vocabulary});
  {
    TaskProgress line("logits");
    for (int64_t b = 0; b < shape[0]; ++b) {  // one row at a time, as a row may fill the memory
      line.show(static_cast<double>(b) / static_cast<double>(shape[0]),
                concat("row ", b + 1, " of ", shape[0]));
      const Tensor tokens = in.rows("tokens", b, b + 1).to(l.recipe.train.device);
      const Tensor logits = l.model->logits(tokens, borders).to(kCpu).to(dtype).contiguous();
      out.append_rows("logits", logits.raw(), 1);
    }
  }
  out.commit();
  std::FILE* const told = is_standard_output(a.out) ? stderr : stdout;
  std::fprintf(told, "%s: logits of %s tokens, step %ld\n", a.out.c_str(),
               count_text(static_cast<double>(shape.numel())).c_str(),
               static_cast<long>(l.state.step));
  return 0;
}

}  // namespace weft::train
