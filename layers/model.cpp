// From a recipe to a stack of blocks, and the three ways through it: loss, logits, generation.
#include "layers/model.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "autograd/kernel_op.h"
#include "autograd/ops.h"
#include "core/text.h"
#include "kernels/generation/cache.h"
#include "kernels/lookup/embedding.h"
#include "kernels/products/cross_entropy.h"
#include "layers/blocks.h"

namespace weft::layers {

using autograd::apply;

namespace {

// How the parts of a block are joined to the residual stream:
//   x = skip x + branch f(norm x),  norms before f, after it, or on both sides of it;
//   where normed, x is norm x in the first place too, so that the stream itself is normalised;
//   where parallel, f is the mixer and the MLP together, both on the one norm of x.
struct Wiring {
  bool before = true, after = false, normed = false, parallel = false;
  double branch = 1, skip = 1;
};

// A mixer, then an MLP. What the last part adds is left to the norm that comes next.
struct Block {
  Wiring wiring;
  std::optional<Norm> mixer_norm, mixer_post_norm, mlp_norm, mlp_post_norm;
  std::unique_ptr<Layer> mixer, mlp;
  size_t mlp_begin = 0, mlp_end = 0;  // the MLP's parameters on the model's list
  std::string name;                   // "layers.3"

  void forward(Stream& stream, Context& c) const {
    Var x;
    {
      const OwnerScope scope(name + ".mixer");
      x = read(stream, mixer_norm);
      stream.added =
          left_out(c) ? Var(zeros_like(x.value())) : branch(*mixer, mixer_post_norm, x, c);
    }
    if (!mlp) return;
    const OwnerScope scope(name + ".mlp");
    if (wiring.parallel) {
      stream.added = autograd::add(stream.added, branch(*mlp, mlp_post_norm, x, c));
    } else {
      x = read(stream, mlp_norm);
      stream.added = branch(*mlp, mlp_post_norm, x, c);
    }
  }

