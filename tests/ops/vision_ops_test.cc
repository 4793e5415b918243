#include "ops/vision_ops.h"

#include <cmath>

#include "ops/linear.h"
#include "tests/ops/reference.h"

namespace tessera::testing {
namespace {

class VisionOpsTest : public OpTest {
 protected:
  static constexpr std::array<float, 3> kMean{0.485f, 0.456f, 0.406f}, kStd{0.229f, 0.224f, 0.225f};
  static constexpr int64_t kPatch = 14, kColumns = 3 * kPatch * kPatch;

  struct Pictures {
    int64_t tiles, side;
    int64_t edge() const { return side / kPatch; }
    int64_t rows() const { return 1 + edge() * edge(); }  // of a tile
    uint8_t pixel(int64_t tile, int64_t channel, int64_t y, int64_t x) const {
      return static_cast<uint8_t>(static_cast<uint64_t>(((tile * 3 + channel) * side + y) * side + x) * 2654435761u >> 13);
    }
    Tensor upload(Device& d) const {
      std::vector<uint8_t> pixels;
      for (int64_t plane = 0; plane < 3 * tiles; ++plane)
        for (int64_t y = 0; y < side; ++y)
          for (int64_t x = 0; x < side; ++x) pixels.push_back(pixel(plane / 3, plane % 3, y, x));
      return Tensor(d.upload_bytes(pixels.data(), tiles, 3 * side * side).data, DType::kU8, {tiles, 3, side, side});
    }
    Matrix patches(int64_t tile, DType dtype) const {
      Matrix x = zeros(rows() - 1, kColumns, dtype);
      for (int64_t p = 0; p < x.rows; ++p)
        for (int64_t i = 0; i < kColumns; ++i) {
          const int64_t c = i / (kPatch * kPatch), at_y = p / edge() * kPatch + i / kPatch % kPatch, at_x = p % edge() * kPatch + i % kPatch;
          const auto channel = static_cast<size_t>(c);
          x.at(p, i) = rounded((static_cast<float>(pixel(tile, c, at_y, at_x)) / 255.0f - kMean[channel]) / kStd[channel], dtype);
        }
      return x;
    }
  };

  /// Embeds in rows of `out_dtype`, with sums where the backend makes them of such rows.
  void embeds(const Pictures& pictures, int64_t hidden, DType out_dtype) {
    Device d = device();
    const int64_t rows = pictures.rows(), tiles = pictures.tiles;
    const Matrix w = random_matrix(hidden, kColumns, dtype(), 1, 0.05), bias = random_matrix(1, hidden, DType::kF32, 2);
    const Matrix token = random_matrix(1, hidden, DType::kF32, 3), positions = random_matrix(rows, hidden, DType::kF32, 4);
    const Tensor out = d.make(out_dtype, {tiles * rows, hidden});
    PatchEmbedArgs args{.tiles = pictures.upload(d), .mean = kMean, .std = kStd, .patch = kPatch, .weight = d.weight(w), .bias = d.upload_vector(bias),
                        .class_token = d.upload_vector(token), .positions = d.upload(positions), .patches = d.make(dtype(), {tiles * (rows - 1), kColumns}), .out = out};
    const bool sums = hidden % kSumColumns == 0 && out_dtype == dtype() && d.backend().sizing().precision(dtype()).folded_norms;
    if (sums) args.out_sums = d.make(DType::kF32, {tiles * rows, 2 * hidden / kSumColumns});
    patch_embed(d.context(), args);
    Matrix expected = zeros(tiles * rows, hidden, out_dtype), magnitude = expected;
    for (int64_t t = 0; t < tiles; ++t) {
      const Matrix product = ref_product(pictures.patches(t, dtype()), w);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < hidden; ++c) {
          magnitude.at(t * rows + r, c) = r ? std::abs(product.at(r - 1, c)) : 0.0;
          expected.at(t * rows + r, c) = (r ? product.at(r - 1, c) + bias.at(0, c) : token.at(0, c)) + positions.at(r, c);
        }
    }
    // One value in a thousand may round to the other neighbour: at most 2.6 * u(bf16) * 0.2 of the sum. Rows of 16 bits round the
    // product, too, and themselves.
    const double u = dtype() == DType::kF32 ? 0 : unit_roundoff(dtype()), half = out_dtype == DType::kF32 ? 0 : unit_roundoff(out_dtype);
    const Matrix got = d.download(out);
    expect_close(got, expected, 1.01 * half, [&](int64_t r, int64_t c) { return 2e-5 + 0.6 * u + 1.1 * half * magnitude.at(r, c); });
    if (!sums) return;
    Matrix expected_sums = zeros(tiles * rows, 2 * hidden / kSumColumns, DType::kF32);
    for (int64_t r = 0; r < tiles * rows; ++r)
      for (int64_t c = 0; c < hidden; ++c) {
        expected_sums.at(r, c / kSumColumns * 2) += got.at(r, c);
        expected_sums.at(r, c / kSumColumns * 2 + 1) += got.at(r, c) * got.at(r, c);
      }
    expect_close(d.download(args.out_sums), expected_sums, 1e-5, [](int64_t, int64_t) { return 1e-4; });
  }

