#include "tests/ops/op_test.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <sstream>

namespace tessera::testing {

std::vector<std::string> backend_specs() {
  std::string list;
  if (const char* chosen = std::getenv("TESSERA_TEST_BACKENDS")) list = chosen;
  std::vector<std::string> specs;
  if (list.empty()) {
    for (const char* isa : {"plain", "avx2", "avx512", "avx512_bf16", "amx_bf16"})
      if (open_backend({.device = "cpu", .threads = 1, .isa = isa}).ok()) specs.push_back(std::string("cpu/") + isa);
    return specs;
  }
  std::istringstream words(list);
  for (std::string spec; std::getline(words, spec, ',');) specs.push_back(spec);
  return specs;
}

std::unique_ptr<Backend> open_test_backend(const std::string& spec, int threads) {
  const size_t slash = spec.find('/');
  BackendOptions options;
  options.device = spec.substr(0, slash);
  options.threads = threads;
  if (slash != std::string::npos) options.isa = spec.substr(slash + 1);
  // TESSERA_TEST_SHARED_MEMORY imposes a GPU's bytes of shared memory a block, as --limit does.
  if (const char* bytes = std::getenv("TESSERA_TEST_SHARED_MEMORY"); bytes && options.device != "cpu")
    options.limits = {{"shared_memory_per_block", std::stoll(bytes)}};
  auto backend = open_backend(options);
  if (!backend.ok()) throw std::runtime_error(spec + ": " + backend.status().message());
  return std::move(backend).value();
}

double rounded(double value, DType dtype) {
  const auto f = static_cast<float>(value);
  switch (dtype) {
    case DType::kBF16: return to_float(to_bf16(f));
    case DType::kF16: return to_float(to_f16(f));
    default: return f;
  }
}

double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::kBF16: return 0x1p-8;
    case DType::kF16: return 0x1p-11;
    default: return 0x1p-24;
  }
}

Matrix zeros(int64_t rows, int64_t cols, DType dtype) {
  return {rows, cols, dtype, std::vector<double>(static_cast<size_t>(rows * cols))};
}

Matrix random_matrix(int64_t rows, int64_t cols, DType dtype, uint64_t seed, double deviation, double mean) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal(mean, deviation);
  Matrix m = zeros(rows, cols, dtype);
  for (double& v : m.values) v = rounded(normal(engine), dtype);
  return m;
}

namespace {

std::vector<char> encode(const Matrix& m) {
  std::vector<float> floats(m.values.begin(), m.values.end());
  std::vector<char> bytes(floats.size() * size_of(m.dtype));
  convert(floats.data(), DType::kF32, bytes.data(), m.dtype, floats.size());
  return bytes;
}

class MatrixSource final : public WeightSource {
 public:
  explicit MatrixSource(const Matrix& matrix, int64_t experts) : bytes_(encode(matrix)), m_(matrix) {
    rows_ = matrix.rows / experts;
  }
  void read(int64_t expert, int64_t begin, int64_t count, DType dtype, void* out) const override {
    const size_t row = static_cast<size_t>(m_.cols) * size_of(m_.dtype);
    convert(bytes_.data() + static_cast<size_t>(expert * rows_ + begin) * row, m_.dtype, out, dtype,
            static_cast<size_t>(count * m_.cols));
  }

 private:
  std::vector<char> bytes_;
  const Matrix& m_;
  int64_t rows_;
};

}  // namespace

Tensor Device::make(DType dtype, std::initializer_list<int64_t> shape) {
  buffers_.push_back(backend_->allocator().allocate(dtype, shape, MemoryLine::kActivations, "test"));
  return buffers_.back().tensor(dtype, shape);
}

Tensor Device::upload(const Matrix& matrix) {
  const Tensor tensor = make(matrix.dtype, {matrix.rows, matrix.cols});
  const std::vector<char> bytes = encode(matrix);
  backend_->upload(bytes.data(), tensor);
  backend_->synchronize();
  return tensor;
}

