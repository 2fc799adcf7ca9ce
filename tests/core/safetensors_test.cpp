#include "core/safetensors.h"

#include <sys/stat.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/random.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/message.h"
#include "tests/paths.h"

namespace {

namespace fs = std::filesystem;
using namespace weft;
using weft::tests::Folder;
using weft::tests::message;

// One line that names the file and says what is wrong.
void says(const std::string& text, const std::vector<std::string>& parts) {
  INFO(text);
  CHECK(text.find('\n') == std::string::npos);
  for (const std::string& part : parts) CHECK_THAT(text, ContainsSubstring(part));
}

std::string eight(uint64_t n) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(n >> 8 * i & 255);
  return bytes;
}

std::string file_of(const std::string& header, const std::string& data) {
  return eight(header.size()) + header + data;
}

// A header of one tensor "a".
std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

std::string refused(const Folder& f, const std::string& bytes) {
  f.write("x.safetensors", bytes);
  return message([&] { SafetensorsReader reader(f / "x.safetensors"); });
}

Tensor random_tensor(const Shape& shape, Dtype dtype, uint64_t seed) {
  const Tensor t = empty(shape, dtype);
  const Random random(seed);
  for_dtype(dtype, [&]<class T>() {
    for (int64_t i = 0; i < t.numel(); ++i) {
      const auto at = static_cast<uint64_t>(i);
      if constexpr (std::is_integral_v<T>)
        t.data<T>()[i] = static_cast<T>(random.bits(at));
      else
        t.data<T>()[i] = static_cast<T>(static_cast<float>(random.normal(at)));
    }
  });
  return t;
}

struct Named {
  std::string name;
  Tensor value;
};

std::vector<Named> some_tensors() {
  return {{"model.embed.weight", random_tensor({5, 3}, Dtype::bf16, 1)},
          {"scale", random_tensor({}, Dtype::f64, 2)},
          {"norm", random_tensor({7}, Dtype::f32, 3)},
          {"ids", random_tensor({3}, Dtype::i64, 4)},
          {"small ids", random_tensor({2, 1}, Dtype::i32, 5)},
          {"mask \"caf\u00e9\"", random_tensor({3}, Dtype::u8, 6)},
          {"none", empty({0, 4}, Dtype::f32)}};
}

std::vector<TensorInfo> announced(const std::vector<Named>& tensors) {
  std::vector<TensorInfo> all;
  for (const Named& t : tensors) all.push_back({t.name, t.value.shape(), t.value.dtype()});
  return all;
}

void check_holds(const SafetensorsReader& reader, const std::vector<Named>& tensors) {
  CHECK(reader.entries().size() == tensors.size());
  for (const Named& t : tensors) {
    INFO(t.name);
    REQUIRE(reader.has(t.name));
    const Tensor read = reader.read(t.name);
    CHECK(read.dtype() == t.value.dtype());
    CHECK(read.shape() == t.value.shape());
    CHECK(to_doubles(read) == to_doubles(t.value));
    CHECK(reader.entry(t.name).begin % size_of(t.value.dtype()) == 0);
  }
}

}  // namespace

