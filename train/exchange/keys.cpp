#include "train/exchange/keys.h"

#include <cstdio>

#include "core/text.h"

namespace weft::train {

void Keys::integer(const char* theirs, const char* ours, std::optional<int64_t> standard) const {
  if (reads())
    draft_->set(ours, in_->integer(theirs, standard));
  else
    put(theirs, draft_->get(ours));
}

void Keys::number(const char* theirs, const char* ours, std::optional<double> standard) const {
  if (reads())
    draft_->set(ours, in_->number(theirs, standard));
  else
    put(theirs, draft_->get(ours));
}

void Keys::number(const char* theirs, const char* ours, double standard,
                  const std::function<double(double)>& f) const {
  if (reads()) {
    const double given = in_->number(theirs, standard);
    if (given == 0) in_->refuse(theirs, "expected another number than zero");
    draft_->set(ours, f(given));
    return;
  }
  const Json value = draft_->get(ours);
  if (!value.is_null()) put(theirs, f(value.get<double>()));
}

void Keys::truth(const char* theirs, const char* ours, bool standard) const {
  if (reads())
    draft_->set(ours, in_->truth(theirs, standard));
  else
    put(theirs, draft_->get(ours));
}

void Keys::named(const char* theirs, const char* ours, const Pairs& pairs,
                 const Json& standard) const {
  if (!reads()) {
    const Json value = draft_->get(ours);
    for (const auto& [their, our] : pairs)
      if (our == value) return put(theirs, their);
    return put(theirs, pairs.front().first);  // the comparison tells that it is another
  }
  const Json given = in_->has(theirs) ? in_->at(theirs) : standard;
  std::vector<std::string> known;
  for (const auto& [their, our] : pairs) {
    if (their == given) return draft_->set(ours, our);
    known.push_back(their.dump());
  }
  in_->refuse(theirs, "our layers know ", joined(known), " here");
}

void Keys::fixed(const char* theirs, const Json& value, const char* why) const {
  if (!reads()) return put(theirs, value);
  if (in_->has(theirs) && in_->at(theirs) != value)
    in_->refuse(theirs, "expected ", value.dump(), "; ", why);
}

void Keys::ignored(const std::vector<std::string>& keys) const {
  if (reads()) in_->ignore(keys);
}

void Keys::dropouts(const std::vector<std::string>& keys) const {
  if (!reads()) return;
  for (const std::string& key : keys)
    if (in_->number(key, 0.0) != 0)
      std::fprintf(stderr,
                   "%s: %s is %s: our layers have no dropout, so further training is without\n",
                   in_->where().c_str(), key.c_str(), in_->at(key).dump().c_str());
}

void Keys::layers(const char* theirs, const char* mixer) const {
  if (!reads()) return put(theirs, draft_->layers.size());
  const int64_t n = in_->integer(theirs);
  if (n < 1 || n > 10000) in_->refuse(theirs, "expected 1 to 10000 layers");
  draft_->layers.assign(static_cast<size_t>(n), DraftLayer{});
  for (DraftLayer& layer : draft_->layers) layer.mixer = mixer;
}

}  // namespace weft::train
