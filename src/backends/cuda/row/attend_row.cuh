#pragma once

// The attention half of a decoder layer of one sequence in one cluster of 16 blocks: norm, q | k | v, rotation, cache, attention, o.
//
// A block makes 36 pairs of rows of q | k | v (pairs that the rotation turns) and 56 rows of o, and attends to an eighth of the keys
// of one key head. Its weights and older keys lie in its multiprocessor before its turn comes: q | k | v's in registers, o's in shared
// memory, a part of them where q | k | v's were. Results pass between blocks by st.async: queries and the newest key to those who
// attend, parts of attention to those who merge 8 dimensions of a key head's queries, merged values to all.

#include "backends/cuda/row/attend_places.cuh"

namespace tessera::cuda::row::attend {

#ifdef TESSERA_WGMMA_HERE
__device__ __forceinline__ uint32_t of_block(uint32_t address, int rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
/// To the shared memory of another block, whose barrier counts it.
__device__ __forceinline__ void send(uint32_t at, uint32_t v, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(at), "r"(v), "r"(barrier) : "memory");
}
__device__ __forceinline__ void send(uint32_t at, float a, float b, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(at), "r"(__float_as_uint(a)),
               "r"(__float_as_uint(b)), "r"(barrier)
               : "memory");
}
__device__ __forceinline__ void load_matrix_x2_transposed(uint32_t& a, uint32_t& b, uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(a), "=r"(b) : "r"(address) : "memory");
}

/// What becomes of a thread's row of q | k | v, found before the turn.
template <class T>
struct RowEnd {
  float bias = 0, cosine = 1, sine = 0;
  uint32_t to = 0;           ///< of the pair of neighbours that the thread sends
  int rank = 0, copies = 0;  ///< blocks that get it
  T* cache = nullptr;        ///< or null
};

template <class T>
struct Attend {
  const AttendParams& p;
  unsigned char* shared;
  uint32_t base;
  int warp, lane, g, q;  ///< g, q: see row_product.cuh
  int rank, kv_head, share;
  int keys = 0, tiles = 0, tile0 = 0, own_tiles = 0;

  __device__ __forceinline__ Attend(const AttendParams& p, unsigned char* shared)
      : p(p), shared(shared), base(shared_address(shared)), warp(threadIdx.x / 32), lane(threadIdx.x % 32), g(lane / 4), q(lane % 4),
        rank(static_cast<int>(cluster_rank())), kv_head(rank / kShares), share(rank % kShares) {}

  __device__ __forceinline__ uint32_t barrier(int i) const { return base + at::kBarriers + 8 * i; }
  __device__ __forceinline__ uint32_t qkv_there() const { return barrier(0); }
  __device__ __forceinline__ uint32_t o_there() const { return barrier(1); }
  __device__ __forceinline__ uint32_t queries_there() const { return barrier(2); }
  __device__ __forceinline__ uint32_t parts_there() const { return barrier(3); }
  __device__ __forceinline__ uint32_t attended_there() const { return barrier(4); }
  __device__ __forceinline__ float* sums() const { return reinterpret_cast<float*>(shared + at::kSums); }
  __device__ __forceinline__ float* squares() const { return reinterpret_cast<float*>(shared + at::kSquares); }
  __device__ __forceinline__ uint32_t tile_at(int t) const { return base + p.shared_bytes - (t + 1) * at::kTile; }

  /// Slots of a product: q | k | v's are first and second halves of pairs in turns, o's rows of its two halves.
  __device__ __forceinline__ int qkv_row(int slot) const {
    const int pair = rank * kPairs + slot / 2;
    return pair / kHalfDim * kHeadDim + pair % kHalfDim + slot % 2 * kHalfDim;
  }
  __device__ __forceinline__ int o_row(int slot) const { return rank * kORows + slot % 2 * (kORows / 2) + slot / 2; }
  __device__ __forceinline__ const T* qkv_weights(int slot) const { return static_cast<const T*>(p.qkv) + qkv_row(slot) * kHidden; }
  __device__ __forceinline__ const T* o_weights(int slot) const { return static_cast<const T*>(p.o) + o_row(slot) * kHidden; }

