#pragma once

#include <cstdint>

#include "ops/linear.h"
#include "ops/uniform.h"

namespace tessera {

inline constexpr int kMaxTopLogprobs = 20;

/// One row's sampling, as the device reads it (plain memory, uploaded as bytes).
struct SamplingRow {
  float temperature = 0;     ///< 0: greedy
  float top_p = 1;           ///< (0, 1]
  float min_p = 0;           ///< [0, 1]
  int32_t top_k = 0;         ///< 0: off
  uint64_t seed = 0;
  uint64_t draw = 0;         ///< number of the draw in its sequence: the same (seed, draw) gives the same uniform number
  int32_t edits_begin = 0;   ///< this row's LogitEdits: [edits_begin, edits_end)
  int32_t edits_end = 0;
  int32_t mask_row = -1;     ///< row of `masks`, or -1: all ids allowed
  int32_t top_logprobs = 0;  ///< how many to report, <= kMaxTopLogprobs
};

/// logit = (logit > 0 ? logit / repetition : logit * repetition) - subtract; a token occurs once per row.
struct LogitEdit {
  int32_t token = 0;
  float repetition = 1;
  float subtract = 0;
};

/// Chooses a token for each row of logits. Order: edits, mask, (greedy: the largest logit, the lowest id of equals) or
/// temperature, top-k, top-p, min-p (relative to the largest probability), then one draw by the inverse cumulative
/// distribution over the remaining ids in descending probability (the lowest id first among equals), with
/// uniform(seed, draw). top-p keeps the shortest prefix (in that order) whose share of what top-k left reaches top_p.
/// Reported logprobs are the log-softmax of the unedited f32 logits over all `vocab` columns; the reported top ids are
/// those below valid_ids.
struct SampleArgs {
  Tensor logits;         ///< f32 [rows, vocab]; may be overwritten
  int64_t valid_ids = 0; ///< ids >= this are never chosen (a vocabulary larger than the tokenizer)
  Tensor params;         ///< u8 [rows, sizeof(SamplingRow)]
  Tensor edits;          ///< u8 [count, sizeof(LogitEdit)] or absent
  Tensor masks;          ///< i32 [mask_rows, ceil(vocab / 32)] or absent: bit = allowed
  int max_top_logprobs = 0;  ///< the largest top_logprobs of any row
  bool all_greedy = true;    ///< no row has a temperature
  /// By the product that made `logits`, or null. Of parts the logits were not written; then all rows are greedy and nothing edits,
  /// masks or lists them.
  const FoundChoices* found = nullptr;
  Tensor workspace;      ///< u8, at least Sizing::sample_workspace_bytes
  Tensor out_ids;        ///< i32 [rows]
  Tensor out_logprobs;   ///< f32 [rows]: of the chosen token
  Tensor out_top_ids;    ///< i32 [rows, kMaxTopLogprobs], descending, the lowest id first among equals
  Tensor out_top_logprobs;  ///< f32 [rows, kMaxTopLogprobs]
};

void sample(const OpContext& ctx, const SampleArgs& args);


}  // namespace tessera
