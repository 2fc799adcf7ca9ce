#include "core/seal.h"

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "tests/catch.h"
#include "tests/train/program.h"

using namespace weft;
using weft::tests::Folder;

namespace {

const std::string kText = "the bytes of a file, and then some more of them\n";

}  // namespace

TEST_CASE("seal: it is plain text behind the file, with the checksum of all before it") {
  const Folder folder;
  for (const std::string& text : {std::string(), kText, std::string(3'000'001, 'x')}) {
    folder.write("a", text);
    CHECK(seal_of(folder / "a") == Seal::none);
    put_seal(folder / "a");
    CHECK(seal_of(folder / "a") == Seal::holds);
    const std::string sealed = folder.read("a");
    CHECK(sealed.size() == text.size() + 64);
    CHECK(sealed.starts_with(text + "weft seal 1 xxh64 " + to_hex(hash64(text)) + " bytes 0"));
  }
}

TEST_CASE("seal: it holds with no bit flipped, no byte cut or added, and nothing moved") {
  const Folder folder;
  folder.write("a", kText);
  put_seal(folder / "a");
  const std::string whole = folder.read("a");
  const auto seal_with = [&](const std::string& bytes) {
    folder.write("b", bytes);
    return seal_of(folder / "b");
  };
  for (size_t i = 0; i < 8 * whole.size(); ++i) {
    std::string bad = whole;
    bad[i / 8] = static_cast<char>(bad[i / 8] ^ (1 << i % 8));
    INFO("bit " << i);
    CHECK(seal_with(bad) != Seal::holds);
  }
  for (size_t size = 0; size < whole.size(); ++size)
    CHECK(seal_with(whole.substr(0, size)) != Seal::holds);
  CHECK(seal_with(whole + "\n") != Seal::holds);
  CHECK(seal_with("\n" + whole) == Seal::broken);
  CHECK(seal_with(whole.substr(1, 20) + whole[0] + whole.substr(21)) == Seal::broken);
  CHECK(seal_with(whole) == Seal::holds);
}

TEST_CASE("seal: a file that cannot be read is told") {
  const Folder folder;
  CHECK_THROWS_AS(seal_of(folder / "none"), Error);
  CHECK_THROWS_AS(put_seal(folder / "none"), Error);
}
