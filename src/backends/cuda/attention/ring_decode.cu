#include <algorithm>

#include "backends/cuda/attention/attention.h"
#include "backends/cuda/attention/decode_params.h"
#include "backends/cuda/attention/key_rows.cuh"
#include "backends/cuda/cluster.cuh"
#include "backends/cuda/wgmma.cuh"
#include "backends/cuda_choice/kernel_choice.h"

namespace tessera::cuda {
namespace {

// A block serves one sequence, one key head and one split of its keys. The warps of all splits take pieces of 16 or 32 keys in turns, each
// with a ring of its own in shared memory that asynchronous copies keep full. Only the newest key is written by the step itself: all others
// are on their way before the kernel ahead has ended. The splits of a key head are a cluster; each of its blocks gets what all warps
// found of some of the rows and ends these.
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
/// Just over a third of a multiprocessor's 228 KB: no three blocks of a kernel lie on one (see bytes_on_device).
constexpr int kOverThird = 77 << 10;

/// Of a row, that a warp found: weighted sums in the order of KeyRows, largest score and total, and padding to 16 bytes.
template <int kHeadDim>
constexpr int kFoundBytes = (kHeadDim + 4) * 4;

constexpr int own_rows(int group, int splits) { return (group + splits - 1) / splits; }
template <int kHeadDim>
constexpr int found_bytes(int group, int splits) {
  return kWarps * splits * own_rows(group, splits) * kFoundBytes<kHeadDim>;
}

/// Shared memory of a block: room to align it, the warps' rings, what the cluster's warps found of the block's rows, a barrier.
template <int kHeadDim, int kParts, int kStages>
constexpr int block_bytes(int group, int splits) {
  return 1024 + kWarps * kStages * KeyPiece<kHeadDim, kParts>::kBytes + found_bytes<kHeadDim>(group, splits) + 8;
}

// Seven splits take most of any number: eight rows leave two to some of them.
static_assert(block_bytes<128, 1, 2>(kRowsAtOnce, 7) == shared_bytes::kRingDecode && block_bytes<64, 2, 2>(kRowsAtOnce, 7) <= shared_bytes::kRingDecode);

/// Splits in pairs would come to lie by three and one where q | k | v's blocks leave late: 64 sequences of the 1B, H200, a layer 35.1
/// us, 34.3 in twos. (Four splits need the room: 32 sequences 28.4, in twos 32.1.)
int bytes_on_device(int bytes, int splits) { return splits == 2 ? std::max(bytes, kOverThird) : bytes; }

#ifdef TESSERA_WGMMA_HERE

/// A warp's way through its part of the keys.
template <class T, int kHeadDim, int kParts, int kStages>
struct Span {
  using Piece = KeyPiece<kHeadDim, kParts>;
  static constexpr int kHeld = 32 / kParts;  ///< pieces whose places a warp holds at once

  const DecodeParams& p;
  const int* table;
  int kv_head;
  int first, apart;  ///< pieces first, first + apart, ...
  uint32_t ring;

  __device__ __forceinline__ static int token_of(int piece, int part) { return piece * Piece::kKeys + part * kPartKeys; }
  /// Which blocks of the cache the parts of the warp's pieces `turn` to `turn + kHeld - 1` lie in, a lane each. By stamps, pieces with
  /// a load of their own waited for the copies handed over just before it. Asks for them whether
  /// there are so many keys or not: how many there are comes as late as they do.
  __device__ __forceinline__ int entries_from(int turn) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, room = static_cast<int>(p.table_stride) << p.block_shift;
    const int token = token_of(first + (turn + lane / kParts) * apart, lane % kParts);
    return token < room ? __ldg(table + (token >> p.block_shift)) : 0;
  }
  /// Parts behind the last key stay as they are.
  __device__ __forceinline__ void bring(int turn, int keys, int stage, int entries) const {
    const int piece = first + turn * apart;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int token = token_of(piece, part);
      if (token >= keys) break;
      const int entry = __shfl_sync(0xffffffffu, entries, turn % kHeld * kParts + part);
      const int row = (kv_head << p.block_shift) + (token & ((1 << p.block_shift) - 1));  // KvElements::index without its divisions
      const T* const from = static_cast<const T*>(p.kv.base) + entry * p.kv.block_elements + row * kHeadDim;
      Piece::copy(ring + static_cast<uint32_t>(stage) * Piece::kBytes, part, from, from + (p.kv.block_elements >> 1));
    }
  }