TEST_CASE("safetensors: a file that Python wrote is read in every dtype") {
  const std::string path = tests::source_path("tests/oracles/foreign.safetensors");
  const SafetensorsReader reader(path);
  const auto values = [&](const char* name) { return to_doubles(reader.read(name)); };
  const auto ints = [&](const char* name) { return to_ints(reader.read(name)); };
  CHECK(reader.metadata().at("format") == "pt");
  CHECK(reader.metadata().at("made by") == "safetensors");
  CHECK(values("f64") == std::vector<double>{1.0 / 3, -2, 1e300});
  CHECK(reader.entry("f32").shape == Shape{2, 3});
  CHECK(reader.read("f32").dtype() == Dtype::f32);
  for (size_t i = 0; i < 6; ++i)
    CHECK(values("f32")[i] == static_cast<double>(static_cast<float>(i) / 7.0f));
  const std::vector<double> half = values("f16");
  CHECK(
      std::vector<double>(half.begin(), half.begin() + 6) ==
      std::vector<double>{0, 0, 0.333251953125, 65504, std::ldexp(1, -24), std::ldexp(1007, -24)});
  CHECK(std::signbit(half[1]));
  CHECK((half[6] == std::numeric_limits<double>::infinity() && std::isnan(half[7])));
  CHECK(reader.read("f16").dtype() == Dtype::f32);
  CHECK(reader.read("bf16").dtype() == Dtype::bf16);
  CHECK(values("bf16") == std::vector<double>{double(float(bf16(1.0f / 3))),
                                              double(float(bf16(-3e38f))),
                                              double(float(bf16(1e-40f)))});
  CHECK(ints("i64") == std::vector<int64_t>{int64_t{1} << 62, -1});
  CHECK(ints("i32") == std::vector<int64_t>{-(int64_t{1} << 31), 7});
  CHECK(ints("i16") == std::vector<int64_t>{-32768, 5});
  CHECK(ints("u16") == std::vector<int64_t>{65535});
  CHECK(ints("u32") == std::vector<int64_t>{(int64_t{1} << 32) - 1});
  CHECK(ints("u64") == std::vector<int64_t>{std::numeric_limits<int64_t>::max()});
  CHECK(ints("i8") == std::vector<int64_t>{-128, 127});
  CHECK(ints("u8") == std::vector<int64_t>{255, 0});
  CHECK(ints("bool") == std::vector<int64_t>{1, 0, 1});
  CHECK(reader.read("scalar").item() == 2.5);
  CHECK(reader.read("empty").shape() == Shape{0, 3});
  CHECK(values("layers.0.wq caf\u00e9") == std::vector<double>{1});
}

TEST_CASE("safetensors: a tensor is read as another dtype of its kind, or refused") {
  const std::string path = tests::source_path("tests/oracles/foreign.safetensors");
  const SafetensorsReader reader(path);
  CHECK(to_doubles(reader.read("f64", Dtype::f32))[0] == double(float(1.0 / 3)));
  CHECK(to_doubles(reader.read("f64", Dtype::bf16))[0] == double(float(bf16(float(1.0 / 3)))));
  CHECK(to_doubles(reader.read("f32", Dtype::f64)) == to_doubles(reader.read("f32")));
  CHECK(to_doubles(reader.read("bf16", Dtype::f32)) == to_doubles(reader.read("bf16")));
  CHECK(to_ints(reader.read("u8", Dtype::i32)) == std::vector<int64_t>{255, 0});
  CHECK(to_ints(reader.read("i32", Dtype::i64)) == to_ints(reader.read("i32")));
  says(message([&] { reader.read("i64", Dtype::i32); }),
       {path, "\"i64\"", "4611686018427387904", "i32 cannot hold"});
  says(message([&] { reader.read("i8", Dtype::u8); }), {path, "\"i8\"", "-128", "u8"});
  says(message([&] { reader.read("i32", Dtype::f32); }), {path, "\"i32\"", "I32", "as f32"});
  says(message([&] { reader.read("f32", Dtype::i32); }), {path, "\"f32\"", "F32", "as i32"});
  says(message([&] { reader.read("f8", Dtype::f32); }), {path, "\"f8\"", "F8_E4M3"});
  says(message([&] { (void)reader.entry("f8").nearest(); }), {"\"f8\"", "F8_E4M3"});
  says(message([&] { reader.read("f33", Dtype::f32); }), {path, "\"f33\"", "\"f32\""});
}

TEST_CASE("safetensors: what is written is read back, bit for bit, given in any order") {
  const Folder f;
  std::vector<Named> tensors = some_tensors();
  const std::map<std::string, std::string> metadata = {{"format", "weft"}, {"step", "3"}};
  SafetensorsWriter writer(f / "a.safetensors", announced(tensors), metadata);
  for (size_t i = tensors.size(); i-- > 0;) writer.tensor(tensors[i].name, tensors[i].value);
  CHECK_FALSE(fs::exists(f / "a.safetensors"));
  writer.commit();
  CHECK(f.names() == std::set<std::string>{"a.safetensors"});
  const SafetensorsReader reader(f / "a.safetensors");
  check_holds(reader, tensors);
  CHECK(reader.metadata() == metadata);
  CHECK(static_cast<unsigned char>(f.read("a.safetensors")[0]) % 8 == 0);
  // The same tensors make the same bytes.
  SafetensorsWriter again(f / "b.safetensors", announced(tensors), metadata);
  for (const Named& t : tensors) again.tensor(t.name, t.value);
  again.commit();
  CHECK(f.read("a.safetensors") == f.read("b.safetensors"));
  // A view is written as it looks.
  const Tensor view = random_tensor({4, 3}, Dtype::f32, 9).transpose(0, 1);
  SafetensorsWriter turned(f / "c.safetensors", {{"v", {3, 4}, Dtype::f32}});
  turned.tensor("v", view);
  turned.commit();
  CHECK(to_doubles(SafetensorsReader(f / "c.safetensors").read("v")) == to_doubles(view));
}

