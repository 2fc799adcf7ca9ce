#include "core/hdf5.h"

#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "core/file.h"
#include "core/hash.h"
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

bool contains(const std::string& text, const std::string& part) {
  INFO(text << "\nlacks: " << part);
  CHECK(text.find(part) != std::string::npos);
  return text.find(part) != std::string::npos;
}

const std::vector<Dtype> kDtypes = {Dtype::f64, Dtype::f32, Dtype::bf16,
                                    Dtype::i64, Dtype::i32, Dtype::u8};

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

bool same(const Tensor& a, const Tensor& b) {
  const auto bytes = static_cast<size_t>(a.numel() * size_of(a.dtype()));
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         hash64(a.raw(), bytes) == hash64(b.raw(), bytes);
}

void save(const std::string& path, const std::vector<std::pair<std::string, Tensor>>& tensors) {
  Hdf5Writer out(path);
  for (const auto& [name, tensor] : tensors) out.tensor(name, tensor);
  out.attribute("", "kind", std::string("test"));
  out.commit();
}

}  // namespace

TEST_CASE("hdf5: tensors of every dtype and shape come back bit for bit") {
  const Folder folder;
  std::vector<std::pair<std::string, Tensor>> tensors;
  uint64_t seed = 0;
  for (const Dtype dtype : kDtypes) {
    const std::string name(name_of(dtype));
    tensors.push_back({name + "/odd", random_tensor({3, 5, 7}, dtype, ++seed)});
    tensors.push_back({name + "/long", random_tensor({400003}, dtype, ++seed)});
    tensors.push_back({name + "/scalar", random_tensor({}, dtype, ++seed)});
    tensors.push_back({name + "/none", random_tensor({4, 0, 2}, dtype, ++seed)});
  }
  const Tensor wide = random_tensor({6, 8}, Dtype::f32, 99);
  tensors.push_back({"strided", wide.transpose(0, 1)});
  save(folder / "a.h5", tensors);
  CHECK(folder.names().size() == 1);
  const Hdf5Reader in(folder / "a.h5");
  for (const auto& [name, tensor] : tensors) {
    INFO(name);
    CHECK(same(in.tensor(name), tensor.contiguous()));
    CHECK(in.info(name).shape == tensor.shape());
  }
  CHECK(in.tensors().size() == tensors.size());
  CHECK(in.tensors("bf16").size() == 4);
  CHECK(in.tensors("bf16").front().name == "bf16/long");
  CHECK(in.groups() == std::vector<std::string>{"bf16", "f32", "f64", "i32", "i64", "u8"});
  CHECK(same(in.rows("f32/long", 262140, 262150),
             tensors[5].second.slice(0, 262140, 262150).contiguous()));
  in.verify();
}

TEST_CASE("hdf5: attributes of every kind come back, long ones too") {
  const Folder folder;
  const std::string recipe(200000, 'r');
  {
    Hdf5Writer out(folder / "a.h5");
    out.attribute("", "text", std::string("\xc3\xa9t\xc3\xa9"));
    out.attribute("", "none", std::string());
    out.attribute("", "recipe", recipe);
    out.attribute("run/state", "step", int64_t{1} << 60);
    out.attribute("run/state", "step", (int64_t{1} << 60) + 1);  // replaced
    out.attribute("run/state", "loss", 0.1);
    out.attribute("run", "names", std::vector<std::string>{"a", "", "long name"});
    out.attribute("run", "sizes", std::vector<int64_t>{1, -2});
    out.attribute("run", "rates", std::vector<double>{0.5});
    out.attribute("run", "nothing", std::vector<int64_t>{});
    out.commit();
  }
  const Hdf5Reader in(folder / "a.h5");
  CHECK(in.text("", "text") == "\xc3\xa9t\xc3\xa9");
  CHECK(in.text("", "none").empty());
  CHECK(in.text("", "recipe") == recipe);
  CHECK(in.integer("run/state", "step") == (int64_t{1} << 60) + 1);
  CHECK(in.number("run/state", "loss") == 0.1);
  CHECK(in.texts("run", "names") == std::vector<std::string>{"a", "", "long name"});
  CHECK(in.attributes("run").size() == 4);
  CHECK(std::get<std::vector<double>>(in.attribute("run", "rates")) == std::vector<double>{0.5});
  CHECK(std::get<std::vector<int64_t>>(in.attribute("run", "nothing")).empty());
  CHECK(contains(message([&] { in.integer("run", "names"); }), "is no integer"));
  CHECK(contains(message([&] { in.text("", "absent"); }), "attribute \"absent\" is missing"));
}

