// Both sides of each question that a reader can ask of a file, and the bounds of each part of it.
#include <filesystem>

#include "core/error.h"
#include "core/hash.h"
#include "core/hdf5.h"
#include "core/tensor.h"
#include "tests/catch.h"
#include "tests/core/counted.h"
#include "tests/folder.h"

using namespace weft;
using weft::tests::counted;
using weft::tests::Folder;

namespace {

void write(const std::string& path) {
  Hdf5Writer out(path);
  out.tensor("b", counted({5, 3}, Dtype::f32));
  out.tensor("g/a", counted({4}, Dtype::i32));
  out.tensor("g/h/c", counted({2, 2}));
  out.attribute("", "whole", int64_t{7});
  out.attribute("", "real", 0.5);
  out.attribute("", "text", std::string("words"));
  out.attribute("g", "list", std::vector<std::string>{"a", "b"});
  out.attribute("b", "of tensor", int64_t{1});
  out.commit();
}

std::vector<std::string> names(const std::vector<TensorInfo>& all) {
  std::vector<std::string> list;
  for (const TensorInfo& t : all) list.push_back(t.name);
  return list;
}

}  // namespace

TEST_CASE("hdf5 calls: what is there is told apart from what is not, and tensors from groups") {
  const Folder f;
  write(f / "a.h5");
  const Hdf5Reader in(f / "a.h5");
  CHECK(in.path() == f / "a.h5");
  for (const char* name : {"b", "g/a", "g/h/c"}) {
    CHECK(in.has_tensor(name));
    CHECK_FALSE(in.has_group(name));
  }
  for (const char* name : {"g", "g/h"}) {
    CHECK(in.has_group(name));
    CHECK_FALSE(in.has_tensor(name));
  }
  for (const char* name : {"c", "g/b", "h", "g/h/c/d"}) {
    CHECK_FALSE(in.has_tensor(name));
    CHECK_FALSE(in.has_group(name));
  }
  CHECK(names(in.tensors()) == std::vector<std::string>{"b", "g/a", "g/h/c"});
  CHECK(names(in.tensors("g")) == std::vector<std::string>{"g/a", "g/h/c"});
  CHECK(names(in.tensors("g/h")) == std::vector<std::string>{"g/h/c"});
  CHECK(in.groups() == std::vector<std::string>{"g"});
  CHECK(in.groups("g") == std::vector<std::string>{"g/h"});
  CHECK_THROWS_WITH(in.tensors("none"), ContainsSubstring("there is no group \"none\""));
  CHECK_THROWS_WITH(in.groups("b"), ContainsSubstring("there is no group \"b\""));
  const auto entries = in.entries("g");
  REQUIRE(entries.size() == 2);
  CHECK(entries[0].name == "g/a");
  CHECK(entries[0].kind == Hdf5Entry::Kind::tensor);
  CHECK(entries[1].name == "g/h");
  CHECK(entries[1].kind == Hdf5Entry::Kind::group);
  CHECK(in.info("b").shape == Shape{5, 3});
  CHECK(in.info("b").dtype == Dtype::f32);
  CHECK(in.info("g/a").dtype == Dtype::i32);
  CHECK_THROWS_WITH(in.info("none"), ContainsSubstring("none"));
  CHECK_THROWS_WITH(in.tensor("g"), ContainsSubstring("g"));
}

TEST_CASE("hdf5 calls: rows are those from the first to before the last, within the tensor") {
  const Folder f;
  write(f / "a.h5");
  const Hdf5Reader in(f / "a.h5");
  CHECK(to_doubles(in.tensor("b")) == to_doubles(counted({5, 3})));
  CHECK(to_doubles(in.rows("b", 0, 5)) == to_doubles(counted({5, 3})));
  CHECK(to_doubles(in.rows("b", 1, 3)) == std::vector<double>{3, 4, 5, 6, 7, 8});
  CHECK(in.rows("b", 5, 5).shape() == Shape{0, 3});
  float two[6];
  in.read_rows("b", 3, 5, two);
  CHECK(two[0] == 9);
  CHECK(two[5] == 14);
  for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{-1, 2}, {3, 2}, {0, 6}})
    CHECK_THROWS_WITH(in.rows("b", begin, end), ContainsSubstring("has no rows"));
}

TEST_CASE("hdf5 calls: an attribute is read as what it is, a whole number as a real one too") {
  const Folder f;
  write(f / "a.h5");
  const Hdf5Reader in(f / "a.h5");
  CHECK(in.integer("", "whole") == 7);
  CHECK(in.number("", "whole") == 7);
  CHECK(in.number("", "real") == 0.5);
  CHECK(in.text("", "text") == "words");
  CHECK(in.texts("g", "list") == std::vector<std::string>{"a", "b"});
  CHECK(in.integer("b", "of tensor") == 1);
  CHECK_THROWS_WITH(in.integer("", "real"), ContainsSubstring("no integer"));
  CHECK_THROWS_WITH(in.integer("", "text"), ContainsSubstring("no integer"));
  CHECK_THROWS_WITH(in.number("", "text"), ContainsSubstring("no number"));
  CHECK_THROWS_WITH(in.text("", "whole"), ContainsSubstring("no text"));
  CHECK_THROWS_WITH(in.texts("", "text"), ContainsSubstring("no list of texts"));
  CHECK_THROWS_WITH(in.text("", "none"), ContainsSubstring("none") && ContainsSubstring("missing"));
  CHECK(in.has_attribute("", "whole"));
  CHECK_FALSE(in.has_attribute("", "none"));
  CHECK_FALSE(in.has_attribute("none", "whole"));
  CHECK(in.attributes("g").size() == 1);
  CHECK(in.attribute_names("g") == std::vector<std::string>{"list"});
}

TEST_CASE("hdf5 calls: a tensor's hash is that of its bytes") {
  const Folder f;
  write(f / "a.h5");
  const Hdf5Reader in(f / "a.h5");
  const Tensor b = counted({5, 3}, Dtype::f32);
  CHECK(in.hash("b") == hash64(b.raw(), 60));
  CHECK_NOTHROW(in.verify());
  CHECK_NOTHROW(in.verify("g/h/c"));
}

TEST_CASE("hdf5 calls: a name is used once, an attribute's key again, and without commit nothing") {
  const Folder f;
  {
    Hdf5Writer out(f / "a.h5");
    out.tensor("x", counted({2}));
    CHECK_THROWS_AS(out.tensor("x", counted({2})), Error);
    out.attribute("", "key", int64_t{1});
    out.attribute("", "key", std::string("again"));
    CHECK_FALSE(std::filesystem::exists(f / "a.h5"));
  }
  CHECK(f.names().empty());
  Hdf5Writer out(f / "a.h5");
  out.attribute("", "key", int64_t{1});
  out.attribute("", "key", std::string("again"));
  out.begin_rows("rows", Dtype::i32, {2});
  const int32_t numbers[] = {1, 2, 3, 4, 5, 6};
  out.append_rows("rows", numbers, 1);
  out.append_rows("rows", numbers + 2, 0);
  out.append_rows("rows", numbers + 2, 2);
  out.begin_rows("none", Dtype::u8, {});
  out.commit();
  const Hdf5Reader in(f / "a.h5");
  CHECK(in.text("", "key") == "again");
  CHECK(in.info("rows").shape == Shape{3, 2});
  CHECK(to_ints(in.tensor("rows")) == std::vector<int64_t>{1, 2, 3, 4, 5, 6});
  CHECK(in.info("none").shape == Shape{0});
  CHECK(in.has_attribute("", "sealed"));
}
