#include "train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "autograd/tape.h"
#include "kernels/optimizer/muon.h"

namespace weft::train {
namespace {

// Muon's matrices, without gradients.
kernels::MuonTensor matrices(const Tensor& master, const Tensor& m, const Tensor& grad = {}) {
  return {master, m, grad};
}

void require_muon_runs(Device device, int ranks) {
  require(!device.takes_cuda_forms(),
          "[optimizer] type = \"muon\" runs on the CPU alone; set train.device = \"cpu\", or leave "
          "type out, and AdamW moves all parameters");
  require(ranks == 1, "[optimizer] type = \"muon\" needs whole matrices, and ", ranks,
          " ranks hold slices of them; leave --ranks out, or leave type out");
}

}  // namespace

bool by_muon(const OptimizerSettings& s, const layers::Parameter& p) {
  const bool hidden = p.part == "mixer" || p.part == "mlp";
  const int dims = p.var.shape().dims();
  return s.type == "muon" && hidden && p.decay && (dims == 2 || dims == 3) &&
         !p.name.ends_with("conv1d.weight");
}

double schedule_factor(const ScheduleSettings& s, int64_t step, int64_t steps) {
  if (step < s.warmup) return static_cast<double>(step + 1) / static_cast<double>(s.warmup);
  const auto from = [&](double begin) {
    const double length = std::max(1.0, static_cast<double>(steps) - begin);
    return std::clamp((static_cast<double>(step) - begin) / length, 0.0, 1.0);
  };
  if (s.type == "cosine") {
    const double part = from(static_cast<double>(s.warmup));
    return s.final + (1 - s.final) * 0.5 * (1 + std::cos(std::numbers::pi * part));
  }
  if (s.type == "wsd") {
    const double begin = static_cast<double>(steps) * (1 - s.decay);
    return 1 - (1 - s.final) * from(std::max(begin, static_cast<double>(s.warmup)));
  }
  return 1;
}

AdamW::AdamW(const OptimizerSettings& settings, const std::vector<layers::Parameter>& parameters)
    : settings_(settings),
      parameters_(parameters),
      ranks_(std::make_shared<Ranks>()),
      slices_(parameters, 1) {
  const OwnerScope owner("optimizer");
  for (const layers::Parameter& p : parameters_) {
    masters_.push_back(p.master);
    moments_.push_back(
        {zeros_like(p.master), by_muon(settings, p) ? Tensor() : zeros_like(p.master)});
  }
  make_room();
}

void AdamW::make_room() {
  if (settings_.type != "muon" || masters_.empty()) return;
  require_muon_runs(masters_.front().device(), ranks_->size());
  std::vector<kernels::MuonTensor> list;
  for (size_t i = 0; i < masters_.size(); ++i)
    if (!moments_[i].v) list.push_back(matrices(masters_[i], moments_[i].m));
  room_ = empty({kernels::muon_room(list)}, masters_.front().dtype(), masters_.front().device());
}

AdamW::AdamW(const OptimizerSettings& settings, std::vector<layers::Parameter>& parameters,
             std::shared_ptr<Ranks> ranks)
    : settings_(settings), ranks_(std::move(ranks)), slices_(parameters, ranks_->size()) {
  if (ranks_->alone()) {
    *this = AdamW(settings, parameters);
    return;
  }
  if (settings.type == "muon")
    require_muon_runs(parameters.front().var.value().device(), ranks_->size());
  weights_.emplace(parameters, slices_);
  const OwnerScope owner("optimizer");
  for (const View& view : views()) {
    const layers::Parameter& p = parameters[view.parameter];
    const Tensor part = part_of(p.master, view);
    masters_.push_back(p.var.value().shares_memory(p.master) ? part : part.clone());
    moments_.push_back({zeros_like(part), zeros_like(part)});
  }
  for (layers::Parameter& p : parameters)
    if (!p.var.value().shares_memory(p.master)) p.master = Tensor();
  parameters_ = parameters;
}

std::vector<kernels::AdamwTensor> AdamW::tensors() const {
  std::vector<kernels::AdamwTensor> list;
  for (size_t i = 0; i < views().size(); ++i) {
    const View& view = views()[i];
    const layers::Parameter& p = parameters_[view.parameter];
    const bool whole = view.end - view.begin == p.var.value().numel();
    const auto part = [&](const Tensor& t) { return whole ? t : part_of(t, view); };
    const Tensor copy = p.var.value().shares_memory(masters_[i]) ? Tensor() : part(p.var.value());
    const Shape shape = copy ? copy.shape() : part(p.var.value()).shape();
    const Moments& m = moments_[i];
    list.push_back({masters_[i].reshape(shape), m.m.reshape(shape),
                    m.v ? m.v.reshape(shape) : Tensor(), part(p.var.grad()), copy, p.decay});
  }
  return list;
}

bool AdamW::update(const std::vector<kernels::AdamwTensor>& tensors,
                   const kernels::AdamwSettings& settings, int64_t step, double lr, double part,
                   double factor) const {
  if (settings_.type == "adamw") return kernels::adamw(tensors, settings, step, lr, factor);
  std::vector<kernels::AdamwTensor> others;
  std::vector<kernels::MuonTensor> hidden;
  for (const kernels::AdamwTensor& t : tensors)
    if (t.v)
      others.push_back(t);
    else
      hidden.push_back(matrices(t.master, t.m, t.grad));
  const kernels::MuonSettings muon{settings_.momentum, settings.weight_decay,
                                   settings_.muon_scale == "adamw"};
  const bool good = kernels::adamw(others, settings, step, lr, factor);
  return kernels::muon(hidden, muon, part * settings_.muon_lr, factor, room_) && good;
}

void AdamW::gather_weights() const {
  if (weights_) weights_->gather(*ranks_);
}

const Tensor& AdamW::held(size_t view, Kind kind) const {
  if (kind == Kind::master) return masters_[view];
  return kind == Kind::m ? moments_[view].m : moments_[view].v;
}

Tensor AdamW::whole(size_t parameter, Kind kind) const {
  const layers::Parameter& p = parameters_[parameter];
  if (ranks_->size() == 1) return held(parameter, kind).to(kCpu).reshape(p.var.shape());
  Tensor all;
  std::vector<Part> sends, receives;
  const Dtype dtype = p.var.dtype() == Dtype::bf16 ? Dtype::f32 : p.var.dtype();
  if (ranks_->first()) all = empty(p.var.shape(), dtype, p.var.value().device());
  for (int r = 0; r < ranks_->size(); ++r)
    for (const View& view : slices_.of(r))
      if (ranks_->first() && view.parameter == parameter && r > 0)
        receives.push_back({r, part_of(all, view)});
  for (size_t i = 0; i < views().size(); ++i) {
    if (views()[i].parameter != parameter) continue;
    if (ranks_->first())
      part_of(all, views()[i]).copy_from(held(i, kind));
    else
      sends.push_back({0, held(i, kind)});
  }
  ranks_->transfer(sends, receives);
  return ranks_->first() ? all.to(kCpu) : Tensor();
}

void AdamW::set(size_t parameter, Kind kind, const Tensor& whole) const {
  for (size_t i = 0; i < views().size(); ++i)
    if (views()[i].parameter == parameter)
      held(i, kind).copy_from(part_of(whole, views()[i]).reshape(held(i, kind).shape()));
}

kernels::AdamwSettings AdamW::settings() const {
  return {settings_.beta1, settings_.beta2, settings_.eps, settings_.weight_decay, settings_.clip};
}

std::string AdamW::not_finite() const {
  const auto of = [](const char* kind, const std::string& name, const Tensor& t) {
    if (!t || autograd::all_finite(t)) return std::string();
    const std::vector<double> x = to_doubles(t);
    const auto bad =
        std::count_if(x.begin(), x.end(), [](double value) { return !std::isfinite(value); });
    const bool number = std::none_of(x.begin(), x.end(), [](double v) { return std::isnan(v); });
    return concat(kind, " ", name, number ? " is infinite" : " is not a number", " in ", bad,
                  " of its ", x.size(), " values");
  };
  for (size_t i = 0; i < views().size(); ++i) {
    const std::string& name = parameters_[views()[i].parameter].name;
    for (const std::string& found :
         {of("the parameter", name, masters_[i]), of("the first moment of", name, moments_[i].m),
          of("the second moment of", name, moments_[i].v)})
      if (!found.empty()) return found;
  }
  return "";
}

}  // namespace weft::train
