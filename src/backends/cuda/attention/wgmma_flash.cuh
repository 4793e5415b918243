#pragma once

// Flash attention on sm_90a for tiles and for the paged cache. A block runs jobs of 64 query rows a warpgroup: one warp brings
// queries, keys and values in, two or three warpgroups work. A warpgroup waits while its products are issued (the queue of
// wgmma is short) and its softmax is as long as they are, so what keeps the tensor cores busy is the other warpgroups.
// They need no turns: each finds its own time. The stream of pieces does not stop between jobs.

#include "backends/cuda/attention/flash_softmax.cuh"
#include "backends/cuda/wgmma.cuh"

namespace tessera::cuda {

template <class Element, int kDim, int kPiece, int kRing, int kWorkGroups>
struct FlashShape {
  using T = Element;
  static constexpr int kHeadDim = kDim;
  static constexpr int kKeys = kPiece;    ///< of a piece
  static constexpr int kStages = kRing;   ///< pieces of K, and of V, in shared memory
  static constexpr int kGroups = kWorkGroups;       ///< warpgroups that compute
  static constexpr int kQueries = 64 * kGroups;     ///< of a job
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kQueryBytes = kQueries * kHeadDim * 2;
  static constexpr int kKeyBytes = kKeys * kHeadDim * 2;
  static constexpr int kBytes = 2 * kQueryBytes + 2 * kStages * kKeyBytes + 1024 + 256;  ///< alignment and barriers
};

/// A job's queries of one head against the keys of their sequence.
struct FlashJob {
  int64_t row = 0;      ///< of the first query in q and out
  int rows = 0;         ///< queries that are there
  int head = 0;
  int keys = 0;         ///< of the sequence
  int visible = 0;      ///< keys that the first query sees; the next ones see one more each when causal, up to `keys`
  int pieces = 0;       ///< 0: no job
  int index = 0;        ///< the source's own
};

#ifdef TESSERA_WGMMA_HERE

/// Shared memory: two buffers of queries, rings of K and of V, and their barriers. An operand's 64-column halves follow
/// each other.
template <class S>
struct FlashMemory {
  uint32_t base;
  __device__ uint32_t queries(int i) const { return base + i * S::kQueryBytes; }
  __device__ uint32_t k(int s) const { return base + 2 * S::kQueryBytes + s * S::kKeyBytes; }
  __device__ uint32_t v(int s) const { return k(S::kStages + s); }
  __device__ uint32_t barrier(int i) const { return base + 2 * S::kQueryBytes + 2 * S::kStages * S::kKeyBytes + 8 * i; }
  __device__ uint32_t queries_full(int i) const { return barrier(i); }
  __device__ uint32_t queries_empty(int i) const { return barrier(2 + i); }
  __device__ uint32_t k_full(int s) const { return barrier(4 + s); }
  __device__ uint32_t k_empty(int s) const { return barrier(4 + S::kStages + s); }
  __device__ uint32_t v_full(int s) const { return barrier(4 + 2 * S::kStages + s); }
  __device__ uint32_t v_empty(int s) const { return barrier(4 + 3 * S::kStages + s); }

  /// `readers`: warps that read keys and values beside the groups.
  __device__ void init(int readers = 0) const {
    for (int i = 0; i < 2; ++i) {
      barrier_init(queries_full(i), 1);
      barrier_init(queries_empty(i), S::kGroups);
    }
    for (int s = 0; s < S::kStages; ++s) {
      barrier_init(k_full(s), 1);
      barrier_init(v_full(s), 1);
      barrier_init(k_empty(s), S::kGroups + readers);
      barrier_init(v_empty(s), S::kGroups + readers);
    }
    barrier_publish();
  }
};

/// A place in a ring of kCount, and the parity of its round.
template <int kCount>
struct Ring {
  int at = 0;
  uint32_t parity = 0;
  __device__ void step() {
    if (++at == kCount) at = 0, parity ^= 1;
  }
};

/// The same job, its places computed once more: kept in registers over its pieces they would be spilled.
template <class Source>
__device__ __forceinline__ FlashJob anew(const Source& source, const FlashJob& job) {
  int index = job.index;
  asm volatile("" : "+r"(index));
  return source.job(index);
}

/// Run by one whole warp. `source` gives, for all lanes together, load_queries(job, to, barrier) and load_keys(job, piece, value, to,
/// barrier); its copies and their expected bytes are its own.
template <class S, class Source>
class FlashProducer {
 public:
  __device__ FlashProducer(const Source& source, const FlashMemory<S>& memory) : source_(source), memory_(memory) {}

