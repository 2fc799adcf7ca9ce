// `weft version`: the program, its compiler and what it can do here.
#include <cstdio>

#include "core/parallel.h"
#include "data/tokenizer.h"
#include "kernels/contract/operation.h"
#include "train/verbs/verbs.h"

namespace weft::train {

int run_version() {
  std::printf("weft %s\n", WEFT_VERSION);
  std::printf("compiler: %s\n", __VERSION__);
  std::printf("devices: cpu (%d threads), meta\n", thread_count());
  std::printf("vocabularies: bytes%s\n",
              data::has_sentencepiece() ? ", SentencePiece" : " (built without SentencePiece)");
  std::printf("operations: %zu\n", kernels::operations().size());
  return 0;
}

}  // namespace weft::train
