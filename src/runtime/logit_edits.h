#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "ops/sample.h"

namespace tessera {

struct TokenRequest;

/// One sequence's changes to its logits: repetition penalty over prompt and new tokens, presence and frequency penalties
/// over new tokens, logit_bias. Kept up token by token, so that a step copies it and computes nothing. Empty, and free,
/// for requests without penalties.
class LogitEdits {
 public:
  LogitEdits() = default;
  explicit LogitEdits(const TokenRequest& request);

  /// Whether there are any or new tokens bring some.
  bool any() const { return repetition_ != 1 || presence_ != 0 || frequency_ != 0 || !edits_.empty(); }
  /// A token was generated.
  void accept(int32_t token);
  std::span<const LogitEdit> edits() const { return edits_; }

  /// Most edits that one row can need: its distinct tokens and its biases.
  static int64_t most(int64_t session_len, int64_t vocab);

 private:
  struct Counts {
    float bias = 0;
    int32_t generated = 0;
  };
  size_t entry(int32_t token);

  float repetition_ = 1, presence_ = 0, frequency_ = 0;
  std::vector<LogitEdit> edits_;
  std::vector<Counts> counts_;  ///< beside edits_
  std::unordered_map<int32_t, size_t> index_;
};

/// Entries of logit_bias that a request may have.
inline constexpr int64_t kMaxLogitBias = 4096;

}  // namespace tessera
