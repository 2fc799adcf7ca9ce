#include "core/hdf5_native.h"

#include <algorithm>
#include <variant>

#ifdef __SANITIZE_ADDRESS__
// HDF5 forgets some of its own memory when it meets damaged structures.
extern "C" const char* __lsan_default_suppressions() { return "leak:H5FL__malloc"; }
extern "C" const char* __lsan_default_options() { return "print_suppressions=0"; }
#endif

namespace weft::h5 {

std::string reason() {
  std::string text;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned, const H5E_error2_t* entry, void* to) -> herr_t {
        auto& found = *static_cast<std::string*>(to);
        if (found.empty() && entry->desc) found = entry->desc;
        return 0;
      },
      &text);
  const std::string mark = "error message = '";
  if (const size_t at = text.find(mark); at != std::string::npos) {
    const size_t begin = at + mark.size();
    return text.substr(begin, text.find('\'', begin) - begin);
  }
  return text.empty() ? "HDF5 gives no reason" : text;
}

// --- Types ---------------------------------------------------------------------------------------

namespace {

Id bf16_type() {
  Id type(H5Tcopy(H5T_IEEE_F32LE), H5Tclose);
  // sign bit 15, 8 bits of exponent from 7 on, 7 bits of mantissa; the fields go first, for the
  // size must hold them
  H5Tset_fields(type, 15, 7, 8, 0, 7);
  H5Tset_size(type, 2);
  H5Tset_ebias(type, 127);
  return type;
}

}  // namespace

Id file_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64:
      return {H5Tcopy(H5T_IEEE_F64LE), H5Tclose};
    case Dtype::f32:
      return {H5Tcopy(H5T_IEEE_F32LE), H5Tclose};
    case Dtype::bf16:
      return bf16_type();
    case Dtype::i64:
      return {H5Tcopy(H5T_STD_I64LE), H5Tclose};
    case Dtype::i32:
      return {H5Tcopy(H5T_STD_I32LE), H5Tclose};
    case Dtype::u8:
      return {H5Tcopy(H5T_STD_U8LE), H5Tclose};
  }
  return {};
}

bool dtype_of_type(hid_t type, Dtype& dtype) {
  const size_t size = H5Tget_size(type);
  const H5T_class_t kind = H5Tget_class(type);
  if (kind == H5T_FLOAT) {
    if (size == 2) {
      size_t sign = 0, exponent = 0, exponent_bits = 0, mantissa = 0, mantissa_bits = 0;
      H5Tget_fields(type, &sign, &exponent, &exponent_bits, &mantissa, &mantissa_bits);
      dtype = exponent_bits == 8 ? Dtype::bf16 : Dtype::f32;
    } else {
      dtype = size <= 4 ? Dtype::f32 : Dtype::f64;
    }
    return size <= 8;
  }
  if (kind == H5T_ENUM) {
    dtype = Dtype::u8;
    return size == 1;
  }
  if (kind != H5T_INTEGER || size > 8) return false;
  const bool is_signed = H5Tget_sign(type) != H5T_SGN_NONE;
  if (size == 1 && !is_signed)
    dtype = Dtype::u8;
  else
    dtype = size <= 2 || (size == 4 && is_signed) ? Dtype::i32 : Dtype::i64;
  return true;
}

std::string description_of_type(hid_t type) {
  const size_t size = H5Tget_size(type);
  switch (H5Tget_class(type)) {
    case H5T_STRING:
      return "text";
    case H5T_COMPOUND: {
      std::string fields;
      for (int i = 0; i < H5Tget_nmembers(type); ++i) {
        char* const name = H5Tget_member_name(type, static_cast<unsigned>(i));
        if (name) fields += concat(fields.empty() ? "" : ", ", name);
        H5free_memory(name);
      }
      const bool complex = fields == "r, i" || fields == "real, imag";
      return complex ? "complex numbers" : "records of the fields " + fields;
    }
    case H5T_FLOAT:
      return concat("floating-point numbers of ", size, " bytes");
    case H5T_INTEGER:
      return concat("integers of ", size, " bytes");
    case H5T_ENUM:
      return concat("names for numbers of ", size, " bytes");
    case H5T_REFERENCE:
      return "references to other objects";
    case H5T_VLEN:
      return "lists of different lengths";
    case H5T_ARRAY:
      return "arrays within a dataset";
    case H5T_BITFIELD:
      return "bit fields";
    case H5T_OPAQUE:
      return "bytes without a meaning";
    default:
      return "of an unknown type";
  }
}

std::vector<hsize_t> dims_of(const Shape& shape) { return {shape.begin(), shape.end()}; }

