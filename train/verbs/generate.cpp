// `weft generate`: a checkpoint goes on from a text.
#include <algorithm>
#include <cstdio>
#include <limits>

#include "core/units.h"
#include "train/generate.h"
#include "train/verbs/loaded.h"
#include "train/verbs/verbs.h"
#include "train/workbench/report.h"

namespace weft::train {

int run_generate(const GenerateArguments& a) {
  require(!a.prompt.empty(), "--prompt is empty, expected some text to go on from");
  require(a.tokens > 0, "--tokens ", a.tokens, ": expected at least 1");
  require(a.temperature >= 0 && a.temperature <= 100, "--temperature ", a.temperature,
          ": expected a number from 0 to 100");
  require(a.top_p > 0 && a.top_p <= 1, "--top-p ", a.top_p, ": expected above 0 and up to 1");
  require(a.top_k >= 0, "--top-k ", a.top_k, ": expected at least 0");
  const Loaded l = load(a.checkpoint, a.device);
  require_tokenizer(l, "writes");
  // A GPU counts in 32 bits, and no vocabulary is larger.
  const int64_t top_k = std::min<int64_t>(a.top_k, std::numeric_limits<int32_t>::max());
  const std::vector<int32_t> prompt = l.tokenizer->encode(a.prompt);
  check_length(*l.model, static_cast<int64_t>(prompt.size()), a.tokens);
  std::printf("%s", a.prompt.c_str());
  flush_output();
  const auto show = [&](int32_t token) {
    const std::string& piece = l.tokenizer->piece(token);
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    flush_output();
    return true;
  };
  const Generated g =
      generate(*l.model, prompt, a.tokens,
               {a.temperature, top_k, a.top_p, a.seed, l.tokenizer->vocabulary()}, show);
  std::printf("\n");
  flush_output();
  std::fprintf(stderr, "%zu tokens, %.0f tokens a second, %s of state%s%s\n", g.tokens.size(),
               g.tokens_per_second, bytes_text(double(g.state_bytes)).c_str(),
               g.how.empty() ? "" : "; ", g.how.c_str());
  return 0;
}

}  // namespace weft::train
