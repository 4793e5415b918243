#include "core/digest.h"

#include <openssl/evp.h>

#include "core/check.h"

namespace tessera {

struct DigestBuilder::Impl {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  Impl() { start(); }
  ~Impl() { EVP_MD_CTX_free(context); }
  // Fetching the algorithm costs more than hashing a KV block: once a process.
  void start() {
    static const EVP_MD* const kSha256 = EVP_MD_fetch(nullptr, "SHA256", nullptr);
    TESSERA_CHECK(context && EVP_DigestInit_ex2(context, kSha256, nullptr) == 1, "SHA-256 is not available");
  }
};

DigestBuilder::DigestBuilder() : impl_(std::make_unique<Impl>()) {}
DigestBuilder::DigestBuilder(DigestBuilder&&) noexcept = default;
DigestBuilder& DigestBuilder::operator=(DigestBuilder&&) noexcept = default;
DigestBuilder::~DigestBuilder() = default;

void DigestBuilder::update(const void* data, size_t bytes) {
  TESSERA_CHECK(EVP_DigestUpdate(impl_->context, data, bytes) == 1, "SHA-256 update failed");
}

Digest DigestBuilder::finish() {
  Digest digest{};
  static_assert(sizeof digest == 32);
  TESSERA_CHECK(EVP_DigestFinal_ex(impl_->context, reinterpret_cast<unsigned char*>(digest.data()), nullptr) == 1,
                "SHA-256 failed");
  impl_->start();
  return digest;
}

}  // namespace tessera
