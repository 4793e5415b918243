#include "server/name_resolver.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>

#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace tessera::server {

struct NameResolver::Shared {
  const Lookup lookup;
  const int most;
  std::mutex mutex;  // guards what follows and every Answer
  std::condition_variable answered;
  int running = 0;
};

namespace {

bool is_address(const std::string& host) {
  unsigned char bytes[sizeof(in6_addr)];
  return inet_pton(AF_INET, host.c_str(), bytes) == 1 || inet_pton(AF_INET6, host.c_str(), bytes) == 1;
}

}  // namespace

NameResolver::NameResolver(Lookup lookup, int most)
    : shared_(new Shared{std::move(lookup), most, {}, {}}) {}

Result<std::vector<std::string>> NameResolver::addresses(const std::string& host,
                                                         std::chrono::steady_clock::time_point deadline) const {
  if (is_address(host)) return std::vector<std::string>{host};
  struct Answer {
    bool there = false;
    std::vector<std::string> addresses;
  };
  const auto answer = std::make_shared<Answer>();
  std::unique_lock lock(shared_->mutex);
  if (shared_->running >= shared_->most)
    return unavailable("too many host names are being looked up; try again later");
  auto work = [shared = shared_, answer, host] {
    std::vector<std::string> found;
    try {
      found = shared->lookup(host);
    } catch (const std::exception&) {  // memory: the name then has no address
    }
    std::lock_guard held(shared->mutex);
    answer->there = true;
    answer->addresses = std::move(found);
    --shared->running;
    shared->answered.notify_all();
  };
  try {
    std::thread(std::move(work)).detach();
  } catch (const std::system_error&) {
    return unavailable("no thread is left to look a host name up; try again later");
  }
  ++shared_->running;
  if (!shared_->answered.wait_until(lock, deadline, [&] { return answer->there; }))
    return invalid_input("its name was not resolved in time");
  if (answer->addresses.empty()) return invalid_input("its name could not be resolved");
  return std::move(answer->addresses);
}

std::vector<std::string> NameResolver::system_lookup(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  std::vector<std::string> addresses;
  if (::getaddrinfo(host.c_str(), nullptr, &hints, &list) != 0) return addresses;
  for (const addrinfo* entry = list; entry; entry = entry->ai_next) {
    char text[INET6_ADDRSTRLEN];
    const void* address = nullptr;
    if (entry->ai_family == AF_INET) address = &reinterpret_cast<sockaddr_in*>(entry->ai_addr)->sin_addr;
    if (entry->ai_family == AF_INET6) address = &reinterpret_cast<sockaddr_in6*>(entry->ai_addr)->sin6_addr;
    if (address && ::inet_ntop(entry->ai_family, address, text, sizeof text)) addresses.emplace_back(text);
  }
  ::freeaddrinfo(list);
  return addresses;
}

}  // namespace tessera::server
