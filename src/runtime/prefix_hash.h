#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/digest.h"
#include "ops/rope.h"

namespace tessera {

struct TokenRequest;

/// Names the content of KV blocks: block i's digest covers the digest of block i - 1 and, for each of its tokens, the id
/// (or, inside a picture, the picture's key and the place in it) and the class of its rope parameters. Equal digests
/// mean equal keys and values. The chain starts from cache_salt, so tenants never meet.
/// Thread rule: one thread at a time.
class PrefixHasher {
 public:
  PrefixHasher(const RopeParams& rope, int64_t block_size) : rope_(&rope), block_size_(block_size) {}

  Digest root(const std::string& salt);
  /// The digest of the block that starts at token `first` of prompt + generated. Requires: all its tokens exist.
  Digest next(const Digest& previous, const TokenRequest& request, std::span<const int32_t> generated, int64_t first);
  /// All full blocks of a prompt.
  std::vector<Digest> prompt(const TokenRequest& request);

 private:
  const RopeParams* rope_;
  int64_t block_size_;
  DigestBuilder builder_;
};

}  // namespace tessera
