#pragma once

#include <cstdlib>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "backends/registry.h"

/// Operator suites run once per backend and dtype. A backend is named by a spec: "cpu/avx2" or "cuda". The environment
/// variable TESSERA_TEST_BACKENDS (comma-separated specs) replaces the default list, which is every instruction set of
/// this CPU. Suites touch device memory through Backend alone, so they hold for any device.
namespace tessera::testing {

std::vector<std::string> backend_specs();

/// A backend of this spec with `threads` threads (CPU).
std::unique_ptr<Backend> open_test_backend(const std::string& spec, int threads = 2);

/// Host numbers as a device would hold them: rounded to `dtype`, kept as double for the reference.
struct Matrix {
  int64_t rows = 0, cols = 0;
  DType dtype = DType::kF32;
  std::vector<double> values;

  double& at(int64_t r, int64_t c) { return values[static_cast<size_t>(r * cols + c)]; }
  double at(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * cols + c)]; }
};

double rounded(double value, DType dtype);
/// Relative spacing of a type's numbers, halved: the error of rounding once.
double unit_roundoff(DType dtype);

/// Normally distributed numbers, rounded to the dtype; the same for the same seed.
Matrix random_matrix(int64_t rows, int64_t cols, DType dtype, uint64_t seed, double deviation = 1.0, double mean = 0.0);
Matrix zeros(int64_t rows, int64_t cols, DType dtype);

/// A device with helpers that upload, download and keep memory until the test ends.
class Device {
 public:
  explicit Device(const std::string& spec, int threads = 2) : backend_(open_test_backend(spec, threads)) {}

  Backend& backend() { return *backend_; }
  OpContext context() { return backend_->context(); }

  Tensor upload(const Matrix& matrix);
  /// The matrix as columns [left, left + cols) of a wider one, whose other elements are NaN.
  Tensor upload_strided(const Matrix& matrix, int64_t left, int64_t right);
  Tensor upload_vector(const Matrix& matrix);
  Tensor upload_ints(const std::vector<int32_t>& values);
  Tensor upload_ints(const std::vector<int32_t>& values, int64_t rows, int64_t cols);
  Tensor upload_bytes(const void* data, int64_t rows, int64_t cols);
  Tensor make(DType dtype, std::initializer_list<int64_t> shape);
  Matrix download(const Tensor& tensor);
  std::vector<int32_t> download_ints(const Tensor& tensor);
  /// The raw bytes, for comparisons bit for bit.
  std::vector<char> download_bytes(const Tensor& tensor);
  const Weight* weight(const Matrix& matrix, WeightUse use = WeightUse::kLinear, int64_t experts = 1);

 private:
  std::unique_ptr<Backend> backend_;
  std::vector<Buffer> buffers_;
  std::vector<std::unique_ptr<Weight>> weights_;
};

/// |actual - expected| <= absolute + relative * |expected|, everywhere; `absolute` may depend on the element.
void expect_close(const Matrix& actual, const Matrix& expected, double relative,
                  const std::function<double(int64_t row, int64_t col)>& absolute);

/// Backend spec and compute dtype.
struct OpCase {
  std::string backend;
  DType dtype = DType::kF32;
};
inline void PrintTo(const OpCase& c, std::ostream* out) { *out << c.backend << " " << dtype_name(c.dtype); }
std::vector<OpCase> op_cases();
/// For operators that have one dtype.
std::vector<OpCase> op_cases_f32();
std::string op_case_name(const ::testing::TestParamInfo<OpCase>& info);

class OpTest : public ::testing::TestWithParam<OpCase> {
 protected:
  DType dtype() const { return GetParam().dtype; }
  Device device(int threads = 2) const { return Device(GetParam().backend, threads); }
  /// GPU threads emulated on the CPU (tests/cuda_plain): a thousandth of a GPU's speed, so the largest shapes stay out.
  static bool emulated() { return std::getenv("TESSERA_EMULATED_LANES") != nullptr; }
  /// A checker follows every access of a kernel (scripts/gpu_check.sh), and needs 20 s for a cluster of 16 blocks.
  static bool followed() { return std::getenv("TESSERA_TEST_FOLLOWED") != nullptr; }
  bool on_cpu() const { return GetParam().backend.rfind("cpu", 0) == 0; }
};

#define TESSERA_OP_SUITE(suite)                                                                  \
  INSTANTIATE_TEST_SUITE_P(Devices, suite, ::testing::ValuesIn(::tessera::testing::op_cases()), \
                           ::tessera::testing::op_case_name)

#define TESSERA_OP_SUITE_F32(suite)                                                                  \
  INSTANTIATE_TEST_SUITE_P(Devices, suite, ::testing::ValuesIn(::tessera::testing::op_cases_f32()), \
                           ::tessera::testing::op_case_name)

}  // namespace tessera::testing