TEST_CASE("hdf5: an attribute that would not read back as it is is refused") {
  const Folder f;
  Hdf5Writer file(f / "a.h5");
  for (const std::string& bad :
       {std::string("caf\xe9"), std::string("a\0b", 3), std::string(1, '\0')}) {
    CHECK_THROWS_WITH(file.attribute("", "text", bad), ContainsSubstring("UTF-8"));
    CHECK_THROWS_WITH(file.attribute("", "texts", std::vector<std::string>{"a", bad}),
                      ContainsSubstring("UTF-8"));
  }
}

TEST_CASE("hdf5: rows handed over in pieces make one tensor") {
  const Folder folder;
  const Tensor all = random_tensor({300001, 3}, Dtype::i32, 5);
  {
    Hdf5Writer out(folder / "a.h5");
    out.begin_rows("tokens", Dtype::i32, {3});
    for (int64_t at = 0, step = 1; at < 300001; at += step, step = step * 3 + 1) {
      const int64_t end = std::min<int64_t>(300001, at + step);
      out.append_rows("tokens", all.data<int32_t>() + at * 3, end - at);
    }
    out.begin_rows("empty", Dtype::u8, {});
    out.commit();
  }
  const Hdf5Reader in(folder / "a.h5");
  CHECK(same(in.tensor("tokens"), all));
  CHECK(in.tensor("empty").numel() == 0);
  std::vector<int32_t> piece(6);
  in.read_rows("tokens", 87380, 87382, piece.data());
  CHECK(std::equal(piece.begin(), piece.end(), all.data<int32_t>() + 87380 * 3));
  CHECK(contains(message([&] { in.rows("tokens", 0, 300002); }), "has no rows [0, 300002)"));
}

TEST_CASE("hdf5: the same tensors make the same bytes") {
  const Folder folder;
  const std::vector<std::pair<std::string, Tensor>> tensors = {
      {"a/x", random_tensor({9, 9}, Dtype::f32, 1)}, {"b", random_tensor({5}, Dtype::bf16, 2)}};
  save(folder / "a.h5", tensors);
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // HDF5 counts time in seconds
  save(folder / "b.h5", tensors);
  CHECK(read_file(folder / "a.h5") == read_file(folder / "b.h5"));
}

TEST_CASE("hdf5: a flipped bit in any tensor is found and the tensor named") {
  const Folder folder;
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const Dtype dtype : kDtypes)
    tensors.push_back({"layers/" + std::string(name_of(dtype)), random_tensor({40, 30}, dtype, 7)});
  tensors.push_back({"scalar", random_tensor({}, Dtype::f64, 8)});
  save(folder / "a.h5", tensors);
  const std::string whole = read_file(folder / "a.h5");
  for (const auto& [name, tensor] : tensors) {
    // Numbers of every size are their own only copy in the file.
    const auto bytes = static_cast<size_t>(tensor.numel() * size_of(tensor.dtype()));
    const std::string data(static_cast<const char*>(tensor.raw()), bytes);
    const size_t at = whole.find(data);
    REQUIRE(at != std::string::npos);
    std::string bad = whole;
    bad[at + bytes / 2] = static_cast<char>(bad[at + bytes / 2] ^ 4);
    write_file(folder / "bad.h5", bad);
    const std::string said = message([&] {
      const Hdf5Reader in(folder / "bad.h5", "checkpoint");
      for (const auto& [other, expected] : tensors)
        if (other != name) CHECK(same(in.tensor(other), expected));
      in.tensor(name);
    });
    CHECK(contains(said, "bad.h5: tensor \"" + name + "\" is damaged: "));
    CHECK(contains(said, "use an earlier checkpoint"));
    CHECK(contains(message([&] { Hdf5Reader(folder / "bad.h5").verify(); }), name));
  }
}

