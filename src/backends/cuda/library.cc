#include "backends/cuda/library.h"

#include <dlfcn.h>

#include <algorithm>

#include "backends/cuda/kernel_times.h"
#include "backends/cuda_choice/sizing.h"

namespace tessera::cuda {

// The functions used, taken from the shared object by name: no link-time dependency.
#define TESSERA_CUBLASLT_FUNCTIONS(X) \
  X(cublasLtCreate)                   \
  X(cublasLtDestroy)                  \
  X(cublasLtMatmulDescCreate)         \
  X(cublasLtMatmulDescDestroy)        \
  X(cublasLtMatmulDescSetAttribute)   \
  X(cublasLtMatrixLayoutCreate)       \
  X(cublasLtMatrixLayoutDestroy)      \
  X(cublasLtMatmulPreferenceCreate)   \
  X(cublasLtMatmulPreferenceDestroy)  \
  X(cublasLtMatmulPreferenceSetAttribute) \
  X(cublasLtMatmulAlgoGetHeuristic)   \
  X(cublasLtMatmul)

struct Library::Functions {
#define TESSERA_MEMBER(name) decltype(&::name) name = nullptr;
  TESSERA_CUBLASLT_FUNCTIONS(TESSERA_MEMBER)
#undef TESSERA_MEMBER
};

namespace {

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::kF32 ? CUDA_R_32F : dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_16F;
}

void check_library(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw DeviceError(std::string("[linear] cuBLASLt ") + what + " failed with status " +
                      std::to_string(static_cast<int>(status)));
}

/// The largest power of two up to 256 that divides an address: the algorithm search must know it.
unsigned alignment_of(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  unsigned alignment = 256;
  while (address % alignment != 0) alignment /= 2;
  return alignment;
}

}  // namespace

/// Descriptions and the chosen algorithm of one shape.
struct Library::Plan {
  Functions* f = nullptr;
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr, d = nullptr;
  cublasLtMatmulAlgo_t algorithm{};

  ~Plan() {
    if (d) f->cublasLtMatrixLayoutDestroy(d);
    if (c) f->cublasLtMatrixLayoutDestroy(c);
    if (b) f->cublasLtMatrixLayoutDestroy(b);
    if (a) f->cublasLtMatrixLayoutDestroy(a);
    if (operation) f->cublasLtMatmulDescDestroy(operation);
  }
};

namespace {

constexpr const char* kName = "libcublasLt.so.13";

void* load_library(std::string* why) {
  for (const char* path : {kName, "/usr/local/cuda/lib64/libcublasLt.so.13"})
    if (void* object = ::dlopen(path, RTLD_NOW | RTLD_LOCAL)) return object;
  *why = std::string(kName) + " was not found (looked in the loader's path and /usr/local/cuda/lib64)";
  return nullptr;
}

}  // namespace

std::string Library::find(std::string* why) {
  void* object = load_library(why);
  Dl_info info{};
  if (!object || ::dladdr(::dlsym(object, "cublasLtCreate"), &info) == 0) return {};
  return info.dli_fname;
}

