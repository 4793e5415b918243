#include "ops/embedding.h"

#include "tests/ops/reference.h"

namespace tessera::testing {
namespace {

class EmbeddingTest : public OpTest {};

TEST_P(EmbeddingTest, LooksUpTokensAndImageRows) {
  Device d = device();
  const Matrix table = random_matrix(45, 26, dtype(), 1), images = random_matrix(3, 26, dtype(), 2);
  const std::vector<int32_t> ids = {0, 44, 17, -5, 16}, rows = {-1, -1, -1, 2, -1};
  for (WeightUse use : {WeightUse::kEmbedding, WeightUse::kTied}) {
    const Tensor out = d.make(DType::kF32, {5, 26});
    embed(d.context(), {.ids = d.upload_ints(ids), .table = d.weight(table, use), .image_rows = d.upload(images), .image_index = d.upload_ints(rows), .out = out});
    Matrix expected = zeros(5, 26, DType::kF32);
    for (int64_t t = 0; t < 5; ++t)
      for (int64_t c = 0; c < 26; ++c)
        expected.at(t, c) = rows[static_cast<size_t>(t)] >= 0 ? images.at(rows[static_cast<size_t>(t)], c) : table.at(ids[static_cast<size_t>(t)], c);
    expect_close(d.download(out), expected, 0, [](int64_t, int64_t) { return 0; });
  }
}

TEST_P(EmbeddingTest, LooksUpTokensOfTheStepBefore) {
  Device d = device();
  const Matrix table = random_matrix(45, 26, dtype(), 1), images = random_matrix(3, 26, dtype(), 2);
  const std::vector<int32_t> ids = {-3, 44, -1, -2, -4}, sampled = {7, 0, 44}, rows = {-1, -1, -1, -1, 1}, meant = {44, 44, 7, 0, 0};
  const Tensor out = d.make(DType::kF32, {5, 26});
  embed(d.context(), {.ids = d.upload_ints(ids), .sampled_ids = d.upload_ints(sampled), .table = d.weight(table, WeightUse::kEmbedding), .image_rows = d.upload(images), .image_index = d.upload_ints(rows), .out = out});
  Matrix expected = zeros(5, 26, DType::kF32);
  for (int64_t t = 0; t < 5; ++t)
    for (int64_t c = 0; c < 26; ++c) expected.at(t, c) = t == 4 ? images.at(1, c) : table.at(meant[static_cast<size_t>(t)], c);
  expect_close(d.download(out), expected, 0, [](int64_t, int64_t) { return 0; });
}

TEST_P(EmbeddingTest, GathersAndScattersRows) {
  Device d = device();
  const Matrix x = random_matrix(6, 19, dtype(), 3), before = random_matrix(4, 19, DType::kF32, 4);
  const std::vector<int32_t> indices = {5, -1, 0, 5};
  const Tensor gathered = d.upload(before);
  gather_rows(d.context(), {.x = d.upload(x), .indices = d.upload_ints(indices), .out = gathered});
  Matrix expected = before;
  for (int64_t r = 0; r < 4; ++r)
    for (int64_t c = 0; c < 19 && indices[static_cast<size_t>(r)] >= 0; ++c) expected.at(r, c) = x.at(indices[static_cast<size_t>(r)], c);
  expect_close(d.download(gathered), expected, 0, [](int64_t, int64_t) { return 0; });

  const Tensor scattered = d.upload(before);
  scatter_rows(d.context(), {.x = d.upload(ref_rows(x, 0, 3)), .indices = d.upload_ints({3, -1, 0}), .out = scattered});
  expected = before;
  for (int64_t c = 0; c < 19; ++c) {
    expected.at(3, c) = x.at(0, c);
    expected.at(0, c) = x.at(2, c);
  }
  expect_close(d.download(scattered), expected, 0, [](int64_t, int64_t) { return 0; });
}

/// Wide rows of one type, as a vision pass's: of fewer pieces than threads, and of more than they take at a time.
TEST_P(EmbeddingTest, ScattersWideRows) {
  for (int64_t n : {64, 896, 8200}) {
    Device d = device();
    const Matrix x = random_matrix(5, n, dtype(), 6), before = random_matrix(7, n, dtype(), 7);
    const std::vector<int32_t> indices = {6, 0, -1, 3, 1};
    const Tensor scattered = d.upload(before);
    scatter_rows(d.context(), {.x = d.upload_strided(x, 8, 16), .indices = d.upload_ints(indices), .out = scattered});
    Matrix expected = before;
    for (int64_t r = 0; r < 5; ++r)
      for (int64_t c = 0; c < n && indices[static_cast<size_t>(r)] >= 0; ++c) expected.at(indices[static_cast<size_t>(r)], c) = x.at(r, c);
    expect_close(d.download(scattered), expected, 0, [](int64_t, int64_t) { return 0; });
  }
}

TEST_P(EmbeddingTest, CopiesBlocks) {
  Device d = device();
  const Matrix blocks = random_matrix(5, 64, dtype(), 5);
  const Tensor memory = d.upload(blocks);
  copy_blocks(d.context(), {.base = memory.data, .block_bytes = 64 * size_of(dtype()), .pairs = d.upload_ints({0, 4, 3, 1}, 2, 2)});
  Matrix expected = blocks;
  for (int64_t c = 0; c < 64; ++c) {
    expected.at(4, c) = blocks.at(0, c);
    expected.at(1, c) = blocks.at(3, c);
  }
  expect_close(d.download(memory), expected, 0, [](int64_t, int64_t) { return 0; });
}

TESSERA_OP_SUITE(EmbeddingTest);

}  // namespace
}  // namespace tessera::testing