  /// `load_queries` waits for the kernel ahead; `entries` are the first.
  template <class Load>
  __device__ __forceinline__ void attend(int keys, int entries, KeyRows<T, kHeadDim>& rows, Load load_queries) const {
    const int newest = (keys - 1) / Piece::kKeys;
    int later_entries = entries_from(kHeld);
#pragma unroll
    for (int turn = 0; turn < kStages; ++turn) {
      if (first + turn * apart < newest) bring(turn, keys, turn, entries);
      copy_commit();
    }
    load_queries();
#pragma unroll
    for (int turn = 0; turn < kStages; ++turn)
      if (first + turn * apart == newest) bring(turn, keys, turn, entries);
    int stage = 0, turn = kStages;  // of the piece to be brought next
    for (int piece = first; piece <= newest; piece += apart, ++turn) {
      if (piece == newest) {  // which may have come behind the others
        copy_commit();
        copy_wait<0>();
      } else {
        copy_wait<kStages - 1>();
      }
      __syncwarp();  // the other lanes' copies have landed, too
      rows.template attend<kParts>(ring + static_cast<uint32_t>(stage) * Piece::kBytes, keys - piece * Piece::kKeys, p.scale_log2);
      __syncwarp();  // all have read the stage
      if (turn % kHeld == 0) {
        entries = later_entries;
        later_entries = entries_from(turn + kHeld);
      }
      if (first + turn * apart <= newest) bring(turn, keys, stage, entries);
      copy_commit();
      if (++stage == kStages) stage = 0;
    }
  }
};

/// What all warps of the cluster found of the rows that this block ends: every splits-th.
template <int kHeadDim>
struct FoundRows {
  uint32_t at, barrier;
  int group, splits, rank, rows;

  /// One thread. What comes from other blocks is counted, what comes from this one is not.
  __device__ __forceinline__ void expect() const {
    const int own = (group - rank + splits - 1) / splits;
    barrier_init(barrier, 1);
    barrier_publish();
    barrier_expect(barrier, static_cast<uint32_t>(kWarps * (splits - 1) * own * kFoundBytes<kHeadDim>));
  }
  /// Requires: all blocks of the cluster run, and expect.
  template <class Rows>
  __device__ __forceinline__ void leave(const Rows& found) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, warp = rank * kWarps + static_cast<int>(threadIdx.x) / 32;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int row = lane % 4 * 2 + j, receiver = row % splits;
      if (row >= group) continue;
      const uint32_t to = place(warp, row / splits);
      float v[Rows::kValues];
      found.values(j, v);
#pragma unroll
      for (int i = 0; i < Rows::kValues; i += 4)
        hand_over(to + static_cast<uint32_t>(g * Rows::kValues + i) * 4, make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]), receiver);
      if (g == 0) hand_over(to + kHeadDim * 4, make_float4(found.best(j), found.total(j), 0, 0), receiver);
    }
  }
  /// Writes the block's rows to `out`, that of the first row. Requires: all has come.
  template <class T>
  __device__ __forceinline__ void merge(T* out, float scale_log2) const {
    const int warps = kWarps * splits;
    for (int i = static_cast<int>(threadIdx.x); i < rows * (kHeadDim / 2); i += kThreads) {
      const int own = i / (kHeadDim / 2), d = i % (kHeadDim / 2) * 2, row = own * splits + rank;
      if (row >= group) break;
      float best = -INFINITY, total = 0;
      float2 sum = make_float2(0, 0);
      for (int w = 0; w < warps; ++w) best = fmaxf(best, load_shared_float(place(w, own) + kHeadDim * 4));
#pragma unroll 4
      for (int w = 0; w < warps; ++w) {
        const uint32_t from = place(w, own);
        const float f = fast_exp2((load_shared_float(from + kHeadDim * 4) - best) * scale_log2);
        total = fmaf(f, load_shared_float(from + kHeadDim * 4 + 4), total);
        sum.x = fmaf(f, load_shared_float(from + KeyRows<T, kHeadDim>::place(d) * 4), sum.x);
        sum.y = fmaf(f, load_shared_float(from + KeyRows<T, kHeadDim>::place(d + 1) * 4), sum.y);
      }
      const float inverse = fast_reciprocal(total);
      *reinterpret_cast<uint32_t*>(out + row * kHeadDim + d) = pack2<T>(sum.x * inverse, sum.y * inverse);
    }
  }

 private:
  /// Where `warp` of the cluster's leaves row `own` of a block.
  __device__ __forceinline__ uint32_t place(int warp, int own) const {
    return at + static_cast<uint32_t>((warp * rows + own) * kFoundBytes<kHeadDim>);
  }
  __device__ __forceinline__ void hand_over(uint32_t to, float4 v, int receiver) const {
    if (receiver == rank)
      store_shared4(to, v);
    else
      store_in_block(place_in_block(to, receiver), v, place_in_block(barrier, receiver));
  }
};

#endif

