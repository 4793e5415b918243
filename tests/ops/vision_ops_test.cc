#include "ops/vision_ops.h"

#include "tests/ops/reference.h"

namespace tessera::testing {
namespace {

class VisionOpsTest : public OpTest {};

TEST_P(VisionOpsTest, PatchesAreNormalisedCutAndEmbedded) {
  Device d = device();
  const int64_t tiles = 2, side = 42, patch = 14, edge = side / patch, grid = edge * edge, hidden = 40;
  const int64_t k = 3 * patch * patch;
  std::vector<uint8_t> pixels(static_cast<size_t>(tiles * 3 * side * side));
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
  const std::array<float, 3> mean{0.485f, 0.456f, 0.406f}, std{0.229f, 0.224f, 0.225f};
  const Matrix w = random_matrix(hidden, k, dtype(), 1, 0.05), bias = random_matrix(1, hidden, DType::kF32, 2);
  const Matrix cls = random_matrix(1, hidden, DType::kF32, 3), positions = random_matrix(1 + grid, hidden, DType::kF32, 4);
  Tensor image = d.upload_bytes(pixels.data(), tiles, 3 * side * side);
  image = Tensor(image.data, DType::kU8, {tiles, 3, side, side});
  const Tensor out = d.make(DType::kF32, {tiles * (1 + grid), hidden});
  patch_embed(d.context(), {.tiles = image, .mean = mean, .std = std, .patch = 14, .weight = d.weight(w), .bias = d.upload_vector(bias),
                            .class_token = d.upload_vector(cls), .positions = d.upload(positions),
                            .patches = d.make(dtype(), {tiles * grid, k}), .out = out});
  Matrix expected = zeros(tiles * (1 + grid), hidden, DType::kF32);
  for (int64_t t = 0; t < tiles; ++t) {
    Matrix x = zeros(grid, k, dtype());
    for (int64_t p = 0; p < grid; ++p)
      for (int64_t i = 0; i < k; ++i) {
        const int64_t c = i / (patch * patch), y = p / edge * patch + i / patch % patch, xx = p % edge * patch + i % patch;
        const uint8_t u = pixels[static_cast<size_t>(((t * 3 + c) * side + y) * side + xx)];
        x.at(p, i) = rounded((static_cast<float>(u) / 255.0f - mean[static_cast<size_t>(c)]) / std[static_cast<size_t>(c)], dtype());
      }
    const Matrix product = ref_product(x, w);
    for (int64_t c = 0; c < hidden; ++c) {
      expected.at(t * (1 + grid), c) = cls.at(0, c) + positions.at(0, c);
      for (int64_t p = 0; p < grid; ++p)
        expected.at(t * (1 + grid) + 1 + p, c) = product.at(p, c) + bias.at(0, c) + positions.at(1 + p, c);
    }
  }
  // One value in a thousand may round to the other neighbour: at most 2.6 * u(bf16) * 0.2 of the sum.
  expect_close(d.download(out), expected, 0, [&](int64_t, int64_t) { return 2e-5 + 0.6 * (dtype() == DType::kF32 ? 0 : unit_roundoff(dtype())); });
}

TEST_P(VisionOpsTest, PixelShuffleFoldsAndNormsInBothVersions) {
  Device d = device();
  const int64_t tiles = 2, side = 6, hidden = 10, tokens = 1 + side * side;
  const Matrix x = random_matrix(tiles * tokens, hidden, DType::kF32, 5);
  const Matrix weight = random_matrix(1, 4 * hidden, DType::kF32, 6), bias = random_matrix(1, 4 * hidden, DType::kF32, 7);
  for (int version : {1, 2}) {
    Matrix folded = zeros(tiles * side * side / 4, 4 * hidden, DType::kF32);
    for (int64_t t = 0; t < tiles; ++t)
      for (int64_t i = 0; i < side / 2; ++i)
        for (int64_t j = 0; j < side / 2; ++j)
          for (int64_t c = 0; c < 4 * hidden; ++c) {
            const int64_t a = c / (2 * hidden), b = c / hidden % 2, half = side / 2;
            const int64_t row = t * half * half + (version == 2 ? i * half + j : j * half + i);
            folded.at(row, c) = x.at(t * tokens + 1 + (2 * i + a) * side + 2 * j + b, c % hidden);
          }
    const Tensor in = d.upload(x), plain = d.make(DType::kF32, {folded.rows, folded.cols}), normed = d.make(dtype(), {folded.rows, folded.cols});
    PixelShuffleArgs args{.x = in, .tiles = tiles, .side = side, .version = version, .out = plain};
    pixel_shuffle(d.context(), args);
    expect_close(d.download(plain), folded, 0, [](int64_t, int64_t) { return 0; });
    args.norm_weight = d.upload_vector(weight);
    args.norm_bias = d.upload_vector(bias);
    args.out = normed;
    pixel_shuffle(d.context(), args);
    expect_close(d.download(normed), ref_norm(folded, NormKind::kLayer, weight, &bias, 1e-5f), 1.01 * unit_roundoff(dtype()), [](int64_t, int64_t) { return 1e-5; });
  }
}

TESSERA_OP_SUITE(VisionOpsTest);

}  // namespace
}  // namespace tessera::testing
