#include "ops/attention.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "tests/ops/reference.h"

namespace tessera::testing {
namespace {

struct Shape {
  int heads, kv_heads, head_dim, block_size;
};

/// Sequences of packed rows with their cos/sin and a cache that begins full of NaN.
class Cache {
 public:
  Cache(Device& device, const Shape& shape, DType dtype, int64_t sequences, int64_t max_tokens)
      : d_(device), shape_(shape), dtype_(dtype) {
    blocks_per_sequence_ = (max_tokens + shape.block_size - 1) / shape.block_size;
    view_.layout = {dtype, shape.block_size, shape.kv_heads, shape.head_dim};
    view_.blocks = sequences * blocks_per_sequence_;
    const auto bytes = static_cast<int64_t>(view_.layout.block_bytes()) * view_.blocks;
    const std::vector<unsigned char> nan(static_cast<size_t>(bytes), 0xff);
    view_.base = d_.upload_bytes(nan.data(), 1, bytes).data;
  }

  const KvView& view() const { return view_; }
  /// Blocks are dealt backwards, so that neighbours in a sequence are not neighbours in memory.
  int32_t block(int64_t sequence, int64_t i) const {
    return static_cast<int32_t>(view_.blocks - 1 - (sequence * blocks_per_sequence_ + i));
  }
  int32_t slot(int64_t sequence, int64_t position) const {
    return block(sequence, position / shape_.block_size) * shape_.block_size +
           static_cast<int32_t>(position % shape_.block_size);
  }
  int64_t blocks_per_sequence() const { return blocks_per_sequence_; }

 private:
  Device& d_;
  Shape shape_;
  DType dtype_;
  int64_t blocks_per_sequence_;
  KvView view_;
};

/// One chunk of a sequence: tokens [begin, begin + count).
struct Chunk {
  int64_t sequence, begin, count;
};

class AttentionTest : public OpTest {
 protected:
  struct Data {
    std::vector<Matrix> qkv, cos_sin;  ///< per sequence
    Matrix q_norm, k_norm;
  };

  Data make_data(const Shape& s, const std::vector<int64_t>& lengths, double deviation = 1.0) const {
    Data data;
    for (size_t i = 0; i < lengths.size(); ++i) {
      data.qkv.push_back(random_matrix(lengths[i], int64_t{s.heads + 2 * s.kv_heads} * s.head_dim, dtype(), 10 + i, deviation));
      Matrix angles = random_matrix(lengths[i], s.head_dim / 2, DType::kF32, 30 + i, 3.0);
      Matrix cs = zeros(lengths[i], s.head_dim, DType::kF32);
      for (int64_t t = 0; t < lengths[i]; ++t)
        for (int64_t c = 0; c < s.head_dim / 2; ++c) {
          cs.at(t, c) = rounded(std::cos(angles.at(t, c)), DType::kF32);
          cs.at(t, c + s.head_dim / 2) = rounded(std::sin(angles.at(t, c)), DType::kF32);
        }
      data.cos_sin.push_back(cs);
    }
    data.q_norm = random_matrix(1, s.head_dim, DType::kF32, 50, 0.2, 1.0);
    data.k_norm = random_matrix(1, s.head_dim, DType::kF32, 51, 0.2, 1.0);
    return data;
  }