 private:
  bool left_out(const Context& c) const {
    return (c.no_softmax && mixer->ways() == Ways::softmax) ||
           (c.no_linear && mixer->ways() == Ways::linear);
  }
  // What a part reads; leaves in the stream what the part's result is added to.
  Var read(Stream& stream, const std::optional<Norm>& norm) const {
    const Var y = norm ? (*norm)(stream) : stream.sum();
    if (wiring.normed) stream.x = y;
    stream.x = scaled(stream.x, wiring.skip);
    return y;
  }
  Var branch(const Layer& f, const std::optional<Norm>& norm, const Var& x, Context& c) const {
    const Var y = f.forward(x, c);
    if (c.mixed && &f == mixer.get()) c.mixed->push_back({x.value(), y.value()});
    return scaled(norm ? (*norm)(y) : y, wiring.branch);
  }
  static Var scaled(const Var& x, double factor) {
    return factor == 1 ? x : autograd::scale(x, factor);
  }
};

// More than any model has; each layer costs time to build.
constexpr int64_t kMostLayers = 10000;

// "x*3" is x, x, x.
std::vector<std::string> spelled_out(const TomlTable& t, const std::string& key,
                                     const std::vector<std::string>& list) {
  std::vector<std::string> out;
  for (const std::string& item : list) {
    const size_t star = item.find('*');
    int64_t times = 1;
    if (star != std::string::npos) {
      const std::string count = item.substr(star + 1);
      const bool digits =
          !count.empty() && count.find_first_not_of("0123456789") == std::string::npos;
      times = !digits ? 0 : count.size() > 5 ? kMostLayers + 1 : std::stoll(count);
    }
    if (times < 1)
      t.refuse(key, "\"", item, "\" is neither a name nor a name and its repeats, as in \"x*3\"");
    if (times > kMostLayers - static_cast<int64_t>(out.size()))
      t.refuse(key, key, " with \"", item, "\" names more than ", kMostLayers,
               " layers, which is the most there can be");
    out.insert(out.end(), static_cast<size_t>(times), item.substr(0, star));
  }
  if (out.empty()) t.refuse(key, key, " is empty");
  return out;
}

// The mixer of a name in the pattern: the `type` of the table so named, else the name itself.
const Maker& maker_of(const TomlTable& recipe, const std::string& name) {
  std::vector<std::string> known = mixer_names();
  const TomlTable table = recipe.table(name);
  const std::string type = table.string("type", name);
  if (contains(known, type)) return mixer_maker(type);
  if (table.has("type")) table.refuse("type", unknown_name("mixer", type, known));
  for (const std::string& key : recipe.keys())  // names that this recipe gives
    if (!contains(known, key) && recipe.type(key) == TomlType::table &&
        recipe.table(key).has("type"))
      known.push_back(key);
  recipe.table("model").refuse("pattern", unknown_name("mixer", name, known));
  return mixer_maker(type);
}

// Tables that say nothing of this model: of mixers that the pattern does not name, of MLPs that it
// does not have. The recipe's finish() refuses them, or drops those that an override made useless.
void mark_unused(const TomlTable& recipe, const std::vector<std::string>& pattern,
                 const std::vector<std::string>& mlps) {
  const TomlTable model = recipe.table("model");
  const std::vector<std::string> known = mixer_names();
  std::vector<std::string> names = known;
  for (const std::string& key : recipe.keys())
    if (contains(known, recipe.peek(key + ".type"))) names.push_back(key);
  const bool chosen = model.overridden("pattern");
  for (const std::string& name : names)
    if (!contains(pattern, name))
      recipe.unused(
          name,
          concat("model.pattern names no \"", name, "\"; name it there, or leave the table out"),
          chosen);
  const bool moe = contains(mlps, "moe");
  const bool dense = std::any_of(mlps.begin(), mlps.end(), [](const std::string& name) {
    return name != "moe" && name != "none";
  });
  const bool chosen_mlp = model.overridden("mlp");
  if (!moe)
    recipe.unused("moe", "set model.mlp = \"moe\" to use it, or leave the table out", chosen_mlp);
  if (!dense)
    recipe.unused("mlp",
                  concat("model.mlp is \"", joined(mlps, "\", \""),
                         "\"; name swiglu or another dense one there, or leave the table out"),
                  chosen_mlp);
}

// What [model] says of the stack of blocks.
struct Outline {
  Spec spec;
  std::vector<std::string> pattern, mlps;  // both are repeated to fill the layers
  Norm::Kind norm = Norm::Kind::rms;
  bool norm_bias = false;
  Wiring wiring;                       // but for the places of norms
  std::vector<std::string> positions;  // of norms, repeated too
  bool tied = true, learned = false;   // embeddings, positions

  Wiring wiring_of(size_t layer) const {
    Wiring w = wiring;
    const std::string& position = positions[layer % positions.size()];
    w.before = position != "post";
    w.after = position == "post" || position == "both";
    w.normed = position == "residual";
    return w;
  }

