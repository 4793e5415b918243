#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/allocator.h"
#include "models/model.h"
#include "ops/backend.h"
#include "ops/sample.h"
#include "runtime/engine_shape.h"

namespace tessera {

/// Device memory at fixed addresses for the inputs of a step and for sampling, each with its host mirror. Integers and
/// sampling rows of a step lie in one piece, so that one upload carries them; those of a step of at most max_sequences
/// tokens at addresses that a captured graph can rely on. There are two mirrors of what every step needs, so that one can be
/// filled while the device may still read the other: next_step() turns to the other. Lines: kActivations (inputs), kLogits
/// (sampling), kVisionWorkspace (tiles), kStaging (host mirrors).
class StepBuffers {
 public:
  StepBuffers() = default;
  StepBuffers(const Sizing& sizing, Allocator& device, Allocator& host, const EngineShape& shape,
              const ModelConfig& config);

  /// Turns to the other mirrors. Requires: the step that used them last is over.
  void next_step() {
    turn_ ^= 1;
    pieces_.clear();
    taken_ = false;
  }
  int turn() const { return turn_; }

  /// Host mirror of a step's inputs, views into one piece; sizes as StepInput's.
  struct Inputs {
    int32_t* token_ids;
    int32_t* positions;
    int32_t* rope_lengths;
    int32_t* slots;
    int32_t* image_index;
    int32_t* query_offsets;  ///< [max_sequences + 1]
    int32_t* kv_lengths;     ///< [max_sequences]
    int32_t* logit_rows;     ///< [max_sequences]
    SamplingRow* rows;       ///< [max_sequences]
  };

  /// The mirror for a step of `tokens` tokens.
  Inputs inputs(int64_t tokens) const;
  /// What goes up for a step of `shape`: the mirror and the changed entries of block tables. Valid, and to be handed over,
  /// before the next change of any.
  std::span<const Backend::Piece> take_pieces(const StepShape& shape);
  /// The device's views for `shape`, of the ids that the step before sampled, too.
  StepInput input(const StepShape& shape) const;

  /// Host mirror of sequence row `row` of the block tables, [max_blocks].
  int32_t* table_row(int64_t row) const;
  /// Entries [first, first + count) of a row go up with the inputs.
  void change_table(int64_t row, int64_t first, int64_t count);

  /// Sampling: what a call of at most max_sequences rows needs. Edits and masks have one mirror: while the step before is not
  /// over it has none, or nobody wants the tokens that they are for.
  LogitEdit* edits() const { return static_cast<LogitEdit*>(host_edits_.data()); }
  int64_t edit_capacity() const { return edit_capacity_; }
  uint32_t* mask_row(int64_t row) const;  ///< [ceil(vocab / 32)]
  int64_t mask_words() const { return mask_words_; }
  /// Uploads `edits` edits and `masks` masks of the next call.
  void upload_edits(Backend& backend, int64_t edits, int64_t masks) const;
  /// Uploads rows [first, first + rows) that were filled since the mirror went up.
  void upload_rows(Backend& backend, int64_t first, int64_t rows) const;
  /// Room for what the head's product finds out about greedy rows.
  FoundChoices choices(int64_t valid_ids) const;
  /// The call for rows [first, first + rows) (all but its logits), with edits and masks where there are any. Its results come
  /// to lie behind those of the rows before.
  SampleArgs sampling(int64_t first, int64_t rows, bool edits, bool masks) const;

  /// Where sample() leaves its results, downloaded.
  struct Samples {
    const int32_t* ids;
    const float* logprobs;
    const int32_t* top_ids;  ///< [rows, kMaxTopLogprobs]
    const float* top_logprobs;
  };
  /// Downloads the results of the first `rows` rows, the top lists only when asked. They are there when the step is over,
  /// until the mirrors of its turn are used again.
  void download_samples(Backend& backend, int64_t rows, bool top) const;
  Samples samples(int turn) const;

  /// Tiles of the next vision pass: u8 [tiles, 3, side, side] on the device, filled one by one from where they lie.
  Tensor tiles(int64_t count) const;
  void upload_tile(Backend& backend, int64_t index, const uint8_t* pixels) const;
  int32_t* destination() const { return static_cast<int32_t*>(mirror().destination.data()); }
  Tensor upload_destination(Backend& backend, int64_t rows) const;

  /// Pairs (from, to) of blocks to copy.
  int32_t* copy_pairs() const { return static_cast<int32_t*>(mirror().pairs.data()); }
  Tensor upload_pairs(Backend& backend, int64_t pairs) const;

 private:
  struct Mirror {
    Buffer inputs, tables, destination, pairs;
  };

  // Where the parts of a step's piece lie, in integers from its begin: query offsets, KV lengths, logit rows, the turn,
  // sampling rows, and the arrays with a value for each token, one stride apart.
  int64_t kv_lengths_at() const { return sequences_ + 1; }
  int64_t logit_rows_at() const { return 2 * sequences_ + 1; }
  int64_t turn_at() const { return 3 * sequences_ + 1; }
  int64_t rows_at() const;
  int64_t tokens_at() const;
  int64_t stride(int64_t tokens) const;
  const Mirror& mirror() const { return mirrors_[static_cast<size_t>(turn_)]; }
  size_t result_bytes() const;
  void drop_taken_pieces();

  int64_t tokens_ = 0, sequences_ = 0, blocks_ = 0, vocab_ = 0, mask_words_ = 0, edit_capacity_ = 0;
  int64_t tile_side_ = 0, vision_batch_ = 0;
  int turn_ = 0;
  std::array<Mirror, 2> mirrors_;
  Buffer inputs_, tables_, destination_, pairs_;
  Buffer edits_, host_edits_, masks_, host_masks_, workspace_;
  std::vector<Backend::Piece> pieces_;  ///< that go up next
  bool taken_ = false;                  ///< these were handed over
  Buffer results_, host_results_;  ///< on the host one behind the other, by turn
  Buffer tiles_;
};

}  // namespace tessera
