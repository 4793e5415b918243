#include "runtime/step_buffers.h"

#include <algorithm>
#include <utility>

#include "runtime/logit_edits.h"

namespace tessera {
namespace {

constexpr int64_t kTokenArrays = 5;  // token_ids, positions, rope_lengths, slots, image_index
constexpr int64_t kRowInts = sizeof(SamplingRow) / sizeof(int32_t);
constexpr int64_t kAlign = 64;       // integers: parts begin at multiples of 256 bytes

int64_t align(int64_t count) { return (count + kAlign - 1) / kAlign * kAlign; }

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

int64_t StepBuffers::rows_at() const { return align(turn_at() + 1); }
int64_t StepBuffers::tokens_at() const { return align(rows_at() + sequences_ * kRowInts); }
int64_t StepBuffers::stride(int64_t tokens) const { return align(std::max(tokens, sequences_)); }
size_t StepBuffers::result_bytes() const { return static_cast<size_t>(4 * sequences_ * (2 + 2 * kMaxTopLogprobs)); }

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
  pieces_.reserve(static_cast<size_t>(rows) + 1);
  // Room for a few rows with penalties at once; more of them are sampled in several calls.
  const int64_t row_edits = LogitEdits::most(shape.session_len, vocab_);
  edit_capacity_ = row_edits * std::min<int64_t>(rows, 4);