TEST_CASE("safetensors: a writer that is given something else leaves the older file") {
  const Folder f;
  f.write("a.safetensors", "older");
  const Tensor a = random_tensor({2}, Dtype::f32, 1);
  const std::vector<TensorInfo> two = {{"a", {2}, Dtype::f32}, {"b", {2}, Dtype::f32}};
  const std::string path = f / "a.safetensors";
  says(message([&] {
         SafetensorsWriter writer(path, two);
         writer.tensor("a", a);
         writer.commit();
       }),
       {path, "\"b\"", "not written"});
  says(message([&] { SafetensorsWriter(path, two).tensor("c", a); }), {path, "\"c\"", "announced"});
  says(message([&] { SafetensorsWriter(path, two).tensor("a", a.to(Dtype::f64)); }),
       {path, "\"a\"", "f64", "f32"});
  says(message([&] {
         SafetensorsWriter(path, two).tensor("a", a.reshape({1, 2}));
       }),
       {path, "[1, 2]", "[2]"});
  says(message([&] {
         SafetensorsWriter writer(path, two);
         writer.tensor("a", a), writer.tensor("a", a);
       }),
       {path, "\"a\"", "twice"});
  says(message([&] { SafetensorsWriter(path, {two[0], two[0]}); }), {path, "\"a\"", "twice"});
  says(message([&] {
         SafetensorsWriter(path, {{"__metadata__", {2}, Dtype::f32}});
       }),
       {path, "__metadata__"});
  says(message([&] { SafetensorsWriter(path, {{"a\xe9", {2}, Dtype::f32}}); }), {path, "UTF-8"});
  says(message([&] { SafetensorsWriter(path, two, {{"k", "a\xe9"}}); }), {path, "UTF-8"});
  says(message([&] { SafetensorsWriter(f / "no/a.safetensors", two); }), {"no", "folder"});
  says(message([&] { SafetensorsWriter(f.path(), two); }), {f.path(), "folder"});
  CHECK(f.read("a.safetensors") == "older");
  CHECK(f.names() == std::set<std::string>{"a.safetensors"});
}