  /// One step over the chunks; returns the rows of out, one matrix a chunk, and their bytes.
  struct Output {
    std::vector<Matrix> rows;
    std::vector<std::vector<char>> bytes;
  };
  Output step(Device& d, const Shape& s, const Cache& cache, const Data& data, const std::vector<Chunk>& chunks,
              bool norms = false, int64_t surplus = 0) const {
    const int64_t width = int64_t{s.heads + 2 * s.kv_heads} * s.head_dim;
    int64_t tokens = surplus, max_kv = 0, max_query = 0;
    for (const Chunk& c : chunks) tokens += c.count;
    Matrix qkv = zeros(tokens, width, dtype()), cos_sin = zeros(tokens, s.head_dim, DType::kF32);
    std::vector<int32_t> slots(static_cast<size_t>(tokens), -1), offsets{0}, lengths, tables;
    int64_t row = 0;
    for (const Chunk& c : chunks) {
      for (int64_t t = c.begin; t < c.begin + c.count; ++t, ++row) {
        for (int64_t i = 0; i < width; ++i) qkv.at(row, i) = data.qkv[static_cast<size_t>(c.sequence)].at(t, i);
        for (int64_t i = 0; i < s.head_dim; ++i) cos_sin.at(row, i) = data.cos_sin[static_cast<size_t>(c.sequence)].at(t, i);
        slots[static_cast<size_t>(row)] = cache.slot(c.sequence, t);
      }
      offsets.push_back(static_cast<int32_t>(row));
      lengths.push_back(static_cast<int32_t>(c.begin + c.count));
      for (int64_t b = 0; b < cache.blocks_per_sequence(); ++b) tables.push_back(cache.block(c.sequence, b));
      max_kv = std::max(max_kv, c.begin + c.count);
      max_query = std::max(max_query, c.count);
    }
    for (int64_t i = 0; i < surplus; ++i) {  // a bucket's surplus: a sequence without tokens, tokens without a slot
      offsets.push_back(static_cast<int32_t>(row));
      lengths.push_back(0);
      for (int64_t b = 0; b < cache.blocks_per_sequence(); ++b) tables.push_back(0);
    }
    const auto sequences = static_cast<int64_t>(lengths.size());
    const Tensor packed = d.upload(qkv), out = d.make(dtype(), {tokens, int64_t{s.heads} * s.head_dim});
    QkvToCacheArgs write{.qkv = packed,
                         .cos_sin = d.upload(cos_sin),
                         .slots = d.upload_ints(slots),
                         .heads = s.heads,
                         .kv_heads = s.kv_heads,
                         .head_dim = s.head_dim,
                         .kv = cache.view()};
    if (norms) {
      write.q_norm = d.upload_vector(data.q_norm);
      write.k_norm = d.upload_vector(data.k_norm);
    }
    qkv_to_cache(d.context(), write);
    int64_t decodes = 0;
    while (decodes < static_cast<int64_t>(chunks.size()) && chunks[static_cast<size_t>(decodes)].count == 1) ++decodes;
    paged_attention(d.context(), {.shape = {.tokens = tokens, .sequences = sequences, .decodes = decodes, .max_query = max_query, .max_kv = max_kv},
                                  .q = packed.columns(0, int64_t{s.heads} * s.head_dim),
                                  .query_offsets = d.upload_ints(offsets),
                                  .kv_lengths = d.upload_ints(lengths),
                                  .block_tables = d.upload_ints(tables, sequences, cache.blocks_per_sequence()),
                                  .heads = s.heads,
                                  .kv_heads = s.kv_heads,
                                  .head_dim = s.head_dim,
                                  .scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim)),
                                  .kv = cache.view(),
                                  .out = out});
    Output output;
    for (size_t i = 0; i < chunks.size(); ++i) {
      const Tensor part = out.slice(offsets[i], chunks[i].count);
      output.rows.push_back(d.download(part));
      output.bytes.push_back(d.download_bytes(part));
    }
    return output;
  }