  /// By one thread, first of all: the pairs lie in one head or in two.
  __device__ __forceinline__ void bring_weights() const {
    for (int i = 0; i < kArrivals; ++i) barrier_init(barrier(i), 1);
    barrier_publish();
    barrier_expect(qkv_there(), kQkvRows * kRow);
    barrier_expect(o_there(), kORows * kRow);
    const int first_run = min(kPairs, kHalfDim - rank * kPairs % kHalfDim);
#pragma unroll 1
    for (int i = 0; i < 4; ++i) {
      const int pair = i / 2 * first_run, rows = i / 2 ? kPairs - first_run : first_run;
      copy_bytes(base + at::kQkv + i % 2 * at::kQkvHalf + pair * kRow, qkv_weights(2 * pair + i % 2), rows * kRow, qkv_there());
    }
#pragma unroll 1
    for (int i = 0; i < 2; ++i) copy_bytes(base + at::kEarly + i * at::kEarlyHalf, o_weights(i), kEarlyRows * kRow, o_there());
  }
  __device__ __forceinline__ void bring_late_weights() const {
#pragma unroll 1
    for (int i = 0; i < 2; ++i)
      copy_bytes(base + at::kLate + i * at::kLateHalf, o_weights(2 * kEarlyRows + i), kLateRows * kRow, o_there());
  }

  /// The step's integers lie there before its first kernel that does not overlap another. By all threads.
  __device__ __forceinline__ void share_keys() {
    keys = p.query_offsets[1] != p.query_offsets[0] ? p.kv_lengths[0] : 0;  // a surplus sequence has no token
    tiles = (keys + kTileKeys - 1) / kTileKeys;
    tile0 = share * tiles / kShares;
    own_tiles = (share + 1) * tiles / kShares - tile0;
    if (threadIdx.x == 0) {
      const bool newest = share == kShares - 1 && keys > 0;  // comes here, with its value
      barrier_expect(queries_there(), (kGroup + (newest ? 2 : 0)) * kHeadDim * 2);
      barrier_expect(parts_there(), kShares * (kGroup * 4 + kGroup) * 8);
      barrier_expect(attended_there(), kHidden * 2);
    }
    __syncthreads();
  }

  /// Keys as mma's rows, a lane's vectors where it reads them again; values in rows whose chunks change places. All but the newest.
  __device__ __forceinline__ void bring_tiles(int begin, int end) const {
#pragma unroll 1
    for (int i = begin * kTileKeys * 2 + warp * 8 + g; i < end * kTileKeys * 2; i += kWarps * 8) {
      const int t = i / (kTileKeys * 2), within = i % kTileKeys, key = (tile0 + t) * kTileKeys + within;
      const bool value = i % (kTileKeys * 2) >= kTileKeys, inside = key < keys;
      if (key == keys - 1) continue;
      const auto* from = static_cast<const T*>(p.kv.base);
      if (inside) {
        const int in_block = ((kv_head << p.block_shift) + (key & ((1 << p.block_shift) - 1))) * kHeadDim;
        from += __ldg(p.block_table + (key >> p.block_shift)) * p.kv.block_elements + (value ? p.kv.block_elements >> 1 : 0) + in_block;
      }
#pragma unroll
      for (int half = 0; half < 2; ++half)
        copy_async(tile_at(t) + (value ? value_place(within, half * 4 + q) : key_place(within, half * 4 + q)), from + (half * 4 + q) * 8, inside);
    }
  }
  /// Of 16 bytes of a key or value in its tile.
  __device__ __forceinline__ static int key_place(int within, int chunk) { return (within / 8 * 2 + chunk / 4) * 512 + (within % 8 * 4 + chunk % 4) * 16; }
  __device__ __forceinline__ static int value_place(int within, int chunk) { return at::kValues + within * 128 + (chunk ^ within % 8) * 16; }

