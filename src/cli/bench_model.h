#pragma once

#include <memory>
#include <vector>

#include "cli/bench_decode.h"
#include "models/checkpoint.h"
#include "runtime/engine_memory.h"

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

/// A model in an engine's memory, for benchmarks: vision passes, prefills and decode steps as the engine runs them (inputs up
/// in one piece, decode steps captured, ids down), without what is around them.
class BenchModel {
 public:
  static Result<std::unique_ptr<BenchModel>> load(const Checkpoint& checkpoint, Backend& backend, DType compute,
                                                  const BenchLimits& limits);

  /// Tiles (random pixels) through tower and projector; the bytes are uploaded when `upload`.
  void encode(int64_t tiles, bool upload);
  /// The first `tokens` tokens of a sequence in one step, of which `image_rows` come from the last encode(); one id.
  void prefill(int64_t tokens, int64_t image_rows);
  /// See DecodeBench::run().
  double decode(int64_t batch, int64_t context, int64_t steps) { return decode_->run(batch, context, steps); }

 private:
  explicit BenchModel(Backend& backend) : backend_(backend) {}
  void fill_kv();
  void fill_tiles();
  void upload_tiles(int64_t tiles);
  StepShape prepare(int64_t tokens, int64_t image_rows);

  Backend& backend_;
  EngineMemory memory_;
  Buffer pixels_;  ///< the tiles in host memory
  Tensor destination_;
  std::unique_ptr<DecodeBench> decode_;
};

}  // namespace tessera::cli
