#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace tessera {

/// 256 bits that name content: equal content, equal digest, and nobody can make two contents share one (SHA-256), so
/// that caches may be keyed by it across clients.
using Digest = std::array<uint64_t, 4>;

/// Computes a digest piece by piece. finish() ends one digest and makes the object as new. Not thread-safe.
class DigestBuilder {
 public:
  DigestBuilder();
  DigestBuilder(DigestBuilder&&) noexcept;
  DigestBuilder& operator=(DigestBuilder&&) noexcept;
  ~DigestBuilder();

  void update(const void* data, size_t bytes);
  Digest finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tessera
