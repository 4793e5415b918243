#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "core/check.h"

namespace tessera {

enum class DType : uint8_t { kF32, kBF16, kF16, kI32, kI64, kU8, kI8 };

constexpr size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kBF16:
    case DType::kF16: return 2;
    case DType::kI64: return 8;
    case DType::kU8:
    case DType::kI8: return 1;
  }
  return 0;
}

constexpr const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "f32";
    case DType::kBF16: return "bf16";
    case DType::kF16: return "f16";
    case DType::kI32: return "i32";
    case DType::kI64: return "i64";
    case DType::kU8: return "u8";
    case DType::kI8: return "i8";
  }
  return "?";
}

/// bfloat16 as stored: the upper half of an IEEE float.
struct bf16 {
  uint16_t bits;
};

/// IEEE binary16 as stored.
struct f16 {
  uint16_t bits;
};

inline float to_float(bf16 v) { return std::bit_cast<float>(static_cast<uint32_t>(v.bits) << 16); }
inline float to_float(float v) { return v; }
float to_float(f16 v);

/// Round to nearest even; NaN stays a quiet NaN.
inline bf16 to_bf16(float v) {
  const auto bits = std::bit_cast<uint32_t>(v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};
}
f16 to_f16(float v);

template <class T>
T from_float(float v);
template <>
inline float from_float<float>(float v) { return v; }
template <>
inline bf16 from_float<bf16>(float v) { return to_bf16(v); }
template <>
inline f16 from_float<f16>(float v) { return to_f16(v); }

/// Converts `count` elements between floating types (f32, bf16, f16); equal types are copied.
void convert(const void* from, DType from_dtype, void* to, DType to_dtype, size_t count);

/// Calls `f` with a value of the C++ type of a floating dtype: `dispatch_float(dtype, "rms_norm", [&](auto zero)
/// { using T = decltype(zero); ... });`. Throws CheckFailure for any other dtype.
template <class F>
void dispatch_float(DType dtype, const char* op, F&& f) {
  switch (dtype) {
    case DType::kF32: return f(float{});
    case DType::kBF16: return f(bf16{});
    case DType::kF16: return f(f16{});
    default: TESSERA_CHECK(false, std::string(op) + ": dtype " + dtype_name(dtype) + " is not floating");
  }
}

}  // namespace tessera
