#include "ops/cuda_module.h"

#include <dlfcn.h>
#include <unistd.h>

#include <climits>
#include <cstdlib>

#include "backends/cuda_choice/module_entry.h"

namespace tessera {
namespace {

constexpr const char* kFileName = "libtessera_cuda.so";

/// TESSERA_CUDA_MODULE when it is set, else the file beside the program.
std::string module_path() {
  if (const char* path = std::getenv("TESSERA_CUDA_MODULE")) return path;
  char self[PATH_MAX];
  const ssize_t length = ::readlink("/proc/self/exe", self, sizeof self);
  if (length <= 0) return kFileName;
  const std::string program(self, static_cast<size_t>(length));
  return program.substr(0, program.rfind('/') + 1) + kFileName;
}

Status unavailable_module(const std::string& message) { return {StatusCode::kInvalidInput, "[cuda] " + message}; }

Result<const CudaModule*> load() {
  const std::string path = module_path();
  if (::access(path.c_str(), R_OK) != 0)
    return unavailable_module(path + " is not there; build it with scripts/build_cuda.sh or use --device cpu");
  void* handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) return unavailable_module(std::string("the module can't be loaded: ") + ::dlerror());
  auto entry = reinterpret_cast<cuda::ModuleEntry>(::dlsym(handle, cuda::kModuleEntry));
  const CudaModule* module = entry ? entry(cuda::kModuleAbi) : nullptr;
  if (!module) return unavailable_module(path + " belongs to another build of the program; build both from one tree");
  return module;
}

}  // namespace

Result<const CudaModule*> open_cuda_module() {
  static const Result<const CudaModule*> kModule = load();
  return kModule;
}

}  // namespace tessera
