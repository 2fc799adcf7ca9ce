// The files of llm.c: tokens with the header of its data scripts, and the vocabulary that its
// training script writes. Their rule that makes text into tokens is in no file, so such a
// vocabulary decodes and does not encode.
//   tokens        i32 [256] little-endian: 20240520, 1, count, then u16 each;
//                 or 20240801, 7, count, then u32 each
//   vocabulary    i32 [256]: 20240328, 1 or 2, size, in version 2 the token between documents; then
//                 for each token its length in a byte, and its bytes
// Source: dev/data/data_common.py and llmc/tokenizer.h of llm.c.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace weft::data {

inline constexpr const char* kLlmc = "llm.c";  // the kind of such a vocabulary

// Does a text begin as a vocabulary does?
bool is_llmc_vocabulary(std::string_view bytes);
// From the bytes of such a file; `where` stands in messages. Throws Error if it is none.
TokenizerPtr llmc_tokenizer(const std::string& bytes, const std::string& where);

// Is it a file of tokens, by its first bytes?
bool is_llmc_tokens(const std::string& path);
// Calls `take` for each document of such a file: from one token between documents, which begins it,
// to the next. Throws Error for what is no such file, is shorter or longer than it says, or holds
// tokens that the vocabulary lacks.
void for_each_llmc_document(const std::string& path, const Tokenizer& tokenizer,
                            const std::function<void(std::vector<int32_t>&&)>& take);

}  // namespace weft::data
