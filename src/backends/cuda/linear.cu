#include "ops/linear.h"

#include <algorithm>
#include <bit>

#include "backends/cuda/attention/attention.h"
#include "backends/cuda/choice.cuh"
#include "backends/cuda/library.h"
#include "backends/cuda/operators.h"
#include "backends/cuda/plain/plain.h"
#include "backends/cuda/product.h"
#include "backends/cuda/rows.h"
#include "backends/cuda_choice/lone_tiles.h"
#include "backends/cuda_choice/sizing.h"
#include "backends/cuda_choice/wgmma_rounds.h"
#include "ops/attention.h"

namespace tessera::cuda {

namespace plain {
void product(Stream& stream, const LinearArgs& args, const EpilogueParams& end);
}

namespace {

bool aligned16(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.row_stride * static_cast<int64_t>(size_of(t.dtype)) % 16 == 0;
}

bool pairs_allowed(const Tensor& t) {
  return !t || (t.row_stride % 2 == 0 && reinterpret_cast<uintptr_t>(t.data) % (2 * size_of(t.dtype)) == 0);
}

/// Of a product whose x is prepared (after_norm).
NormAhead norm_ahead(const LinearArgs& args) {
  if (!args.prepared || args.prepared->parts == 0) return {};
  return {.squares = args.prepared->squares.ptr<float>(),
          .parts = static_cast<int>(args.prepared->parts),
          .columns = static_cast<int>(args.weight->spec().cols),
          .eps = args.x_eps};
}

/// Rows before their division are in bf16's range, not in that of f16.
NormBehind norm_behind(const LinearArgs& args) {
  if (!args.prepares || args.prepares->rows.dtype != DType::kBF16 || args.weight->spec().dtype != DType::kBF16 ||
      !pairs_allowed(args.prepares->rows))
    return {};
  const PreparedNorm& norm = *args.prepares;
  return {.weight = norm.weight.ptr<float>(),
          .rows = norm.rows.data,
          .stride = norm.rows.row_stride,
          .squares = norm.squares.ptr<float>(),
          .room = norm.squares.elements()};
}

ChoicesBehind choices_behind(const LinearArgs& args) {
  if (!args.choices || reinterpret_cast<uintptr_t>(args.choices->room.data) % 16 != 0) return {};
  return {.found = static_cast<Choice*>(args.choices->room.data),
          .room = args.choices->room.elements() / static_cast<int64_t>(sizeof(Choice)),
          .valid_ids = args.choices->valid_ids};
}

/// The epilogue of rows [begin, begin + count) after a raw product.
FinishParams finish_params(const Product& p, const plain::Elements& raw) {
  return {.x = raw, .end = p.end, .gelu = p.args.activation == Activation::kGelu,
          .x_sums = reinterpret_cast<const float2*>(p.args.x_sums.data), .x_columns = p.k, .x_eps = p.args.x_eps,
          .out_sums = reinterpret_cast<float2*>(p.args.out_sums.data), .n = p.end.columns};
}

void shift_rows(plain::Elements& e, int64_t rows) {
  if (e.data) e.data = static_cast<char*>(e.data) + static_cast<size_t>(rows * e.stride) * size_of(e.dtype);
}

/// Whether the library can write the result itself: nothing but a residual of the result's dtype is added.
bool direct(const Product& p) {
  const LinearArgs& a = p.args;
  if (a.bias || a.scale || a.activation != Activation::kNone || p.end.segment || a.x_sums || a.out_sums) return false;
  if (a.out.dtype != DType::kF32 && a.out.dtype != a.weight->spec().dtype) return false;
  return !a.residual || a.residual.dtype == a.out.dtype;
}

/// Whether the kernel of up to 64 rows serves this product.
bool narrow_serves(CudaStream& stream, const LinearArgs& args) {
  const LinearSpec& spec = args.weight->spec();
  return spec.dtype != DType::kF32 && stream.device.plan(spec.dtype).narrow && args.x.rows() <= kNarrowRows &&
         pairs_allowed(args.out) && pairs_allowed(args.residual) &&
         (spec.use != WeightUse::kGated || args.out.dtype == spec.dtype);
}

/// Whether the kernel of few rows serves this product, the norm of its input included where there is one.
bool skinny_serves(CudaStream& stream, const LinearArgs& args) {
  const LinearSpec& spec = args.weight->spec();
  const int64_t shared = spec.dtype == DType::kF32 ? 0 : stream.device.plan(spec.dtype).skinny_bytes;
  const int64_t m = args.x.rows();
  if (shared == 0 || m > (stream.device.plan(spec.dtype).narrow ? kDotRows : kSkinnyRows)) return false;
  if (!args.input_norm.out) return true;
  return args.input_norm.kind == NormKind::kRms && args.x.dtype == DType::kF32 && aligned16(args.x) &&
         reinterpret_cast<uintptr_t>(args.input_norm.weight.data) % 16 == 0 && packed_shape(spec).cols == spec.cols &&
         skinny_norms(m, spec.cols, shared);
}

void run_skinny(CudaStream& stream, const LinearArgs& args, const RotaryParams& rotary) {
  const NormArgs& before = args.input_norm;
  const Product p = before.out ? Product{args, epilogue_params(args), packed_shape(args.weight->spec()), args.weight->spec().cols}
                               : prepare(stream, args, 0);
  const DType dtype = args.weight->spec().dtype;
  skinny_linear(stream, dtype, {.g = gemm_params(p), .norm_weight = before.out ? before.weight.ptr<float>() : nullptr,
                                .norm_eps = before.eps, .rotary = rotary}, stream.device.plan(dtype).skinny_bytes);
  following_norm(stream, args.out, args.next_norm);
}

/// Whether a product's raw sums fit the library's scratch.
bool in_one_piece(const LinearArgs& args) {
  const LinearSpec& spec = args.weight->spec();
  return static_cast<size_t>(args.x.rows() * round_up(spec.rows, 8)) * size_of(spec.dtype) <= kProductScratch;
}

/// Whether our tiles would leave much of the device idle, where neither all run at once nor many rounds do.
bool leaves_idle(CudaStream& s, const LinearArgs& args, int64_t k) {
  const LinearSpec& spec = args.weight->spec();
  const int64_t m = args.x.rows(), rows = packed_shape(spec).rows;
  const DeviceLimits& limits = s.device.limits;
  if (wgmma_rounds(limits, m, rows, k).share() >= kLeastShare) return false;
  if (spec.use == WeightUse::kGated || args.out.dtype != spec.dtype) return true;
  if (args.residual && (k > kLoneStreamDepth || args.residual.dtype != spec.dtype || args.activation != Activation::kNone)) return true;
  const LoneTiles lone = lone_tiles(args.residual ? kLoneStream : kLoneLinear, limits, m, rows);
  return !lone.at_once || lone.share < kLeastShare;
}

/// The kernel for many rows, where alignment and ends allow it.
LinearKernel preferred_kernel(CudaStream& s, const LinearArgs& args, int64_t segment) {
  const LinearSpec& spec = args.weight->spec();
  const KernelPlan& plan = s.device.plan(spec.dtype);
  const bool plain_end = !args.bias && !args.scale && args.activation == Activation::kNone && segment == 0;
  const LinearKernel kernel = plain_end ? plan.linear : plan.linear_fused;
  // An odd vocabulary sends the library to a kernel of half the speed; ours takes any number of rows.
  if (kernel == LinearKernel::kCublasLt && spec.rows % 8 != 0 && plan.linear_fused == LinearKernel::kWgmma) return LinearKernel::kWgmma;
  if (kernel != LinearKernel::kWgmma || plan.linear != LinearKernel::kCublasLt) return kernel;
  if (segment != 0) return kernel;
  // Where our tiles would leave much of the device idle, the library's choice of shapes is worth a separate pass, which
  // rounds the sums in between: a residual stream may take them so, other f32 results may not.
  return leaves_idle(s, args, packed_shape(spec).cols) && (args.residual || args.out.dtype != DType::kF32) ? LinearKernel::kCublasLt : kernel;
}

/// What is left of a product after the norm of its input, which the product ahead prepared or which is made here.
LinearArgs after_norm(Stream& stream, const LinearArgs& args) {
  LinearArgs rest = args;
  rest.x = args.input_norm.out;
  rest.x_eps = args.input_norm.eps;
  rest.input_norm = {};
  if (args.prepared && args.prepared->parts > 0 && narrow_serves(cuda_stream(stream), args)) return rest;
  rest.prepared = nullptr;
  NormArgs before = args.input_norm;
  before.x = args.x;
  norm(stream, before);
  return rest;
}

}  // namespace

Product prepare(Stream& stream, const LinearArgs& args, int64_t segment) {
  const LinearSpec& spec = args.weight->spec();
  Product p{.args = args, .end = epilogue_params(args), .packed = packed_shape(spec), .k = args.x.row_elements()};
  p.end.segment = segment;
  if (spec.dtype == DType::kF32) return p;
  // Patches come padded already.
  const bool complete = p.k == p.packed.cols;
  if (args.x.dtype == spec.dtype && complete && aligned16(args.x)) return p;
  const int64_t m = args.x.rows();
  void* scratch = operator_scratch(stream, static_cast<size_t>(m * p.packed.cols) * size_of(spec.dtype), "linear");
  p.args.x = Tensor(scratch, spec.dtype, {m, p.packed.cols});
  p.k = p.packed.cols;
  convert_rows(stream, args.x, plain::elements(p.args.x), p.packed.cols);
  return p;
}

GemmParams gemm_params(const Product& p) {
  return {.x = p.args.x.data,
          .x_stride = p.args.x.row_stride,
          .weight = p.args.weight->data(),
          .weight_stride = p.packed.cols,
          .m = p.args.x.rows(),
          .packed_rows = p.packed.rows,
          .k = p.k,
          .gated = p.args.weight->spec().use == WeightUse::kGated,
          .gelu = p.args.activation == Activation::kGelu,
          .end = p.end,
          .x_sums = reinterpret_cast<const float2*>(p.args.x_sums.data),
          .x_eps = p.args.x_eps,
          .out_sums = reinterpret_cast<float2*>(p.args.out_sums.data),
          .ahead = norm_ahead(p.args),
          .behind = norm_behind(p.args),
          .choices = choices_behind(p.args)};
}

bool library_linear(CudaStream& stream, const Product& p) {
  const LinearSpec& spec = p.args.weight->spec();
  const LinearArgs& a = p.args;
  const int64_t m = a.x.rows();
  const bool gated = spec.use == WeightUse::kGated;
  // The padded rows are computed, too, where the result goes to scratch: their number suits the tensor cores.
  const int64_t rows = gated ? p.packed.rows : round_up(spec.rows, 8);
  Library::Product product{.m = m, .n = spec.rows, .k = p.k, .dtype = spec.dtype, .a = a.x.data, .lda = a.x.row_stride,
                           .b = a.weight->data(), .ldb = p.packed.cols, .d = a.out.data, .ldd = a.out.row_stride,
                           .out = a.out.dtype};
  if (direct(p)) {
    if (a.residual) {
      product.c = a.residual.data;
      product.ldc = a.residual.row_stride;
    }
    stream.device.library->run(stream, product);
    return false;
  }
  const DType raw_dtype = spec.dtype;
  const size_t row_bytes = static_cast<size_t>(rows) * size_of(raw_dtype);
  // Pieces of equal, whole tiles of rows.
  const int64_t most = std::max<int64_t>(1, static_cast<int64_t>(kProductScratch / row_bytes));
  const int64_t pieces = (m + most - 1) / most;
  const int64_t piece = pieces == 1 ? m : std::min(most, round_up((m + pieces - 1) / pieces, 128));
  void* scratch = stream.device.product_scratch.get(static_cast<size_t>(piece) * row_bytes, "linear", stream.capturing);
  const plain::Elements raw{scratch, rows, raw_dtype};
  const bool vectors = p.end.columns % 4 == 0 && vector_rows(a.out) && vector_rows(a.residual) &&
                       vector_rows(a.next_norm.out) && (!a.bias || reinterpret_cast<uintptr_t>(a.bias.data) % 16 == 0);
  const bool norm_here = a.next_norm.out && vectors && p.end.columns <= kMaxNormColumns && p.end.segment == 0;
  TESSERA_CHECK(p.end.segment == 0 || piece == m, "a segmented product is made in one piece");
  for (int64_t begin = 0; begin < m; begin += piece) {
    const int64_t count = std::min(piece, m - begin);
    Library::Product part = product;
    part.m = count;
    part.n = rows;
    part.a = static_cast<const char*>(product.a) + static_cast<size_t>(begin * product.lda) * size_of(spec.dtype);
    part.d = scratch;
    part.ldd = rows;
    part.out = raw_dtype;
    stream.device.library->run(stream, part);
    FinishParams finish = finish_params(p, raw);
    shift_rows(finish.end.out, begin);
    shift_rows(finish.end.residual, begin);
    if (finish.x_sums) finish.x_sums += begin * (p.k / kSumColumns);
    if (finish.out_sums) finish.out_sums += begin * (p.end.columns / kSumColumns);
    if (gated) {
      finish_gated_rows(stream, count, raw, finish.end);
    } else if (vectors) {
      if (norm_here) {
        set_norm(finish, a.next_norm);
        shift_rows(finish.norm_out, begin);
      }
      finish_rows(stream, count, finish);
    } else {
      EpilogueArgs rest{.x = Tensor(scratch, raw_dtype, {count, rows}).columns(0, p.end.columns), .bias = a.bias,
                        .scale = a.scale, .out = a.out.slice(begin, count)};
      if (a.residual) rest.residual = a.residual.slice(begin, count);
      plain::epilogue(stream, rest);
    }
  }
  return norm_here;
}

void run_product(Stream& stream, const LinearArgs& args, int64_t segment) {
  CudaStream& s = cuda_stream(stream);
  const LinearSpec& spec = args.weight->spec();
  const KernelPlan& plan = s.device.plan(spec.dtype);
  if (args.x_sums || args.out_sums) {  // what the other kernels do not do
    const Product p = prepare(stream, args, 0);
    if (leaves_idle(s, args, p.k) && plan.linear == LinearKernel::kCublasLt && p.end.columns <= kMaxNormColumns && args.x.rows() > kNarrowRows) {
      if (library_linear(s, p)) return;
    } else {
      wgmma_linear(stream, spec.dtype, gemm_params(p));
    }
    return following_norm(stream, args.out, args.next_norm);
  }
  if (segment == 0 && skinny_serves(s, args)) return run_skinny(s, args, {});
  const Product p = prepare(stream, args, segment);
  LinearKernel kernel = preferred_kernel(s, args, segment);
  const bool pairs = pairs_allowed(args.out) && pairs_allowed(args.residual);
  if (segment == 0 && narrow_serves(s, args)) {
    const LeftParts left = narrow_linear(stream, spec.dtype, gemm_params(p));
    if (args.prepares) args.prepares->parts = left.squares;
    if (args.choices) args.choices->parts = left.choices;
    return following_norm(stream, args.out, args.next_norm);
  }
  if ((kernel == LinearKernel::kWgmma || kernel == LinearKernel::kMma) && !pairs) kernel = LinearKernel::kPlain;
  // What the library leaves to a separate pass and that pass does not take: GELU off the vector path, segments in pieces.
  const bool vectors = p.end.columns % 4 == 0 && vector_rows(args.out) && vector_rows(args.residual);
  if (kernel == LinearKernel::kCublasLt && !vectors && (args.activation == Activation::kGelu || segment || !pairs))
    kernel = LinearKernel::kPlain;
  if (kernel == LinearKernel::kCublasLt && segment && !in_one_piece(args)) kernel = LinearKernel::kPlain;
  switch (kernel) {
    case LinearKernel::kWgmma: wgmma_linear(stream, spec.dtype, gemm_params(p)); break;
    case LinearKernel::kMma: mma_linear(stream, spec.dtype, gemm_params(p)); break;
    case LinearKernel::kCublasLt:
      if (library_linear(s, p)) return;
      break;
    case LinearKernel::kPlain: plain::product(stream, args, p.end); break;
  }
  following_norm(stream, args.out, args.next_norm);
}

void following_norm(Stream& stream, const Tensor& out, const NormArgs& next) {
  if (!next.out) return;
  NormArgs args = next;
  args.x = out;
  norm(stream, args);
}

void norm(Stream& stream, const NormArgs& args) {
  const int64_t n = args.x.row_elements();
  if (n % 4 != 0 || n > kMaxNormColumns || !vector_rows(args.x) || !vector_rows(args.out) ||
      cuda_stream(stream).device.limits.warp_size != 32)
    return plain::norm(stream, args);
  FinishParams p{.x = plain::elements(args.x), .n = n};
  set_norm(p, args);
  finish_rows(stream, args.x.rows(), p);
}

void linear(Stream& stream, const LinearArgs& args) { run_product(stream, args, 0); }

void norm_linear(Stream& stream, const LinearArgs& args) {
  if (skinny_serves(cuda_stream(stream), args)) return run_skinny(cuda_stream(stream), args, {});
  linear(stream, after_norm(stream, args));
}

void project_qkv(Stream& stream, const ProjectQkvArgs& args) {
  const QkvToCacheArgs& cache = args.cache;
  const LinearArgs& product = args.product;
  CudaStream& s = cuda_stream(stream);
  const DType dtype = product.weight->spec().dtype;
  const bool rotates = !cache.q_norm && !cache.k_norm && cache.kv.layout.dtype == dtype && product.out.dtype == dtype &&
                       std::has_single_bit(static_cast<unsigned>(cache.kv.layout.block_size));
  if (rotates) {
    const RotaryParams rotary{.half = cache.head_dim / 2,
                              .heads = cache.heads,
                              .kv_heads = cache.kv_heads,
                              .cos_sin = cache.cos_sin.ptr<float>(),
                              .cos_sin_stride = cache.cos_sin.row_stride,
                              .slots = cache.slots.ptr<int>(),
                              .block_shift = std::countr_zero(static_cast<unsigned>(cache.kv.layout.block_size)),
                              .kv = kv_elements(cache.kv)};
    if (product.x.rows() <= kDotRows && skinny_serves(s, product)) return run_skinny(s, product, rotary);
    if (product.x.rows() <= kNarrowRows && s.device.plan(dtype).narrow && cache.head_dim % 16 == 0 &&
        pairs_allowed(product.out) && pairs_allowed(cache.cos_sin)) {
      const LinearArgs rest = product.input_norm.out ? after_norm(stream, product) : product;
      if (narrow_rotated(stream, dtype, gemm_params(prepare(s, rest, 0)), rotary)) return;
      linear(stream, rest);
      return qkv_to_cache(stream, cache);
    }
  }
  LinearArgs rest = product;
  // The pass behind the library's product, which would add the bias, is the one that turns and writes.
  const bool bias_later = product.bias && dtype != DType::kF32 && product.out.dtype == dtype && product.x.rows() > kNarrowRows &&
                          preferred_kernel(s, product, 0) == LinearKernel::kCublasLt && fast_cache_serves(stream, cache, product.bias);
  if (bias_later) rest.bias = {};
  if (rest.input_norm.out)
    norm_linear(stream, rest);
  else
    linear(stream, rest);
  if (bias_later) return fast_qkv_to_cache(stream, cache, product.bias);
  qkv_to_cache(stream, cache);
}

void epilogue(Stream& stream, const EpilogueArgs& args) {
  plain::epilogue(stream, args);
}

}  // namespace tessera::cuda
