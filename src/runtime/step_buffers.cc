#include "runtime/step_buffers.h"

#include <algorithm>

#include "runtime/logit_edits.h"

namespace tessera {
namespace {

constexpr int64_t kTokenArrays = 5;  // token_ids, positions, rope_lengths, slots, image_index

template <class T>
T* at(const Buffer& buffer, int64_t index) {
  return static_cast<T*>(buffer.data()) + index;
}

Tensor bytes_of(const Buffer& buffer, size_t count) {
  return Tensor(buffer.data(), DType::kU8, {static_cast<int64_t>(count)});
}

Tensor ints(const Buffer& buffer, int64_t offset, int64_t count) {
  return Tensor(at<int32_t>(buffer, offset), DType::kI32, {count});
}

}  // namespace

StepBuffers::StepBuffers(const Sizing& sizing, Allocator& device, Allocator& host, const EngineShape& shape,
                         const ModelConfig& config)
    : tokens_(shape.step_tokens),
      sequences_(shape.max_sequences),
      blocks_(shape.max_blocks_per_sequence()),
      vocab_(config.language.vocab),
      mask_words_((config.language.vocab + 31) / 32),
      tile_side_(config.vision.image_size),
      vision_batch_(shape.vision_batch) {
  const int64_t rows = sequences_;
  // Room for a few rows with penalties at once; more of them are sampled in several calls.
  const int64_t row_edits = LogitEdits::most(shape.session_len, vocab_);
  edit_capacity_ = row_edits * std::min<int64_t>(rows, 4);

  const auto both = [&](Buffer& on_device, Buffer& on_host, int64_t bytes, MemoryLine line, const char* what) {
    on_device = device.allocate(static_cast<size_t>(bytes), line, what);
    on_host = host.allocate(static_cast<size_t>(bytes), MemoryLine::kStaging, what);
  };
  both(inputs_, host_inputs_, 4 * (kTokenArrays * tokens_ + 3 * rows + 1), MemoryLine::kActivations, "step inputs");
  both(tables_, host_tables_, 4 * rows * blocks_, MemoryLine::kActivations, "block tables");
  both(pairs_, host_pairs_, 8 * rows, MemoryLine::kActivations, "block copies");
  both(rows_, host_rows_, rows * static_cast<int64_t>(sizeof(SamplingRow)), MemoryLine::kLogits, "sampling rows");
  both(edits_, host_edits_, edit_capacity_ * static_cast<int64_t>(sizeof(LogitEdit)), MemoryLine::kLogits,
       "logit edits");
  both(masks_, host_masks_, 4 * rows * mask_words_, MemoryLine::kLogits, "token masks");
  both(results_, host_results_, 4 * rows * (2 + 2 * kMaxTopLogprobs), MemoryLine::kLogits, "sampled tokens");
  workspace_ = device.allocate(sizing.sample_workspace_bytes(rows, vocab_), MemoryLine::kLogits, "sampling workspace");
  tiles_ = device.allocate(static_cast<size_t>(vision_batch_ * 3 * tile_side_ * tile_side_), MemoryLine::kVisionWorkspace, "tiles");
  both(destination_, host_destination_, 4 * vision_batch_ * config.tokens_per_tile(), MemoryLine::kVisionWorkspace,
       "embedding rows of a pass");
}

StepBuffers::Inputs StepBuffers::inputs(int64_t tokens) const {
  const int64_t s = stride(tokens);
  auto* base = at<int32_t>(host_inputs_, 0);
  int32_t* rest = base + kTokenArrays * s;
  return {.token_ids = base,
          .positions = base + s,
          .rope_lengths = base + 2 * s,
          .slots = base + 3 * s,
          .image_index = base + 4 * s,
          .query_offsets = rest,
          .kv_lengths = rest + sequences_ + 1,
          .logit_rows = rest + 2 * sequences_ + 1};
}

StepInput StepBuffers::upload_inputs(Backend& backend, const StepShape& shape) const {
  const int64_t s = stride(shape.tokens);
  const int64_t rest = kTokenArrays * s;
  backend.upload(host_inputs_.data(), ints(inputs_, 0, rest + 3 * sequences_ + 1));
  StepInput input;
  input.shape = shape;
  input.token_ids = ints(inputs_, 0, shape.tokens);
  input.positions = ints(inputs_, s, shape.tokens);
  input.rope_lengths = ints(inputs_, 2 * s, shape.tokens);
  input.slots = ints(inputs_, 3 * s, shape.tokens);
  input.image_index = ints(inputs_, 4 * s, shape.tokens);
  input.query_offsets = ints(inputs_, rest, shape.sequences + 1);
  input.kv_lengths = ints(inputs_, rest + sequences_ + 1, shape.sequences);
  input.logit_rows = ints(inputs_, rest + 2 * sequences_ + 1, shape.logit_rows);
  input.block_tables = Tensor(tables_.data(), DType::kI32, {shape.sequences, blocks_});
  return input;
}

int32_t* StepBuffers::table_row(int64_t row) const { return at<int32_t>(host_tables_, row * blocks_); }

void StepBuffers::upload_table(Backend& backend, int64_t row, int64_t first, int64_t count) const {
  backend.upload(table_row(row) + first, ints(tables_, row * blocks_ + first, count));
}

uint32_t* StepBuffers::mask_row(int64_t row) const { return at<uint32_t>(host_masks_, row * mask_words_); }

void StepBuffers::upload_edits(Backend& backend, int64_t edits, int64_t masks) const {
  if (edits > 0) backend.upload(host_edits_.data(), bytes_of(edits_, static_cast<size_t>(edits) * sizeof(LogitEdit)));
  if (masks > 0) backend.upload(host_masks_.data(), ints(masks_, 0, masks * mask_words_));
}

SampleArgs StepBuffers::upload_sampling(Backend& backend, int64_t first, int64_t rows, bool edits, bool masks) const {
  SampleArgs args;
  const auto row_bytes = static_cast<int64_t>(sizeof(SamplingRow));
  args.params = Tensor(at<char>(rows_, first * row_bytes), DType::kU8, {rows, row_bytes});
  if (rows > 0) backend.upload(sampling_rows() + first, args.params);
  if (edits) args.edits = Tensor(edits_.data(), DType::kU8, {edit_capacity_, static_cast<int64_t>(sizeof(LogitEdit))});
  if (masks) args.masks = Tensor(masks_.data(), DType::kI32, {sequences_, mask_words_});
  args.workspace = Tensor(workspace_.data(), DType::kU8, {static_cast<int64_t>(workspace_.size())});
  auto* results = at<int32_t>(results_, 0);
  int32_t* top = results + 2 * sequences_;
  args.out_ids = Tensor(results + first, DType::kI32, {rows});
  args.out_logprobs = Tensor(results + sequences_ + first, DType::kF32, {rows});
  args.out_top_ids = Tensor(top + first * kMaxTopLogprobs, DType::kI32, {rows, kMaxTopLogprobs});
  args.out_top_logprobs =
      Tensor(top + (sequences_ + first) * kMaxTopLogprobs, DType::kF32, {rows, kMaxTopLogprobs});
  return args;
}

// Ids and logprobs of all rows lie in one piece, few bytes: one copy carries them.
void StepBuffers::download_samples(Backend& backend, int64_t rows, bool top) const {
  if (rows == 0) return;
  auto* host = at<int32_t>(host_results_, 0);
  backend.download(ints(results_, 0, 2 * sequences_), host);
  const int64_t lists = 2 * sequences_;
  if (top) backend.download(ints(results_, lists, 2 * sequences_ * kMaxTopLogprobs), host + lists);
}

StepBuffers::Samples StepBuffers::samples() const {
  const auto* ids = at<int32_t>(host_results_, 0);
  const auto* floats = at<float>(host_results_, 0);
  const int64_t top_ids = 2 * sequences_;
  return {.ids = ids,
          .logprobs = floats + sequences_,
          .top_ids = ids + top_ids,
          .top_logprobs = floats + top_ids + sequences_ * kMaxTopLogprobs};
}

Tensor StepBuffers::tiles(int64_t count) const { return Tensor(tiles_.data(), DType::kU8, {count, 3, tile_side_, tile_side_}); }

void StepBuffers::upload_tile(Backend& backend, int64_t index, const uint8_t* pixels) const {
  backend.upload(pixels, tiles(vision_batch_).slice(index, 1));
}

Tensor StepBuffers::upload_destination(Backend& backend, int64_t rows) const {
  const Tensor device = ints(destination_, 0, rows);
  backend.upload(host_destination_.data(), device);
  return device;
}

Tensor StepBuffers::upload_pairs(Backend& backend, int64_t pairs) const {
  const Tensor device(pairs_.data(), DType::kI32, {pairs, 2});
  backend.upload(host_pairs_.data(), device);
  return device;
}

}  // namespace tessera
