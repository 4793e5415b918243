#include "server/auth.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include "core/base64.h"
#include "core/file.h"

namespace tessera::server {
namespace {

constexpr size_t kMaxKeyFile = 1 << 20;
constexpr size_t kMaxKey = 512, kMinKey = 8;

std::string trimmed(const std::string& line) {
  const size_t first = line.find_first_not_of(" \t\r");
  if (first == std::string::npos) return {};
  return line.substr(first, line.find_last_not_of(" \t\r") - first + 1);
}

bool has_scheme(const std::string& value, const char* scheme, std::string* rest) {
  const size_t length = std::char_traits<char>::length(scheme);
  if (value.size() <= length || value[length] != ' ') return false;
  for (size_t i = 0; i < length; ++i)
    if ((value[i] | 0x20) != scheme[i]) return false;
  *rest = trimmed(value.substr(length));
  return true;
}

// The key that a request gives, "" for none.
std::string given_key(const HttpRequest& request) {
  const std::string* value = request.header("authorization");
  std::string rest;
  if (!value || value->size() > 4 * kMaxKey) return {};
  if (has_scheme(*value, "bearer", &rest)) return rest;
  if (!has_scheme(*value, "basic", &rest)) return {};
  const auto pair = decode_base64(rest);
  if (!pair.ok()) return {};
  const size_t colon = pair->find(':');
  return colon == std::string::npos ? std::string() : pair->substr(colon + 1);
}

}  // namespace

ApiKeys::Digest ApiKeys::digest(const std::string& key) {
  Digest out{};
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), out.data());
  return out;
}

Status ApiKeys::load(const std::string& path) {
  if (path.empty()) return {};
  auto text = read_file(path, kMaxKeyFile);
  if (!text.ok()) return text.status().with_context("[serve] --api-key-file");
  auto keys = std::make_shared<std::vector<Digest>>();
  size_t number = 0;
  for (size_t at = 0; at < text->size();) {
    const size_t end = std::min(text->find('\n', at), text->size());
    const std::string line = trimmed(text->substr(at, end - at));
    at = end + 1;
    ++number;
    if (line.empty() || line[0] == '#') continue;
    if (line.size() < kMinKey || line.size() > kMaxKey || line.find_first_of(" \t") != std::string::npos)
      return invalid_input("[serve] --api-key-file line " + std::to_string(number) + " has " +
                           std::to_string(line.size()) + " characters; a key has 8..512, without spaces");
    keys->push_back(digest(line));
  }
  if (keys->empty())
    return invalid_input("[serve] --api-key-file " + path + " holds no key; write one on a line");
  std::lock_guard lock(mutex_);
  keys_ = std::move(keys);
  return {};
}

bool ApiKeys::required() const {
  std::lock_guard lock(mutex_);
  return keys_ != nullptr;
}

size_t ApiKeys::count() const {
  std::lock_guard lock(mutex_);
  return keys_ ? keys_->size() : 0;
}

std::optional<Client> ApiKeys::identify(const HttpRequest& request) const {
  std::shared_ptr<const std::vector<Digest>> keys;
  {
    std::lock_guard lock(mutex_);
    keys = keys_;
  }
  if (!keys) return Client{request.peer, ""};
  const Digest given = digest(given_key(request));
  int matches = 0;
  for (const Digest& key : *keys) matches |= CRYPTO_memcmp(key.data(), given.data(), key.size()) == 0;
  if (!matches) return std::nullopt;
  static constexpr char kDigits[] = "0123456789abcdef";
  Client client;
  for (unsigned char byte : given) {
    client.tenant += kDigits[byte >> 4];
    client.tenant += kDigits[byte & 15];
  }
  client.name = "key:" + client.tenant.substr(0, 8);
  return client;
}

}  // namespace tessera::server
