#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/result.h"

namespace tessera::server {

/// Host names to addresses, in bounded time: the system's look-up can't be interrupted, so each runs on a thread of its
/// own that is left behind when it is late. At most `most` run at once, the late ones included. Thread-safe; look-ups
/// may outlive the object.
class NameResolver {
 public:
  /// The addresses of a name in text form, none when it has none. Blocks.
  using Lookup = std::function<std::vector<std::string>(const std::string& host)>;

  explicit NameResolver(Lookup lookup = system_lookup, int most = 16);

  /// An address stands for itself. Errors: kInvalidInput when the name has no address or none came by the deadline;
  /// kUnavailable when too many look-ups have not come back.
  Result<std::vector<std::string>> addresses(const std::string& host, std::chrono::steady_clock::time_point deadline) const;

  static std::vector<std::string> system_lookup(const std::string& host);

 private:
  struct Shared;
  std::shared_ptr<Shared> shared_;
};

}  // namespace tessera::server
