#include "ops/norm.h"

#include "tests/ops/reference.h"

namespace tessera::testing {
namespace {

class NormTest : public OpTest {};

TEST_P(NormTest, MatchesTheDefinition) {
  Device d = device();
  for (NormKind kind : {NormKind::kRms, NormKind::kLayer})
    for (int64_t n : {1, 7, 16, 33, 128, 1000}) {
      const Matrix x = random_matrix(5, n, dtype(), 1 + static_cast<uint64_t>(n), 2.0, 0.5);
      const Matrix weight = random_matrix(1, n, DType::kF32, 2), bias = random_matrix(1, n, DType::kF32, 3);
      const Tensor out = d.make(DType::kF32, {5, n});
      NormArgs args{.kind = kind, .x = d.upload_strided(x, 3, 2), .weight = d.upload_vector(weight), .eps = 1e-6f, .out = out};
      if (kind == NormKind::kLayer) args.bias = d.upload_vector(bias);
      norm(d.context(), args);
      const Matrix expected = ref_norm(x, kind, weight, kind == NormKind::kLayer ? &bias : nullptr, 1e-6f);
      // A few roundings each of up to |x| / sigma * |w|; for n = 1 LayerNorm divides zero by sqrt(eps).
      expect_close(d.download(out), expected, 1e-5, [](int64_t, int64_t) { return 2e-5; });
    }
}

/// Warps of one or several rows, rows of one or several warps.
TEST_P(NormTest, ManyRowsOfAllWidths) {
  for (NormKind kind : {NormKind::kRms, NormKind::kLayer})
    for (DType in : {DType::kF32, dtype()})
      for (int64_t n : {64, 896, 1032, 2048, 3584, 8192}) {
        if ((on_cpu() || emulated()) && n > 1032) continue;
        SCOPED_TRACE(std::to_string(n) + " columns of " + std::string(dtype_name(in)));
        Device d = device();
        const Matrix x = random_matrix(67, n, in, 10 + static_cast<uint64_t>(n), 2.0, 0.5);
        const Matrix weight = random_matrix(1, n, DType::kF32, 11), bias = random_matrix(1, n, DType::kF32, 12);
        const Tensor out = d.make(dtype(), {67, n});
        NormArgs args{.kind = kind, .x = d.upload(x), .weight = d.upload_vector(weight), .eps = 1e-6f, .out = out};
        if (kind == NormKind::kLayer) args.bias = d.upload_vector(bias);
        norm(d.context(), args);
        expect_close(d.download(out), ref_norm(x, kind, weight, kind == NormKind::kLayer ? &bias : nullptr, 1e-6f),
                     unit_roundoff(dtype()) * 1.01 + 1e-5, [](int64_t, int64_t) { return 2e-5; });
      }
}

TEST_P(NormTest, RoundsItsOutputOnceAndWorksInPlace) {
  Device d = device();
  const Matrix x = random_matrix(3, 96, dtype(), 4), weight = random_matrix(1, 96, DType::kF32, 5);
  const Tensor t = d.upload(x);
  norm(d.context(), {.kind = NormKind::kRms, .x = t, .weight = d.upload_vector(weight), .eps = 1e-5f, .out = t});
  expect_close(d.download(t), ref_norm(x, NormKind::kRms, weight, nullptr, 1e-5f), unit_roundoff(dtype()) * 1.01,
               [](int64_t, int64_t) { return 2e-5; });
}

TEST_P(NormTest, RefusesWrongShapes) {
  Device d = device();
  const Tensor x = d.make(dtype(), {2, 8}), out = d.make(dtype(), {2, 8});
  EXPECT_THROW(norm(d.context(), {.x = x, .weight = d.make(DType::kF32, {7}), .out = out}), CheckFailure);
  EXPECT_THROW(norm(d.context(), {.x = x, .weight = d.make(dtype() == DType::kF32 ? DType::kBF16 : dtype(), {8}), .out = out}), CheckFailure);
  OpContext empty = d.context();
  const KernelTable none{.device = "nothing"};
  empty.kernels = &none;
  EXPECT_THROW(norm(empty, {.x = x, .weight = d.make(DType::kF32, {8}), .out = out}), DeviceError);
}

TESSERA_OP_SUITE(NormTest);

}  // namespace
}  // namespace tessera::testing
