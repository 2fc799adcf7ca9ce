#include "train/distillation.h"

#include <algorithm>
#include <map>

#include "autograd/kernel_op.h"
#include "autograd/ops.h"
#include "core/text.h"
#include "layers/blocks.h"

namespace weft::train {

using autograd::add;
using autograd::multiply;
using autograd::NoGrad;
using autograd::scale;
using autograd::sum;
using autograd::Var;
using layers::activation;
using layers::wide;

namespace {

Var constant(const Shape& shape, double value, const Var& like) {
  return full(shape, value, like.dtype(), like.value().device());
}

// 1 / x of a positive number [1], or 1e6 where that is more: the first of (e, x) / |(e, x)| is
// e / sqrt(e^2 + x^2).
Var inverse(const Var& x) {
  constexpr double kLeast = 1e-6;
  const Var pair = autograd::concat({constant({1, 1}, kLeast, x), autograd::reshape(x, {1, 1})}, 1);
  const Var first = autograd::slice(layers::l2_norm(pair, 1e-30), 1, 0, 1);
  return autograd::reshape(scale(first, 1 / kLeast), {1});
}

}  // namespace

Var alignment(const Var& y, const Tensor& target) {
  const Var got = wide(y);
  const double each = 1 / static_cast<double>(target.numel());
  Var away, weight;
  {
    const NoGrad no_grad;
    const Var wanted = wide(target);
    away = scale(wanted, -1);
    weight = inverse(scale(sum(multiply(wanted, wanted)), each));
  }
  const Var difference = add(got, away);
  return multiply(scale(sum(multiply(difference, difference)), each), weight);
}

namespace {

Var logits_of(const Var& x, const Var& weight, double softcap) {
  const Var z = layers::product(x, weight);
  return softcap > 0 ? scale(activation(scale(z, 1 / softcap), "tanh"), softcap) : z;
}

// log softmax of each row. The sum of exponentials is made by halves, ln(e^a + e^b) = b +
// softplus(a - b), which no size of the logits makes overflow.
Var log_softmax(const Var& z) {
  Var sums = z;
  while (sums.size(1) > 1) {
    const int64_t n = sums.size(1), half = n / 2;
    const Var a = autograd::slice(sums, 1, 0, half), b = autograd::slice(sums, 1, half, 2 * half);
    const Var both = add(b, activation(add(a, scale(b, -1)), "softplus"));
    sums = n % 2 == 0 ? both : autograd::concat({both, autograd::slice(sums, 1, n - 1, n)}, 1);
  }
  return autograd::add_along(z, scale(autograd::reshape(sums, {z.size(0)}), -1), 0);
}

// The sum over rows of KL(p || q), p of the teacher's logits and q of the student's.
Var divergence_of_rows(const Var& x, const Var& weight, double softcap, const HeadInput& teacher) {
  Var p, log_p;
  {
    const NoGrad no_grad;
    log_p = log_softmax(logits_of(teacher.x, teacher.weight, teacher.softcap));
    p = activation(log_p, "exp");
  }
  const Var log_q = log_softmax(logits_of(x, weight, softcap));
  return sum(multiply(p, add(log_p, scale(log_q, -1))));
}

}  // namespace

Var divergence(const HeadInput& student, const HeadInput& teacher, double temperature,
               int64_t most) {
  const int64_t R = student.x.size(0), V = student.weight.size(0);
  const int64_t rows = std::clamp<int64_t>(most / V, 1, R);
  Var all;
  for (int64_t begin = 0; begin < R; begin += rows) {
    const int64_t end = std::min(R, begin + rows);
    // A cap is divided with the logits that it holds.
    const auto part = [temperature](const Var& x) { return scale(wide(x), 1 / temperature); };
    const auto run = [teacher, begin, end, temperature, part, weight = student.weight,
                      softcap = student.softcap](const std::vector<Var>& in) {
      HeadInput t;
      {
        const NoGrad no_grad;
        t = {part(autograd::slice(teacher.x, 0, begin, end)), wide(teacher.weight),
             teacher.softcap / temperature};
      }
      return std::vector<Var>{
          divergence_of_rows(part(in[0]), wide(weight), softcap / temperature, t)};
    };
    const Var one = autograd::recompute(run, {autograd::slice(student.x, 0, begin, end)})[0];
    all = all ? add(all, one) : one;
  }
  return scale(all, temperature * temperature / static_cast<double>(R));
}

namespace {

// The settings of each layer's mixer.
std::vector<std::map<std::string, std::string>> mixers_of(const TomlTable& recipe) {
  std::vector<std::map<std::string, std::string>> all;
  const std::map<std::string, TomlValue> values = recipe.values();
  for (const std::string& table : layers::layer_names(recipe).mixers) {
    std::map<std::string, std::string>& keys = all.emplace_back();
    for (const auto& [key, value] : values)
      if (key.starts_with(table + ".")) keys[key.substr(table.size() + 1)] = value.text;
  }
  return all;
}

layers::Batch cut(const layers::Batch& batch, int64_t length) {
  if (length == 0) return batch;
  return {batch.tokens.reshape({-1, length}), batch.targets.reshape({-1, length}), {}};
}

void check_stages(const Recipe& r, const layers::Model& student, bool packed) {
  const DistillSettings& d = r.distill;
  const TomlTable t = r.toml.table("distill");
  if (d.align.steps + d.match.steps == 0)
    t.refuse("teacher", "nothing is learned of the teacher: set steps in [distill.align] or ",
             "[distill.match], or leave [distill] out");
  if (d.align.steps + d.match.steps > r.train.steps)
    r.toml.table("train").refuse("steps", "train.steps = ", r.train.steps, ", but the stages of ",
                                 "[distill] take ", d.align.steps, " and ", d.match.steps,
                                 " of them; what is left is for the text, and may be 0");
  for (const auto& [name, stage] : {std::pair{"align", d.align}, {"match", d.match}}) {
    if (stage.length == 0) continue;
    if (packed)
      t.table(name).refuse("length", "documents are packed, and have their own lengths; leave ",
                           "length out");
    if (student.context() % stage.length != 0)
      t.table(name).refuse("length", "texts of ", stage.length, " do not divide the context of ",
                           student.context(), " evenly");
  }
}

}  // namespace

Distillation::Distillation(const Recipe& r, const layers::Model& student, bool planned)
    : student_(student), temperature_(r.distill.temperature) {
  const Teacher teacher = open_teacher(r.distill.teacher, r.train.dtype);
  path_ = teacher.path;
  tokens_ = teacher.tokens;
  {
    const OwnerScope owner("teacher");
    model_ = std::make_unique<layers::Model>(teacher.recipe.toml, teacher.vocabulary, r.train.dtype,
                                             student.parameters().front().var.value().device(),
                                             teacher.state.seed);
  }
  require_fits(teacher, *model_, r, student);
  check_stages(r, student, read_data(r.toml).packed);
  const auto theirs = mixers_of(teacher.recipe.toml), ours = mixers_of(r.toml);
  for (size_t i = 0; i < ours.size(); ++i)
    if (ours[i] != theirs[i]) changed_.push_back(i);
  if (changed_.empty() && r.distill.align.steps > 0)
    r.toml.table("distill").table("align").refuse(
        "steps", "every mixer is the teacher's own, so none can be aligned; leave [distill.align] ",
        "out");
  if (planned)
    require_parameters(teacher.file, model_->parameters());
  else
    load_parameters(teacher.file, model_->parameters());
  for (layers::Parameter& p : model_->parameters()) p.master = Tensor();
  model_->at_step(teacher.state.step);
  if (planned) return;
  hash_ = hash_of(teacher);
  if (!r.distill.hash.empty() && r.distill.hash != hash_)
    r.toml.table("distill").refuse("hash", path_, " is another teacher: its hash is ", hash_,
                                   ", expected ", r.distill.hash);
}

void Distillation::require_tokens(const std::string& ours) const {
  require(tokens_ == ours || tokens_ == "token numbers", path_,
          ": the teacher's tokens are others: ", tokens_, " there and ", ours,
          " here; give the student the teacher's data.tokenizer, or its dataset");
}

layers::Loss Distillation::align(const layers::Batch& batch) const {
  std::vector<layers::Mixed> seen = model_->mixed(batch);
  std::vector<Var> auxiliary;
  Var all;
  for (const size_t i : changed_) {
    const Var one = alignment(student_.mix(i, seen[i].x, batch, auxiliary), seen[i].y);
    all = all ? add(all, one) : one;
    seen[i] = {};
  }
  all = scale(all, 1 / static_cast<double>(changed_.size()));
  const Tensor reported = all.value();
  for (const Var& loss : auxiliary) all = add(all, loss);
  return {all, reported};
}

layers::Loss Distillation::match(const layers::Batch& batch) const {
  HeadInput teacher;
  {
    const NoGrad no_grad;
    std::vector<Var> none;
    teacher = {model_->states(batch, none), model_->head(), model_->softcap()};
  }
  std::vector<Var> auxiliary;
  const Var x = student_.states(batch, auxiliary);
  const OwnerScope owner("head");
  Var all = divergence({x, student_.head(), student_.softcap()}, teacher, temperature_);
  const Tensor reported = all.value();
  for (const Var& loss : auxiliary) all = add(all, loss);
  return {all, reported};
}

layers::Loss Distillation::loss(const layers::Batch& batch, const Stage& stage) const {
  if (stage.kind == StageKind::align) return align(cut(batch, stage.length));
  if (stage.kind == StageKind::match) return match(cut(batch, stage.length));
  return student_.loss(batch);
}

layers::Loss loss_of(const layers::Model& model, const Distillation* distillation,
                     const layers::Batch& batch, const Stage& stage) {
  return distillation ? distillation->loss(batch, stage) : model.loss(batch);
}

}  // namespace weft::train
