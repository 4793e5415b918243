#pragma once

#include <memory>
#include <vector>

#include "models/checkpoint.h"
#include "models/model.h"
#include "ops/sample.h"

namespace tessera::cli {

/// What the rows that were asked for need room for.
struct BenchLimits {
  int64_t tiles = 0;          ///< in one vision pass
  int64_t step_tokens = 1;
  int64_t sequences = 1;
  int64_t context = 1;        ///< keys of the longest sequence
  int64_t kv_tokens = 64;     ///< keys of all sequences of a step, each rounded up to kRoom

  static constexpr int64_t kRoom = 64;
};

/// A model loaded for benchmarks: vision passes and language steps without an engine around them.
class BenchModel {
 public:
  static Result<std::unique_ptr<BenchModel>> load(const Checkpoint& checkpoint, Backend& backend, DType compute,
                                                  const BenchLimits& limits);

  /// Tiles (random pixels) through tower and projector; the bytes are uploaded when `upload`.
  void encode(int64_t tiles, bool upload);
  /// The first `tokens` tokens of a sequence in one step, of which `image_rows` come from the last encode(); one id.
  void prefill(int64_t tokens, int64_t image_rows);
  /// One token for each of `batch` sequences at position context - 1; one id each.
  void decode(int64_t batch, int64_t context);

 private:
  BenchModel(Backend& backend, const BenchLimits& limits) : backend_(backend), limits_(limits) {}
  Tensor make(DType dtype, std::initializer_list<int64_t> shape, MemoryLine line);
  void make_kv();
  void step(const std::vector<int32_t>& positions, int64_t sequences, int64_t query, int64_t image_rows);
  void sample_rows(const Tensor& logits);

  Backend& backend_;
  BenchLimits limits_;
  std::vector<Buffer> buffers_;
  std::unique_ptr<Model> model_;
  KvCacheMemory kv_;
  std::vector<uint8_t> pixels_;
  Tensor tiles_, destination_, image_rows_;
  Tensor ids_, positions_, rope_lengths_, slots_, image_index_, offsets_, kv_lengths_, tables_, logit_rows_;
  Tensor params_, workspace_, out_ids_, out_logprobs_;
};

}  // namespace tessera::cli
