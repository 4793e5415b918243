#include "backends/cpu/cpu_allocator.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

namespace tessera::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kPage = 4096;

size_t to_pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

/// A mapping of `bytes` at a multiple of 2 MiB: maps 2 MiB more and cuts off both ends.
void* map_aligned(size_t bytes) {
  const size_t whole = bytes + kHugePage;
  void* mapping = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return nullptr;
  char* begin = static_cast<char*>(mapping);
  const size_t lead = (kHugePage - reinterpret_cast<size_t>(begin) % kHugePage) % kHugePage;
  if (lead) munmap(begin, lead);
  if (whole - lead > bytes) munmap(begin + lead + bytes, whole - lead - bytes);
  return begin + lead;
}

}  // namespace

void* CpuAllocator::take(size_t bytes) {
  if (bytes < kHugePage) {
    void* data = std::aligned_alloc(kAlignment, bytes);  // sizes come rounded to kAlignment
    if (data) std::memset(data, 0, bytes);
    return data;
  }
  void* data = map_aligned(to_pages(bytes));
  if (data) madvise(data, to_pages(bytes), MADV_HUGEPAGE);  // without huge pages it is only slower
  return data;
}

void CpuAllocator::give_back(void* data, size_t bytes) {
  if (bytes < kHugePage)
    std::free(data);
  else
    munmap(data, to_pages(bytes));
}

}  // namespace tessera::cpu