  /// The definition for a sequence's tokens from `first` on; q and k are rounded where a backend stores them.
  Matrix expected(const Shape& s, const Data& data, size_t sequence, bool norms, int64_t first = 0) const {
    Matrix x = data.qkv[sequence];
    const int64_t d = s.head_dim;
    for (int64_t t = 0; t < x.rows; ++t)
      for (int64_t h = 0; h < s.heads + s.kv_heads; ++h) {
        Matrix head = zeros(1, d, DType::kF32);
        for (int64_t i = 0; i < d; ++i) head.at(0, i) = x.at(t, h * d + i);
        if (norms) head = ref_norm(head, NormKind::kRms, h < s.heads ? data.q_norm : data.k_norm, nullptr, 1e-6f);
        ref_rotate(head.values.data(), &data.cos_sin[sequence].values[static_cast<size_t>(t * d)], d);
        for (int64_t i = 0; i < d; ++i) x.at(t, h * d + i) = rounded(head.at(0, i), dtype());
      }
    const int64_t rows = x.rows - first;
    Matrix out = zeros(rows, s.heads * d, dtype());
    std::vector<int64_t> visible(static_cast<size_t>(rows));
    std::iota(visible.begin(), visible.end(), first + 1);
    for (int64_t h = 0; h < s.heads; ++h) {
      const int64_t kv = h / (s.heads / s.kv_heads);
      const Matrix part = ref_attention(ref_columns(ref_rows(x, first, rows), h * d, d), ref_columns(x, (s.heads + kv) * d, d),
                                        ref_columns(x, (s.heads + s.kv_heads + kv) * d, d), 1 / std::sqrt(static_cast<double>(d)), visible);
      for (int64_t t = 0; t < rows; ++t)
        for (int64_t i = 0; i < d; ++i) out.at(t, h * d + i) = part.at(t, i);
    }
    return out;
  }

  // Probabilities are rounded to the KV type before they meet V (values of about 1), q and k to the activations': the
  // scores' error of about d^0.5 * 2 roundings * scale is a relative error of the probabilities.
  double tolerance() const { return dtype() == DType::kF32 ? 2e-5 : 6 * unit_roundoff(dtype()); }
};

TEST_P(AttentionTest, MatchesTheDefinitionForRaggedBatches) {
  for (const Shape s : {Shape{4, 2, 32, 16}, Shape{3, 1, 64, 16}, Shape{2, 2, 24, 32}, Shape{7, 1, 128, 4}})
    for (bool norms : {false, true}) {
      Device d = device();
      const std::vector<int64_t> lengths = {1, 150, 37};
      const Data data = make_data(s, lengths);
      const Cache cache(d, s, dtype(), 3, 160);
      // A step that prefills all but the last token of each, then one that decodes them, with a bucket's surplus.
      std::vector<Chunk> prefill = {{1, 0, 149}, {2, 0, 36}}, decode = {{0, 0, 1}, {1, 149, 1}, {2, 36, 1}};
      const Output first = step(d, s, cache, data, prefill, norms);
      const Output second = step(d, s, cache, data, decode, norms, 2);
      for (size_t q = 0; q < 3; ++q) {
        const Matrix want = expected(s, data, q, norms);
        SCOPED_TRACE("sequence " + std::to_string(q) + ", head_dim " + std::to_string(s.head_dim));
        expect_close(second.rows[q], ref_rows(want, lengths[q] - 1, 1), 0, [&](int64_t, int64_t) { return tolerance(); });
        if (q > 0) expect_close(first.rows[q - 1], ref_rows(want, 0, lengths[q] - 1), 0, [&](int64_t, int64_t) { return tolerance(); });
      }
    }
}