Tensor Device::upload_strided(const Matrix& matrix, int64_t left, int64_t right) {
  Matrix wide = zeros(matrix.rows, left + matrix.cols + right, matrix.dtype);
  std::fill(wide.values.begin(), wide.values.end(), std::numeric_limits<double>::quiet_NaN());
  for (int64_t r = 0; r < matrix.rows; ++r)
    for (int64_t c = 0; c < matrix.cols; ++c) wide.at(r, left + c) = matrix.at(r, c);
  return upload(wide).columns(left, matrix.cols);
}

Tensor Device::upload_vector(const Matrix& matrix) {
  const Tensor tensor = upload(matrix);
  return Tensor(tensor.data, tensor.dtype, {tensor.elements()});
}

Tensor Device::upload_ints(const std::vector<int32_t>& values) {
  return upload_ints(values, static_cast<int64_t>(values.size()), 1);
}

Tensor Device::upload_ints(const std::vector<int32_t>& values, int64_t rows, int64_t cols) {
  const Tensor tensor = make(DType::kI32, {rows, cols});
  backend_->upload(values.data(), tensor);
  backend_->synchronize();
  return cols == 1 ? Tensor(tensor.data, DType::kI32, {rows}) : tensor;
}

Tensor Device::upload_bytes(const void* data, int64_t rows, int64_t cols) {
  const Tensor tensor = make(DType::kU8, {rows, cols});
  backend_->upload(data, tensor);
  backend_->synchronize();
  return tensor;
}

std::vector<char> Device::download_bytes(const Tensor& tensor) {
  std::vector<char> bytes(tensor.bytes());
  backend_->download(tensor, bytes.data());
  backend_->synchronize();
  return bytes;
}

Matrix Device::download(const Tensor& tensor) {
  const std::vector<char> bytes = download_bytes(tensor);
  std::vector<float> floats(static_cast<size_t>(tensor.elements()));
  convert(bytes.data(), tensor.dtype, floats.data(), DType::kF32, floats.size());
  return {tensor.rows(), tensor.row_elements(), tensor.dtype, std::vector<double>(floats.begin(), floats.end())};
}

std::vector<int32_t> Device::download_ints(const Tensor& tensor) {
  std::vector<int32_t> values(static_cast<size_t>(tensor.elements()));
  backend_->download(tensor, values.data());
  backend_->synchronize();
  return values;
}

const Weight* Device::weight(const Matrix& matrix, WeightUse use, int64_t experts) {
  const MatrixSource source(matrix, experts);
  const LinearSpec spec{
      .rows = matrix.rows / experts, .cols = matrix.cols, .dtype = matrix.dtype, .use = use, .experts = experts};
  weights_.push_back(
      backend_->make_weight(spec, &source, backend_->allocator(), MemoryLine::kLanguageWeights, "test"));
  backend_->synchronize();
  return weights_.back().get();
}

void expect_close(const Matrix& actual, const Matrix& expected, double relative,
                  const std::function<double(int64_t, int64_t)>& absolute) {
  ASSERT_EQ(actual.rows, expected.rows);
  ASSERT_EQ(actual.cols, expected.cols);
  for (int64_t r = 0; r < actual.rows; ++r)
    for (int64_t c = 0; c < actual.cols; ++c) {
      const double limit = absolute(r, c) + relative * std::abs(expected.at(r, c));
      // Written so that NaN fails.
      ASSERT_TRUE(std::abs(actual.at(r, c) - expected.at(r, c)) <= limit)
          << "at (" << r << ", " << c << "): " << actual.at(r, c) << " instead of " << expected.at(r, c)
          << ", tolerance " << limit;
    }
}

std::vector<OpCase> op_cases() {
  std::vector<OpCase> cases;
  for (const std::string& spec : backend_specs())
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) cases.push_back({spec, dtype});
  return cases;
}

std::vector<OpCase> op_cases_f32() {
  std::vector<OpCase> cases;
  for (const std::string& spec : backend_specs()) cases.push_back({spec, DType::kF32});
  return cases;
}

std::string op_case_name(const ::testing::TestParamInfo<OpCase>& info) {
  std::string name = info.param.backend + "_" + dtype_name(info.param.dtype);
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  return name;
}

}  // namespace tessera::testing