  __device__ __forceinline__ RowEnd<T> row_end(int slot) const {
    RowEnd<T> end;
    const int row = qkv_row(slot), head = row / kHeadDim, d = row % kHeadDim, even = d & ~1, second = slot / 2 % 2;
    if (p.bias) end.bias = __ldg(p.bias + row);
    if (head < kHeads + kKvHeads) {
      end.cosine = __ldg(p.cos_sin + d % kHalfDim);
      end.sine = __ldg(p.cos_sin + kHalfDim + d % kHalfDim);
      if (d < kHalfDim) end.sine = -end.sine;
    }
    if (lane >= kEndLanes) return end;
    if (head < kHeads) {  // the two of a pair share the blocks among them
      end.to = base + at::kQueries + head % kGroup * kQueryStride + even * 2;
      end.rank = head / kGroup * kShares + second * (kShares / 2);
      end.copies = kShares / 2;
    } else if (keys > 0 && !second) {
      const bool value = head >= kHeads + kKvHeads;
      const int of = head - kHeads - (value ? kKvHeads : 0), within = (keys - 1) % kTileKeys;
      end.to = tile_at(tiles - 1 - (kShares - 1) * tiles / kShares) + (value ? value_place(within, even / 8) : key_place(within, even / 8)) + even % 8 * 2;
      end.rank = of * kShares + kShares - 1;
      end.copies = 1;
      const int slot_of_token = p.slots[0];
      const int in_block = ((of << p.block_shift) + (slot_of_token & ((1 << p.block_shift) - 1))) * kHeadDim;
      if (slot_of_token >= 0)
        end.cache = static_cast<T*>(p.kv.base) + (slot_of_token >> p.block_shift) * p.kv.block_elements + (value ? p.kv.block_elements >> 1 : 0) + in_block + even;
    }
    return end;
  }

  /// A lane's vectors of rows in two halves. Warps without a slice read, too: what is read under a condition the compiler keeps apart.
  __device__ __forceinline__ uint32_t rows_at(int from, int half_bytes) const {
    return base + from + (warp < kSlices ? g % 2 * half_bytes + g / 2 * kRow + (warp * kSlice + 8 * q) * 2 : 0);
  }
  template <int kGroups>
  __device__ __forceinline__ void load_qkv(uint4 (&weights)[kGroups][2]) const {
    const uint32_t from = rows_at(at::kQkv, at::kQkvHalf);
#pragma unroll
    for (int i = 0; i < kGroups; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) weights[i][half] = load_shared(from + i * 4 * kRow + half * kHalf * 2);
  }
  template <int kBegin, int kEnd>
  __device__ __forceinline__ void load_o(uint4 (&weights)[kOGroups][2]) const {
    const uint32_t early = rows_at(at::kEarly, at::kEarlyHalf), late = rows_at(at::kLate, at::kLateHalf);
#pragma unroll
    for (int i = kBegin; i < kEnd; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        weights[i][half] = load_shared((i < kEarlyGroups ? early + i * 4 * kRow : late + (i - kEarlyGroups) * 4 * kRow) + half * kHalf * 2);
  }

  /// Sums of the rows of q | k | v of a warp's slice.
  __device__ __forceinline__ void multiply_qkv(const NormedSlice& slice, const uint4 (&weights)[kQkvGroups][2], float factor) const {
    uint4 x[2];
    slice.pack<T>(x, factor, base + at::kNorm, warp, q);
    float sum[kQkvGroups];
    product<T, kQkvGroups>(sum, x, [&](int group, int half) { return weights[group][half]; });
    if constexpr (kDividesLate<T>) slice.leave_squares(squares(), warp, lane);
    leave_sums(sums(), sum, warp, lane);
  }
  __device__ __forceinline__ void send_row(const RowEnd<T>& end, int slot) const {
    const float inverse = kDividesLate<T> ? inverse_norm<kSlices>(squares(), p.eps) : 1.0f;
    const float v = add_warps<kSlices>(sums(), slot) * inverse + end.bias;
    const float turned = v * end.cosine + __shfl_xor_sync(0xffffffffu, v, 1) * end.sine;
    const float neighbour = __shfl_xor_sync(0xffffffffu, turned, 2);
    const uint32_t word = slot / 2 % 2 ? pack2<T>(neighbour, turned) : pack2<T>(turned, neighbour);
#pragma unroll
    for (int i = 0; i < kShares / 2; ++i)
      if (i < end.copies) send(of_block(end.to, end.rank + i), word, of_block(queries_there(), end.rank + i));
    if (end.cache) *reinterpret_cast<uint32_t*>(end.cache) = word;
  }

  /// Scores of a warp's tiles, times scale and log2 e.
  __device__ __forceinline__ void score() const {
    if (warp >= own_tiles) return;
    uint4 query[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) query[half] = load_shared(base + at::kQueries + g * kQueryStride + half * 64 + q * 16);
#pragma unroll 1
    for (int t = warp; t < own_tiles; t += kWarps) {
      float c[2][4] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t from = tile_at(t) + half * 512 + lane * 16;
        const uint4 a = load_shared(from), b = load_shared(from + 1024);
        const uint32_t first[4] = {a.x, b.x, a.y, b.y}, second[4] = {a.z, b.z, a.w, b.w};
        mma<T>(c[half], first, query[half].x, query[half].y);
        mma<T>(c[half], second, query[half].z, query[half].w);
      }
      const int left = keys - (tile0 + t) * kTileKeys - g;
      auto* scores = reinterpret_cast<float*>(shared + (tile_at(t) - base) + at::kScores) + 2 * q * at::kScoreStride + g;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        scores[i % 2 * at::kScoreStride + i / 2 * 8] = i / 2 * 8 < left ? (c[0][i] + c[1][i]) * p.scale_log2 : -INFINITY;
    }
  }