// Contexts of many lengths decode at once: rings turn several times, splits are many where sequences are few and one where they are
// many, and some get no keys.
TEST_P(AttentionTest, DecodesOfManyLengthsMatchTheDefinition) {
  const bool slow = on_cpu() || emulated();
  std::vector<int64_t> few = {1, 16, 33, 129}, many;
  if (!slow) few.insert(few.end(), {17, 64, 300, 515, 1030});
  for (int64_t i = 0; i < 70; ++i) many.push_back(1 + i * 37 % 290);
  // More blocks of the cache than a warp holds places of, by one split: a kernel of 16-bit keys.
  if (!followed() && dtype() != DType::kF32) many.insert(many.end(), {2100, 4300});
  for (const auto& [s, lengths] : std::vector<std::pair<Shape, std::vector<int64_t>>>{{{7, 1, 64, 16}, few},
                                                                                      {{8, 1, 128, 16}, few},
                                                                                      {{4, 2, 64, 32}, few},
                                                                                      {{2, 2, 128, 64}, few},
                                                                                      {{12, 1, 64, 16}, few},
                                                                                      {{5, 1, 64, 8}, few},
                                                                                      {{10, 2, 64, 16}, many},
                                                                                      {{6, 2, 128, 32}, many}}) {
    if (slow && lengths.size() > few.size()) continue;
    Device d = device();
    const Data data = make_data(s, lengths);
    const Cache cache(d, s, dtype(), static_cast<int64_t>(lengths.size()), *std::max_element(lengths.begin(), lengths.end()));
    std::vector<Chunk> prompts, decodes;
    for (size_t q = 0; q < lengths.size(); ++q) {
      const auto sequence = static_cast<int64_t>(q);
      if (lengths[q] > 1) prompts.push_back({sequence, 0, lengths[q] - 1});
      decodes.push_back({sequence, lengths[q] - 1, 1});
    }
    step(d, s, cache, data, prompts);
    const Output out = step(d, s, cache, data, decodes, false, 1);
    for (size_t q = 0; q < lengths.size(); ++q) {
      SCOPED_TRACE(std::to_string(lengths[q]) + " keys, " + std::to_string(s.heads) + " heads of " + std::to_string(s.head_dim));
      expect_close(out.rows[q], expected(s, data, q, false, lengths[q] - 1), 0, [&](int64_t, int64_t) { return tolerance(); });
    }
  }
}

/// The cache's bytes as numbers.
Matrix contents(Device& d, const Cache& cache, DType dtype) {
  const auto count = static_cast<int64_t>(cache.view().layout.block_bytes() / size_of(dtype)) * cache.view().blocks;
  return d.download(Tensor(cache.view().base, dtype, {1, count}));
}

TEST_P(AttentionTest, ProjectionIsTheProductAndThenTheCache) {
  Device d = device();
  for (const Shape s : {Shape{4, 2, 32, 16}, Shape{14, 2, 64, 16}, Shape{7, 1, 128, 4}, Shape{2, 1, 24, 6}})
    for (bool norms : {false, true})
      for (int64_t m : {1, 2, 7, 20, 61, 90}) {
        if ((on_cpu() || emulated()) && m > 61) continue;  // a cut of a GPU
        if (followed() && (norms || m == 2)) continue;     // kernels of their own, as other tests'; as one row
        SCOPED_TRACE(std::to_string(m) + " rows, head_dim " + std::to_string(s.head_dim) + (norms ? ", norms" : ""));
        const int64_t hidden = s.heads == 14 ? 640 : 96, width = int64_t{s.heads + 2 * s.kv_heads} * s.head_dim;
        const Data data = make_data(s, {m});
        const Weight* weight =
            d.weight(random_matrix(width, hidden, dtype(), 70, 2.0 / std::sqrt(static_cast<double>(hidden))));
        const Tensor x = d.upload(random_matrix(m, hidden, DType::kF32, 71)), bias = d.upload_vector(random_matrix(1, width, DType::kF32, 72));
        const NormArgs before{.weight = d.upload_vector(random_matrix(1, hidden, DType::kF32, 73, 0.3, 1.0)), .out = d.make(dtype(), {m, hidden})};
        // x comes from a product that may prepare the norm.
        PreparedNorm prepared{.weight = before.weight, .rows = before.out, .squares = d.make(DType::kF32, {kPreparedRows, kPreparedParts})};
        linear(d.context(), {.x = d.upload(random_matrix(m, 640, dtype(), 74)), .weight = d.weight(random_matrix(hidden, 640, dtype(), 75, 0.1)),
                             .residual = x, .out = x, .prepares = &prepared});
        Matrix rows[2], caches[2];
        for (bool fused : {true, false}) {
          const Cache cache(d, s, dtype(), 1, 96);
          std::vector<int32_t> slots;
          for (int64_t t = 0; t < m; ++t) slots.push_back(t == 5 ? -1 : cache.slot(0, t));
          const Tensor qkv = d.make(dtype(), {m, width});
          ProjectQkvArgs args{.product = {.x = x, .input_norm = before, .prepared = fused ? &prepared : nullptr, .weight = weight, .bias = bias, .out = qkv},
                              .cache = {.qkv = qkv, .cos_sin = d.upload(data.cos_sin[0]), .slots = d.upload_ints(slots), .heads = s.heads,
                                        .kv_heads = s.kv_heads, .head_dim = s.head_dim, .kv = cache.view()}};
          if (norms) {
            args.cache.q_norm = d.upload_vector(data.q_norm);
            args.cache.k_norm = d.upload_vector(data.k_norm);
          }
          if (fused) {
            project_qkv(d.context(), args);
          } else {
            linear(d.context(), args.product);
            qkv_to_cache(d.context(), args.cache);
          }
          rows[fused] = d.download(qkv.columns(0, int64_t{s.heads} * s.head_dim));
          caches[fused] = contents(d, cache, dtype());
        }
        // The fusion may rotate sums that were not rounded yet: two roundings of numbers of about 4.
        const double apart = dtype() == DType::kF32 ? 1e-5 : 12 * unit_roundoff(dtype());
        expect_close(rows[1], rows[0], 2 * unit_roundoff(dtype()), [&](int64_t, int64_t) { return apart; });
        int64_t written = 0;
        for (size_t i = 0; i < caches[0].values.size(); ++i) {
          const double a = caches[0].values[i], b = caches[1].values[i];
          ASSERT_EQ(std::isnan(a), std::isnan(b)) << i;
          if (std::isnan(a)) continue;
          ++written;
          ASSERT_NEAR(a, b, apart + 2 * unit_roundoff(dtype()) * std::abs(a)) << i;
        }
        EXPECT_EQ(written, (m > 5 ? m - 1 : m) * 2 * s.kv_heads * s.head_dim);
      }
}

