#pragma once

#include <string>

#include "ops/context.h"
#include "ops/kernel_table.h"

/// Shared by the operators' doors (ops/<op>.cc): the checks that hold for every backend, with messages that name the
/// operator, the argument, what was given and what is expected.
namespace tessera {

bool is_floating(DType dtype);

/// `tensor` is a matrix of this dtype and shape; -1 matches any extent.
void check_tensor(const char* op, const char* name, const Tensor& tensor, DType dtype, int64_t rows, int64_t columns);
/// The same for a matrix of any floating dtype.
void check_floating(const char* op, const char* name, const Tensor& tensor, int64_t rows, int64_t columns);
/// A contiguous vector of `count` elements.
void check_vector(const char* op, const char* name, const Tensor& tensor, DType dtype, int64_t count);
/// The same, but it may be absent.
void check_optional_vector(const char* op, const char* name, const Tensor& tensor, DType dtype, int64_t count);

/// Throws DeviceError: the backend has no kernel for this operator.
[[noreturn]] void no_kernel(const char* op, const OpContext& ctx);

/// The kernel of a slot, or DeviceError.
template <class Function>
Function kernel_of(const char* op, const OpContext& ctx, Function KernelTable::*slot) {
  TESSERA_CHECK(ctx.kernels != nullptr && ctx.stream != nullptr, std::string("[") + op + "] the context has no device");
  const Function kernel = ctx.kernels->*slot;
  if (!kernel) no_kernel(op, ctx);
  ctx.stream->op = op;
  return kernel;
}

}  // namespace tessera