  /// x folded as the operator says.
  static Matrix folded(const Matrix& x, int64_t tiles, int64_t side, int version) {
    const int64_t hidden = x.cols, half = side / 2;
    Matrix out = zeros(tiles * half * half, 4 * hidden, DType::kF32);
    for (int64_t t = 0; t < tiles; ++t)
      for (int64_t i = 0; i < half; ++i)
        for (int64_t j = 0; j < half; ++j)
          for (int64_t c = 0; c < 4 * hidden; ++c) {
            const int64_t a = c / (2 * hidden), b = c / hidden % 2, row = t * half * half + (version == 2 ? i * half + j : j * half + i);
            out.at(row, c) = x.at(t * (1 + side * side) + 1 + (2 * i + a) * side + 2 * j + b, c % hidden);
          }
    return out;
  }
};

TEST_P(VisionOpsTest, PatchesAreNormalisedCutAndEmbedded) { embeds({2, 42}, 40, DType::kF32); }

/// As a tower's stream of 16 bits is begun: more tiles than a thread makes, rows that end within a block of threads.
TEST_P(VisionOpsTest, EmbedsRowsOfTheWeightsType) {
  embeds({6, 112}, 192, dtype());
  embeds({1, 112}, 64, dtype());
  embeds({2, 42}, 40, dtype());
  embeds({2, 112}, 20, dtype());  // of no whole pieces of 16 bytes
}

TEST_P(VisionOpsTest, PixelShuffleFoldsAndNormsInBothVersions) {
  Device d = device();
  const int64_t tiles = 2, side = 6;
  for (DType in : {DType::kF32, dtype()})
    for (int64_t hidden : {10, 40, 1024, 3200})  // a row of one warp, of several, of so many that a block has no more
      for (int version : {1, 2}) {
        if ((on_cpu() || emulated()) && hidden > 40) continue;
        SCOPED_TRACE(std::to_string(hidden) + " columns of " + std::string(dtype_name(in)) + ", version " + std::to_string(version));
        const Matrix x = random_matrix(tiles * (1 + side * side), hidden, in, 5), expected = folded(x, tiles, side, version);
        const Matrix weight = random_matrix(1, 4 * hidden, DType::kF32, 6), bias = random_matrix(1, 4 * hidden, DType::kF32, 7);
        const Tensor plain = d.make(DType::kF32, {expected.rows, expected.cols}), normed = d.make(dtype(), {expected.rows, expected.cols});
        PixelShuffleArgs args{.x = d.upload(x), .tiles = tiles, .side = side, .version = version, .out = plain};
        pixel_shuffle(d.context(), args);
        expect_close(d.download(plain), expected, 0, [](int64_t, int64_t) { return 0; });
        args.norm_weight = d.upload_vector(weight);
        args.norm_bias = d.upload_vector(bias);
        args.out = normed;
        pixel_shuffle(d.context(), args);
        expect_close(d.download(normed), ref_norm(expected, NormKind::kLayer, weight, &bias, 1e-5f), 1.01 * unit_roundoff(dtype()), [](int64_t, int64_t) { return 1e-5; });
      }
}

TESSERA_OP_SUITE(VisionOpsTest);

}  // namespace
}  // namespace tessera::testing