/// Groups of 1 to 16, blocks of 8 to 128 tokens, sequences that end inside and at the borders of blocks and pieces of keys.
TEST_P(AttentionTest, ChunksOfLongSequencesMatchTheDefinition) {
  for (const Shape s : {Shape{2, 2, 128, 16}, Shape{14, 2, 64, 16}, Shape{16, 1, 64, 8}, Shape{3, 1, 128, 32}, Shape{2, 1, 64, 128}}) {
    if (emulated() && s.heads > 3) continue;
    Device d = device();
    const std::vector<int64_t> lengths = {389, 256, 129, 1};
    const Data data = make_data(s, lengths);
    const Cache cache(d, s, dtype(), 4, 400);
    std::vector<std::pair<Chunk, Matrix>> got;
    for (const std::vector<Chunk>& chunks : std::vector<std::vector<Chunk>>{
             {{0, 0, 130}, {1, 0, 64}, {2, 0, 128}}, {{2, 128, 1}, {3, 0, 1}, {0, 130, 1}, {1, 64, 192}}, {{0, 131, 257}}, {{0, 388, 1}}}) {
      const Output out = step(d, s, cache, data, chunks);
      for (size_t i = 0; i < chunks.size(); ++i) got.emplace_back(chunks[i], out.rows[i]);
    }
    std::vector<Matrix> want;
    for (size_t q = 0; q < lengths.size(); ++q) want.push_back(expected(s, data, q, false));
    for (const auto& [chunk, rows] : got) {
      SCOPED_TRACE("sequence " + std::to_string(chunk.sequence) + " from " + std::to_string(chunk.begin) + ", head_dim " +
                   std::to_string(s.head_dim) + ", blocks of " + std::to_string(s.block_size));
      expect_close(rows, ref_rows(want[static_cast<size_t>(chunk.sequence)], chunk.begin, chunk.count), 0, [&](int64_t, int64_t) { return tolerance(); });
    }
  }
}

