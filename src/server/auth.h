#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "server/http.h"
#include "tessera/status.h"

namespace tessera::server {

/// Who a request comes from. Caches are shared only between equal tenants.
struct Client {
  std::string name;    ///< "key:" and eight digits of the key's digest, or the address; fit for logs
  std::string tenant;  ///< the key's digest, or "" where there are no keys
};

/// The keys of --api-key-file: one a line, `#` begins a comment. Only digests are held, and a given key is
/// compared with all of them in constant time. Thread-safe.
class ApiKeys {
 public:
  /// Reads the file anew; on failure the old keys stay. An empty path: no keys are asked for.
  Status load(const std::string& path);
  bool required() const;
  size_t count() const;

  /// The client of a request, or nullopt when a key is asked for and none of ours is given. Taken are
  /// `Authorization: Bearer KEY`, and Basic with the key as the password, which is what a browser can send.
  std::optional<Client> identify(const HttpRequest& request) const;

 private:
  using Digest = std::array<unsigned char, 32>;
  static Digest digest(const std::string& key);

  mutable std::mutex mutex_;
  std::shared_ptr<const std::vector<Digest>> keys_;
};

}  // namespace tessera::server