  // A norm of the residual stream.
  void make_norm(std::optional<Norm>& n, const Builder& b) const {
    n.emplace(b, spec.width, norm, spec.norm_eps, spec.norm_plus_one, norm_bias);
  }
};

// The norms of [model], and how blocks are wired.
void read_wiring(const TomlTable& t, Outline& o) {
  if (t.one_of("norm", {"rms", "layer"}, "rms") == "layer") o.norm = Norm::Kind::layer;
  o.spec.norm_eps = t.number("norm_eps", {0, 1}, 0);
  o.spec.norm_plus_one = t.boolean("norm_plus_one", false);
  if (o.norm == Norm::Kind::layer)
    o.norm_bias = t.boolean("norm_bias", false);
  else
    t.unused("norm_bias", "an RMS norm has no bias; set norm = \"layer\", or leave it out",
             t.overridden("norm"));
  const std::vector<std::string> known = {"pre", "post", "both", "residual"};
  o.positions = spelled_out(t, "norm_position", t.one_or_more("norm_position", "pre"));
  for (const std::string& name : o.positions)
    if (!contains(known, name))
      t.refuse("norm_position", unknown_name("position of norms", name, known));
  o.wiring.branch = t.number("branch_scale", kFactor, 1);
  o.wiring.skip = t.number("skip_scale", kFactor, 1);
}

Outline outline_of(const TomlTable& recipe, uint64_t seed) {
  const TomlTable t = recipe.table("model");
  Outline o;
  o.spec.width = t.integer("width", kSize);
  o.pattern = spelled_out(t, "pattern", t.strings("pattern"));
  o.spec.layers = t.integer("layers", {1, kMostLayers}, static_cast<int64_t>(o.pattern.size()));
  o.spec.context = t.integer("context", {1, 1 << 30});
  o.spec.seed = seed;
  o.spec.init = t.number("init", {0, 100}, 0.02);
  read_wiring(t, o);
  o.mlps = spelled_out(t, "mlp", t.one_or_more("mlp", "swiglu"));
  for (const std::string& name : o.mlps)
    if (!contains(kMlpKinds, name)) t.refuse("mlp", unknown_name("mlp", name, kMlpKinds));
  if (std::all_of(o.mlps.begin(), o.mlps.end(), [](const auto& name) { return name == "none"; }))
    t.unused("parallel", "no layer has an MLP beside its mixer; leave it out", t.overridden("mlp"));
  else
    o.wiring.parallel = t.boolean("parallel", false);
  mark_unused(recipe, o.pattern, o.mlps);
  o.tied = t.boolean("tied_embeddings", true);
  o.learned = t.one_of("positions", {"none", "learned"}, "none") == "learned";
  return o;
}

Block make_block(const TomlTable& recipe, const Outline& o, int64_t layer, const Builder& b) {
  const auto index = static_cast<size_t>(layer);
  const std::string& mixer = o.pattern[index % o.pattern.size()];
  const std::string& mlp = o.mlps[index % o.mlps.size()];
  Spec spec = o.spec;
  spec.layer = layer;
  Block block;
  block.wiring = o.wiring_of(index);
  const Wiring& wiring = block.wiring;
  block.name = concat("layers.", layer);
  const Builder own = b.within(block.name);
  const auto norm = [&](bool wanted, std::optional<Norm>& n, const char* path) {
    if (wanted) o.make_norm(n, own.part("norm").within(path));
  };
  norm(wiring.before, block.mixer_norm, "mixer_norm");
  block.mixer =
      maker_of(recipe, mixer)(spec, recipe.table(mixer), own.part("mixer").within("mixer"));
  norm(wiring.after, block.mixer_post_norm, "mixer_post_norm");
  if (mlp == "none") return block;
  norm(wiring.before && !wiring.parallel, block.mlp_norm, "mlp_norm");
  block.mlp_begin = b.made();
  block.mlp = make_mlp(mlp, spec, recipe, own.part("mlp").within("mlp"));
  block.mlp_end = b.made();
  norm(wiring.after, block.mlp_post_norm, "mlp_post_norm");
  return block;
}

}  // namespace

LayerNames layer_names(const TomlTable& recipe) {
  const Outline o = outline_of(recipe, 0);
  LayerNames names;
  for (size_t i = 0; i < static_cast<size_t>(o.spec.layers); ++i) {
    names.mixers.push_back(o.pattern[i % o.pattern.size()]);
    names.mlps.push_back(o.mlps[i % o.mlps.size()]);
    names.norms.push_back(o.positions[i % o.positions.size()]);
  }
  return names;
}

struct Model::Parts {
  Var embedding, positions, head;
  std::optional<Norm> norm;
  std::vector<Block> blocks;
  double z_loss = 0, softcap = 0, embedding_scale = 1, logit_scale = 1;
  bool recompute = false;
  int64_t context = 0;
  mutable Tensor row_positions;  // of whole rows, i32 [B * T], and the shape they are for
  mutable Shape row_positions_of;