  __device__ __forceinline__ void bring(const FlashJob& job) {
    barrier_wait(memory_.queries_empty(queries_.at), queries_.parity ^ 1);
    source_.load_queries(job, memory_.queries(queries_.at), memory_.queries_full(queries_.at));
    queries_.step();
    bring_keys(job);
  }
  __device__ __forceinline__ void bring_keys(const FlashJob& job) {
    for (int i = 0; i < job.pieces; ++i) {
      barrier_wait(memory_.k_empty(ring_.at), ring_.parity ^ 1);
      source_.load_keys(job, i, false, memory_.k(ring_.at), memory_.k_full(ring_.at));
      barrier_wait(memory_.v_empty(ring_.at), ring_.parity ^ 1);
      source_.load_keys(job, i, true, memory_.v(ring_.at), memory_.v_full(ring_.at));
      ring_.step();
    }
  }

 private:
  const Source& source_;
  FlashMemory<S> memory_;
  Ring<2> queries_;
  Ring<S::kStages> ring_;
};

/// One warpgroup of the two that work; see the head of this file.
template <class S, bool kCausal>
class FlashGroup {
 public:
  using T = typename S::T;
  static constexpr int kKeys = S::kKeys, kHalves = S::kHeadDim / 64;
  /// run_ahead: the maximum of a job's first piece serves for all of it, since a chain of maxima takes a sixth of a piece's time. Weights may
  /// then grow as far as f32 goes; rows that outgrow even that are made again (remake_outgrown). f16 has no such range.
  static constexpr bool kOneMaximum = std::is_same_v<T, __nv_bfloat16>;

  __device__ FlashGroup(const FlashMemory<S>& memory, int group) : memory_(memory), group_(group) {}

  /// Runs all jobs of `source`, piece after piece; result rows go to out + row * stride + head * head_dim. Scores and weights
  /// share registers.
  template <class Source>
  __device__ __forceinline__ void run(const Source& source, T* out, int64_t stride, float scale_log2) {
    for (FlashJob job = source.first(); job.pieces > 0; job = source.next(job)) {
      float sums[S::kHeadDim / 2];
      barrier_wait(memory_.queries_full(queries_.at), queries_.parity);
      rows_ = FlashRows{};
      for (int piece = 0; piece < job.pieces; ++piece) {
        const bool last = piece + 1 == job.pieces;
        barrier_wait(memory_.k_full(k_.at), k_.parity);
        if (sees(job, piece))
          attend(job, piece, last, sums, scale_log2);
        else
          pass(last);
      }
      store(sums, job, rows_, out, stride);
    }
  }

  /// The same, with the scores of the next piece issued together with the weighted sum of the current one: for two warpgroups
  /// with the registers for both.
  template <class Source>
  __device__ __forceinline__ void run_ahead(const Source& source, T* out, int64_t stride, float scale_log2) {
    FlashJob job = source.first();
    if (job.pieces == 0) return;
    float scores[kKeys / 2], sums[S::kHeadDim / 2];
    uint32_t weights[kKeys / 16][4];
    barrier_wait(memory_.queries_full(0), 0);
    barrier_wait(memory_.k_full(0), 0);
    issue_scores(scores);
    wgmma_wait<0>();
    scores_made(scores, job.pieces == 1);
    hide(scores, job, 0);
    constexpr int kSteps = kKeys / 16;
    float shrink[2];
    FlashAdded added;
    follow_maximum<kKeys>(scores, scale_log2, rows_, shrink);
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      weigh(scores + 8 * j, scale_log2, rows_, added);
      pack<T>(scores + 8 * j, weights[j]);
    }
    add_totals(added, shrink, rows_);
    for (int piece = 0;;) {
      const bool ends = piece + 1 == job.pieces;
      const FlashJob then = ends ? source.next(job) : job;
      if (then.pieces == 0) break;
      const int then_piece = ends ? 0 : piece + 1;
      if (ends) barrier_wait(memory_.queries_full(queries_.at), queries_.parity);
      barrier_wait(memory_.k_full(k_.at), k_.parity);
      issue_scores(scores);
      values_ready(job, piece);
      issue_values(sums, weights, piece > 0);
      wgmma_wait<1>();
      scores_made(scores, then_piece + 1 == then.pieces);
      hide(scores, then, then_piece);
      const FlashRows done = rows_;
      if (ends) rows_ = FlashRows{};
      shrink[0] = shrink[1] = 1.0f;
      if (ends || !kOneMaximum) follow_maximum<kKeys>(scores, scale_log2, rows_, shrink);
      // Weights are packed beside the exponentials of the next, once those before them have been read.
      constexpr int kAlone = 4;
      added = {};
#pragma unroll
      for (int j = 0; j < kAlone; ++j) weigh(scores + 8 * j, scale_log2, rows_, added);
      weighed(added.of[0][0] + added.of[0][1], added.of[1][0] + added.of[1][1]);
      wgmma_wait<0>();
      values_read(sums);
      if (ends) {
        store(sums, anew(source, job), done, out, stride);
        look_for_outgrown(done);
      } else if (!kOneMaximum) {
        rescale(sums, shrink);
      }
#pragma unroll
      for (int j = kAlone; j < kSteps; ++j) {
        weigh(scores + 8 * j, scale_log2, rows_, added);
        pack<T>(scores + 8 * j, weights[j]);
      }
#pragma unroll
      for (int j = 0; j < kAlone; ++j) pack<T>(scores + 8 * j, weights[j]);
      add_totals(added, shrink, rows_);
      job = then;
      piece = then_piece;
    }
    values_ready(job, job.pieces - 1);
    issue_values(sums, weights, job.pieces > 1);
    wgmma_wait<0>();
    values_read(sums);
    store(sums, anew(source, job), rows_, out, stride);
    look_for_outgrown(rows_);
  }

