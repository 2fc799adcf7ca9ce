// The list of feature maps, and those that are a function of each number.
#include "layers/feature_map.h"

#include "core/text.h"

namespace weft::layers {
namespace {

std::map<std::string, FeatureMapMaker>& makers() {
  static std::map<std::string, FeatureMapMaker> list;
  return list;
}

// A kind of activation; "none": the numbers themselves, whose products have both signs.
class Elementwise final : public FeatureMap {
 public:
  Elementwise(std::string kind, int64_t width) : kind_(std::move(kind)), width_(width) {}
  Result operator()(const Var& q, const Var& k, Context&) const override {
    if (kind_ == "none") return {q, k, {}};
    return {activation(q, kind_), activation(k, kind_), {}};
  }
  int64_t width() const override { return width_; }
  Divisor divisor() const override { return kind_ == "none" ? Divisor::unsafe : Divisor::possible; }

 private:
  std::string kind_;
  int64_t width_;
};

RegisteredFeatureMap elementwise(const std::string& kind) {
  return {kind, [kind](const Spec&, const TomlTable&, const Builder&, const HeadSizes& size) {
            return std::make_unique<Elementwise>(kind, size.K);
          }};
}

const RegisteredFeatureMap elu1 = elementwise("elu1"), relu = elementwise("relu"),
                           none = elementwise("none");

}  // namespace

void add_feature_map(const std::string& name, FeatureMapMaker maker) {
  require(makers().emplace(name, std::move(maker)).second, "two feature maps are named ", name);
}

std::vector<std::string> feature_map_names() {
  std::vector<std::string> names;
  for (const auto& [name, maker] : makers()) names.push_back(name);
  return names;
}

std::unique_ptr<FeatureMap> make_feature_map(const Spec& spec, const TomlTable& t, const Builder& b,
                                             const HeadSizes& size, const std::string& standard) {
  const std::string name = t.one_of("feature_map", feature_map_names(), standard);
  return makers().at(name)(spec, t, b, size);
}

}  // namespace weft::layers
