#include "ops/moe.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/ops/reference.h"

namespace tessera::testing {
namespace {

class MoeTest : public OpTest {
 protected:
  static constexpr int64_t kHidden = 48, kExperts = 6, kFfn = 40;

  struct Model {
    Matrix router, gate_up, down;
  };
  Model model() const {
    return {random_matrix(kExperts, kHidden, dtype(), 1), random_matrix(kExperts * 2 * kFfn, kHidden, dtype(), 2, 0.2),
            random_matrix(kExperts * kHidden, kFfn, dtype(), 3, 0.2)};
  }

  Matrix expected(const Model& m, const Matrix& x, const Matrix& residual, int top_k, bool normalise) const {
    Matrix out = residual;
    const Matrix logits = ref_product(x, m.router);
    for (int64_t t = 0; t < x.rows; ++t) {
      std::vector<int64_t> order(kExperts);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return logits.at(t, a) > logits.at(t, b); });
      double all = 0, chosen = 0;
      for (int64_t e = 0; e < kExperts; ++e) all += std::exp(logits.at(t, e));
      for (int i = 0; i < top_k; ++i) chosen += std::exp(logits.at(t, order[static_cast<size_t>(i)]));
      for (int i = 0; i < top_k; ++i) {
        const int64_t e = order[static_cast<size_t>(i)];
        const double weight = std::exp(logits.at(t, e)) / (normalise ? chosen : all);
        const Matrix y = ref_product(ref_rows(x, t, 1), ref_rows(m.gate_up, e * 2 * kFfn, 2 * kFfn));
        Matrix h = zeros(1, kFfn, dtype());
        for (int64_t c = 0; c < kFfn; ++c) h.at(0, c) = rounded(ref_silu(y.at(0, c)) * y.at(0, kFfn + c), dtype());
        const Matrix z = ref_product(h, ref_rows(m.down, e * kHidden, kHidden));
        for (int64_t c = 0; c < kHidden; ++c) out.at(t, c) += weight * z.at(0, c);
      }
    }
    return out;
  }

  Tensor run(Device& d, const Model& m, const Matrix& x, const Matrix& residual, int top_k, bool normalise) const {
    const Tensor out = d.upload(residual);
    moe(d.context(), {.x = d.upload(x), .router = d.weight(m.router), .gate_up = d.weight(m.gate_up, WeightUse::kGated, kExperts),
                      .down = d.weight(m.down, WeightUse::kLinear, kExperts), .top_k = top_k, .normalise_top_k = normalise,
                      .router_logits = d.make(DType::kF32, {x.rows, kExperts}), .expert_hidden = d.make(dtype(), {x.rows * top_k, kFfn}),
                      .expert_out = d.make(DType::kF32, {x.rows * top_k, kHidden}), .residual = out, .out = out});
    return out;
  }
};

TEST_P(MoeTest, MatchesTheDefinition) {
  Device d = device();
  const Model m = model();
  for (int64_t tokens : {1, 3, 29})
    for (bool normalise : {true, false}) {
      const Matrix x = random_matrix(tokens, kHidden, dtype(), 4), residual = random_matrix(tokens, kHidden, DType::kF32, 5);
      // A hidden value may round to the other neighbour: |h| of about 2, weights of 0.2.
      expect_close(d.download(run(d, m, x, residual, 2, normalise)), expected(m, x, residual, 2, normalise), 1e-5,
                   [&](int64_t, int64_t) { return 1e-4 + (dtype() == DType::kF32 ? 0 : 2 * unit_roundoff(dtype())); });
    }
}

TEST_P(MoeTest, ATokenDoesNotDependOnItsCompany) {
  if (!on_cpu()) GTEST_SKIP() << "bitwise independence is the CPU's promise";
  const Model m = model();
  const Matrix x = random_matrix(33, kHidden, dtype(), 6), residual = random_matrix(33, kHidden, DType::kF32, 7);
  Device d = device(1), d3 = device(3);
  const std::vector<char> whole = d.download_bytes(run(d, m, x, residual, 3, true));
  ASSERT_TRUE(d3.download_bytes(run(d3, m, x, residual, 3, true)) == whole);
  for (int64_t t : {0, 16, 32}) {
    const std::vector<char> alone = d.download_bytes(run(d, m, ref_rows(x, t, 1), ref_rows(residual, t, 1), 3, true));
    const auto begin = whole.begin() + t * kHidden * 4;
    ASSERT_TRUE(std::equal(alone.begin(), alone.end(), begin)) << "token " << t;
  }
}

TESSERA_OP_SUITE(MoeTest);

}  // namespace
}  // namespace tessera::testing