TEST_CASE("hdf5: a flipped bit anywhere is found") {
  const Folder folder;
  const Tensor a = random_tensor({10, 3}, Dtype::f32, 1), b = random_tensor({5}, Dtype::bf16, 2);
  save(folder / "a.h5", {{"group/a", a}, {"b", b}});
  const std::string whole = read_file(folder / "a.h5");
  for (size_t at = 0; at < whole.size(); at += 7 + at / 300) {
    std::string bad = whole;
    bad[at] = static_cast<char>(bad[at] ^ (1 << at % 8));
    write_file(folder / "bad.h5", bad);
    INFO("byte " << at);
    CHECK(contains(message([&] { Hdf5Reader(folder / "bad.h5"); }), "bad.h5"));
  }
}

TEST_CASE("hdf5: missing, foreign, empty and truncated files are told apart") {
  const Folder folder;
  const auto open = [](const std::string& path) {
    return message([&] { Hdf5Reader in(path, "checkpoint"); });
  };
  CHECK(contains(open(folder / "no.h5"), "no.h5: cannot be read: No such file or directory"));
  CHECK(contains(open(folder.path()), "is a folder, expected a checkpoint"));
  write_file(folder / "text.h5", "not HDF5 at all\n");
  CHECK(contains(open(folder / "text.h5"), "is not an HDF5 file, expected a checkpoint"));
  write_file(folder / "empty.h5", "");
  CHECK(contains(open(folder / "empty.h5"), "is not an HDF5 file"));
  save(folder / "a.h5", {{"keys", random_tensor({1000}, Dtype::f64, 3)}});
  const std::string whole = read_file(folder / "a.h5");
  write_file(folder / "half.h5", whole.substr(0, whole.size() / 2));
  CHECK(contains(open(folder / "half.h5"), "is damaged: it is truncated, only "));
  for (size_t size = 0; size < whole.size(); size += 97) {
    write_file(folder / "cut.h5", whole.substr(0, size));
    CHECK(contains(open(folder / "cut.h5"), "cut.h5"));
  }
  const Hdf5Reader in(folder / "a.h5");
  CHECK(contains(message([&] { in.tensor("key"); }), "no tensor \"key\"; did you mean \"keys\"?"));
  CHECK(contains(message([&] { in.tensor("y"); }), "no tensor \"y\"; it holds keys"));
}

TEST_CASE("hdf5: files of other programs are read, their types widened") {
  const Hdf5Reader in(tests::source_path("tests/core/foreign.h5"));  // made by foreign.py
  const auto numbers = [&](const std::string& name, Dtype dtype) {
    INFO(name);
    CHECK(in.info(name).dtype == dtype);
    return to_doubles(in.tensor(name));
  };
  using Numbers = std::vector<double>;
  CHECK(numbers("inputs/q", Dtype::f64) == Numbers{0, 1, 2, 3, 4, 5});
  CHECK(numbers("inputs/half", Dtype::f32) == Numbers{0, 0.5, -2});
  CHECK(numbers("inputs/mask", Dtype::u8) == Numbers{1, 0});
  CHECK(numbers("i8", Dtype::i32) == Numbers{-1, 5});
  CHECK(numbers("u16", Dtype::i32) == Numbers{65535});
  CHECK(numbers("u32", Dtype::i64) == Numbers{4294967295});
  CHECK(numbers("big_endian", Dtype::f32) == Numbers{1.5, 2});
  CHECK(numbers("scalar", Dtype::f64) == Numbers{3.5});
  CHECK(numbers("zipped", Dtype::i64).at(999) == 999);
  CHECK(in.tensors().size() == 9);
  CHECK(in.tensors("inputs").size() == 3);
  CHECK(contains(message([&] { in.tensor("words"); }), "is no tensor of numbers"));
  CHECK(in.integer("options", "causal") == 1);
  CHECK(in.number("options", "scale") == 0.125);
  CHECK(in.number("options", "small") == 0.5);
  CHECK(in.number("options", "window") == 3);
  CHECK(in.text("options", "name") == "caf\xc3\xa9");
  CHECK(in.text("options", "fixed") == "fixed");
  CHECK(in.texts("options", "names") == std::vector<std::string>{"a", "bc"});
  CHECK(in.attributes("options").size() == 8);
  in.verify();
}