  /// 8 dimensions of values under all of the block's keys' weights, a query a g: sent to the block that merges these.
  __device__ __forceinline__ void weigh() const {
    const auto* scores = reinterpret_cast<const float*>(shared + (tile_at(0) - base) + at::kScores) + g * at::kScoreStride + 2 * q;
    const uint32_t values = tile_at(0) + value_place(lane % 16, warp);
    constexpr uint32_t kOnes = std::is_same_v<T, __nv_bfloat16> ? 0x3f803f80u : 0x3c003c00u;
    float best = -INFINITY, total[4] = {}, c[4] = {};
#pragma unroll 1
    for (int t0 = 0; t0 < own_tiles; t0 += kTogether) {
      float w[kTogether][4], most = best;
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float2 v = t0 + i < own_tiles ? *reinterpret_cast<const float2*>(scores - (t0 + i) * (at::kTile / 4) + 8 * h)
                                              : make_float2(-INFINITY, -INFINITY);
          w[i][2 * h] = v.x;
          w[i][2 * h + 1] = v.y;
        }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) most = fmaxf(most, fmaxf(fmaxf(w[i][0], w[i][1]), fmaxf(w[i][2], w[i][3])));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
      const float old = fast_exp2(best - most);
      best = most;
#pragma unroll
      for (int j = 0; j < 2; ++j) c[j] *= old, total[j] *= old;
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (t0 + i >= own_tiles) break;
#pragma unroll
        for (int j = 0; j < 4; ++j) w[i][j] = fast_exp2(w[i][j] - most);
        const uint32_t weights[4] = {pack2<T>(w[i][0], w[i][1]), 0, pack2<T>(w[i][2], w[i][3]), 0};
        uint32_t v0, v1;
        load_matrix_x2_transposed(v0, v1, values - (t0 + i) * at::kTile);
        mma<T>(c, weights, v0, v1);
        mma<T>(total, weights, kOnes, kOnes);
      }
    }
    if (g >= kGroup) return;
    const int to = kv_head * kShares + warp;
    const uint32_t there = of_block(base, to), counts = of_block(parts_there(), to);
    send(there + at::kMerged + share * 256 + lane * 8, c[0], c[1], counts);
    if (q == 0) send(there + at::kStats + (share * 8 + g) * 8, best, total[0], counts);
  }

  /// Dimensions 8 share .. + 8 of this key head's queries, of all shares of keys: each of kMergers warps for its part of the blocks.
  __device__ __forceinline__ void merge() const {
    if (g >= kGroup) return;
    const auto* parts = reinterpret_cast<const float2*>(shared + at::kMerged) + lane;
    const auto* stats = reinterpret_cast<const float2*>(shared + at::kStats) + g;
    float2 part[kShares], stat[kShares];
    float best = -1e30f;  // finite: there may be no key
#pragma unroll
    for (int s = 0; s < kShares; ++s) part[s] = parts[s * 32], stat[s] = stats[s * 8];
#pragma unroll
    for (int s = 0; s < kShares; ++s) best = fmaxf(best, stat[s].x);
    float total = 0, a = 0, b = 0;
#pragma unroll
    for (int s = 0; s < kShares; ++s) {
      const float w = fast_exp2(stat[s].x - best);
      total = fmaf(w, stat[s].y, total);
      a = fmaf(w, part[s].x, a);
      b = fmaf(w, part[s].y, b);
    }
    const float inverse = total > 0 ? fast_reciprocal(total) : 0.0f;
    const uint32_t to = base + at::kAttended + ((kv_head * kGroup + g) * kHeadDim + share * 8 + 2 * q) * 2;
    const uint32_t word = pack2<T>(a * inverse, b * inverse);
#pragma unroll
    for (int i = 0; i < kCluster / kMergers; ++i) {
      const int block = warp * (kCluster / kMergers) + i;
      send(of_block(to, block), word, of_block(attended_there(), block));
    }
  }

  __device__ __forceinline__ void multiply_o(const uint4 (&weights)[kOGroups][2]) const {
    const uint32_t from = base + at::kAttended + (warp * kSlice + 8 * q) * 2;
    const uint4 x[2] = {load_shared(from), load_shared(from + kHalf * 2)};
    float sum[kOGroups];
    product<T, kOGroups>(sum, x, [&](int group, int half) { return weights[group][half]; });
    leave_sums(sums(), sum, warp, lane);
  }
};
#endif

