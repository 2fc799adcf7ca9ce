#include "train/exchange/standards.h"

#include "core/text.h"

namespace weft::train {

void with_standards(const Keys& k, const Json& standards, void (*keys)(const Keys& k)) {
  if (!k.reads()) return keys(k);
  Json all = k.in().all();
  for (const auto& [key, value] : standards.items())
    if (all.value(key, Json()).is_null()) all[key] = value;
  const Config filled(all, k.in().where());
  keys(Keys::reading(filled, k.draft()));
  const std::vector<std::string> rest = filled.unread();
  std::vector<std::string> read;
  for (const auto& [key, value] : k.in().all().items())
    if (!contains(rest, key)) read.push_back(key);
  k.in().ignore(read);
}

}  // namespace weft::train
