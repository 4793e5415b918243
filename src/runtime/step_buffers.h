#pragma once

#include <cstdint>

#include "core/allocator.h"
#include "models/model.h"
#include "ops/backend.h"
#include "ops/sample.h"
#include "runtime/engine_shape.h"

namespace tessera {

/// Device memory at fixed addresses for the inputs of a step and for sampling, each with its host mirror. Integers of a
/// step lie in one piece, so that one upload carries them. A step of at most max_sequences tokens uses a layout of its
/// own, whose addresses a captured graph can rely on and whose upload is short. Lines: kActivations (inputs), kLogits
/// (sampling), kVisionWorkspace (tiles), kStaging (host mirrors).
class StepBuffers {
 public:
  StepBuffers() = default;
  StepBuffers(const Sizing& sizing, Allocator& device, Allocator& host, const EngineShape& shape,
              const ModelConfig& config);

  /// Host mirror of a step's integers, views into one piece; sizes as StepInput's.
  struct Inputs {
    int32_t* token_ids;
    int32_t* positions;
    int32_t* rope_lengths;
    int32_t* slots;
    int32_t* image_index;
    int32_t* query_offsets;  ///< [max_sequences + 1]
    int32_t* kv_lengths;     ///< [max_sequences]
    int32_t* logit_rows;     ///< [max_sequences]
  };

  /// The mirror for a step of `tokens` tokens.
  Inputs inputs(int64_t tokens) const;
  /// Uploads the mirror and returns the device's views for `shape`. Block tables are uploaded by table_row().
  StepInput upload_inputs(Backend& backend, const StepShape& shape) const;

  /// Host mirror of sequence row `row` of the block tables, [max_blocks].
  int32_t* table_row(int64_t row) const;
  /// Uploads entries [first, first + count) of a row.
  void upload_table(Backend& backend, int64_t row, int64_t first, int64_t count) const;

  /// Sampling: what a call of at most max_sequences rows needs.
  SamplingRow* sampling_rows() const { return static_cast<SamplingRow*>(host_rows_.data()); }
  LogitEdit* edits() const { return static_cast<LogitEdit*>(host_edits_.data()); }
  int64_t edit_capacity() const { return edit_capacity_; }
  uint32_t* mask_row(int64_t row) const;  ///< [ceil(vocab / 32)]
  int64_t mask_words() const { return mask_words_; }
  /// Uploads `edits` edits and `masks` masks of the next call.
  void upload_edits(Backend& backend, int64_t edits, int64_t masks) const;
  /// Uploads rows [first, first + rows) and describes their call (all but its logits), with edits and masks where there
  /// are any. Its results come to lie behind those of the rows before.
  SampleArgs upload_sampling(Backend& backend, int64_t first, int64_t rows, bool edits, bool masks) const;

  /// Where sample() leaves its results, downloaded.
  struct Samples {
    const int32_t* ids;
    const float* logprobs;
    const int32_t* top_ids;  ///< [rows, kMaxTopLogprobs]
    const float* top_logprobs;
  };
  /// Downloads the results of the first `rows` rows, the top lists only when asked. They are there after synchronize().
  void download_samples(Backend& backend, int64_t rows, bool top) const;
  Samples samples() const;

  /// Tiles of the next vision pass: u8 [tiles, 3, side, side] on the device, filled one by one from where they lie.
  Tensor tiles(int64_t count) const;
  void upload_tile(Backend& backend, int64_t index, const uint8_t* pixels) const;
  int32_t* destination() const { return static_cast<int32_t*>(host_destination_.data()); }
  Tensor upload_destination(Backend& backend, int64_t rows) const;

  /// Pairs (from, to) of blocks to copy.
  int32_t* copy_pairs() const { return static_cast<int32_t*>(host_pairs_.data()); }
  Tensor upload_pairs(Backend& backend, int64_t pairs) const;

 private:
  int64_t stride(int64_t tokens) const { return tokens <= sequences_ ? sequences_ : tokens_; }

  int64_t tokens_ = 0, sequences_ = 0, blocks_ = 0, vocab_ = 0, mask_words_ = 0, edit_capacity_ = 0;
  int64_t tile_side_ = 0, vision_batch_ = 0;
  Buffer inputs_, host_inputs_, tables_, host_tables_;
  Buffer rows_, host_rows_, edits_, host_edits_, masks_, host_masks_, workspace_;
  Buffer results_, host_results_;
  Buffer tiles_, destination_, host_destination_, pairs_, host_pairs_;
};

}  // namespace tessera
