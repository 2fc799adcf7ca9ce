// GPT-2: learned positions, layer norms and biases. Its matrices are [in, out], q, k and v are one,
// and files may begin every name with "transformer.".
#include "train/exchange/architecture.h"
#include "train/exchange/parts.h"

namespace weft::train {
namespace {

void keys(const Keys& k) {
  k.layers("n_layer", "attention");
  k.integer("n_embd", "model.width");
  k.integer("n_positions", "model.context", 1024);
  k.number("initializer_range", "model.init", 0.02);
  k.truth("tie_word_embeddings", "model.tied_embeddings", true);
  k.number("layer_norm_epsilon", "model.norm_eps", 1e-5);
  k.set("model.norm", "layer");
  k.set("model.norm_bias", true);
  k.set("model.positions", "learned");
  k.integer("n_head", "attention.heads");
  k.set("attention.rotary", false);
  k.set("attention.bias", true);
  k.set("mlp.bias", true);
  k.named("activation_function", "layers.mlp",
          {{"gelu_new", "gelu_tanh"}, {"gelu_pytorch_tanh", "gelu_tanh"}, {"gelu", "gelu"}},
          "gelu_new");
  if (k.reads()) {
    k.draft().vocabulary = k.in().integer("vocab_size");
    k.draft().set("mlp.width", k.in().integer("n_inner", 4 * k.in().integer("n_embd")));
  } else {
    k.out()["vocab_size"] = k.draft().vocabulary;
    k.integer("n_inner", "mlp.width");
  }
  k.fixed("scale_attn_weights", true, "our attention divides by the root of the head's width");
  k.fixed("scale_attn_by_inverse_layer_idx", false, "our attention is alike in all layers");
  k.dropouts({"resid_pdrop", "embd_pdrop", "attn_pdrop"});
  k.ignored({"reorder_and_upcast_attn", "n_ctx", "summary_type", "summary_use_proj",
             "summary_activation", "summary_proj_to_labels", "summary_first_dropout"});
}

std::string either(const std::string& name) { return concat("transformer.", name, "|", name); }

void tensors(const Draft& d, TensorMap& m) {
  m.same(either("wte.weight"), "embedding.weight");
  m.same(either("wpe.weight"), "positions.weight");
  for (size_t i = 0; i < d.layers.size(); ++i) {
    const std::string theirs = concat("h.", i, "."), ours = concat("layers.", i, ".");
    const std::string mixer = ours + "mixer.";
    m.linear(either(theirs + "ln_1"), ours + "mixer_norm");
    for (const char* end : {"weight", "bias"})
      m.add({{either(theirs + "attn.c_attn." + end)},
             {mixer + "q_proj." + end, mixer + "k_proj." + end, mixer + "v_proj." + end},
             Lies::transposed});
    m.linear(either(theirs + "attn.c_proj"), mixer + "o_proj", Lies::transposed);
    m.linear(either(theirs + "ln_2"), ours + "mlp_norm");
    m.linear(either(theirs + "mlp.c_fc"), ours + "mlp.fc1", Lies::transposed);
    m.linear(either(theirs + "mlp.c_proj"), ours + "mlp.fc2", Lies::transposed);
  }
  m.linear(either("ln_f"), "norm");
  m.head("lm_head.weight", "transformer.wte.weight");
  m.left_out("*h.*.attn.bias");  // the causal mask, and what it writes, in older files
  m.left_out("*h.*.attn.masked_bias");
}

const RegisteredArchitecture registered{{"gpt2", "GPT2LMHeadModel", 1, keys, tensors}};

}  // namespace
}  // namespace weft::train
