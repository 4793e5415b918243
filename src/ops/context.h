#pragma once

#include "core/tensor.h"

namespace tessera {

struct KernelTable;

/// The place where a backend's work goes: a thread pool, a CUDA stream. Opaque; one per engine thread.
class Stream {
 public:
  virtual ~Stream() = default;
  const char* op = "none";  ///< the operator handed over last: what a failure that shows later is about
};

/// This process's share of a model that is split over several devices.
struct Rank {
  int index = 0;
  int count = 1;
};

/// Collectives between the ranks of one tensor-parallel group. Absent (nullptr) where there is one rank.
class Communicator {
 public:
  virtual ~Communicator() = default;
  /// In place: every rank's tensor becomes the sum over the ranks.
  virtual void all_reduce(Stream& stream, const Tensor& tensor) = 0;
  /// out [rows, ranks * cols] gathers every rank's in [rows, cols] by columns.
  virtual void all_gather_columns(Stream& stream, const Tensor& in, const Tensor& out) = 0;
};

/// Handed to every operator: whose kernels, on which stream, in which group.
struct OpContext {
  const KernelTable* kernels = nullptr;
  Stream* stream = nullptr;
  Communicator* comm = nullptr;
  Rank rank;
};

}  // namespace tessera
