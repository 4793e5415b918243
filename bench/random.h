#pragma once

#include <cmath>
#include <memory>
#include <vector>

#include "ops/backend.h"

namespace tessera {

/// A matrix of random numbers, evenly spread, whose products keep the size of their input.
inline std::unique_ptr<Weight> random_weight(Backend& backend, int64_t rows, int64_t cols, WeightUse use = WeightUse::kLinear) {
  struct Source final : WeightSource {
    int64_t columns;
    explicit Source(int64_t columns) : columns(columns) {}
    void read(int64_t, int64_t begin, int64_t count, DType, void* out) const override {
      auto* to = static_cast<bf16*>(out);
      const float scale = 2.0f / std::sqrt(static_cast<float>(columns));
      uint32_t state = static_cast<uint32_t>(begin) * 2654435761u + 1;
      for (int64_t i = 0; i < count * columns; ++i) {
        state = state * 1664525u + 1013904223u;
        to[i] = to_bf16((static_cast<float>(state >> 16) / 65536.0f - 0.5f) * scale);
      }
    }
  };
  const Source source(cols);
  return backend.make_weight({.rows = rows, .cols = cols, .use = use}, &source, backend.allocator(), MemoryLine::kLanguageWeights, "bench");
}

/// Random numbers of f32 or bf16, evenly spread over `scale` around zero.
inline Buffer random_buffer(Backend& backend, DType dtype, int64_t rows, int64_t columns, float scale) {
  Buffer buffer = backend.allocator().allocate(dtype, {rows, columns}, MemoryLine::kActivations, "bench");
  std::vector<char> host(buffer.size());
  uint32_t state = 99;
  const auto count = static_cast<size_t>(rows * columns);
  for (size_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    const float v = (static_cast<float>(state >> 8) / 16777216.0f - 0.5f) * scale;
    if (dtype == DType::kF32)
      reinterpret_cast<float*>(host.data())[i] = v;
    else
      reinterpret_cast<bf16*>(host.data())[i] = to_bf16(v);
  }
  backend.upload(host.data(), buffer.tensor(dtype, {rows, columns}));
  backend.synchronize();
  return buffer;
}

}  // namespace tessera
