#include "models/architecture.h"

#include <array>

namespace tessera {

std::span<const LanguageArchitecture* const> language_architectures() {
  static constexpr std::array<const LanguageArchitecture*, 6> kAll = {&kQwen2,     &kQwen3, &kQwen3Moe,
                                                                     &kInternLm2, &kLlama, &kPhi3};
  return kAll;
}

const LanguageArchitecture* find_architecture(std::string_view name) {
  for (const LanguageArchitecture* architecture : language_architectures())
    if (name == architecture->name) return architecture;
  return nullptr;
}

const LanguageArchitecture* find_architecture_by_type(std::string_view model_type) {
  if (model_type.empty()) return nullptr;
  for (const LanguageArchitecture* architecture : language_architectures())
    if (model_type == architecture->model_type) return architecture;
  return nullptr;
}

std::string architecture_names() {
  std::string names;
  for (const LanguageArchitecture* architecture : language_architectures())
    names += (names.empty() ? "" : ", ") + std::string(architecture->name);
  return names;
}

}  // namespace tessera
