#include <array>
#include <cmath>
#include <cstring>

#include "models/tensor_store.h"

namespace tessera {
namespace {

// splitmix64's finaliser: a counter in, 64 well mixed bits out.
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t hash_name(const std::string& name, uint64_t seed) {
  uint64_t h = mix(seed + 0x9e3779b97f4a7c15u);
  for (const char c : name) h = mix(h ^ static_cast<unsigned char>(c));
  return h;
}

bool ends_with(const std::string& text, std::string_view end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Values are uniform in [centre - spread, centre + spread].
struct Distribution {
  double centre = 0;
  double spread = 1;
};

Distribution distribution_of(const std::string& name, std::span<const int64_t> shape) {
  if (ends_with(name, ".bias")) return {0, 0.02};
  if (ends_with(name, ".ls1") || ends_with(name, ".ls2")) return {0.1, 0.05};
  if (name.find("class_embedding") != std::string::npos || name.find("position_embedding") != std::string::npos)
    return {0, 0.5};
  if (shape.size() == 1) return {1, 0.1};  // norm weights
  if (name.find("embed") != std::string::npos && shape.size() == 2) return {0, 1};
  double inputs = 1;
  for (size_t i = 1; i < shape.size(); ++i) inputs *= static_cast<double>(shape[i]);
  return {0, std::sqrt(3 / inputs)};  // variance 1 / inputs: a product keeps its input's variance
}

// Eight elements a hash, one byte each, through a table of 256 values: generation runs at the speed of the stores.
class RandomReader final : public TensorReader {
 public:
  RandomReader(uint64_t key, Distribution d) : key_(key) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const double unit = (2.0 * static_cast<double>(byte) - 255) / 256;
      bf16_[byte] = to_bf16(static_cast<float>(d.centre + d.spread * unit));
      f32_[byte] = to_float(bf16_[byte]);
      f16_[byte] = to_f16(f32_[byte]);
    }
  }

  void read(int64_t begin, int64_t count, DType dtype, void* out) const override {
    switch (dtype) {
      case DType::kF32: return fill(begin, count, f32_, static_cast<float*>(out));
      case DType::kBF16: return fill(begin, count, bf16_, static_cast<bf16*>(out));
      case DType::kF16: return fill(begin, count, f16_, static_cast<f16*>(out));
      default: TESSERA_CHECK(false, std::string("random tensor as ") + dtype_name(dtype));
    }
  }

 private:
  uint64_t block(int64_t index) const { return mix(key_ + static_cast<uint64_t>(index) * 0x9e3779b97f4a7c15u); }

  template <class T>
  void fill(int64_t begin, int64_t count, const std::array<T, 256>& table, T* out) const {
    int64_t i = begin;
    const int64_t end = begin + count;
    const auto single = [&](int64_t element) {
      *out++ = table[(block(element / 8) >> (element % 8 * 8)) & 0xff];
    };
    for (; i < end && i % 8 != 0; ++i) single(i);
    for (; i + 8 <= end; i += 8) {
      uint64_t bits = block(i / 8);
      for (int lane = 0; lane < 8; ++lane, bits >>= 8) *out++ = table[bits & 0xff];
    }
    for (; i < end; ++i) single(i);
  }

  uint64_t key_;
  std::array<float, 256> f32_{};
  std::array<bf16, 256> bf16_{};
  std::array<f16, 256> f16_{};
};

}  // namespace

bool RandomStore::contains(const std::string& name) const {
  // One generation of names only, OpenGVLab's, so that a loader that looks for the others finds none.
  return name == head_ || name.rfind("vision_model.", 0) == 0 || name.rfind("mlp1.", 0) == 0 ||
         name.rfind("language_model.model.", 0) == 0;
}

Result<std::shared_ptr<const TensorReader>> RandomStore::open(const std::string& name,
                                                              std::span<const int64_t> shape) const {
  return std::shared_ptr<const TensorReader>(
      std::make_shared<RandomReader>(hash_name(name, seed_), distribution_of(name, shape)));
}

}  // namespace tessera
