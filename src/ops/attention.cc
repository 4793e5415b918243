#include "ops/attention.h"

#include "ops/door.h"

namespace tessera {
namespace {

void check_heads(const char* op, int heads, int kv_heads, int head_dim) {
  TESSERA_CHECK(heads > 0 && kv_heads > 0 && heads % kv_heads == 0,
                std::string("[") + op + "] " + std::to_string(heads) + " heads do not share " +
                    std::to_string(kv_heads) + " kv heads evenly");
  TESSERA_CHECK(head_dim > 0 && head_dim % 2 == 0,
                std::string("[") + op + "] head_dim " + std::to_string(head_dim) + "; expected an even number");
}

void check_kv(const char* op, const KvView& kv, int kv_heads, int head_dim) {
  TESSERA_CHECK(kv.base != nullptr, std::string("[") + op + "] no KV memory");
  TESSERA_CHECK(kv.layout.kv_heads == kv_heads && kv.layout.head_dim == head_dim && kv.layout.block_size > 0,
                std::string("[") + op + "] the KV layout has " + std::to_string(kv.layout.kv_heads) + " heads of " +
                    std::to_string(kv.layout.head_dim) + ", the arguments " + std::to_string(kv_heads) + " of " +
                    std::to_string(head_dim));
}

void check(const QkvToCacheArgs& args) {
  check_heads("qkv_to_cache", args.heads, args.kv_heads, args.head_dim);
  check_kv("qkv_to_cache", args.kv, args.kv_heads, args.head_dim);
  const int64_t tokens = args.qkv.rows();
  const int64_t width = int64_t{args.heads + 2 * args.kv_heads} * args.head_dim;
  check_floating("qkv_to_cache", "qkv", args.qkv, -1, width);
  check_optional_vector("qkv_to_cache", "q_norm", args.q_norm, DType::kF32, args.head_dim);
  check_optional_vector("qkv_to_cache", "k_norm", args.k_norm, DType::kF32, args.head_dim);
  check_tensor("qkv_to_cache", "cos_sin", args.cos_sin, DType::kF32, tokens, args.head_dim);
  check_vector("qkv_to_cache", "slots", args.slots, DType::kI32, tokens);
}

}  // namespace

void qkv_to_cache(const OpContext& ctx, const QkvToCacheArgs& args) {
  check(args);
  if (args.qkv.rows() == 0) return;
  kernel_of("qkv_to_cache", ctx, &KernelTable::qkv_to_cache)(*ctx.stream, args);
}

void check(const ProjectQkvArgs& args) {
  TESSERA_CHECK(args.product.out.data == args.cache.qkv.data && args.product.out.rows() == args.cache.qkv.rows(),
                "[project_qkv] the product's out is not cache.qkv");
  check(args.product);
  check(args.cache);
}

void project_qkv(const OpContext& ctx, const ProjectQkvArgs& args) {
  check(args);
  if (ctx.kernels && ctx.kernels->project_qkv) {
    if (args.cache.qkv.rows() > 0) ctx.kernels->project_qkv(*ctx.stream, args);
    return;
  }
  linear(ctx, args.product);
  qkv_to_cache(ctx, args.cache);
}

void check(const PagedAttentionArgs& args) {
  check_heads("paged_attention", args.heads, args.kv_heads, args.head_dim);
  check_kv("paged_attention", args.kv, args.kv_heads, args.head_dim);
  const int64_t width = int64_t{args.heads} * args.head_dim;
  check_floating("paged_attention", "q", args.q, args.shape.tokens, width);
  check_vector("paged_attention", "query_offsets", args.query_offsets, DType::kI32, args.shape.sequences + 1);
  check_vector("paged_attention", "kv_lengths", args.kv_lengths, DType::kI32, args.shape.sequences);
  check_tensor("paged_attention", "block_tables", args.block_tables, DType::kI32, args.shape.sequences, -1);
  check_floating("paged_attention", "out", args.out, args.shape.tokens, width);
  TESSERA_CHECK(args.shape.max_kv <= args.block_tables.row_elements() * args.kv.layout.block_size,
                "[paged_attention] kv length " + std::to_string(args.shape.max_kv) + " exceeds the block table's " +
                    std::to_string(args.block_tables.row_elements() * args.kv.layout.block_size) + " tokens");
}

void paged_attention(const OpContext& ctx, const PagedAttentionArgs& args) {
  check(args);
  if (args.shape.tokens == 0 || args.shape.sequences == 0) return;
  kernel_of("paged_attention", ctx, &KernelTable::paged_attention)(*ctx.stream, args);
}

void tile_attention(const OpContext& ctx, const TileAttentionArgs& args) {
  check_heads("tile_attention", args.heads, args.heads, args.head_dim);
  const int64_t width = int64_t{args.heads} * args.head_dim;
  check_floating("tile_attention", "qkv", args.qkv, args.tiles * args.tokens, 3 * width);
  check_floating("tile_attention", "out", args.out, args.tiles * args.tokens, width);
  if (args.tiles == 0 || args.tokens == 0) return;
  kernel_of("tile_attention", ctx, &KernelTable::tile_attention)(*ctx.stream, args);
}

}  // namespace tessera
