#pragma once

#include <memory>
#include <vector>

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

/// A model in an engine's memory, for benchmarks: vision passes and language steps as the engine runs them (inputs up in
/// one piece, decode steps captured, ids down), without what is around them.
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
  /// A step: `sequences` queries of `query` tokens that end at position `context` - 1.
  struct Step {
    int64_t sequences = 0, query = 0, context = 0, image_rows = 0;
    bool operator==(const Step&) const = default;
  };

  explicit BenchModel(Backend& backend) : backend_(backend) {}
  void fill_kv();
  void fill_tiles();
  void upload_tiles(int64_t tiles);
  void prepare(const Step& step);
  void run(const Step& step, bool captured);

  Backend& backend_;
  EngineMemory memory_;
  Buffer pixels_;  ///< the tiles in host memory
  Tensor destination_;
  Step prepared_;     ///< whose inputs lie in the mirrors
  StepShape shape_;   ///< of it
};

}  // namespace tessera::cli