TEST_CASE("safetensors: a model above the limit is written as shards and an index") {
  const Folder f;
  const std::vector<Named> tensors = some_tensors();
  SafetensorsFolderWriter writer(f / "m", announced(tensors), {{"format", "pt"}}, 40);
  for (const Named& t : tensors) writer.tensor(t.name, t.value);
  says(message([&] { SafetensorsReader reader(f / "m"); }), {"neither model.safetensors"});
  writer.commit();
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(f / "m"))
    names.insert(entry.path().filename().string());
  CHECK(names == std::set<std::string>{
                     "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                     "model-00003-of-00003.safetensors", "model.safetensors.index.json"});
  CHECK_THAT(read_file(f / "m/model.safetensors.index.json"),
             ContainsSubstring("\"total_size\":101") && ContainsSubstring("\"weight_map\""));
  const SafetensorsReader reader(f / "m");
  CHECK(reader.files().size() == 3);
  CHECK(reader.metadata().at("format") == "pt");
  check_holds(reader, tensors);
  check_holds(SafetensorsReader(f / "m/model.safetensors.index.json"), tensors);
  says(message([&] { SafetensorsFolderWriter(f / "m", announced(tensors)); }),
       {f / "m", "already", "new folder"});
}

TEST_CASE("safetensors: a model within the limit is one file, and a failed one leaves no folder") {
  const Folder f;
  const std::vector<Named> tensors = some_tensors();
  {
    SafetensorsFolderWriter writer(f / "m", announced(tensors));
    for (const Named& t : tensors) writer.tensor(t.name, t.value);
    writer.commit();
  }
  check_holds(SafetensorsReader(f / "m"), tensors);
  CHECK(fs::exists(f / "m/model.safetensors"));
  says(message([&] {
         SafetensorsFolderWriter writer(f / "n", announced(tensors), {}, 8);
         for (size_t i = 1; i < tensors.size(); ++i)
           writer.tensor(tensors[i].name, tensors[i].value);
         writer.commit();
       }),
       {f / "n", "model.embed.weight", "not written"});
  says(message([&] {
         SafetensorsFolderWriter writer(f / "n", announced(tensors), {}, 8);
         for (size_t i = 0; i + 2 < tensors.size(); ++i)
           writer.tensor(tensors[i].name, tensors[i].value);
         writer.commit();  // the first shards are in place when a later one is refused
       }),
       {f / "n", "not written"});
  std::vector<TensorInfo> twice = announced(tensors);
  twice.push_back(twice[0]);
  says(message([&] { SafetensorsFolderWriter(f / "n", twice, {}, 8); }), {"twice"});
  CHECK(f.names() == std::set<std::string>{"m"});
}

TEST_CASE("safetensors: a header that is missing, too large, cut short or no JSON is refused") {
  const Folder f;
  const std::string path = f / "x.safetensors";
  const std::string good = file_of(one("F32", "[1]", "[0,4]"), "abcd");
  CHECK(refused(f, good) == "no error");
  CHECK(refused(f, file_of(one("F32", "[1]", "[0,4]") + "   ", "abcd")) == "no error");
  CHECK(refused(f, file_of("{}", "")) == "no error");
  for (size_t n = 0; n < good.size(); ++n) {
    INFO(n);
    says(refused(f, good.substr(0, n)), {path});
    CHECK(message([&] { SafetensorsReader reader(path); }) != "no error");
  }
  says(refused(f, "abc"), {path, "cut short", "3 bytes"});
  says(refused(f, eight(0) + "{}"), {path, "0 bytes"});
  says(refused(f, eight(100'000'001) + "{}"), {path, "100000001", "at most 100000000"});
  says(refused(f, eight(uint64_t{1} << 63) + "{}"), {path, "9223372036854775808"});
  says(refused(f, eight(99) + "{}"), {path, "cut short", "99", "2 follow"});
  says(refused(f, file_of("[]", "")), {path, "{"});
  says(refused(f, file_of("{\"a\":", "")), {path, "header", "no JSON"});
  says(refused(f, file_of("{} x", "")), {path, "header", "no JSON"});
  says(refused(f, file_of("{\"a\xe9\":{}}", "")), {path, "header", "UTF-8"});
  says(refused(f, file_of(R"({"a":1e999})", "")), {path, "number"});
  says(refused(f, file_of("{\"a\":" + std::string(5000, '[') + std::string(5000, ']') + "}", "")),
       {path, "levels"});
  const std::string a = R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  says(refused(f, file_of("{" + a + "," + a + "}", "a")), {path, "\"a\"", "twice"});
  says(refused(f, file_of(R"({"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}})",
                          "a")),
       {path, "\"dtype\"", "twice"});
  says(refused(f, file_of(R"({"__metadata__":{"format":1}})", "")), {path, "__metadata__"});
  says(refused(f, file_of(R"({"__metadata__":[]})", "")), {path, "__metadata__"});
}

