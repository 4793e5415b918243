#include "ops/attention.h"

#include <bit>

#include "backends/cuda/attention/attention.h"
#include "backends/cuda/launch.h"
#include "backends/cuda/operators.h"
#include "backends/cuda/plain/plain.h"

namespace tessera::cuda {
namespace {

bool half_type(DType dtype) { return dtype == DType::kBF16 || dtype == DType::kF16; }

/// Rows that 16-byte loads may start at.
bool aligned(const Tensor& t) {
  return t.row_stride % 8 == 0 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
}

}  // namespace

void tile_attention(Stream& stream, const TileAttentionArgs& args) {
  const KernelPlan& plan = cuda_stream(stream).device.plan(args.qkv.dtype);
  AttentionKernel kernel = args.head_dim == 64    ? plan.tile_attention_64
                           : args.head_dim == 128 ? plan.tile_attention_128
                                                  : AttentionKernel::kPlain;
  if (!half_type(args.qkv.dtype) || args.out.dtype != args.qkv.dtype || !aligned(args.qkv) || !aligned(args.out))
    kernel = AttentionKernel::kPlain;
  switch (kernel) {
    case AttentionKernel::kWgmma: return wgmma_tile_attention(stream, args);
    case AttentionKernel::kMma: return mma_tile_attention(stream, args);
    case AttentionKernel::kPlain: return plain::tile_attention(stream, args);
  }
}

void paged_attention(Stream& stream, const PagedAttentionArgs& args) {
  const KernelPlan& plan = cuda_stream(stream).device.plan(args.kv.layout.dtype);
  const bool fits = half_type(args.q.dtype) && args.q.dtype == args.kv.layout.dtype && args.out.dtype == args.q.dtype &&
                    (args.head_dim == 64 || args.head_dim == 128) && aligned(args.q) && aligned(args.out) &&
                    reinterpret_cast<uintptr_t>(args.kv.base) % 16 == 0 &&
                    std::has_single_bit(static_cast<unsigned>(args.kv.layout.block_size));
  const bool split = fits && plan.decode_attention != AttentionKernel::kPlain && args.heads / args.kv_heads <= 16;
  const AttentionKernel prefill = args.head_dim == 64 ? plan.prefill_attention_64 : plan.prefill_attention_128;
  const bool flash = fits && prefill != AttentionKernel::kPlain;
  // The plain kernel takes whole batches: a mixed batch has both parts fast, or none.
  const int64_t rest = args.shape.sequences - args.shape.decodes;
  if (!flash && (rest > 0 || !split)) return plain::paged_attention(stream, args);
  const int64_t decodes = split ? args.shape.decodes : 0;
  const bool ring = plan.decode_attention == AttentionKernel::kWgmma;
  if (decodes > 0 && !(ring && ring_decode_attention(stream, args))) split_decode_attention(stream, args);
  if (args.shape.sequences == decodes) return;
  if (prefill == AttentionKernel::kWgmma && args.kv.layout.block_size >= 8)
    wgmma_paged_attention(stream, args, decodes);
  else
    mma_paged_attention(stream, args, decodes);
}

bool fast_cache_serves(Stream& stream, const QkvToCacheArgs& args, const Tensor& bias) {
  const DType dtype = args.qkv.dtype;
  const auto floats = [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data) % 16 == 0; };
  return half_type(dtype) && dtype == args.kv.layout.dtype && args.head_dim % 16 == 0 && args.head_dim <= 256 && aligned(args.qkv) &&
         args.cos_sin.row_stride % 4 == 0 && floats(args.cos_sin) && floats(args.q_norm) && floats(args.k_norm) && floats(bias) &&
         reinterpret_cast<uintptr_t>(args.kv.base) % 16 == 0 && std::has_single_bit(static_cast<unsigned>(args.kv.layout.block_size)) &&
         cuda_stream(stream).device.limits.warp_size == 32;
}

void qkv_to_cache(Stream& stream, const QkvToCacheArgs& args) {
  if (fast_cache_serves(stream, args, {})) return fast_qkv_to_cache(stream, args, {});
  plain::qkv_to_cache(stream, args);
}

}  // namespace tessera::cuda
