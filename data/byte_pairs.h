// Byte-level vocabularies of released models, as tokenizer.json holds them: a text is cut into
// pieces (data/pretokens.h), and neighbouring tokens of a piece merge, the earliest merge of the
// list first. GPT-2, Llama 3 and Qwen have such ones.
#pragma once

#include <string>

#include "data/tokenizer.h"

namespace weft::data {

// From the text of a tokenizer.json. The tokens are those of the tokenizers library without the
// tokens that it adds at the ends; a special token that stands in the text is that token. Throws
// Error for the first setting that is not known here.
TokenizerPtr byte_pair_tokenizer(const std::string& json);

// Does a text begin as a tokenizer.json does, or as the ranks of tiktoken, which
// byte_pair_tokenizer() refuses by name?
bool is_byte_pairs(const std::string& text);

}  // namespace weft::data
