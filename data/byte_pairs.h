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

// What a checkpoint holds: a tokenizer.json, or else a model of SentencePiece.
TokenizerPtr stored_tokenizer(const std::string& model);

}  // namespace weft::data