template <class T, int kHeadDim, int kParts, int kStages>
__global__ __launch_bounds__(kThreads) void ring_decode_kernel(const __grid_constant__ DecodeParams p) {
#ifdef TESSERA_WGMMA_HERE
  constexpr int kRingBytes = kStages * KeyPiece<kHeadDim, kParts>::kBytes;
  extern __shared__ unsigned char raw[];
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);  // the compiler must know that it is uniform
  const int split = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y), s = static_cast<int>(blockIdx.z);
  let_next_start();
  const uint32_t rings = (shared_address(raw) + 1023u) & ~1023u, found_at = rings + kWarps * kRingBytes;
  const Span<T, kHeadDim, kParts, kStages> span{.p = p,
                                                .table = p.block_tables + s * p.table_stride,
                                                .kv_head = kv_head,
                                                .first = split * kWarps + warp,
                                                .apart = p.splits * kWarps,
                                                .ring = rings + static_cast<uint32_t>(warp * kRingBytes)};
  // A step's integers lie there before its first kernel that does not overlap another.
  const int token = p.query_offsets[s], behind = p.query_offsets[s + 1], keys = p.kv_lengths[s];
  const int entries = span.entries_from(0);
  if (behind == token) return wait_for_previous();  // a surplus sequence; the next kernel counts on the wait

  const FoundRows<kHeadDim> found{.at = found_at,
                                  .barrier = found_at + static_cast<uint32_t>(found_bytes<kHeadDim>(p.group, p.splits)),
                                  .group = p.group,
                                  .splits = p.splits,
                                  .rank = split,
                                  .rows = own_rows(p.group, p.splits)};
  if (threadIdx.x == 0) found.expect();
  __syncthreads();
  if (p.splits > 1) cluster_arrive();

  const int64_t head0 = static_cast<int64_t>(kv_head) * p.group * kHeadDim;
  KeyRows<T, kHeadDim> rows;
  span.attend(keys, entries, rows, [&] {
    wait_for_previous();
    rows.load_queries(static_cast<const T*>(p.q) + token * p.q_stride + head0, p.group);
  });
  rows.add_totals();
  if (p.splits > 1) cluster_wait();
  found.leave(rows);
  __syncthreads();
  barrier_wait(found.barrier, 0);
  found.merge(static_cast<T*>(p.out) + token * p.out_stride + head0, p.scale_log2);
#endif
}

/// As many splits as give every multiprocessor `kBlocksWanted` blocks, each with at least 64 keys. Depends on the step's shape alone, so
/// that a captured graph serves every step of its bucket.
int split_count(const DeviceLimits& limits, const PagedAttentionArgs& args) {
  constexpr int64_t kMostInCluster = 8;  // what every device with clusters allows
  constexpr int64_t kBlocksWanted = 2, kLeastKeys = 64;
  const int64_t blocks = std::max<int64_t>(1, args.shape.decodes * args.kv_heads);
  const int64_t wanted = kBlocksWanted * std::max<int64_t>(1, limits.multiprocessors) / blocks;
  const int64_t most = std::max<int64_t>(1, args.shape.max_kv / kLeastKeys);
  return static_cast<int>(std::clamp<int64_t>(wanted, 1, std::min(most, kMostInCluster)));
}

}  // namespace

bool ring_decode_attention(Stream& stream, const PagedAttentionArgs& args) {
  const DecodeParams p = decode_params(args, split_count(cuda_stream(stream).device.limits, args));
  if (p.group > kRowsAtOnce || args.kv.layout.block_size < kPartKeys) return false;
  const Grid grid{static_cast<unsigned>(p.splits), static_cast<unsigned>(args.kv_heads), static_cast<unsigned>(args.shape.decodes)};
  dispatch_half(args.q.dtype, "paged_attention", [&](auto zero) {
    using T = decltype(zero);
    auto run = [&]<int kHeadDim, int kParts, int kStages>() {
      const int bytes = bytes_on_device(block_bytes<kHeadDim, kParts, kStages>(p.group, p.splits), p.splits);
      launch_fast(stream, "ring_decode_attention", grid, kThreads, static_cast<size_t>(bytes),
                  ring_decode_kernel<T, kHeadDim, kParts, kStages>, p, {.overlap = true, .cluster = static_cast<unsigned>(p.splits)});
    };
    // What a warp brings, at most: where keys are few the room serves the next products' rings.
    const bool few = args.shape.max_kv <= int64_t{kPartKeys} * kWarps * p.splits;
    if (args.head_dim == 64)
      few ? run.template operator()<64, 1, 1>() : run.template operator()<64, 2, 2>();
    else
      few ? run.template operator()<128, 1, 1>() : run.template operator()<128, 1, 2>();
  });
  return true;
}

}  // namespace tessera::cuda