TEST_CASE("hdf5: a file that cannot be written is told, and the older one stays") {
  const Folder folder;
  const auto old = random_tensor({10}, Dtype::f32, 1);
  save(folder / "a.h5", {{"x", old}});
  CHECK(contains(message([&] { save(folder / "none/a.h5", {}); }), "there is no folder"));
  CHECK(contains(message([&] { save(folder.path(), {}); }), "is a folder"));
  {
    Hdf5Writer out(folder / "a.h5");
    out.tensor("x", random_tensor({500000}, Dtype::f32, 2));
    CHECK(contains(message([&] { out.tensor("x", old); }), "tensor \"x\" cannot be written"));
  }  // not committed
  CHECK(folder.names().size() == 1);
  CHECK(same(Hdf5Reader(folder / "a.h5").tensor("x"), old));
}

TEST_CASE("hdf5: running out of room is told with the reason, and the older file stays") {
  const Folder folder;
  const auto old = random_tensor({10}, Dtype::f32, 1);
  save(folder / "a.h5", {{"x", old}});
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit before {};
  ::getrlimit(RLIMIT_FSIZE, &before);
  for (const rlim_t most : {rlim_t{1000}, rlim_t{100000}, rlim_t{900000}}) {
    struct rlimit small = before;
    small.rlim_cur = most;
    ::setrlimit(RLIMIT_FSIZE, &small);
    const std::string said = message([&] {
      save(folder / "a.h5", {{"y", random_tensor({3, 100000}, Dtype::f32, 2)}});
    });
    ::setrlimit(RLIMIT_FSIZE, &before);
    CHECK(contains(said, "a.h5: "));
    CHECK(contains(said, "cannot be written: File too large"));
  }
  std::signal(SIGXFSZ, handler);
  CHECK(folder.names().size() == 1);
  CHECK(same(Hdf5Reader(folder / "a.h5").tensor("x"), old));
}

TEST_CASE("hdf5: a full disk is told as such") {
  const Folder folder;
  if (::mount("weft", folder.path().c_str(), "tmpfs", 0, "size=1m") != 0)
    SKIP("no right to mount a small disk");
  const auto old = random_tensor({10}, Dtype::f32, 1);
  save(folder / "a.h5", {{"x", old}});
  const std::string said = message([&] {
    save(folder / "a.h5", {{"big", random_tensor({1000, 600}, Dtype::f32, 2)}});
  });
  CHECK(contains(said, "a.h5: tensor \"big\" cannot be written: No space left on device"));
  CHECK(folder.names().size() == 1);
  CHECK(same(Hdf5Reader(folder / "a.h5").tensor("x"), old));
  ::umount(folder.path().c_str());
}

TEST_CASE("hdf5: threads read and write at once") {
  const Folder folder;
  const Tensor t = random_tensor({50000}, Dtype::f32, 1);
  save(folder / "a.h5", {{"x", t}});
  std::vector<std::string> said(4);
  {
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < said.size(); ++i)
      threads.emplace_back([&, i] {
        said[i] = message([&] {
          std::vector<float> row(50000);
          const Hdf5Reader in(folder / "a.h5");
          for (int n = 0; n < 10; ++n) {
            in.read_rows("x", 0, 50000, row.data());
            require(std::equal(row.begin(), row.end(), t.data<float>()), "differs");
            if (i % 2) save(folder / std::to_string(i), {{"x", t}});
          }
        });
      });
  }
  for (const std::string& text : said) CHECK(text == "no error");
}
