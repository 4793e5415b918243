#pragma once

#include <cstdint>

#include "core/allocator.h"
#include "core/dtype.h"

namespace tessera {

/// What a weight matrix is for; a backend chooses its layout by it.
enum class WeightUse : uint8_t {
  kLinear,     ///< y = x W^T
  kGated,      ///< y = x W^T with the rows [gate; up], followed by silu(gate) * up (Activation::kSiluMul)
  kEmbedding,  ///< rows are looked up
  kTied,       ///< both looked up and multiplied with (a head tied to the embedding)
};

/// The declaration of a weight: all a backend needs to say how many bytes its packed form takes.
struct LinearSpec {
  int64_t rows = 0;          ///< N: output features (of this rank's shard); gate and up together for kGated
  int64_t cols = 0;          ///< K: input features (of this rank's shard)
  DType dtype = DType::kBF16;  ///< f32, bf16 or f16: the compute dtype of the weights
  WeightUse use = WeightUse::kLinear;
  int64_t experts = 1;       ///< matrices of this shape, stacked (mixture of experts)
};

/// Where a weight's numbers come from: a mapped checkpoint, a slice or a gather of its rows, or a random generator.
/// Thread rule: read() may be called from several threads at once.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  /// Writes rows [begin, begin + count) of expert `expert`, [count, cols] row-major, converted to `dtype`.
  virtual void read(int64_t expert, int64_t begin, int64_t count, DType dtype, void* out) const = 0;
};

/// A weight in a backend's own packed form. Opaque: only the backend that made it looks inside. Quantization and
/// tensor parallelism live behind it; model files never see bytes.
class Weight {
 public:
  Weight(const LinearSpec& spec, Buffer memory) : spec_(spec), memory_(std::move(memory)) {}
  virtual ~Weight() = default;
  const LinearSpec& spec() const { return spec_; }
  void* data() const { return memory_.data(); }
  size_t bytes() const { return memory_.size(); }

 private:
  LinearSpec spec_;
  Buffer memory_;
};

}  // namespace tessera
