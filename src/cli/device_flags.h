#pragma once

#include <string>
#include <vector>

#include "cli/arg_parser.h"
#include "core/dtype.h"
#include "core/result.h"
#include "ops/device.h"

namespace tessera::cli {

/// The options of all commands that use a device: which one, what it is to look like, and the data type on it.
struct DeviceFlags {
  std::string dtype = "auto", device = "auto", isa = "auto", device_limits;
  std::vector<std::string> limits;
  int64_t threads = 0;

  void add_to(ArgParser& parser);
  /// --dtype, or what the checkpoint stores.
  DType compute(DType stored) const;
  /// What a backend is asked for. Errors: a `--limit` that is not NAME=VALUE, CPU options for a GPU.
  Result<BackendOptions> backend_options() const;
};

}  // namespace tessera::cli
