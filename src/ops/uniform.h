#pragma once

#include <cstdint>

namespace tessera {

/// The uniform number in [0, 1) of a draw, a multiple of 2^-24: Philox 4x32 with ten rounds (Salmon et al., "Parallel
/// random numbers: as easy as 1, 2, 3", 2011), keyed by the seed, counting draws. constexpr, so that device code can
/// share it; the same on every device.
constexpr float uniform(uint64_t seed, uint64_t draw) {
  uint32_t c0 = static_cast<uint32_t>(draw), c1 = static_cast<uint32_t>(draw >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return static_cast<float>(c0 >> 8) * 0x1p-24f;
}

}  // namespace tessera
