#include "backends/cpu/kernel_choice.h"

#include <algorithm>

namespace tessera::cpu {

const std::vector<std::string>& isa_names() {
  static const std::vector<std::string> names = {"auto", "plain", "avx2", "avx512", "avx512_bf16", "amx_bf16"};
  return names;
}

Result<KernelSet> choose_kernels(const std::string& isa, const CpuFeatures& features) {
  (void)features;
  if (std::find(isa_names().begin(), isa_names().end(), isa) == isa_names().end())
    return invalid_input("--isa is \"" + isa + "\"; expected auto, plain, avx2, avx512, avx512_bf16 or amx_bf16");
  KernelSet set;
  set.leaf = plain_kernels();
  for (KernelChoice& choice : set.products) choice = {.kernel = "plain", .reason = "portable C++"};
  set.rest = {.kernel = "plain", .reason = "portable C++"};
  return set;
}

}  // namespace tessera::cpu