  /// Behind run_ahead: makes the rows of this warp in jobs with outgrown ones again, row by row by source.remake. Hardly ever any.
  template <class Source>
  __device__ __forceinline__ void remake_outgrown(const Source& source, T* out, int64_t stride, float scale_log2) const {
    if (outgrown_ == 0) return;
    __syncwarp();  // what is stored is stored over
    int count = 0;
    for (FlashJob job = source.first(); job.pieces > 0; job = source.next(job), ++count) {
      if ((outgrown_ >> min(count, 31) & 1) == 0) continue;
      const int first = group_ * 64 + static_cast<int>(threadIdx.x) % 128 / 32 * 16;
      for (int row = first; row < min(job.rows, first + 16); ++row) source.remake(job, row, out, stride, scale_log2);
    }
  }

  /// Where the stream of pieces is.
  __device__ Ring<S::kStages> place() const { return k_; }

 private:
  /// Whether a row of this group sees a key of the piece: a causal job's last pieces are its last rows' only.
  __device__ __forceinline__ bool sees(const FlashJob& job, int piece) const {
    return !kCausal || piece * kKeys < job.visible + group_ * 64 + 63;
  }

  __device__ __forceinline__ void attend(const FlashJob& job, int piece, bool last, float (&sums)[S::kHeadDim / 2], float scale_log2) {
    float scores[kKeys / 2], shrink[2];
    uint32_t weights[kKeys / 16][4];
    issue_scores(scores);
    wgmma_wait<0>();
    scores_made(scores, last);
    hide(scores, job, piece);
    follow_maximum<kKeys>(scores, scale_log2, rows_, shrink);
    if (piece > 0) rescale(sums, shrink);
    FlashAdded added;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) weigh_row(scores + 8 * j, h, scale_log2, rows_, added);
    add_totals(added, shrink, rows_);
#pragma unroll
    for (int j = 0; j < kKeys / 16; ++j) pack<T>(scores + 8 * j, weights[j]);
    weighed(rows_.total[0], rows_.total[1]);
    values_ready(job, piece);
    issue_values(sums, weights, piece > 0);
    wgmma_wait<0>();
    values_read(sums);
  }

  /// Lets a piece go by.
  __device__ __forceinline__ void pass(bool last) {
    keys_read(last);
    barrier_wait(memory_.v_full(v_.at), v_.parity);
    values_passed();
  }

  __device__ __forceinline__ void issue_scores(float (&scores)[kKeys / 2]) {
    const uint64_t queries = operand(memory_.queries(queries_.at) + group_ * 64 * 128);
    const uint64_t keys = operand(memory_.k(k_.at));
    wgmma_fence();
#pragma unroll
    for (int h = 0; h < kHalves; ++h)
#pragma unroll
      for (int d = 0; d < 4; ++d)
        wgmma<T, kKeys>(scores, queries + h * (S::kQueries * 128 >> 4) + 2 * d, keys + h * (kKeys * 128 >> 4) + 2 * d,
                        (h | d) != 0);
    wgmma_commit();
  }

  __device__ __forceinline__ void scores_made(float (&scores)[kKeys / 2], bool last) {
    wgmma_arrived(scores);
    keys_read(last);
  }

  /// Keys, and after a job's last piece its queries, may be overwritten.
  __device__ __forceinline__ void keys_read(bool last) {
    const bool speaks = threadIdx.x % 128 == 0;
    if (speaks) barrier_arrive(memory_.k_empty(k_.at));
    k_.step();
    if (!last) return;
    if (speaks) barrier_arrive(memory_.queries_empty(queries_.at));
    queries_.step();
  }

  /// Waits for V. Rows beyond the sequence may hold anything, and zero weights do not undo a NaN: they are cleared.
  __device__ __forceinline__ void values_ready(const FlashJob& job, int piece) const {
    barrier_wait(memory_.v_full(v_.at), v_.parity);
    if constexpr (!kCausal) return;
    const int there = job.keys - piece * kKeys;
    if (there >= kKeys) return;
    for (int i = threadIdx.x % 128; i < (kKeys - there) * kHalves * 8; i += 128) {
      const int half = i / ((kKeys - there) * 8), at = i % ((kKeys - there) * 8);
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(memory_.v(v_.at) + (half * kKeys + there) * 128 + at * 16),
                   "r"(0)
                   : "memory");
    }
    shared_writes_done();
    named_barrier_sync(1 + group_, 128);
  }

  __device__ __forceinline__ void issue_values(float (&sums)[S::kHeadDim / 2], const uint32_t (&weights)[kKeys / 16][4], bool accumulate) {
    const uint64_t values = operand(memory_.v(v_.at), kKeys * 128);
    wgmma_fence();
    // 16 keys are 2048 bytes of V.
#pragma unroll
    for (int j = 0; j < kKeys / 16; ++j)
      wgmma_values<T, S::kHeadDim>(sums, weights[j], values + j * (2048 >> 4), j > 0 || accumulate);
    wgmma_commit();
  }

  __device__ __forceinline__ void values_read(float (&sums)[S::kHeadDim / 2]) {
    wgmma_arrived(sums);
    values_passed();
  }

  __device__ __forceinline__ void values_passed() {
    if (threadIdx.x % 128 == 0) barrier_arrive(memory_.v_empty(v_.at));
    v_.step();
  }

  /// This thread's first row in the job; the second is 8 further.
  __device__ __forceinline__ static int row_of(int group) {
    return group * 64 + static_cast<int>(threadIdx.x) % 128 / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
  }

  __device__ __forceinline__ void hide(float (&scores)[kKeys / 2], const FlashJob& job, int piece) {
    const int begin = piece * kKeys;
    const int all_see = min(job.keys, job.visible + (kCausal ? group_ * 64 : 0)) - begin;  // of the piece
    if (all_see >= kKeys) return;
    const int row = row_of(group_), column = 2 * (static_cast<int>(threadIdx.x) % 4);
    int limit[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) limit[h] = min(job.keys, job.visible + (kCausal ? row + 8 * h : 0)) - begin - column;
    // The tail of a tower's last piece is short: 15 keys of 1025's five pieces.
    constexpr int kTail = kCausal ? 0 : 24;
    if (all_see >= kKeys - kTail)
      hide_from<(kKeys - kTail) / 8>(scores, limit);
    else
      hide_from<0>(scores, limit);
  }
  template <int kFirst>
  __device__ __forceinline__ static void hide_from(float (&scores)[kKeys / 2], const int (&limit)[2]) {
#pragma unroll
    for (int j = kFirst; j < kKeys / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[4 * j + i] = 8 * j + i % 2 < limit[i / 2] ? scores[4 * j + i] : -INFINITY;
  }

  __device__ __forceinline__ static void rescale(float (&sums)[S::kHeadDim / 2], const float (&shrink)[2]) {
    if (!__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) return;
#pragma unroll
    for (int d = 0; d < S::kHeadDim / 2; ++d) sums[d] *= shrink[d % 4 / 2];
  }

  /// Notes a job in which a row of this warp has outgrown the first piece's maximum. Here that is two instructions.
  __device__ __forceinline__ void look_for_outgrown(const FlashRows& rows) {
    constexpr float kLargest = 0x1p100f;
    const bool within = rows.total[0] <= kLargest && rows.total[1] <= kLargest;
    if (kOneMaximum && __any_sync(0xffffffffu, !within)) outgrown_ |= 1u << min(jobs_, 31);
    ++jobs_;
  }

  __device__ __forceinline__ void store(const float (&sums)[S::kHeadDim / 2], const FlashJob& job, const FlashRows& rows, T* out, int64_t stride) const {
    const int row = row_of(group_);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = rows.total[h];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (row + 8 * h >= job.rows) continue;
      const float inverse = 1.0f / sum;
      T* to = out + (job.row + row + 8 * h) * stride + job.head * S::kHeadDim + 2 * (static_cast<int>(threadIdx.x) % 4);
#pragma unroll
      for (int j = 0; j < S::kHeadDim / 8; ++j)
        *reinterpret_cast<uint32_t*>(to + j * 8) = pack2<T>(sums[4 * j + 2 * h] * inverse, sums[4 * j + 2 * h + 1] * inverse);
    }
  }

  FlashMemory<S> memory_;
  int group_;
  Ring<2> queries_;
  Ring<S::kStages> k_, v_;
  FlashRows rows_;
  int jobs_ = 0;           ///< that have ended
  unsigned outgrown_ = 0;  ///< a bit for each of the first 31 jobs with outgrown rows, one for all others
};

#endif

}  // namespace tessera::cuda