TEST_P(AttentionTest, ChunksBatchesAndThreadsDoNotChangeABit) {
  if (!on_cpu()) GTEST_SKIP() << "bitwise independence is the CPU's promise";
  const Shape s{6, 2, 64, 16};
  const std::vector<int64_t> lengths = {301, 200};
  const Data data = make_data(s, lengths);
  std::vector<char> whole;
  for (int threads : {1, 2, 3})
    for (const std::vector<int64_t>& cuts : std::vector<std::vector<int64_t>>{{301}, {1, 300}, {128, 128, 45}, {17, 100, 1, 1, 1, 130, 51}}) {
      Device d = device(threads);
      const Cache cache(d, s, dtype(), 2, 304);
      std::vector<char> bytes;
      int64_t begin = 0;
      for (size_t i = 0; i < cuts.size(); ++i) {
        std::vector<Chunk> chunks = {{0, begin, cuts[i]}};
        if (i == 0 && threads > 1) chunks.insert(chunks.begin(), {1, 0, 200});  // company
        const Output out = step(d, s, cache, data, chunks);
        bytes.insert(bytes.end(), out.bytes.back().begin(), out.bytes.back().end());
        begin += cuts[i];
      }
      if (whole.empty()) whole = bytes;
      ASSERT_TRUE(bytes == whole) << cuts.size() << " chunks, " << threads << " threads";
    }
}

/// What one head of one tile attends to, of packed q | k | v rows; and its place in a result.
Matrix tile_reference(const Matrix& qkv, int64_t tile, int64_t tokens, int64_t heads, int64_t head, int64_t dim, float scale) {
  const Matrix rows = ref_rows(qkv, tile * tokens, tokens);
  const auto part = [&](int64_t kind) { return ref_columns(rows, (kind * heads + head) * dim, dim); };
  return ref_attention(part(0), part(1), part(2), scale, std::vector<int64_t>(static_cast<size_t>(tokens), tokens));
}
Matrix head_of_tile(const Matrix& out, int64_t tile, int64_t tokens, int64_t head, int64_t dim) {
  return ref_columns(ref_rows(out, tile * tokens, tokens), head * dim, dim);
}

/// More blocks of queries than a GPU has multiprocessors: its blocks take several, one after another. On 132 of them the wgmma kernel
/// makes the first and the last shape with three warpgroups, the other with two.
TEST_P(AttentionTest, ManyJobsFollowEachOther) {
  if (on_cpu() || emulated()) GTEST_SKIP() << "a GPU's matter, and slow on the CPU";
  for (const Shape s : {Shape{64, 4, 64, 16}, Shape{44, 4, 128, 16}, Shape{56, 4, 128, 16}}) {
    Device d = device();
    const Data data = make_data(s, {513});
    const Cache cache(d, s, dtype(), 1, 520);
    const Output out = step(d, s, cache, data, {{0, 0, 513}});
    expect_close(out.rows[0], expected(s, data, 0, false), 0, [&](int64_t, int64_t) { return tolerance(); });
  }
  // The rows that jobs leave over are made by blocks with a job less, and by all where these are few or none (11 tiles on 132).
  for (const auto& [tiles, tokens] : std::vector<std::pair<int64_t, int64_t>>{{3, 513}, {11, 129}}) {
    Device d = device();
    const int64_t heads = 12, width = heads * 64;
    const Matrix qkv = random_matrix(tiles * tokens, 3 * width, dtype(), 61);
    const Tensor out = d.make(dtype(), {tiles * tokens, width});
    tile_attention(d.context(), {.qkv = d.upload(qkv), .tiles = tiles, .tokens = tokens, .heads = heads, .head_dim = 64, .scale = 0.125f, .out = out});
    const Matrix got = d.download(out);
    for (const auto& [tile, h] : std::vector<std::pair<int64_t, int64_t>>{{0, 0}, {1, 7}, {2, 10}, {tiles - 1, 11}})
      expect_close(head_of_tile(got, tile, tokens, h, 64), tile_reference(qkv, tile, tokens, heads, h, 64, 0.125f), 0, [&](int64_t, int64_t) { return tolerance(); });
  }
}