  Var embed(const Tensor& tokens, const Context& c) const;
  Tensor placed(const Tensor& tokens, const Context& c) const;  // the position of each token
  void through(const Block& block, Stream& stream, Context& c) const;
  // [B, T] to [B, T, D], after the final norm; times the scale of the logits.
  Var hidden(const Tensor& tokens, Context& c, Generation* generation) const;
  Tensor logits(const Var& x) const;  // [R, D] -> [R, V]
};

namespace {

void require_within(int64_t limit, int64_t length) {
  require(length <= limit, "position ", limit, " of a text is past the model's context of ", limit,
          " (model.positions = \"learned\" knows no further)");
}

// The position of each token in its document, i32 [B * T].
Tensor positions_of(const Tensor& tokens, const Context& c, int64_t limit) {
  const int64_t B = tokens.size(0), T = tokens.size(1);
  if (tokens.is_meta()) return empty({B * T}, Dtype::i32, tokens.device());
  if (c.cu_seqlens) {
    const int32_t* const cu = c.cu_seqlens.data<int32_t>();
    for (int64_t n = 0; n + 1 < c.cu_seqlens.numel(); ++n) require_within(limit, cu[n + 1] - cu[n]);
    return kernels::places_in_documents(c.cu_seqlens, T, tokens.device());
  }
  require_within(limit, c.position + T);
  const Tensor p = empty({B * T}, Dtype::i32);
  for (int64_t i = 0; i < B * T; ++i)
    p.data<int32_t>()[i] = static_cast<int32_t>(c.position + i % T);
  return p.to(tokens.device());
}

}  // namespace

Var Model::Parts::embed(const Tensor& tokens, const Context& c) const {
  const OwnerScope owner("embedding");
  Var x = apply<kernels::Embedding>({embedding}, {tokens.reshape({-1})}).y;
  if (embedding_scale != 1) x = autograd::scale(x, embedding_scale);
  if (positions)
    x = autograd::add(x, apply<kernels::Embedding>({positions}, {placed(tokens, c)}).y);
  return autograd::reshape(x, {tokens.size(0), tokens.size(1), -1});
}

// Those of whole rows are the same from step to step, and need no new copy to a GPU.
Tensor Model::Parts::placed(const Tensor& tokens, const Context& c) const {
  if (c.place) {
    require_within(context, c.capacity - 1);  // the last token is fed to no step
    return c.place;
  }
  if (c.cu_seqlens || c.position > 0) return positions_of(tokens, c, context);
  if (!row_positions || !(row_positions_of == tokens.shape())) {
    row_positions = positions_of(tokens, c, context);
    row_positions_of = tokens.shape();
  }
  return row_positions;
}

void Model::Parts::through(const Block& block, Stream& stream, Context& c) const {
  if (!recompute || !autograd::grad_enabled()) return block.forward(stream, c);
  const OwnerScope owner(block.name);
  const bool losses = c.losses != nullptr;
  // One tensor a block is kept: its sum. Auxiliary losses are results of the block, so that their
  // gradients find the way back.
  const auto run = [&block, losses, training = c.training,
                    cu_seqlens = c.cu_seqlens](const std::vector<Var>& in) {
    std::vector<Var> auxiliary;
    Context inner;
    inner.cu_seqlens = cu_seqlens;
    inner.training = training;
    if (losses) inner.losses = &auxiliary;
    Stream within{in[0], {}};
    block.forward(within, inner);
    std::vector<Var> out{within.sum()};
    out.insert(out.end(), auxiliary.begin(), auxiliary.end());
    return out;
  };
  const std::vector<Var> out = autograd::recompute(run, {stream.sum()});
  if (losses) c.losses->insert(c.losses->end(), out.begin() + 1, out.end());
  stream = {out[0], {}};
}

Var Model::Parts::hidden(const Tensor& tokens, Context& c, Generation* generation) const {
  require(tokens.dtype() == Dtype::i32 && tokens.dims() == 2, "model: tokens are ", tokens.dtype(),
          " ", tokens.shape(), ", expected i32 [B, T]");
  Stream stream{embed(tokens, c), {}};
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (generation) c.state = &generation->states[i];
    through(blocks[i], stream, c);
  }
  const OwnerScope owner("head");
  const Var y = (*norm)(stream);
  return logit_scale == 1 ? y : autograd::scale(y, logit_scale);
}

Tensor Model::Parts::logits(const Var& x) const {
  const OwnerScope owner("head");
  const Var y = product(x, head);
  if (softcap <= 0) return y.value();
  return autograd::scale(activation(autograd::scale(y, 1 / softcap), "tanh"), softcap).value();
}

namespace {

// A number, or true for the root of the width.
double embedding_scale(const TomlTable& t, int64_t width) {
  const char* const key = "embedding_scale";
  if (t.has(key) && t.type(key) != TomlType::boolean) return t.number(key, kFactor);
  return t.boolean(key, false) ? std::sqrt(static_cast<double>(width)) : 1;
}

}  // namespace

