// Keeps weft.h: every call catches what is thrown, and hands it over as text.
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <new>

#include "core/text.h"
#include "kernels/contract/naive_memory.h"
#include "kernels/contract/operation.h"
#include "library/dlpack.h"
#include "library/weft.h"

using namespace weft;
using namespace weft::kernels;

// One result. The views point into `tensors`, which never move.
struct weft_result {
  std::deque<std::pair<std::string, library::Exported>> tensors;
};

namespace {

thread_local std::string error_of_thread;

// Runs a call. What it throws becomes the text of weft_error() and `failed`.
template <class Value, class F>
Value guarded(const F& call, Value mistake, Value fault) {
  error_of_thread.clear();
  try {
    return call();
  } catch (const Error& e) {
    error_of_thread = e.what();
    return mistake;
  } catch (const std::bad_alloc&) {
    error_of_thread = "there is no memory left for this call";
    return mistake;
  } catch (const std::exception& e) {
    error_of_thread = std::string("a fault of the library: ") + e.what();
    return fault;
  } catch (...) {
    error_of_thread = "a fault of the library";
    return fault;
  }
}

// What an operation is, as C strings that live as long as the library.
struct Description {
  std::vector<weft_field> fields;
  std::vector<const char*> forms;
};

const char* kept(const std::string& text) {
  static std::deque<std::string> all;
  return all.emplace_back(text).c_str();
}

// The help of an index tensor begins with its shape, or holds it: "i32 [N + 1]: borders".
std::string shape_in(const std::string& help) {
  const size_t begin = help.find('['), end = help.find(']');
  return begin < end && end != std::string::npos ? help.substr(begin, end + 1 - begin) : "";
}

Description described(const Operation& op) {
  Description d;
  for (const Field& f : op.inputs())
    d.fields.push_back(
        {f.name, WEFT_INPUT, f.optional, f.wide, f.shape, kept(gradient_name(f.name)), "", ""});
  for (const Setting& s : op.settings())
    if (s.tensor)
      d.fields.push_back(
          {kept(s.name), WEFT_INDEX, 1, 0, kept(shape_in(s.help)), "", "", kept(s.help)});
  for (const Field& f : op.outputs())
    d.fields.push_back(
        {f.name, WEFT_OUTPUT, f.optional, f.wide, f.shape, kept(gradient_name(f.name)), "", ""});
  for (const Setting& s : op.settings())
    if (!s.tensor)
      d.fields.push_back(
          {kept(s.name), WEFT_SETTING, 1, 0, "", "", kept(s.standard), kept(s.help)});
  for (const Form form : op.forms()) d.forms.push_back(kept(name_of(form)));
  return d;
}

// Made once, at the first question.
const std::map<std::string, Description>& descriptions() {
  static const std::map<std::string, Description> all = [] {
    std::map<std::string, Description> made;
    for (const Operation* op : operations()) made[op->name()] = described(*op);
    return made;
  }();
  return all;
}

const Description& description(const char* name) {
  require(name, "no operation is named");
  return descriptions().at(operation(name).name());
}

Tensors tensors_of(const weft_tensor* list, size_t count, const std::string& op, const char* what) {
  require(list || count == 0, op, ": ", count, " ", what, "s are announced, and none is there");
  Tensors tensors;
  for (size_t i = 0; i < count; ++i) {
    require(list[i].name, op, ": ", what, " ", i, " has no name");
    const std::string name = concat(op, ": ", list[i].name);
    require(list[i].tensor, name, " is no tensor");
    require(tensors.emplace(list[i].name, library::tensor_from(*list[i].tensor, name)).second, name,
            " is given twice");
  }
  return tensors;
}

Settings settings_of(const weft_call& call) {
  Settings settings;
  for (size_t i = 0; i < call.setting_count; ++i) {
    const weft_setting& s = call.settings[i];
    require(s.name && s.value, call.operation, ": setting ", i, " has no ",
            s.name ? "value" : "name");
    require(settings.emplace(s.name, s.value).second, call.operation, ": ", s.name,
            " is given twice");
  }
  return settings;
}

std::vector<std::string> constants_of(const weft_call& call, const Operation& op) {
  std::vector<std::string> known, names;
  for (const Field& f : op.inputs()) known.emplace_back(f.name);
  for (size_t i = 0; i < call.constant_count; ++i) {
    require(call.constants[i], op.name(), ": constant ", i, " has no name");
    names.emplace_back(call.constants[i]);
    if (!contains(known, names.back()))
      fail(op.name(), ": ", unknown_name("input", names.back(), known));
  }
  return names;
}

// The gradient of an output has the output's device and dtype.
void check_gradients(const Operation& op, const Tensors& dy, const Tensor& first) {
  for (const Field& f : op.outputs()) {
    const auto found = dy.find(gradient_name(f.name));
    if (found == dy.end()) continue;
    const Tensor& d = found->second;
    const Dtype t = f.wide && first.dtype() == Dtype::bf16 ? Dtype::f32 : first.dtype();
    require(d.dtype() == t, op.name(), ": ", found->first, " is ", d.dtype(), ", expected ", t);
    require(d.device() == first.device(), op.name(), ": ", found->first, " is on ", d.device(),
            ", expected ", first.device(), " as ", op.inputs().front().name);
  }
}

// Blocks of the allocator go from one stream to the next only when the first has done its work.
void enter_stream(Device device, void* stream) {
  static std::map<int, void*> last;  // by GPU
  const auto [found, fresh] = last.emplace(device.index, stream);
  if (!fresh && found->second != stream) backend(device).synchronize({found->second});
  found->second = stream;
}

Device device_of(const weft_call& call) {
  for (size_t i = 0; i < call.input_count; ++i)
    if (call.inputs && call.inputs[i].tensor &&
        library::type_of(call.inputs[i].tensor->device) == kDLCUDA)
      return {DeviceType::cuda, call.inputs[i].tensor->device.device_id};
  return kCpu;
}

Tensors forward(const Operation& op, Form form, Tensors in, Settings settings) {
  const std::vector<std::string> written = op.prepare_written(in, settings);
  Tensors out = op.forward(form, in, settings);
  for (const std::string& name : written) out[name] = in.at(name);
  return out;
}

Tensors backward(const Operation& op, Form form, Tensors in, Settings settings,
                 const weft_call& call) {
  const std::vector<std::string> constants = constants_of(call, op);
  const Tensors dy =
      tensors_of(call.output_gradients, call.output_gradient_count, op.name(), "output gradient");
  op.prepare_written(in, settings);
  const auto first = in.find(op.inputs().front().name);
  if (first != in.end()) check_gradients(op, dy, first->second);
  if (form == Form::naive) require_naive_memory(op.name(), in, settings);
  return op.backward(form, in, settings, dy, constants);
}

Tensors computed(const weft_call& call, bool gradients) {
  require(call.interface_version == WEFT_INTERFACE, "the program was built for version ",
          call.interface_version, " of weft.h, and this library has version ", int{WEFT_INTERFACE},
          "; build it with the header of this library");
  require(call.operation, "no operation is named");
  const Operation& op = operation(call.operation);
  require(call.settings || call.setting_count == 0, op.name(), ": no settings are there");
  require(call.constants || call.constant_count == 0, op.name(), ": no constants are there");
  const Form form = call.form ? form_from(call.form) : Form::chunkwise;
  const Device device = device_of(call);
  require(device.is_cpu() || form == Form::chunkwise, op.name(), ": the ", name_of(form),
          " form runs on the CPU");
  // On a GPU the work of all calls of a stream is in their order, and so is the memory they share.
  const StreamScope scope({device.is_cuda() ? call.stream : nullptr});
  if (device.is_cuda() && why_no_cuda(device.index).empty()) enter_stream(device, call.stream);
  const Tensors in = tensors_of(call.inputs, call.input_count, op.name(), "input");
  return gradients ? backward(op, form, in, settings_of(call), call)
                   : forward(op, form, in, settings_of(call));
}

int run(const weft_call* call, weft_result** result, bool gradients) {
  if (result) *result = nullptr;
  return guarded(
      [&] {
        require(call && result, "a call needs a weft_call and a place for its result");
        static std::mutex turn;
        const std::lock_guard lock(turn);
        auto made = std::make_unique<weft_result>();
        for (const auto& [name, tensor] : computed(*call, gradients))
          made->tensors.emplace_back(std::piecewise_construct, std::tuple(name),
                                     std::tuple(tensor));
        *result = made.release();
        return int{WEFT_OK};
      },
      int{WEFT_MISTAKE}, int{WEFT_FAULT});
}

}  // namespace