/// What a tile's late keys add may be larger than all before by any factor, beyond f32, too.
TEST_P(AttentionTest, LateKeysOfATileMayOutgrowTheFirst) {
  Device d = device();
  const int64_t tokens = 300, heads = 2, width = heads * 64;
  Matrix qkv = random_matrix(tokens, 3 * width, dtype(), 62);
  const auto fill = [&](int64_t row, int64_t column, double value) { std::fill_n(qkv.values.begin() + row * 3 * width + column, 64, value); };
  fill(250, width + 64, 8);  // the second head's key
  for (const auto& [row, value] : std::vector<std::pair<int64_t, double>>{{5, 8.0}, {70, 1.25}, {131, 0.625}, {299, 8.0}}) fill(row, 64, value);  // scores 512, 80, 40, 512
  const Tensor out = d.make(dtype(), {tokens, width});
  tile_attention(d.context(), {.qkv = d.upload(qkv), .tiles = 1, .tokens = tokens, .heads = heads, .head_dim = 64, .scale = 0.125f, .out = out});
  const Matrix got = d.download(out);
  for (int64_t h = 0; h < heads; ++h)
    expect_close(head_of_tile(got, 0, tokens, h, 64), tile_reference(qkv, 0, tokens, heads, h, 64, 0.125f), 0, [&](int64_t, int64_t) { return tolerance(); });
}

TEST_P(AttentionTest, LargeScoresStayFinite) {
  const Shape s{2, 1, 64, 16};
  Device d = device();
  const Data data = make_data(s, {140}, 30.0);
  const Cache cache(d, s, dtype(), 1, 144);
  const Output out = step(d, s, cache, data, {{0, 0, 140}});
  for (double v : out.rows[0].values) ASSERT_TRUE(std::isfinite(v));
}

TEST_P(AttentionTest, TilesAttendToThemselvesOnly) {
  for (const auto& [tokens, heads, dim] : std::vector<std::array<int64_t, 3>>{{1, 2, 32}, {17, 3, 64}, {130, 2, 128}, {257, 1, 24}, {3, 2, 64}, {128, 2, 64}, {144, 3, 64}, {145, 1, 64}, {209, 2, 64}, {258, 2, 64}, {625, 1, 64}, {1025, 2, 64}}) {
    if (emulated() && tokens > 257) continue;
    Device d = device();
    const int64_t tiles = 2, width = heads * dim;
    const Matrix qkv = random_matrix(tiles * tokens, 3 * width, dtype(), 60);
    const Tensor out = d.make(dtype(), {tiles * tokens, width});
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    tile_attention(d.context(), {.qkv = d.upload(qkv), .tiles = tiles, .tokens = tokens, .heads = static_cast<int>(heads), .head_dim = static_cast<int>(dim), .scale = scale, .out = out});
    const Matrix got = d.download(out);
    for (int64_t tile = 0; tile < tiles; ++tile)
      for (int64_t h = 0; h < heads; ++h)
        expect_close(head_of_tile(got, tile, tokens, h, dim), tile_reference(qkv, tile, tokens, heads, h, dim, scale), 0, [&](int64_t, int64_t) { return tolerance(); });
  }
}

TEST_P(AttentionTest, RefusesWhatDoesNotBelongTogether) {
  Device d = device();
  const Shape s{4, 2, 32, 16};
  const Cache cache(d, s, dtype(), 1, 16);
  const Data data = make_data(s, {4});
  QkvToCacheArgs args{.qkv = d.upload(data.qkv[0]), .cos_sin = d.upload(data.cos_sin[0]), .slots = d.upload_ints({0, 1, 2, 3}), .heads = 4, .kv_heads = 3, .head_dim = 32, .kv = cache.view()};
  EXPECT_THROW(qkv_to_cache(d.context(), args), CheckFailure);
  args.kv_heads = 2;
  args.slots = d.upload_ints({0, 1, 2});
  EXPECT_THROW(qkv_to_cache(d.context(), args), CheckFailure);
}

TESSERA_OP_SUITE(AttentionTest);

}  // namespace
}  // namespace tessera::testing
