// Copies between host and device that are not plain uploads: several pieces at once, and results that take turns.
#include <cstring>

#include "tests/ops/op_test.h"

namespace tessera::testing {
namespace {

class TransferTest : public OpTest {};

TEST_P(TransferTest, UploadsPiecesAtOnce) {
  Device d = device();
  Backend& backend = d.backend();
  constexpr size_t kBytes = size_t{300} << 10;
  const Buffer host = backend.host_allocator().allocate(kBytes, MemoryLine::kStaging, "host");
  auto* from = static_cast<char*>(host.data());
  for (size_t i = 0; i < kBytes; ++i) from[i] = static_cast<char>(i * 7 + i / 251);
  const Tensor to = d.make(DType::kU8, {static_cast<int64_t>(kBytes)});
  backend.fill_zero(to);
  std::vector<char> expected(kBytes, 0);
  std::vector<Backend::Piece> pieces;
  const auto add = [&](size_t at, size_t bytes) {
    pieces.push_back({from + at, static_cast<char*>(to.data) + at, bytes});
    std::memcpy(expected.data() + at, from + at, bytes);
  };
  for (size_t i = 0; i < 300; ++i) add(64 * i, 4 * (i % 9 + 1));  // more than one kernel takes
  add(20 << 10, 9000);       // more than a block's threads copy in a turn
  add((40 << 10) + 1, 333);  // no words
  add(64 << 10, 200 << 10);  // more than a kernel should copy
  backend.upload_all(pieces);
  EXPECT_EQ(d.download_bytes(to), expected);
  backend.upload_all({});
}

TEST_P(TransferTest, DownloadsInTurn) {
  Device d = device();
  Backend& backend = d.backend();
  constexpr int64_t kCount = 700;
  const Buffer host = backend.host_allocator().allocate(DType::kI32, {3, kCount}, MemoryLine::kStaging, "host");
  auto* results = static_cast<int32_t*>(host.data());
  std::fill_n(results, 3 * kCount, -1);
  for (const int32_t turn : {2, 0}) {
    std::vector<int32_t> values;
    for (int64_t i = 0; i < kCount; ++i) values.push_back(static_cast<int32_t>(1000 * turn + i));
    backend.download_in_turn(d.upload_ints(values), results, kCount * sizeof(int32_t), d.upload_ints({turn}));
    backend.synchronize();
  }
  for (int64_t i = 0; i < kCount; ++i) {
    EXPECT_EQ(results[i], i);
    EXPECT_EQ(results[kCount + i], -1);
    EXPECT_EQ(results[2 * kCount + i], 2000 + i);
  }
}

TEST_P(TransferTest, PiecesAheadOfACaptureAreThoseOfItsRun) {
  Device d = device();
  Backend& backend = d.backend();
  constexpr int64_t kCount = 9000;
  const Buffer host = backend.host_allocator().allocate(DType::kI32, {3, kCount}, MemoryLine::kStaging, "host");
  int32_t* const results = static_cast<int32_t*>(host.data()) + 2 * kCount;
  const Tensor there = d.make(DType::kI32, {kCount}), turn = d.upload_ints({0});
  backend.fill_zero(there);
  std::vector<int32_t> expected(kCount, 0);
  int runs = 0;
  const auto run = [&](const std::vector<std::pair<int64_t, int64_t>>& parts) {
    int32_t* const mirror = static_cast<int32_t*>(host.data()) + runs++ % 2 * kCount;
    std::vector<Backend::Piece> pieces;
    for (const auto& [first, count] : parts) {
      for (int64_t i = first; i < first + count; ++i) mirror[i] = expected[static_cast<size_t>(i)] = static_cast<int32_t>(10000 * runs + i);
      pieces.push_back({mirror + first, there.ptr<int32_t>() + first, static_cast<size_t>(count) * sizeof(int32_t)});
    }
    backend.run_captured(1, pieces, [&] { backend.download_in_turn(there, results, 0, turn); });
    backend.synchronize();
    EXPECT_EQ(std::vector<int32_t>(results, results + kCount), expected) << "run " << runs;
  };
  run({{0, 10}});                              // as it is
  run({{5, 3}, {70, 1}});                      // captured
  run({{0, 8192}});                            // replayed, with more words than threads
  run({{1, 2}, {4, 2}, {100, 40}, {8999, 1}});  // and more pieces
  std::vector<std::pair<int64_t, int64_t>> many;
  for (int64_t i = 0; i < 200; ++i) many.emplace_back(40 * i, 1 + i % 30);
  run(many);  // more than one kernel takes
  run({{7, 1}});
}

TESSERA_OP_SUITE_F32(TransferTest);

}  // namespace
}  // namespace tessera::testing
