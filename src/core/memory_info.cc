#include "core/memory_info.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace tessera {
namespace {

// A line "Name:   123 kB" of a /proc file, in bytes; 0 when absent.
int64_t proc_field(const char* path, const std::string& name) {
  std::ifstream in(path);
  for (std::string word; in >> word;) {
    if (word != name) continue;
    int64_t kilobytes = 0;
    in >> kilobytes;
    return kilobytes * 1024;
  }
  return 0;
}

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

int64_t number_in(const char* path) {
  std::ifstream in(path);
  int64_t value = 0;
  return in >> value ? value : -1;  // "max" reads as no number
}

// Limit and use of the cgroup this process runs in, version 2 or 1.
int64_t cgroup_limit() {
  for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"})
    if (const int64_t limit = number_in(path); limit > 0) return limit;
  return kNoLimit;
}

int64_t cgroup_used() {
  for (const char* path : {"/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes"})
    if (const int64_t used = number_in(path); used >= 0) return used;
  return 0;
}

}  // namespace

int64_t peak_resident_bytes() { return proc_field("/proc/self/status", "VmHWM:"); }
int64_t resident_bytes() { return proc_field("/proc/self/status", "VmRSS:"); }

int64_t available_memory_bytes() {
  const int64_t machine = proc_field("/proc/meminfo", "MemAvailable:");
  const int64_t limit = cgroup_limit();
  return limit == kNoLimit ? machine : std::min(machine, std::max<int64_t>(0, limit - cgroup_used()));
}

int64_t total_memory_bytes() { return std::min(proc_field("/proc/meminfo", "MemTotal:"), cgroup_limit()); }

}  // namespace tessera
