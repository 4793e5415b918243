#pragma once

#include <cstdint>
#include <memory>
#include <span>

namespace tessera {

/// What may come next in one answer, as a mask over token ids. One object a sequence; not thread-safe (clones are
/// independent of each other and may live on other threads).
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;

  /// Writes the mask of allowed ids: bit (id % 32) of word (id / 32) is 1 when `id` may come next. Bits past the
  /// tokenizer's vocabulary are 0; ids past the last word (a tokenizer may know more than the model) are left out. At
  /// least one bit is set unless finished().
  virtual void fill_mask(std::span<uint32_t> words) = 0;

  /// Advances by a token; false (and no change) when it is not allowed here.
  virtual bool accept(int32_t token) = 0;

  /// True after an ending token was accepted: the answer is complete.
  virtual bool finished() const = 0;

  /// An independent copy in the same state (n > 1 answers, speculative steps).
  virtual std::unique_ptr<TokenConstraint> clone() const = 0;
};

}  // namespace tessera
