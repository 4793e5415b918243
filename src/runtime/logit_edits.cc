#include "runtime/logit_edits.h"

#include <algorithm>

#include "runtime/token_request.h"

namespace tessera {

LogitEdits::LogitEdits(const TokenRequest& request)
    : repetition_(static_cast<float>(request.repetition_penalty)),
      presence_(static_cast<float>(request.presence_penalty)),
      frequency_(static_cast<float>(request.frequency_penalty)) {
  for (const auto& [token, bias] : request.logit_bias) {
    const size_t at = entry(token);
    counts_[at].bias = bias;
    edits_[at].subtract = -bias;
  }
  if (repetition_ != 1)
    for (const int32_t token : request.prompt) edits_[entry(token)].repetition = repetition_;
}

int64_t LogitEdits::most(int64_t session_len, int64_t vocab) { return std::min(session_len + kMaxLogitBias, vocab); }

size_t LogitEdits::entry(int32_t token) {
  const auto [found, added] = index_.try_emplace(token, edits_.size());
  if (added) {
    edits_.push_back({.token = token});
    counts_.emplace_back();
  }
  return found->second;
}

void LogitEdits::accept(int32_t token) {
  if (repetition_ == 1 && presence_ == 0 && frequency_ == 0) return;
  const size_t at = entry(token);
  Counts& counts = counts_[at];
  ++counts.generated;
  edits_[at].repetition = repetition_;
  edits_[at].subtract = presence_ + frequency_ * static_cast<float>(counts.generated) - counts.bias;
}

}  // namespace tessera
