#include "backends/cpu/cpu_info.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#endif

namespace tessera::cpu {
namespace {

#if defined(__x86_64__)

struct Registers {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  Registers r;
  if (!__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d)) return {};
  return r;
}

bool bit(uint32_t value, int index) { return value >> index & 1; }

/// The register state that the operating system saves (XCR0).
uint64_t enabled_state() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

/// Linux grants tile data to a process on request (arch_prctl ARCH_REQ_XCOMP_PERM, feature 18).
bool request_tiles() {
  constexpr long kRequestPermission = 0x1023;
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

std::string model_name() {
  char name[49] = {};
  for (uint32_t i = 0; i < 3; ++i) {
    const Registers r = cpuid(0x80000002u + i);
    std::memcpy(name + 16 * i, &r, 16);
  }
  std::string text(name);
  text.erase(0, text.find_first_not_of(' '));
  text.erase(text.find_last_not_of(' ') + 1);
  return text;
}

CpuFeatures ask() {
  CpuFeatures f;
  f.model = model_name();
  f.l2_bytes = std::max<int64_t>(0, sysconf(_SC_LEVEL2_CACHE_SIZE));
  const Registers one = cpuid(1), seven = cpuid(7), seven1 = cpuid(7, 1);
  if (!bit(one.c, 27)) return f;  // no XGETBV
  const uint64_t state = enabled_state();
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6, tiles = (state & 0x60000) == 0x60000;
  f.avx2 = ymm && bit(one.c, 28) && bit(one.c, 12) && bit(one.c, 29) && bit(seven.b, 5);
  f.avx512 = f.avx2 && zmm && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31);
  f.avx512_bf16 = f.avx512 && bit(seven1.a, 5);
  f.avx512_vnni = f.avx512 && bit(seven.c, 11);
  if (f.avx512_bf16 && tiles && bit(seven.d, 24) && request_tiles()) {
    f.amx_bf16 = bit(seven.d, 22);
    f.amx_int8 = bit(seven.d, 25);
  }
  return f;
}

#else

CpuFeatures ask() {
  CpuFeatures f;
  f.model = "unknown";
  return f;
}

#endif

int64_t read_number(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word.empty() || word == "max" ? 0 : std::atoll(word.c_str());
}

/// Takes the smallest memory limit on the way from this process's cgroup to the root.
void read_cgroups(MemoryInfo& info) {
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const bool v2 = line.rfind("0::", 0) == 0;
    const size_t colon = line.rfind(':');
    if (colon == std::string::npos || (!v2 && line.find(":memory:") == std::string::npos)) continue;
    std::string path = line.substr(colon + 1);
    for (;;) {
      const std::string folder = (v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory") + path;
      const int64_t limit = read_number(folder + (v2 ? "/memory.max" : "/memory.limit_in_bytes"));
      if (limit > 0 && limit < info.total && (info.cgroup_limit == 0 || limit < info.cgroup_limit)) {
        info.cgroup_limit = limit;
        info.cgroup_used = read_number(folder + (v2 ? "/memory.current" : "/memory.usage_in_bytes"));
      }
      if (path.empty() || path == "/") break;
      path.resize(path.rfind('/'));
    }
  }
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = ask();
  return features;
}

std::vector<std::string> instruction_sets(const CpuFeatures& features) {
  std::vector<std::string> names;
  if (features.avx2) names.emplace_back("avx2");
  if (features.avx512) names.emplace_back("avx512");
  if (features.avx512_bf16) names.emplace_back("avx512_bf16");
  if (features.avx512_vnni) names.emplace_back("avx512_vnni");
  if (features.amx_bf16) names.emplace_back("amx_bf16");
  if (features.amx_int8) names.emplace_back("amx_int8");
  return names;
}

MemoryInfo memory_info() {
  MemoryInfo info;
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    int64_t kib = 0;
    words >> name >> kib;
    if (name == "MemTotal:") info.total = kib * 1024;
    if (name == "MemAvailable:") info.available = kib * 1024;
  }
  read_cgroups(info);
  return info;
}

}  // namespace tessera::cpu
