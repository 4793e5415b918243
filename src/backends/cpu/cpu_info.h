#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tessera::cpu {

/// What the processor offers, by CPUID (and what the operating system lets a process use of it).
struct CpuFeatures {
  std::string model;  ///< "AMD EPYC 9B14"
  bool avx2 = false;         ///< with FMA and F16C
  bool avx512 = false;       ///< F, BW, VL, DQ
  bool avx512_bf16 = false;
  bool avx512_vnni = false;
  bool amx_bf16 = false;     ///< tiles too, granted by the kernel
  bool amx_int8 = false;
  int64_t l2_bytes = 0;
};

/// Asks the processor, once.
const CpuFeatures& cpu_features();

/// Names of the instruction sets that are there, for people: "avx2", "avx512", ...
std::vector<std::string> instruction_sets(const CpuFeatures& features);

struct MemoryInfo {
  int64_t total = 0;         ///< of the machine
  int64_t available = 0;     ///< what the kernel says can be had without swapping
  int64_t cgroup_limit = 0;  ///< 0: none
  int64_t cgroup_used = 0;
};
MemoryInfo memory_info();

}  // namespace tessera::cpu
