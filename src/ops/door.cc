#include "ops/door.h"

namespace tessera {
namespace {

std::string extent(int64_t n) { return n < 0 ? "any" : std::to_string(n); }

[[noreturn]] void mismatch(const char* op, const char* name, const Tensor& tensor, const std::string& expected) {
  throw CheckFailure(std::string("[") + op + "] " + name + " is " + (tensor ? tensor.describe() : "absent") +
                     "; expected " + expected);
}

std::string matrix(const char* dtype, int64_t rows, int64_t columns) {
  return std::string(dtype) + "[" + extent(rows) + ", " + extent(columns) + "]";
}

bool has_shape(const Tensor& tensor, int64_t rows, int64_t columns) {
  return (tensor.data || tensor.rows() == 0) && (rows < 0 || tensor.rows() == rows) &&
         (columns < 0 || tensor.row_elements() == columns);
}

}  // namespace

bool is_floating(DType dtype) { return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16; }

void check_tensor(const char* op, const char* name, const Tensor& tensor, DType dtype, int64_t rows,
                  int64_t columns) {
  if (tensor.dtype != dtype || !has_shape(tensor, rows, columns))
    mismatch(op, name, tensor, matrix(dtype_name(dtype), rows, columns));
}

void check_floating(const char* op, const char* name, const Tensor& tensor, int64_t rows, int64_t columns) {
  if (!is_floating(tensor.dtype) || !has_shape(tensor, rows, columns))
    mismatch(op, name, tensor, matrix("floating", rows, columns));
}

void check_vector(const char* op, const char* name, const Tensor& tensor, DType dtype, int64_t count) {
  if (tensor.dtype != dtype || !tensor.contiguous() || tensor.elements() != count || (!tensor.data && count > 0))
    mismatch(op, name, tensor, std::string("contiguous ") + dtype_name(dtype) + "[" + std::to_string(count) + "]");
}

void check_optional_vector(const char* op, const char* name, const Tensor& tensor, DType dtype, int64_t count) {
  if (tensor) check_vector(op, name, tensor, dtype, count);
}

void no_kernel(const char* op, const OpContext& ctx) {
  throw DeviceError(std::string("[") + op + "] device " + ctx.kernels->device +
                    " has no kernel for this operator; choose another with --device");
}

}  // namespace tessera
