#pragma once

#include <cstdint>

namespace tessera {

/// The largest resident memory of this process so far, bytes (VmHWM: binary and mapped pages included).
int64_t peak_resident_bytes();
/// Resident memory now, bytes.
int64_t resident_bytes();
/// Memory that this process may still take: the smaller of what the machine has available and what the cgroup allows.
int64_t available_memory_bytes();
/// The machine's memory, or the cgroup's limit where that is smaller.
int64_t total_memory_bytes();

}  // namespace tessera