int weft_interface() { return WEFT_INTERFACE; }
const char* weft_version() { return WEFT_VERSION; }
const char* weft_error() { return error_of_thread.c_str(); }
int weft_has_cuda() { return has_cuda; }

const char* weft_why_no_cuda(int index) {
  thread_local std::string why;
  return guarded<const char*>(
      [&] {
        why = why_no_cuda(index);
        return why.empty() ? nullptr : why.c_str();
      },
      "the GPUs cannot be looked at", "the GPUs cannot be looked at");
}

const char* const* weft_operations(size_t* count) {
  static const std::vector<const char*> names = [] {
    std::vector<const char*> list;
    for (const auto& [name, d] : descriptions()) list.push_back(name.c_str());
    return list;
  }();
  if (count) *count = names.size();
  return names.data();
}

const weft_field* weft_fields(const char* operation, size_t* count) {
  if (count) *count = 0;
  return guarded<const weft_field*>(
      [&] {
        const Description& d = description(operation);
        if (count) *count = d.fields.size();
        return d.fields.data();
      },
      nullptr, nullptr);
}

const char* const* weft_forms(const char* operation, size_t* count) {
  if (count) *count = 0;
  return guarded<const char* const*>(
      [&] {
        const Description& d = description(operation);
        if (count) *count = d.forms.size();
        return d.forms.data();
      },
      nullptr, nullptr);
}

int weft_forward(const weft_call* call, weft_result** result) { return run(call, result, false); }
int weft_backward(const weft_call* call, weft_result** result) { return run(call, result, true); }

size_t weft_result_count(const weft_result* result) { return result ? result->tensors.size() : 0; }

const char* weft_result_name(const weft_result* result, size_t index) {
  return index < weft_result_count(result) ? result->tensors[index].first.c_str() : nullptr;
}

const DLTensor* weft_result_tensor(const weft_result* result, size_t index) {
  return index < weft_result_count(result) ? &result->tensors[index].second.view() : nullptr;
}

DLManagedTensor* weft_result_managed(const weft_result* result, size_t index) {
  if (index >= weft_result_count(result)) return nullptr;
  return guarded<DLManagedTensor*>([&] { return result->tensors[index].second.managed(); }, nullptr,
                                   nullptr);
}

void weft_result_free(weft_result* result) { delete result; }
