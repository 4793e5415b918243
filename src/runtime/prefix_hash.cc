#include "runtime/prefix_hash.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "runtime/token_request.h"

namespace tessera {
namespace {

// Gathers fields of fixed size, so that the hash is called once a piece.
struct Packer {
  DigestBuilder& builder;
  std::array<unsigned char, 1024> bytes;
  size_t fill = 0;

  template <class T>
  void put(const T& value) {
    if (fill + sizeof(T) > bytes.size()) flush();
    std::memcpy(bytes.data() + fill, &value, sizeof(T));
    fill += sizeof(T);
  }
  void flush() {
    builder.update(bytes.data(), fill);
    fill = 0;
  }
};

constexpr int32_t kPictureStarts = -1;  // followed by the key and the place inside the picture
constexpr int32_t kPictureGoesOn = -2;

}  // namespace

Digest PrefixHasher::root(const std::string& salt) {
  builder_.update("kv prefix", 9);
  builder_.update(salt.data(), salt.size());
  return builder_.finish();
}

Digest PrefixHasher::next(const Digest& previous, const TokenRequest& request, std::span<const int32_t> generated,
                          int64_t first) {
  Packer packer{builder_, {}, 0};
  packer.put(previous);
  const auto prompt_length = static_cast<int64_t>(request.prompt.size());
  const int64_t prompt_class = rope_class(*rope_, prompt_length);
  auto image = std::find_if(request.images.begin(), request.images.end(),
                            [&](const PromptImage& i) { return i.first + i.tokens > first; });
  bool inside = false;
  for (int64_t p = first; p < first + block_size_; ++p) {
    while (image != request.images.end() && p >= image->first + image->tokens) ++image, inside = false;
    if (image != request.images.end() && p >= image->first) {
      packer.put(inside ? kPictureGoesOn : kPictureStarts);
      if (!inside) packer.put(image->key), packer.put(p - image->first);
      inside = true;
    } else {
      packer.put(p < prompt_length ? request.prompt[static_cast<size_t>(p)]
                                   : generated[static_cast<size_t>(p - prompt_length)]);
    }
    packer.put(p < prompt_length ? prompt_class : rope_class(*rope_, p + 1));
  }
  packer.flush();
  return builder_.finish();
}

std::vector<Digest> PrefixHasher::prompt(const TokenRequest& request) {
  std::vector<Digest> digests;
  const auto blocks = static_cast<int64_t>(request.prompt.size()) / block_size_;
  digests.reserve(static_cast<size_t>(blocks));
  Digest chain = root(request.cache_salt);
  for (int64_t b = 0; b < blocks; ++b) digests.push_back(chain = next(chain, request, {}, b * block_size_));
  return digests;
}

}  // namespace tessera