Model::Model(const TomlTable& recipe, int64_t vocabulary, Dtype dtype, Device device, uint64_t seed)
    : parts_(std::make_unique<Parts>()), vocabulary_(vocabulary) {
  const TomlTable t = recipe.table("model");
  const Outline outline = outline_of(recipe, seed);
  Parts& p = *parts_;
  width_ = outline.spec.width;
  context_ = p.context = outline.spec.context;
  p.z_loss = t.number("z_loss", kLossWeight, 0);
  p.softcap = t.number("logit_softcap", kCap, 0);
  p.embedding_scale = embedding_scale(t, width_);
  p.logit_scale = t.number("logit_scale", kFactor, 1);
  p.recompute = t.boolean("recompute", false);

  const Builder b(dtype, device, seed, &parameters_);
  const Init normal = Init::normal(outline.spec.init);
  p.embedding = b.part("embedding").parameter("embedding.weight", {vocabulary, width_}, normal);
  if (outline.learned)
    p.positions = b.part("embedding").parameter("positions.weight", {context_, width_}, normal);
  for (int64_t i = 0; i < outline.spec.layers; ++i)
    p.blocks.push_back(make_block(recipe, outline, i, b));
  outline.make_norm(p.norm, b.part("norm").within("norm"));
  p.head = outline.tied ? p.embedding
                        : b.part("head").parameter("head.weight", {vocabulary, width_}, normal);

  t.finish();
  for (const std::string& name : outline.pattern) recipe.table(name).finish();
  for (const std::string& name : outline.mlps)
    if (name != "none") recipe.table(name == "moe" ? "moe" : "mlp").finish();
}

Model::~Model() = default;
Model::Model(Model&&) noexcept = default;

Context Model::context_of(const Batch& batch, std::vector<Var>* losses) const {
  Context c;
  c.cu_seqlens = batch.cu_seqlens;
  c.losses = losses;
  c.training = autograd::grad_enabled();
  c.no_softmax = no_softmax_;
  c.no_linear = no_linear_;
  return c;
}

Loss Model::loss(const Batch& batch) const {
  std::vector<Var> auxiliary;
  Context c = context_of(batch, &auxiliary);
  const Var x = parts_->hidden(batch.tokens, c, nullptr);
  const OwnerScope owner("head");
  kernels::CrossEntropy::Options o;
  o.targets = batch.targets.reshape({-1});
  o.softcap = parts_->softcap;
  const auto y = apply<kernels::CrossEntropy>({rows(x), parts_->head, {}}, o);
  Var total = y.loss;
  if (parts_->z_loss > 0) total = autograd::add(total, autograd::scale(y.z, parts_->z_loss));
  for (const Var& loss : auxiliary) total = autograd::add(total, loss);
  return {total, y.loss.value()};
}

Tensor Model::logits(const Tensor& tokens, const Tensor& cu_seqlens) const {
  const autograd::NoGrad no_grad;
  Context c = context_of({tokens, {}, cu_seqlens}, nullptr);
  const Var x = parts_->hidden(tokens, c, nullptr);
  return parts_->logits(rows(x)).reshape({tokens.size(0), tokens.size(1), vocabulary_});
}

std::vector<Mixed> Model::mixed(const Batch& batch) const {
  const autograd::NoGrad no_grad;
  std::vector<Mixed> all;
  Context c = context_of(batch, nullptr);
  c.mixed = &all;
  parts_->hidden(batch.tokens, c, nullptr);
  return all;
}

Var Model::mix(size_t layer, const Var& x, const Batch& batch, std::vector<Var>& losses) const {
  const Block& block = parts_->blocks.at(layer);
  const OwnerScope owner(block.name + ".mixer");
  Context c = context_of(batch, &losses);
  return block.mixer->forward(x, c);
}

Var Model::states(const Batch& batch, std::vector<Var>& losses) const {
  Context c = context_of(batch, &losses);
  return rows(parts_->hidden(batch.tokens, c, nullptr));
}

const Var& Model::head() const { return parts_->head; }

double Model::softcap() const { return parts_->softcap; }

