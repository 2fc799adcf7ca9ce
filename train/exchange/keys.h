// What the keys of config.json and those of a recipe have to do with each other, said once: a
// function of an architecture calls the lines below, and they read a config into a draft or write a
// draft into a config. What a config cannot hold is not checked here: the config that was written
// is read again, and the two drafts are compared (architecture.h).
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "train/exchange/draft.h"

namespace weft::train {

class Keys {
 public:
  static Keys reading(const Config& config, Draft& draft) { return {&config, nullptr, &draft}; }
  static Keys writing(Json& config, Draft& draft) { return {nullptr, &config, &draft}; }

  bool reads() const { return in_ != nullptr; }
  const Config& in() const { return *in_; }
  Json& out() const { return *out_; }
  Draft& draft() const { return *draft_; }

  // One value under two names. `standard` is what config.json means where it has no such key.
  void integer(const char* theirs, const char* ours, std::optional<int64_t> standard = {}) const;
  void number(const char* theirs, const char* ours, std::optional<double> standard = {}) const;
  void truth(const char* theirs, const char* ours, bool standard) const;
  // A number that stands in config.json as f(ours); f is its own inverse, as of 1 / x.
  void number(const char* theirs, const char* ours, double standard,
              const std::function<double(double)>& f) const;
  // Values of config.json and those of the recipe that mean the same; the first pair that fits is
  // taken. A value that is not on the list is refused.
  using Pairs = std::vector<std::pair<Json, Json>>;
  void named(const char* theirs, const char* ours, const Pairs& pairs, const Json& standard) const;
  // The key has this one value, or is absent: our layers have nothing else.
  void fixed(const char* theirs, const Json& value, const char* why) const;
  // The recipe has this value, for which config.json has no key.
  void set(const char* ours, const Json& value) const {
    if (reads()) draft_->set(ours, value);
  }
  // Keys that change no logit; those of dropout are told where they are not zero.
  void ignored(const std::vector<std::string>& keys) const;
  void dropouts(const std::vector<std::string>& keys) const;

  // num_hidden_layers layers with this mixer.
  void layers(const char* theirs, const char* mixer) const;

 private:
  Keys(const Config* in, Json* out, Draft* draft) : in_(in), out_(out), draft_(draft) {}
  void put(const char* theirs, const Json& value) const {
    if (!value.is_null()) (*out_)[theirs] = value;
  }

  const Config* in_;
  Json* out_;
  Draft* draft_;
};

}  // namespace weft::train
