#pragma once

#include <cstdint>
#include <string>

namespace tessera {

/// What a device offers: the input of kernel choice and of the memory plan. Filled in by the device itself, by a
/// built-in description, by a file, or by a test; a plain value, so that a GPU with 64 KB of shared memory is a test
/// input. Zero means unknown or not applicable.
struct DeviceLimits {
  std::string name;                      ///< "cpu", "NVIDIA H200", ...
  std::string kind = "cpu";              ///< "cpu" or "cuda"
  int64_t memory_bytes = 0;              ///< total
  int64_t memory_free_bytes = 0;         ///< free when asked
  int64_t shared_memory_per_block = 0;   ///< bytes a block gets without asking
  int64_t shared_memory_optin = 0;       ///< bytes a block gets when it asks
  int64_t registers_per_block = 0;
  int64_t max_threads_per_block = 0;
  int64_t warp_size = 0;
  int64_t multiprocessors = 0;
  int64_t l2_bytes = 0;
  int64_t clock_khz = 0;
  int64_t memory_clock_khz = 0;
  int64_t compute_capability = 0;        ///< 90 for 9.0
  bool peer_access = false;              ///< every pair of the devices in use can read the other
  bool tensor_cores_bf16 = false;        ///< mma.sync on bf16
  bool wgmma = false;                    ///< warpgroup matrix instructions (sm_90a)
};

}  // namespace tessera