bool Model::has_both_ways() const {
  bool softmax = false, linear = false;
  for (const Block& block : parts_->blocks) {
    softmax = softmax || block.mixer->ways() != Ways::linear;
    linear = linear || block.mixer->ways() != Ways::softmax;
  }
  return softmax && linear;
}

Tensor Model::next(const Tensor& tokens, Generation& generation) const {
  const autograd::NoGrad no_grad;
  require(tokens.dims() == 2 && tokens.size(0) == 1 && tokens.size(1) > 0,
          "model: tokens to go on from have shape ", tokens.shape(), ", expected [1, n]");
  generation.states.resize(parts_->blocks.size());
  if (generation.place) return step(tokens, generation);
  Context c;
  c.position = generation.position;
  c.capacity = generation.capacity;
  const int64_t n = tokens.size(1);
  const Var x = parts_->hidden(tokens, c, &generation);
  generation.position += n;
  return parts_->logits(rows(x).value().slice(0, n - 1, n)).reshape({vocabulary_});
}

namespace {

// What was made anew of a state goes where it was before.
void put_back(const State& before, State& now, std::vector<kernels::Copy>& moved) {
  for (auto& [name, t] : now.tensors) {
    const auto old = before.tensors.find(name);
    if (old == before.tensors.end() || !(old->second.shape() == t.shape())) continue;
    if (old->second.same_view(t)) continue;
    moved.push_back({old->second, t});
    t = old->second;
  }
  for (size_t i = 0; i < std::min(before.parts.size(), now.parts.size()); ++i)
    put_back(before.parts[i], now.parts[i], moved);
}

}  // namespace

Tensor Model::step(const Tensor& token, Generation& generation) const {
  require(token.size(1) == 1 && generation.position < generation.capacity, "model: a step takes ",
          token.size(1), " tokens at position ", generation.position, " of ", generation.capacity,
          ", expected one within the capacity");
  Context c;
  c.place = generation.place;
  c.position = generation.position++;
  c.capacity = generation.capacity;
  const std::vector<State> before = generation.states;
  const Var x = parts_->hidden(token, c, &generation);
  std::vector<kernels::Copy> moved;
  for (size_t i = 0; i < before.size(); ++i) put_back(before[i], generation.states[i], moved);
  kernels::copy_all(moved);
  return parts_->logits(rows(x)).reshape({vocabulary_});
}

int64_t Model::longest_text() const {
  int64_t longest = parts_->positions ? context_ : std::numeric_limits<int32_t>::max();
  for (const Block& block : parts_->blocks)
    longest = std::min(longest, block.mixer->longest_text());
  return longest;
}

void Model::at_step(int64_t step) {
  for (const Block& block : parts_->blocks) block.mixer->at_step(step);
}

int64_t Model::form() const {
  uint64_t all = 0;
  for (const Block& block : parts_->blocks)
    all = all * 31 + static_cast<uint64_t>(block.mixer->form());
  return static_cast<int64_t>(all);
}

double Model::flops_per_token() const {
  int64_t met = active_parameter_count();
  if (!parts_->head.value().same_view(parts_->embedding.value()))
    met -= parts_->embedding.value().numel();
  if (parts_->positions) met -= parts_->positions.value().numel();
  double flops = 2 * static_cast<double>(met);
  for (const Block& block : parts_->blocks) {
    flops += block.mixer->flops_per_token(context_);
    if (block.mlp) flops += block.mlp->flops_per_token(context_);
  }
  return flops;
}

int64_t Model::parameter_count() const {
  int64_t count = 0;
  for (const Parameter& p : parameters_) count += p.var.value().numel();
  return count;
}

int64_t Model::active_parameter_count() const {
  int64_t count = parameter_count();
  for (const Block& block : parts_->blocks) {
    const int64_t active = block.mlp ? block.mlp->active_parameters() : -1;
    if (active < 0) continue;
    for (size_t i = block.mlp_begin; i < block.mlp_end; ++i)
      count -= parameters_[i].var.value().numel();
    count += active;
  }
  return count;
}

int64_t Generation::bytes() const {
  int64_t sum = 0;
  for (const State& s : states) sum += s.bytes();
  return sum;
}

}  // namespace weft::layers
