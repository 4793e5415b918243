#include "tests/support/fake_model.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"

namespace tessera::testing {
namespace {

constexpr int64_t kTokenBytes = 32;  // K and V of one token in one layer: 2 * 4 floats

uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t z = (a ^ (b + 0x9e3779b97f4a7c15 + (a << 6) + (a >> 2)));
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

uint64_t tile_hash(const uint8_t* pixels, int64_t layers) {
  uint64_t h = 1;
  for (int64_t i = 0; i < FakeModel::kTileBytes; ++i) h = mix(h, pixels[i]);
  for (int64_t l = 0; l < layers; ++l) h = mix(h, static_cast<uint64_t>(l));
  return h;
}

uint64_t row_hash(uint64_t tile, int64_t row) { return mix(tile, static_cast<uint64_t>(row) + 1000); }
uint64_t token_hash(int32_t id) { return mix(7, static_cast<uint64_t>(id)); }

uint64_t key(uint64_t embedding, int64_t position, int64_t rope) {
  return mix(mix(embedding, static_cast<uint64_t>(position)), static_cast<uint64_t>(rope));
}

uint64_t layer_key(uint64_t entry, int64_t layer) { return mix(entry, static_cast<uint64_t>(layer)); }

float logit(uint64_t state, int64_t id) {
  return static_cast<float>(mix(state, static_cast<uint64_t>(id)) >> 40) * (20.0f / (1 << 24));
}

char* place(const KvCacheMemory& kv, int64_t layer, int64_t slot) {
  return static_cast<char*>(kv.layer(layer).base) + slot * kTokenBytes;
}

constexpr int64_t kVisionLayers = 3;
constexpr int64_t kLayers = 2;

}  // namespace

FakeModel::FakeModel(const RopeParams& rope, int64_t vocab) {
  config_.vision = {.hidden = 8, .layers = kVisionLayers, .heads = 1, .ffn = 8, .image_size = 8, .patch_size = 2};
  config_.language = {.architecture = "Fake", .hidden = 4, .layers = kLayers, .heads = 1, .kv_heads = 1, .head_dim = 4,
                      .ffn = 4, .vocab = vocab, .max_position = rope.max_position};
  config_.language.rope = rope;
}

void FakeModel::reserve(const ActivationLimits& limits, Allocator& allocator) {
  limits_ = limits;
  logits_ = allocator.allocate(DType::kF32, {limits.logit_rows, config_.language.vocab}, MemoryLine::kLogits, "logits");
}

KvLayout FakeModel::kv_layout(int block_size) const {
  return {.dtype = DType::kF32, .block_size = block_size, .kv_heads = 1, .head_dim = 4};
}

void FakeModel::vision_begin(const OpContext&, const Tensor& tiles) {
  TESSERA_CHECK(tiles.rows() <= limits_.vision_tiles, "vision pass of too many tiles");
  pass_.clear();
  for (int64_t t = 0; t < tiles.rows(); ++t) pass_.push_back(tile_hash(tiles.row<uint8_t>(t), 0));
  pass_layers_ = 0;
  tiles_seen_ += tiles.rows();
}

void FakeModel::vision_run(const OpContext&, int64_t first, int64_t count) {
  if (hooks_.vision) hooks_.vision(first, count);
  TESSERA_CHECK(first == pass_layers_ && count > 0, "vision layers out of order");
  for (int64_t l = first; l < first + count; ++l)
    for (uint64_t& h : pass_) h = mix(h, static_cast<uint64_t>(l));
  pass_layers_ += count;
}

void FakeModel::vision_finish(const OpContext&, const Tensor& destination, const Tensor& image_rows) {
  TESSERA_CHECK(pass_layers_ == kVisionLayers, "vision pass is not complete");
  TESSERA_CHECK(destination.rows() == static_cast<int64_t>(pass_.size()) * kTokensPerTile, "destination rows");
  for (int64_t r = 0; r < destination.rows(); ++r) {
    if (destination.ptr<int32_t>()[r] < 0) continue;
    const uint64_t h = row_hash(pass_[static_cast<size_t>(r / kTokensPerTile)], r % kTokensPerTile);
    std::memcpy(image_rows.row<float>(destination.ptr<int32_t>()[r]), &h, sizeof(h));
  }
  pass_.clear();
}

void FakeModel::write_keys(const StepInput& in, const KvCacheMemory& kv) const {
  for (int64_t t = 0; t < in.shape.tokens; ++t) {
    const int32_t slot = in.slots.ptr<int32_t>()[t];
    if (slot < 0) continue;
    TESSERA_CHECK(slot < kv.blocks * kv.layout.block_size, "slot outside the cache");
    const int32_t row = in.image_index.ptr<int32_t>()[t];
    const int32_t id = in.token_ids.ptr<int32_t>()[t];
    uint64_t embedding = token_hash(id < 0 ? in.sampled_ids.ptr<int32_t>()[-1 - id] : id);
    if (row >= 0) std::memcpy(&embedding, in.image_rows.row<float>(row), sizeof(embedding));
    const int64_t rope = rope_class(config_.language.rope, in.rope_lengths.ptr<int32_t>()[t]);
    const uint64_t entry = key(embedding, in.positions.ptr<int32_t>()[t], rope);
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      const uint64_t value = layer_key(entry, layer);
      std::memcpy(place(kv, layer, slot), &value, sizeof(value));
    }
  }
}

