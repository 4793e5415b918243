#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace tessera::server {

/// How many requests each client has under way. Thread-safe; leases may outlive the object's users but not
/// `shared`.
class ClientSlots : public std::enable_shared_from_this<ClientSlots> {
 public:
  /// `most` for one client; 0: no bound.
  explicit ClientSlots(int64_t most) : most_(most) {}

  /// A place that is given back when the last holder lets go, or nullptr when the client has no more.
  std::shared_ptr<void> acquire(const std::string& client) {
    {
      std::lock_guard lock(mutex_);
      int64_t& held = held_[client];
      if (most_ > 0 && held >= most_) return nullptr;
      ++held;
    }
    return std::shared_ptr<void>(this, [self = shared_from_this(), client](void*) { self->release(client); });
  }

  int64_t most() const { return most_; }

 private:
  void release(const std::string& client) {
    std::lock_guard lock(mutex_);
    const auto found = held_.find(client);
    if (--found->second == 0) held_.erase(found);  // the map never holds more than the requests under way
  }

  const int64_t most_;
  std::mutex mutex_;
  std::map<std::string, int64_t> held_;
};

}  // namespace tessera::server