namespace {

// As much of the last dimensions as makes about one chunk's bytes.
std::vector<hsize_t> chunk_of(const Shape& shape, Dtype dtype) {
  std::vector<hsize_t> chunk = dims_of(shape);
  int64_t left = kChunkBytes / size_of(dtype);
  for (size_t i = chunk.size(); i-- > 0;) {
    chunk[i] = static_cast<hsize_t>(std::min<int64_t>(shape[static_cast<int>(i)], left));
    left = std::max<int64_t>(1, left / static_cast<int64_t>(chunk[i]));
  }
  return chunk;
}

}  // namespace

Id dataset_settings(const Shape& shape, Dtype dtype) {
  Id settings(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_obj_track_times(settings, false);  // the same tensors make the same bytes
  H5Pset_fill_time(settings, H5D_FILL_TIME_NEVER);
  if (shape.dims() > 0 && shape.numel() > 0) {  // HDF5 has no chunks of nothing, nor of scalars
    const auto chunk = chunk_of(shape, dtype);
    H5Pset_chunk(settings, static_cast<int>(chunk.size()), chunk.data());
    H5Pset_fletcher32(settings);
  }
  return settings;
}

// --- Attributes ----------------------------------------------------------------------------------

namespace {

Id text_type(size_t size) {
  Id type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type, size);
  H5Tset_cset(type, H5T_CSET_UTF8);
  // Padded, not of variable length: those would lie in a heap that nothing guards.
  H5Tset_strpad(type, H5T_STR_NULLPAD);
  return type;
}

std::string put_attribute(hid_t object, const std::string& key, hid_t type, hid_t space,
                          const void* data) {
  const htri_t there = H5Aexists(object, key.c_str());
  if (there < 0 || (there > 0 && H5Adelete(object, key.c_str()) < 0)) return reason();
  Id made(H5Acreate2(object, key.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  if (!made.valid()) return reason();
  // An empty list has no bytes, and HDF5 refuses to be handed none.
  if (data && H5Awrite(made, type, data) < 0) return reason();
  return made.close() ? "" : reason();
}

Id list_space(size_t n) {
  const hsize_t dims = n;
  return {H5Screate_simple(1, &dims, nullptr), H5Sclose};
}

}  // namespace

std::string put_attribute(hid_t object, const std::string& key, const Attribute& value) {
  const Id scalar(H5Screate(H5S_SCALAR), H5Sclose);
  if (const auto* x = std::get_if<int64_t>(&value))
    return put_attribute(object, key, H5T_STD_I64LE, scalar, x);
  if (const auto* x = std::get_if<double>(&value))
    return put_attribute(object, key, H5T_IEEE_F64LE, scalar, x);
  if (const auto* x = std::get_if<std::string>(&value))
    return put_attribute(object, key, text_type(std::max<size_t>(1, x->size())), scalar, x->data());
  if (const auto* x = std::get_if<std::vector<int64_t>>(&value))
    return put_attribute(object, key, H5T_STD_I64LE, list_space(x->size()), x->data());
  if (const auto* x = std::get_if<std::vector<double>>(&value))
    return put_attribute(object, key, H5T_IEEE_F64LE, list_space(x->size()), x->data());
  const auto& texts = std::get<std::vector<std::string>>(value);
  size_t longest = 1;
  for (const std::string& text : texts) longest = std::max(longest, text.size());
  std::string padded;
  for (std::string text : texts) text.resize(longest, '\0'), padded += text;
  return put_attribute(object, key, text_type(longest), list_space(texts.size()), padded.data());
}

namespace {

// What a fixed-size string holds before its padding.
std::string unpadded(const char* data, size_t size, H5T_str_t padding) {
  std::string text(data, size);
  if (padding == H5T_STR_NULLTERM) {
    text.resize(std::min(text.size(), text.find('\0')));
  } else {
    const char pad = padding == H5T_STR_SPACEPAD ? ' ' : '\0';
    while (!text.empty() && text.back() == pad) text.pop_back();
  }
  return text;
}

bool get_texts(hid_t attribute, hid_t type, size_t n, std::vector<std::string>& texts) {
  texts.clear();
  if (H5Tis_variable_str(type) > 0) {
    std::vector<char*> pointers(std::max<size_t>(1, n), nullptr);
    const Id space(H5Aget_space(attribute), H5Sclose);
    const Id memory(H5Tget_native_type(type, H5T_DIR_ASCEND), H5Tclose);
    if (H5Aread(attribute, memory, pointers.data()) < 0) return false;
    for (size_t i = 0; i < n; ++i) texts.push_back(pointers[i] ? pointers[i] : "");
    H5Dvlen_reclaim(memory, space, H5P_DEFAULT, pointers.data());
    return true;
  }
  const size_t size = H5Tget_size(type);
  std::vector<char> bytes(std::max<size_t>(1, n * size));
  if (H5Aread(attribute, type, bytes.data()) < 0) return false;
  for (size_t i = 0; i < n; ++i)
    texts.push_back(unpadded(bytes.data() + i * size, size, H5Tget_strpad(type)));
  return true;
}

template <class T>
bool get_numbers(hid_t attribute, hid_t memory, size_t n, bool single, Attribute& value) {
  std::vector<T> numbers(std::max<size_t>(1, n));
  if (H5Aread(attribute, memory, numbers.data()) < 0) return false;
  numbers.resize(n);
  if (single)
    value = numbers.at(0);
  else
    value = std::move(numbers);
  return true;
}

}  // namespace

bool get_attribute(hid_t object, const std::string& key, Attribute& value) {
  const Id attribute(H5Aopen(object, key.c_str(), H5P_DEFAULT), H5Aclose);
  if (!attribute.valid()) return false;
  const Id type(H5Aget_type(attribute), H5Tclose);
  const Id space(H5Aget_space(attribute), H5Sclose);
  const H5S_class_t extent = H5Sget_simple_extent_type(space);
  const hssize_t count = H5Sget_simple_extent_npoints(space);
  constexpr hssize_t kMost = 1 << 24;  // values: an attribute of more is damaged
  if (!type.valid() || count < 0 || count > kMost || extent == H5S_NULL) return false;
  const size_t n = static_cast<size_t>(count);
  const bool single = extent == H5S_SCALAR;
  switch (H5Tget_class(type)) {
    case H5T_STRING: {
      std::vector<std::string> texts;
      if (!get_texts(attribute, type, n, texts)) return false;
      if (single)
        value = texts.at(0);
      else
        value = std::move(texts);
      return true;
    }
    case H5T_INTEGER:
    case H5T_ENUM:  // h5py's booleans
      return get_numbers<int64_t>(attribute, H5T_NATIVE_INT64, n, single, value);
    case H5T_FLOAT:
      return get_numbers<double>(attribute, H5T_NATIVE_DOUBLE, n, single, value);
    default:
      return false;
  }
}

bool is_foreign_attribute(hid_t object, const std::string& key) {
  const Id attribute(H5Aopen(object, key.c_str(), H5P_DEFAULT), H5Aclose);
  if (!attribute.valid()) return false;
  const Id type(H5Aget_type(attribute), H5Tclose), space(H5Aget_space(attribute), H5Sclose);
  if (!type.valid() || !space.valid()) return false;
  if (H5Sget_simple_extent_type(space) == H5S_NULL) return true;
  const H5T_class_t kind = H5Tget_class(type);
  return kind != H5T_STRING && kind != H5T_INTEGER && kind != H5T_ENUM && kind != H5T_FLOAT &&
         kind != H5T_NO_CLASS;
}

// --- Lists ---------------------------------------------------------------------------------------

namespace {

// What both iterators call: `Info` tells of a link or of an attribute.
template <class Info>
herr_t add_name(hid_t, const char* name, const Info*, void* to) {
  static_cast<std::vector<std::string>*>(to)->push_back(name);
  return 0;
}

}  // namespace

bool link_names(hid_t group, std::vector<std::string>& names) {
  names.clear();
  const bool listed =
      H5Literate(group, H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, add_name<H5L_info_t>, &names) >= 0;
  std::sort(names.begin(), names.end());
  return listed;
}

bool names_of_attributes(hid_t object, std::vector<std::string>& names) {
  names.clear();
  const bool listed = H5Aiterate2(object, H5_INDEX_NAME, H5_ITER_NATIVE, nullptr,
                                  add_name<H5A_info_t>, &names) >= 0;
  std::sort(names.begin(), names.end());
  return listed;
}

std::string identity(hid_t object) {
#if H5_VERSION_GE(1, 12, 0)
  H5O_info2_t info{};
  if (H5Oget_info3(object, &info, H5O_INFO_BASIC) < 0) return "";
  std::string bytes(reinterpret_cast<const char*>(&info.token), sizeof info.token);
#else
  H5O_info_t info{};
  if (H5Oget_info(object, &info) < 0) return "";
  std::string bytes(reinterpret_cast<const char*>(&info.addr), sizeof info.addr);
#endif
  return bytes.append(reinterpret_cast<const char*>(&info.fileno), sizeof info.fileno);
}

}  // namespace weft::h5
