#pragma once

#include <memory>
#include <vector>

#include "runtime/block_pool.h"
#include "runtime/engine_memory.h"
#include "runtime/language_step.h"

namespace tessera::cli {

/// Decode steps one behind the other as the engine makes them, inputs filled and tokens read on the host: on a device that
/// works on while the host goes on, a step is handed over before the one ahead of it is read. So a client sees tokens.
class DecodeBench {
 public:
  DecodeBench(Backend& backend, EngineMemory& memory);

  /// `steps` tokens for each of `batch` sequences, the first at position context - 1. Returns the seconds between two tokens
  /// in the mean, of one step those that it takes.
  double run(int64_t batch, int64_t context, int64_t steps);

 private:
  void prepare(int64_t batch, int64_t context, int64_t steps);
  void launch();
  void collect(int turn);

  Backend& backend_;
  EngineMemory& memory_;
  LanguageStep language_;
  BlockPool pool_;  // outlives running_
  std::vector<std::unique_ptr<Sequence>> running_;
  StepPlan plan_;
  uint64_t last_tenure_ = 0;
};

}  // namespace tessera::cli
