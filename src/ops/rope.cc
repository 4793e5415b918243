#include "ops/rope.h"

#include <cmath>

#include "ops/door.h"

namespace tessera {
namespace {

bool stretched(const RopeParams& params, int64_t rope_length) {
  switch (params.kind) {
    case RopeKind::kPlain: return false;
    case RopeKind::kDynamicNtk: return rope_length > params.max_position;
    case RopeKind::kLongRope: return rope_length > params.original_max_position;
  }
  return false;
}

/// InternLM2's dynamic NTK: base' = base * (factor * length / max - (factor - 1)) ^ (d / (d - 2)), in double.
double base_at(const RopeParams& params, int64_t rope_length) {
  if (params.kind != RopeKind::kDynamicNtk || !stretched(params, rope_length)) return params.base;
  const double d = params.head_dim;
  const double growth = params.factor * static_cast<double>(rope_length) / static_cast<double>(params.max_position) -
                        (params.factor - 1);
  return params.base * std::pow(growth, d / (d - 2));
}

}  // namespace

std::vector<float> rope_inverse_frequencies(const RopeParams& params, int64_t rope_length) {
  const size_t half = static_cast<size_t>(params.head_dim / 2);
  const auto base = static_cast<float>(base_at(params, rope_length));
  const std::vector<float>* factors = nullptr;
  if (params.kind == RopeKind::kLongRope) {
    factors = stretched(params, rope_length) ? &params.long_factors : &params.short_factors;
    TESSERA_CHECK(factors->size() == half, "[rope] " + std::to_string(factors->size()) + " factors for head_dim " +
                                               std::to_string(params.head_dim));
  }
  // The reference computes 1 / (factor * base ^ (2i / d)) in float32, tensor by tensor.
  std::vector<float> result(half);
  for (size_t i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(params.head_dim);
    const float power = std::pow(base, exponent);
    result[i] = 1.0f / (factors ? (*factors)[i] * power : power);
  }
  return result;
}

int64_t rope_class(const RopeParams& params, int64_t rope_length) {
  if (!stretched(params, rope_length)) return 0;
  return params.kind == RopeKind::kDynamicNtk ? rope_length : 1;
}

void check(const RopeAnglesArgs& args) {
  TESSERA_CHECK(args.params != nullptr, "[rope_angles] no parameters");
  const int64_t tokens = args.positions.elements();
  check_vector("rope_angles", "positions", args.positions, DType::kI32, tokens);
  check_vector("rope_angles", "rope_lengths", args.rope_lengths, DType::kI32, tokens);
  check_tensor("rope_angles", "out", args.out, DType::kF32, tokens, args.params->head_dim);
  TESSERA_CHECK(args.params->head_dim % 2 == 0, "[rope_angles] head_dim " + std::to_string(args.params->head_dim) +
                                                    " is odd");
}

void rope_angles(const OpContext& ctx, const RopeAnglesArgs& args) {
  check(args);
  if (args.positions.elements() == 0) return;
  kernel_of("rope_angles", ctx, &KernelTable::rope_angles)(*ctx.stream, args);
}

}  // namespace tessera
