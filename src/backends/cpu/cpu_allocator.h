#pragma once

#include "core/allocator.h"

namespace tessera::cpu {

/// Main memory. Large blocks are mappings of their own, aligned to and advised for 2 MiB pages: products and decode stream
/// through gigabytes, where 4 KiB pages cost TLB misses. Memory is zero at first and resident once written.
class CpuAllocator final : public Allocator {
 protected:
  void* take(size_t bytes) override;
  void give_back(void* data, size_t bytes) override;
};

}  // namespace tessera::cpu
