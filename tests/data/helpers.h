// What the tests of data/ share.
#pragma once

#include <string>
#include <vector>

#include "core/error.h"
#include "core/random.h"
#include "data/batches.h"
#include "data/dataset.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/message.h"

using weft::tests::Folder;
using weft::tests::message;

inline bool contains(const std::string& text, const std::string& part) {
  INFO(text << "\nlacks: " << part);
  CHECK(text.find(part) != std::string::npos);
  return text.find(part) != std::string::npos;
}

// Documents whose bytes are random, so that a stretch of some tokens stands at one place only.
inline weft::data::TokenDataset random_text(const std::vector<int64_t>& sizes) {
  const weft::Random random(5);
  std::vector<weft::data::Document> all;
  uint64_t at = 0;
  for (const int64_t size : sizes) {
    std::string text;
    for (int64_t i = 0; i < size; ++i) text += static_cast<char>(random.below(256, at++));
    all.push_back({"", text});
  }
  return weft::data::dataset_from_documents(all, weft::data::byte_tokenizer());
}

inline weft::data::HostBatch made(const weft::data::Batches& batches, int64_t step) {
  weft::data::HostBatch batch;
  batches.make(step, batch);
  return batch;
}