TEST_CASE("safetensors: a tensor whose dtype, shape and place do not agree is refused") {
  const Folder f;
  const std::string path = f / "x.safetensors";
  const auto tensor = [&](const std::string& header) {
    return refused(f, file_of(header, "abcd"));
  };
  says(tensor(one("F31", "[1]", "[0,4]")), {path, "\"a\"", "\"F31\"", "known: F64 F32"});
  says(tensor(one("F32", "[-1]", "[0,4]")), {path, "\"a\"", "shape", "-1"});
  says(tensor(one("F32", "[1.0]", "[0,4]")), {path, "\"a\"", "shape", "1.0"});
  says(tensor(one("F32", "[null]", "[0,4]")), {path, "\"a\"", "shape", "null"});
  says(tensor(one("F32", "4", "[0,4]")), {path, "\"a\"", "shape"});
  says(tensor(one("F32", "[1,1,1,1,1,1,1]", "[0,4]")), {path, "\"a\"", "7 dimensions"});
  says(tensor(one("F32", "[18446744073709551615]", "[0,4]")), {path, "18446744073709551615"});
  says(tensor(one("F32", "[4294967296,4294967296]", "[0,4]")), {path, "\"a\"", "64 bits"});
  says(tensor(one("F32", "[2305843009213693952]", "[0,4]")), {path, "\"a\"", "64 bits"});
  says(tensor(one("F32", "[2]", "[0,4]")), {path, "\"a\"", "4 bytes", "expected 8"});
  says(tensor(one("F4", "[3]", "[0,2]")), {path, "\"a\"", "F4"});
  says(tensor(one("F32", "[1]", "[4,0]")), {path, "\"a\"", "before its begin"});
  says(tensor(one("F32", "[1]", "[0]")), {path, "\"a\"", "data_offsets"});
  says(tensor(one("F32", "[1]", "[-4,0]")), {path, "\"a\"", "data_offsets", "-4"});
  says(tensor(one("F32", "[1]", "\"0 4\"")), {path, "\"a\"", "data_offsets"});
  says(tensor(one("F32", "[2]", "[0,8]")), {path, "\"a\"", "cut short"});
  says(tensor(one("U8", "[3]", "[1,4]")), {path, "\"a\"", "0 to 1", "no tensor"});
  says(tensor(one("U8", "[3]", "[0,3]")), {path, "1 bytes behind"});
  says(tensor("{}"), {path, "4 bytes behind"});
  says(tensor(R"({"a":3})"), {path, "\"a\"", "no object"});
  says(tensor(R"({"a\n":3})"), {path, "\"a\\n\"", "no object"});
  says(tensor(R"({"a":{"dtype":"U8","shape":[4]}})"), {path, "\"a\"", "no data_offsets"});
  says(tensor(R"({"a":{"dtype":8,"shape":[4],"data_offsets":[0,4]}})"), {path, "\"a\"", "dtype"});
  says(tensor(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"stride":1}})"),
       {path, "\"a\"", "\"stride\""});
  const auto two = [](const char* first, const char* second) {
    return concat(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":)", first,
                  R"(},"b":{"dtype":"U8","shape":[2],"data_offsets":)", second, "}}");
  };
  CHECK(tensor(two("[0,2]", "[2,4]")) == "no error");
  CHECK(tensor(two("[2,4]", "[0,2]")) == "no error");
  says(tensor(two("[0,2]", "[1,3]")), {path, "\"b\"", "inside"});
  says(tensor(two("[0,2]", "[0,2]")), {path, "\"b\"", "inside"});
}

