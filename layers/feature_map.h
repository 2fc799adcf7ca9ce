// What stands for q and k in linear attention: a map f in whose features the weight of a value is
// f(q).f(k). A map lives in a .cpp file without a header and puts its maker on the list by
//   const RegisteredFeatureMap registered{"favor+", feature_map_maker<Favor>()};
// and from then on a recipe may say feature_map = "favor+".
#pragma once

#include "layers/recurrent.h"

namespace weft::layers {

// May the outputs be divided by the sum of the weights? It is `unsafe` where weights of both signs
// may cancel, and `needed` where weights are right only up to a common factor.
enum class Divisor { possible, needed, unsafe };

class FeatureMap {
 public:
  // What takes the place of q and k, [B, T, Hk, width()]; and log gates [B, T, H], or none.
  struct Result {
    Var q, k, g;
  };

  virtual ~FeatureMap() = default;
  // q, k [B, T, Hk, K]. What has to be remembered between calls is kept in the context's state.
  virtual Result operator()(const Var& q, const Var& k, Context& c) const = 0;
  virtual int64_t width() const = 0;
  virtual Divisor divisor() const { return Divisor::possible; }
  // The factor on the weights (0: width()^-1/2), and what is added to their sum as a standard.
  virtual double scale() const { return 0; }
  virtual double eps() const { return 1e-6; }
  // FLOPs a token, of q and k.
  virtual double flops() const { return 0; }
  // As those of Layer.
  virtual int64_t longest_text() const { return std::numeric_limits<int32_t>::max(); }
  virtual void at_step(int64_t step) { static_cast<void>(step); }
};

// Reads its settings from the mixer's table.
using FeatureMapMaker = std::function<std::unique_ptr<FeatureMap>(
    const Spec& spec, const TomlTable& table, const Builder& builder, const HeadSizes& size)>;

void add_feature_map(const std::string& name, FeatureMapMaker maker);
std::vector<std::string> feature_map_names();
// That of the table's feature_map. Throws Error that names the nearest known name.
std::unique_ptr<FeatureMap> make_feature_map(const Spec& spec, const TomlTable& t, const Builder& b,
                                             const HeadSizes& size, const std::string& standard);

// The maker of a class with the constructor (spec, table, builder, size).
template <class M>
FeatureMapMaker feature_map_maker() {
  return [](const Spec& spec, const TomlTable& table, const Builder& builder,
            const HeadSizes& size) { return std::make_unique<M>(spec, table, builder, size); };
}

struct RegisteredFeatureMap {
  RegisteredFeatureMap(const std::string& name, FeatureMapMaker maker) {
    add_feature_map(name, std::move(maker));
  }
};

}  // namespace weft::layers