std::unique_ptr<Library> Library::open(std::string* why) {
  void* object = load_library(why);
  if (!object) return nullptr;
  auto functions = std::make_unique<Functions>();
#define TESSERA_LOAD(name)                                                                  \
  functions->name = reinterpret_cast<decltype(&::name)>(::dlsym(object, #name));            \
  if (!functions->name) {                                                                   \
    *why = std::string(kName) + " lacks " #name;                                            \
    return nullptr;                                                                         \
  }
  TESSERA_CUBLASLT_FUNCTIONS(TESSERA_LOAD)
#undef TESSERA_LOAD
  std::unique_ptr<Library> library(new Library);
  library->functions_ = std::move(functions);
  if (library->functions_->cublasLtCreate(&library->handle_) != CUBLAS_STATUS_SUCCESS) {
    *why = std::string(kName) + " can't be started on this device";
    return nullptr;
  }
  return library;
}

Library::~Library() {
  plans_.clear();
  if (handle_) functions_->cublasLtDestroy(handle_);
}

// cuBLASLt counts columns first: row-major d = a b^T is column-major d^T [n, m] = b a^T with b transposed.
Library::Plan& Library::plan_for(CudaStream& stream, const Product& p) {
  const unsigned alignment =
      std::min({alignment_of(p.a), alignment_of(p.b), alignment_of(p.d), p.c ? alignment_of(p.c) : 256u});
  const Key key{p.m, p.n, p.k, static_cast<int>(p.dtype), static_cast<int>(p.out), p.lda, p.ldb, p.ldd, p.ldc,
                p.c != nullptr, alignment};
  auto found = plans_.find(key);
  if (found != plans_.end()) return *found->second;

  if (plans_.size() >= 4096) plans_.clear();  // shapes are bucketed by the engine; this bounds a caller that is not
  auto plan = std::make_unique<Plan>();
  Functions& f = *functions_;
  plan->f = &f;
  const bool tf32 = p.dtype == DType::kF32 && stream.device.tf32;
  check_library(f.cublasLtMatmulDescCreate(&plan->operation, tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
                                           CUDA_R_32F),
                "description");
  const cublasOperation_t transposed = CUBLAS_OP_T, as_is = CUBLAS_OP_N;
  f.cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
  f.cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, &as_is, sizeof as_is);
  auto layout = [&](cublasLtMatrixLayout_t* to, DType type, int64_t rows, int64_t cols, int64_t stride) {
    check_library(f.cublasLtMatrixLayoutCreate(to, type_of(type), static_cast<uint64_t>(rows),
                                               static_cast<uint64_t>(cols), stride),
                  "layout");
  };
  layout(&plan->a, p.dtype, p.k, p.n, p.ldb);
  layout(&plan->b, p.dtype, p.k, p.m, p.lda);
  layout(&plan->c, p.out, p.n, p.m, p.c ? p.ldc : p.ldd);
  layout(&plan->d, p.out, p.n, p.m, p.ldd);

  cublasLtMatmulPreference_t preference = nullptr;
  check_library(f.cublasLtMatmulPreferenceCreate(&preference), "preference");
  const size_t workspace = kLibraryWorkspace;
  const uint32_t bytes = alignment;
  f.cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                         sizeof workspace);
  for (auto attribute : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                         CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
    f.cublasLtMatmulPreferenceSetAttribute(preference, attribute, &bytes, sizeof bytes);
  cublasLtMatmulHeuristicResult_t result{};
  int count = 0;
  const cublasStatus_t status = f.cublasLtMatmulAlgoGetHeuristic(handle_, plan->operation, plan->a, plan->b, plan->c,
                                                                 plan->d, preference, 1, &result, &count);
  f.cublasLtMatmulPreferenceDestroy(preference);
  check_library(count > 0 ? status : CUBLAS_STATUS_NOT_SUPPORTED, "algorithm search");
  plan->algorithm = result.algo;
  return *plans_.emplace(key, std::move(plan)).first->second;
}

void Library::run(CudaStream& stream, const Product& p) {
  Plan& plan = plan_for(stream, p);
  void* workspace = stream.device.library_scratch.get(kLibraryWorkspace, "linear", stream.capturing);
  const float one = 1, beta = p.c ? 1 : 0;
  KernelTimes* const times = stream.capturing ? nullptr : KernelTimes::get();
  if (times) times->begin(stream.handle);
  check_library(functions_->cublasLtMatmul(handle_, plan.operation, &one, p.b, plan.a, p.a, plan.b, &beta,
                                           p.c ? p.c : p.d, plan.c, p.d, plan.d, &plan.algorithm, workspace,
                                           kLibraryWorkspace, stream.handle),
                "product");
  if (times) times->end("cublaslt", stream.handle);
}

}  // namespace tessera::cuda