TEST_CASE("safetensors: a file of another kind is told by its kind") {
  const Folder f;
  const std::string path = f / "x.safetensors";
  const std::string more(200, '\1');
  for (const std::string& pickle : {std::string("\x80\x02\x8a\x0a"), std::string("PK\x03\x04")})
    says(refused(f, pickle + more), {path, "pickle", "save_file"});
  says(refused(f, std::string("\x80\x04\x95\x20\0\0\0\0\0\0\0", 11) + more), {path, "pickle"});
  says(refused(f, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
       {path, "git-lfs", "git lfs pull"});
  says(refused(f, "\x89HDF\r\n\x1a\n" + more), {path, "HDF5"});
  says(refused(f, "GGUF" + more), {path, "GGUF"});
  says(refused(f, "{\"a\": 1, \"b\": 2}"), {path, "JSON"});
  says(refused(f, "<!doctype html>"), {path, "web page"});
  REQUIRE(::mkfifo((f / "fifo").c_str(), 0600) == 0);
  says(message([&] { SafetensorsReader reader(f / "fifo"); }), {f / "fifo", "no regular file"});
  fs::create_directory(f / "m");
  says(message([&] { SafetensorsReader reader(f / "m"); }), {f / "m", "neither model.safetensors"});
  f.write("m/pytorch_model.bin", "PK");
  says(message([&] { SafetensorsReader reader(f / "m"); }), {f / "m", "pickle", "save_file"});
  fs::create_directories(f / "n/model.safetensors");
  says(message([&] { SafetensorsReader reader(f / "n"); }), {"model.safetensors", "folder"});
  REQUIRE(::mkfifo((f / "m/model.safetensors.index.json").c_str(), 0600) == 0);
  says(message([&] { SafetensorsReader reader(f / "m"); }), {"index.json", "no regular file"});
  says(message([&] { SafetensorsReader reader(f / "none"); }), {f / "none", "No such file"});
}

TEST_CASE("safetensors: an index and its shards must name the same tensors") {
  const Folder f;
  const std::string index = f / "model.safetensors.index.json";
  const auto read = [&](const std::string& text) {
    f.write("model.safetensors.index.json", text);
    return message([&] { SafetensorsReader reader(f.path()); });
  };
  const auto map = [](const std::string& places) { return "{\"weight_map\":{" + places + "}}"; };
  const auto shard = [&](const char* file, const std::string& name) {
    f.write(file,
            file_of("{\"" + name + R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "a"));
  };
  shard("1.safetensors", "a");
  shard("2.safetensors", "b");
  const std::string a = R"("a":"1.safetensors")", b = R"("b":"2.safetensors")";
  CHECK(read(map(a + "," + b)) == "no error");
  CHECK(read(map(a)) == "no error");
  says(read(map(a + "," + b + R"(,"c":"3.safetensors")")), {"3.safetensors", "missing", index});
  says(read(map(a + "," + b + R"(,"c":"2.safetensors")")), {"2.safetensors", "lacks", "\"c\""});
  says(read(map(R"("c":"2.safetensors")")), {"2.safetensors", "\"b\"", index});
  says(read(map(R"("a":"2.safetensors","b":"1.safetensors")")), {"1.safetensors", "\"a\""});
  shard("2.safetensors", "a");
  says(read(map(a + "," + b)), {"2.safetensors", "\"a\""});
  for (const char* place :
       {"../1.safetensors", "/etc/passwd", "..", ".", "", "a/b", "a\\\\b", "1.safetensors\\u0000"})
    says(read(map(concat("\"a\":\"", place, "\""))), {index, "\"a\"", "bare name"});
  says(read(map("\"a\":1")), {index, "\"a\"", "no text"});
  says(read(map("")), {index, "names no tensor"});
  says(read("{}"), {index, "weight_map"});
  says(read("[]"), {index, "weight_map"});
  says(read("{"), {index, "no JSON"});
  says(read(map(a + "," + a)), {index, "\"a\"", "twice"});
  f.write("3.safetensors", "PK\x03\x04zip");
  says(read(map(R"("a":"3.safetensors")")), {"3.safetensors", "pickle"});
}

TEST_CASE("safetensors: a file that becomes shorter while it is open is told") {
  const Folder f;
  f.write("x.safetensors", file_of(one("F32", "[1]", "[0,4]"), "abcd"));
  const SafetensorsReader reader(f / "x.safetensors");
  fs::resize_file(f / "x.safetensors", fs::file_size(f / "x.safetensors") - 1);
  says(message([&] { reader.read("a"); }), {"x.safetensors", "\"a\"", "shorter"});
  says(message([&] { reader.read("a", Dtype::f64); }), {"x.safetensors", "\"a\"", "shorter"});
}

TEST_CASE("safetensors: any bit of a header that is changed is told in one line, or read") {
  const Folder f;
  const std::string good = read_file(tests::source_path("tests/oracles/foreign.safetensors"));
  const size_t header = static_cast<unsigned char>(good[0]) + (size_t{4} << 8) + 8;
  int told = 0;
  for (size_t at = 0; at < header; ++at) {
    std::string bytes = good;
    bytes[at] = static_cast<char>(bytes[at] ^ 1 << at % 8);
    f.write("x.safetensors", bytes);
    const std::string said = message([&] {
      const SafetensorsReader reader(f / "x.safetensors");
      for (const SafeTensor& t : reader.entries())
        if (t.dtype != "F8_E4M3") reader.read(t.name);
    });
    if (said == "no error") continue;
    INFO(at << " " << said);
    CHECK(said.find('\n') == std::string::npos);
    CHECK_THAT(said, ContainsSubstring(f / "x.safetensors"));
    ++told;
  }
  CHECK(told > static_cast<int>(header) / 2);  // what is left changed a name, or a blank
}
