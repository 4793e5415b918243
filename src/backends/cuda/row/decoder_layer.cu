#include "ops/decoder_layer.h"

#include <bit>

#include "backends/cuda/launch.h"
#include "backends/cuda/operators.h"
#include "backends/cuda/row/attend_row.cuh"
#include "backends/cuda/row/mlp_row.cuh"
#include "backends/cuda_choice/weight_layout.h"

// The door of decoder_layer: a step of one sequence whose layer is of the one shape that the row kernels are made for.
namespace tessera::cuda {
namespace {

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

bool is_shape(const LinearArgs& args, DType dtype, int64_t rows, int64_t cols, WeightUse use = WeightUse::kLinear) {
  const LinearSpec& spec = args.weight->spec();
  return spec.dtype == dtype && spec.rows == rows && spec.cols == cols && spec.use == use && packed_shape(spec).cols == cols;
}

bool plain_norm(const NormArgs& norm) { return norm.out && norm.kind == NormKind::kRms && !norm.bias && aligned(norm.weight.data); }

/// out is the f32 stream, which the product joins; nothing else is added.
bool joins_stream(const LinearArgs& args) {
  return args.out.dtype == DType::kF32 && args.residual.data == args.out.data && args.residual.dtype == DType::kF32 && !args.bias && !args.scale && !args.next_norm.out &&
         !args.input_norm.out && !args.reduce && args.activation == Activation::kNone;
}

bool serves(const DecoderLayerArgs& a, DType dtype) {
  using namespace row;
  const LinearArgs& qkv = a.project.product;
  const QkvToCacheArgs& cache = a.project.cache;
  const StepShape& step = a.attention.shape;
  return step.tokens == 1 && step.sequences == 1 && step.decodes == 1 && qkv.x.rows() == 1 &&
         is_shape(qkv, dtype, (kHeads + 2 * kKvHeads) * kHeadDim, kHidden) && is_shape(a.o, dtype, kHidden, kHidden) &&
         is_shape(a.gate_up, dtype, 2 * kFfn, kHidden, WeightUse::kGated) && is_shape(a.down, dtype, kHidden, kFfn) &&
         plain_norm(qkv.input_norm) && plain_norm(a.gate_up.input_norm) && qkv.x.dtype == DType::kF32 && aligned(qkv.x.data) && joins_stream(a.o) && joins_stream(a.down) &&
         !qkv.scale && !qkv.residual && !qkv.next_norm.out && qkv.activation == Activation::kNone && !a.gate_up.bias && !a.gate_up.scale &&
         a.gate_up.out.dtype == dtype && aligned(a.gate_up.out.data) && !cache.q_norm && !cache.k_norm && cache.kv.layout.dtype == dtype &&
         aligned(cache.kv.base) && std::has_single_bit(static_cast<unsigned>(cache.kv.layout.block_size));
}

row::attend::AttendParams attend_params(const DecoderLayerArgs& a, const RowShape& shape) {
  const LinearArgs& qkv = a.project.product;
  const QkvToCacheArgs& cache = a.project.cache;
  const PagedAttentionArgs& attention = a.attention;
  return {.qkv = qkv.weight->data(),
          .o = a.o.weight->data(),
          .bias = qkv.bias ? qkv.bias.ptr<float>() : nullptr,
          .norm_weight = qkv.input_norm.weight.ptr<float>(),
          .eps = qkv.input_norm.eps,
          .x = qkv.x.ptr<float>(),
          .out = a.o.out.ptr<float>(),
          .cos_sin = cache.cos_sin.ptr<float>(),
          .slots = cache.slots.ptr<int>(),
          .query_offsets = attention.query_offsets.ptr<int>(),
          .kv_lengths = attention.kv_lengths.ptr<int>(),
          .block_table = attention.block_tables.ptr<int>(),
          .block_shift = std::countr_zero(static_cast<unsigned>(cache.kv.layout.block_size)),
          .kv = kv_elements(cache.kv),
          .scale_log2 = attention.scale * 1.4426950408889634f,
          .early_tiles = shape.early_tiles,
          .shared_bytes = static_cast<int>(shape.attend_bytes)};
}

template <class T>
bool run(Stream& stream, const DecoderLayerArgs& a, const RowShape& shape) {
  using namespace row;
  // A device may have no place for so large a cluster (parts of it are switched off, or lent to others).
  static const bool kFits = resident_clusters(reinterpret_cast<const void*>(attend::attend_row<T>), attend::kThreads,
                                              kAttendFixedBytes + kEarlyTiles * kTileRoom, kCluster) > 0;
  if (!kFits) return false;
  const LinearArgs &gates = a.gate_up, &down = a.down;
  launch_fast(stream, "attend_row", Grid{kCluster}, attend::kThreads, static_cast<size_t>(shape.attend_bytes), attend::attend_row<T>, attend_params(a, shape),
              {.overlap = true, .cluster = kCluster});
  launch_fast(stream, "gate_up_row", Grid{static_cast<unsigned>(shape.blocks)}, gates::kThreads, gates::kShared, gate_up_row<T>,
              MlpParams{.weight = gates.weight->data(), .norm_weight = gates.input_norm.weight.ptr<float>(), .eps = gates.input_norm.eps,
                        .x = gates.x.data, .residual = nullptr, .out = gates.out.data});
  launch_fast(stream, "down_row", Grid{static_cast<unsigned>(shape.blocks)}, downs::kThreads, downs::kShared, down_row<T>,
              MlpParams{.weight = down.weight->data(), .norm_weight = nullptr, .eps = 0, .x = down.x.data, .residual = down.residual.ptr<float>(), .out = down.out.data});
  return true;
}

}  // namespace

bool decoder_layer(Stream& stream, const DecoderLayerArgs& args) {
  const DType dtype = args.project.product.weight->spec().dtype;
  const Device& device = cuda_stream(stream).device;
  if (!device.plan(dtype).row_layer || !serves(args, dtype)) return false;
  const auto shape = row_shape(device.limits, {.hidden = row::kHidden, .ffn = row::kFfn, .heads = args.attention.heads, .kv_heads = args.attention.kv_heads,
                                               .head_dim = args.attention.head_dim, .max_kv = args.attention.shape.max_kv});
  if (!shape) return false;
  return dtype == DType::kBF16 ? run<__nv_bfloat16>(stream, args, *shape) : run<__half>(stream, args, *shape);
}

}  // namespace tessera::cuda