template <class T>
__global__ __launch_bounds__(kThreads, 1) void attend_row(const __grid_constant__ AttendParams p) {
#ifdef TESSERA_WGMMA_HERE
  extern __shared__ __align__(128) unsigned char shared[];
  Attend<T> a(p, shared);
  if (threadIdx.x == 0) a.bring_weights();
  let_next_start();
  a.share_keys();
  if (threadIdx.x < kHidden / 4) copy_async(a.base + at::kNorm + threadIdx.x * 16, p.norm_weight + threadIdx.x * 4, true);
  a.bring_tiles(0, min(a.own_tiles, p.early_tiles));
  const int slot = a.warp * kEndLanes + min(a.lane, kEndLanes - 1);  // of the first warps
  RowEnd<T> end;
  if (a.warp < kEndWarps) end = a.row_end(slot);
  wait_for(a.qkv_there());
  uint4 qkv[kQkvGroups][2];
  a.load_qkv(qkv);
  __syncthreads();
  // Others may send from here on: a newest key may lie where q | k | v's weights lay.
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  if (threadIdx.x == 0) a.bring_late_weights();
  if (a.own_tiles > p.early_tiles) a.bring_tiles(p.early_tiles, a.own_tiles);
  copy_commit();
  copy_wait<0>();
  __syncthreads();
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
  wait_for_previous();

  float residual = 0;
  NormedSlice slice;
  if (a.warp < kSlices) slice.load(p.x, a.warp, a.q);
  if (threadIdx.x < kORows) residual = load_written_float(p.x + a.o_row(threadIdx.x));
  float factor = 1;
  if constexpr (!kDividesLate<T>) {
    if (a.warp < kSlices) slice.leave_squares(a.squares(), a.warp, a.lane);
    __syncthreads();
    factor = inverse_norm<kSlices>(a.squares(), p.eps);
  }
  if (a.warp < kSlices) a.multiply_qkv(slice, qkv, factor);
  __syncthreads();
  // o's weights come to registers while others work, a part in each of the waits: at once they would hold up what these read.
  auto in_turn = [](bool works, auto work) {
    if (works) work();
    __syncthreads();
  };
  in_turn(a.warp < kEndWarps, [&] { a.send_row(end, slot); });
  uint4 o[kOGroups][2];
  wait_for(a.o_there());
  a.template load_o<0, 3>(o);
  wait_for(a.queries_there());
  a.score();
  __syncthreads();
  in_turn(a.warp < kShares, [&] { a.weigh(); });
  a.template load_o<3, 5>(o);
  wait_for(a.parts_there());
  in_turn(a.warp < kMergers, [&] { a.merge(); });
  a.template load_o<5, kOGroups>(o);
  wait_for(a.attended_there());
  if (a.warp < kSlices) a.multiply_o(o);
  __syncthreads();
  if (threadIdx.x < kORows) p.out[a.o_row(threadIdx.x)] = residual + add_warps<kSlices>(a.sums(), threadIdx.x);
#endif
}

}  // namespace tessera::cuda::row::attend
