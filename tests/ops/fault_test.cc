// A kernel that faults on a real GPU: the failure names operator and kernel, and the device is lost. In a process of its own,
// since a fault takes the process's device with it. On other backends nothing can fault this way.
#include <cstdio>
#include <cstdlib>

#include "ops/embedding.h"
#include "tests/ops/op_test.h"

namespace tessera::testing {
namespace {

class FaultTest : public OpTest {};

// Copies blocks of memory that is not there; exits with 0 when all that should be said was said.
[[noreturn]] void fault(const std::string& spec) {
  const auto backend = open_test_backend(spec, 1);
  const std::vector<int32_t> pairs = {0, 1};
  const Buffer list = backend->allocator().allocate(DType::kI32, {1, 2}, MemoryLine::kActivations, "pairs");
  backend->upload(pairs.data(), list.tensor(DType::kI32, {1, 2}));
  backend->synchronize();
  if (backend->lost()) std::exit(3);
  std::string message;
  try {
    copy_blocks(backend->context(), {.base = reinterpret_cast<void*>(uintptr_t{1} << 12), .block_bytes = 4096, .pairs = list.tensor(DType::kI32, {1, 2})});
    backend->synchronize();
  } catch (const DeviceError& error) {
    message = error.what();
  }
  std::fprintf(stderr, "%s\n", message.c_str());
  std::fflush(stderr);
  std::_Exit(backend->lost() ? 0 : 4);
}

TEST_P(FaultTest, NamesOperatorAndKernelAndLosesTheDevice) {
  if (on_cpu() || open_test_backend(GetParam().backend, 1)->limits().name == "emulated") GTEST_SKIP() << "needs a GPU";
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(fault(GetParam().backend), ::testing::ExitedWithCode(0),
              "synchronize: cudaErrorIllegalAddress .*; the last operator was copy_blocks, its kernel plain_copy_blocks");
}

TESSERA_OP_SUITE_F32(FaultTest);

}  // namespace
}  // namespace tessera::testing
