#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "runtime/embedding_cache.h"
#include "runtime/engine_memory.h"
#include "runtime/scheduler.h"
#include "runtime/token_request.h"

namespace tessera {

/// Turns pictures into rows of the embedding cache: a queue of tiles, and one pass through the tower at a time, run a
/// few layers a step. A pass takes tiles from the front of the queue, whoever's they are.
/// Thread rule: the engine's thread.
class VisionEncoder {
 public:
  using Pixels = std::shared_ptr<const PictureTiles>;

  VisionEncoder(Backend& backend, const EngineMemory& memory, EmbeddingCache& cache)
      : backend_(backend), memory_(memory), cache_(cache) {}

  /// Makes sure that every tile of an unfinished picture is queued, in a pass, or done.
  void want(EmbeddedPicture* picture, const Pixels& pixels);
  /// Takes pictures that only the queue holds out of it.
  void prune();

  VisionView view() const;
  /// Starts a pass with the next tiles of the queue. Requires: none under way, that many wait.
  void take_tiles(int64_t tiles);
  /// Hands the next layers of the pass to the stream, at the tower's end the writing of the rows, too. Throws what an operator throws; then
  /// call abandon().
  void run(int64_t layers);
  /// Runs passes whose rows go nowhere, as LanguageStep::warm_up; returns the seconds that a tile takes in a layer.
  double warm_up();
  /// The step of this turn is over: lets go of the pixels that it uploaded, so that others can have their room.
  void uploaded(int turn) { uploading_[static_cast<size_t>(turn)].clear(); }
  /// Drops the pass under way and what else is queued of its pictures.
  void abandon();

  /// Whether the pass under way has tiles of this picture.
  bool encoding(const EmbeddedPicture* picture) const;
  bool idle() const { return queue_.empty() && pass_.empty(); }
  uint64_t tiles_encoded() const { return tiles_encoded_; }
  uint64_t passes() const { return passes_; }

 private:
  struct Queued {
    EmbeddingPin pin;
    Pixels pixels;
  };
  struct PassTile {
    EmbeddingPin pin;
    int64_t tile = 0;  ///< of its picture
  };
  Tensor upload_destination();
  void whole_pass(int64_t tiles, const Tensor& destination);
  void finished();

  Backend& backend_;
  const EngineMemory& memory_;
  EmbeddingCache& cache_;
  std::deque<Queued> queue_;
  std::vector<PassTile> pass_;
  std::array<std::vector<Pixels>, 2> uploading_;  ///< by the step's turn: they stay until uploaded()
  int64_t layers_done_ = 0;
  uint64_t tiles_encoded_ = 0;
  uint64_t passes_ = 0;
};

}  // namespace tessera