uint64_t FakeModel::read_keys(const StepInput& in, const KvCacheMemory& kv, int64_t sequence, int64_t count) const {
  uint64_t state = 3;
  const auto* table = in.block_tables.row<int32_t>(sequence);
  for (int64_t p = 0; p < count; ++p)
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      uint64_t value = 0;
      std::memcpy(&value, place(kv, layer, int64_t{table[p / kv.layout.block_size]} * kv.layout.block_size + p % kv.layout.block_size), sizeof(value));
      state = mix(state, value);
    }
  return state;
}

Tensor FakeModel::forward(const OpContext&, const StepInput& in, const KvCacheMemory& kv) {
  if (hooks_.forward) hooks_.forward(in);
  TESSERA_CHECK(in.shape.tokens <= limits_.step_tokens && in.shape.sequences <= limits_.step_sequences, "step too large");
  TESSERA_CHECK(kv.layout.block_bytes() == static_cast<size_t>(kv.layout.block_size * kTokenBytes), "block bytes");
  tokens_seen_ += in.shape.tokens;
  if (idle_) return logits(in.shape.logit_rows);
  write_keys(in, kv);
  const auto* offsets = in.query_offsets.ptr<int32_t>();
  const Tensor out = logits(in.shape.logit_rows);
  for (int64_t r = 0; r < in.shape.logit_rows; ++r) {
    const int32_t row = in.logit_rows.ptr<int32_t>()[r];
    const auto sequence = std::upper_bound(offsets, offsets + in.shape.sequences + 1, row) - offsets - 1;
    TESSERA_CHECK(sequence >= in.shape.decodes || offsets[sequence + 1] - offsets[sequence] == 1, "a decode of several tokens");
    const int64_t length = in.kv_lengths.ptr<int32_t>()[sequence];
    const uint64_t state = read_keys(in, kv, sequence, length - (offsets[sequence + 1] - 1 - row));
    for (int64_t id = 0; id < config_.language.vocab; ++id) out.row<float>(r)[id] = logit(state, id);
  }
  return out;
}

Tensor FakeModel::logits(int64_t rows) const {
  return rows > 0 ? logits_.tensor(DType::kF32, {rows, config_.language.vocab}) : Tensor();
}

std::vector<int32_t> fake_answer(const TokenRequest& request, const RopeParams& rope, int64_t vocab) {
  std::vector<uint64_t> embeddings;
  for (const int32_t id : request.prompt) embeddings.push_back(token_hash(id));
  for (const PromptImage& image : request.images)
    for (int64_t t = 0; t < image.tokens; ++t)
      embeddings[static_cast<size_t>(image.first + t)] =
          row_hash(tile_hash(image.pixels->tiles[static_cast<size_t>(t / FakeModel::kTokensPerTile)], kVisionLayers), t % FakeModel::kTokensPerTile);
  const auto prompt = static_cast<int64_t>(embeddings.size());
  std::vector<int32_t> answer;
  uint64_t state = 3;
  for (int64_t p = 0; p < prompt + request.max_new_tokens; ++p) {
    if (p >= prompt) {
      int32_t best = 0;
      for (int64_t id = 1; id < vocab; ++id)
        if (logit(state, id) > logit(state, best)) best = static_cast<int32_t>(id);
      answer.push_back(best);
      if (std::count(request.stop_ids.begin(), request.stop_ids.end(), best) > 0) break;
      embeddings.push_back(token_hash(best));
    }
    const uint64_t entry = key(embeddings[static_cast<size_t>(p)], p, rope_class(rope, std::max(prompt, p + 1)));
    for (int64_t layer = 0; layer < kLayers; ++layer) state = mix(state, layer_key(entry, layer));
  }
  return answer;
}

OwnTiles::OwnTiles(std::vector<uint8_t> pixels, size_t bytes) : pixels_(std::move(pixels)) {
  tile_bytes = bytes;
  for (size_t at = 0; at < pixels_.size(); at += bytes) tiles.push_back(pixels_.data() + at);
}

PromptImage fake_picture(uint64_t seed, int64_t tiles, int64_t first) {
  std::vector<uint8_t> pixels;
  for (int64_t i = 0; i < tiles * FakeModel::kTileBytes; ++i)
    pixels.push_back(static_cast<uint8_t>(mix(seed, static_cast<uint64_t>(i))));
  return {.key = {mix(seed, 1), mix(seed, 2), static_cast<uint64_t>(tiles), 0},
          .first = first,
          .tokens = tiles * FakeModel::kTokensPerTile,
          .tiles = tiles,
          .pixels = std::make_shared<OwnTiles>(std::move(pixels), FakeModel::kTileBytes)};
}

}  // namespace tessera::testing