  const auto both = [&](Buffer& on_device, Buffer& on_host, int64_t bytes, MemoryLine line, const char* what) {
    on_device = device.allocate(static_cast<size_t>(bytes), line, what);
    on_host = host.allocate(static_cast<size_t>(bytes), MemoryLine::kStaging, what);
  };
  const auto mirrored = [&](Buffer& on_device, Buffer Mirror::*part, int64_t bytes, MemoryLine line, const char* what) {
    on_device = device.allocate(static_cast<size_t>(bytes), line, what);
    for (Mirror& mirror : mirrors_) mirror.*part = host.allocate(static_cast<size_t>(bytes), MemoryLine::kStaging, what);
  };
  mirrored(inputs_, &Mirror::inputs, 4 * (tokens_at() + kTokenArrays * stride(tokens_)), MemoryLine::kActivations, "step inputs");
  mirrored(tables_, &Mirror::tables, 4 * rows * blocks_, MemoryLine::kActivations, "block tables");
  mirrored(pairs_, &Mirror::pairs, 8 * rows, MemoryLine::kActivations, "block copies");
  both(edits_, host_edits_, edit_capacity_ * static_cast<int64_t>(sizeof(LogitEdit)), MemoryLine::kLogits,
       "logit edits");
  both(masks_, host_masks_, 4 * rows * mask_words_, MemoryLine::kLogits, "token masks");
  results_ = device.allocate(result_bytes(), MemoryLine::kLogits, "sampled tokens");
  host_results_ = host.allocate(mirrors_.size() * result_bytes(), MemoryLine::kStaging, "sampled tokens");
  workspace_ = device.allocate(sizing.sample_workspace_bytes(rows, vocab_), MemoryLine::kLogits, "sampling workspace");
  tiles_ = device.allocate(static_cast<size_t>(vision_batch_ * 3 * tile_side_ * tile_side_), MemoryLine::kVisionWorkspace, "tiles");
  mirrored(destination_, &Mirror::destination, 4 * vision_batch_ * config.tokens_per_tile(), MemoryLine::kVisionWorkspace,
           "embedding rows of a pass");
}

StepBuffers::Inputs StepBuffers::inputs(int64_t tokens) const {
  auto* base = at<int32_t>(mirror().inputs, 0);
  int32_t* of_tokens = base + tokens_at();
  const int64_t s = stride(tokens);
  return {.token_ids = of_tokens,
          .positions = of_tokens + s,
          .rope_lengths = of_tokens + 2 * s,
          .slots = of_tokens + 3 * s,
          .image_index = of_tokens + 4 * s,
          .query_offsets = base,
          .kv_lengths = base + kv_lengths_at(),
          .logit_rows = base + logit_rows_at(),
          .rows = reinterpret_cast<SamplingRow*>(base + rows_at())};
}

std::span<const Backend::Piece> StepBuffers::take_pieces(const StepShape& shape) {
  drop_taken_pieces();
  *at<int32_t>(mirror().inputs, turn_at()) = turn_;
  const int64_t ints = tokens_at() + kTokenArrays * stride(shape.tokens);
  pieces_.push_back({mirror().inputs.data(), inputs_.data(), static_cast<size_t>(ints) * sizeof(int32_t)});
  taken_ = true;
  return pieces_;
}

StepInput StepBuffers::input(const StepShape& shape) const {
  const int64_t first = tokens_at(), s = stride(shape.tokens);
  StepInput input;
  input.shape = shape;
  input.token_ids = ints(inputs_, first, shape.tokens);
  input.sampled_ids = ints(results_, 0, sequences_);
  input.positions = ints(inputs_, first + s, shape.tokens);
  input.rope_lengths = ints(inputs_, first + 2 * s, shape.tokens);
  input.slots = ints(inputs_, first + 3 * s, shape.tokens);
  input.image_index = ints(inputs_, first + 4 * s, shape.tokens);
  input.query_offsets = ints(inputs_, 0, shape.sequences + 1);
  input.kv_lengths = ints(inputs_, kv_lengths_at(), shape.sequences);
  input.logit_rows = ints(inputs_, logit_rows_at(), shape.logit_rows);
  input.block_tables = Tensor(tables_.data(), DType::kI32, {shape.sequences, blocks_});
  return input;
}

void StepBuffers::drop_taken_pieces() {
  if (std::exchange(taken_, false)) pieces_.clear();
}

int32_t* StepBuffers::table_row(int64_t row) const { return at<int32_t>(mirror().tables, row * blocks_); }

void StepBuffers::change_table(int64_t row, int64_t first, int64_t count) {
  if (count == 0) return;
  drop_taken_pieces();
  const int64_t begin = row * blocks_ + first;
  pieces_.push_back({table_row(row) + first, at<int32_t>(tables_, begin), static_cast<size_t>(count) * sizeof(int32_t)});
}

uint32_t* StepBuffers::mask_row(int64_t row) const { return at<uint32_t>(host_masks_, row * mask_words_); }

void StepBuffers::upload_edits(Backend& backend, int64_t edits, int64_t masks) const {
  if (edits > 0) backend.upload(host_edits_.data(), bytes_of(edits_, static_cast<size_t>(edits) * sizeof(LogitEdit)));
  if (masks > 0) backend.upload(host_masks_.data(), ints(masks_, 0, masks * mask_words_));
}

void StepBuffers::upload_rows(Backend& backend, int64_t first, int64_t rows) const {
  const int64_t begin = rows_at() + first * kRowInts;
  backend.upload(at<int32_t>(mirror().inputs, begin), ints(inputs_, begin, rows * kRowInts));
}

FoundChoices StepBuffers::choices(int64_t valid_ids) const {
  return {.room = Tensor(workspace_.data(), DType::kU8, {static_cast<int64_t>(workspace_.size())}), .valid_ids = valid_ids};
}

SampleArgs StepBuffers::sampling(int64_t first, int64_t rows, bool edits, bool masks) const {
  SampleArgs args;
  args.params = Tensor(at<int32_t>(inputs_, rows_at() + first * kRowInts), DType::kU8,
                       {rows, static_cast<int64_t>(sizeof(SamplingRow))});
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
  const Tensor turn = ints(inputs_, turn_at(), 1);
  backend.download_in_turn(ints(results_, 0, 2 * sequences_), host, result_bytes(), turn);
  const int64_t lists = 2 * sequences_;
  if (top) backend.download_in_turn(ints(results_, lists, 2 * sequences_ * kMaxTopLogprobs), host + lists, result_bytes(), turn);
}

StepBuffers::Samples StepBuffers::samples(int turn) const {
  const int64_t begin = turn * static_cast<int64_t>(result_bytes() / 4);
  const auto* ids = at<int32_t>(host_results_, begin);
  const auto* floats = at<float>(host_results_, begin);
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
  backend.upload(mirror().destination.data(), device);
  return device;
}

Tensor StepBuffers::upload_pairs(Backend& backend, int64_t pairs) const {
  const Tensor device(pairs_.data(), DType::kI32, {pairs, 2});
  backend.upload(mirror().pairs.data(), device);
  return device;
}

}  // namespace tessera
