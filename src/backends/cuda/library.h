#pragma once

#include <cublasLt.h>

#include <map>
#include <memory>
#include <string>
#include <tuple>

#include "backends/cuda/launch.h"

namespace tessera::cuda {

/// cuBLASLt, found at run time: the module loads without it. One per device; algorithms are chosen once a shape.
class Library {
 public:
  /// Where the library is, without starting it; empty when it is missing, and `why` then names it.
  static std::string find(std::string* why);
  /// Null when the library is missing; `why` then names it.
  static std::unique_ptr<Library> open(std::string* why);
  ~Library();

  /// d = a b^T (+ c): a [m, k] row-major of stride lda, b [n, k] of stride ldb, d [m, n] of stride ldd; c null or of d's
  /// dtype and stride ldc. a and b have one dtype, d that one or f32. Products in f32 (TF32 when the device allows it and
  /// all is f32).
  struct Product {
    int64_t m, n, k;
    DType dtype;
    const void* a;
    int64_t lda;
    const void* b;
    int64_t ldb;
    void* d;
    int64_t ldd;
    DType out;
    const void* c = nullptr;
    int64_t ldc = 0;
  };
  void run(CudaStream& stream, const Product& product);

 private:
  struct Functions;
  struct Plan;
  using Key = std::tuple<int64_t, int64_t, int64_t, int, int, int64_t, int64_t, int64_t, int64_t, bool, unsigned>;

  Library() = default;
  Plan& plan_for(CudaStream& stream, const Product& product);

  std::unique_ptr<Functions> functions_;
  cublasLtHandle_t handle_ = nullptr;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace tessera::cuda
