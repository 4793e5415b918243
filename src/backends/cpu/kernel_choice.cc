#include "backends/cpu/kernel_choice.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <vector>

#include "backends/cpu/cpu_stream.h"
#if defined(__x86_64__)
#include "backends/cpu/isa/kernels.h"
#endif

namespace tessera::cpu {

const std::vector<std::string>& isa_names() {
  static const std::vector<std::string> names = {"auto", "plain", "avx2", "avx512", "avx512_bf16", "amx_bf16"};
  return names;
}

namespace {

/// A set of products that could serve an element type, in the order of preference where nothing is measured.
struct Candidate {
  const char* name;
  ProductKernels kernels;
};

/// A small product with everything it needs: for the self-check and the probe. Shapes are odd for the check's sake and
/// large enough for the probe to reach the registers' speed.
class Trial {
 public:
  Trial(Element type, int64_t rows, int64_t k, int panel_count)
      : type_(type), rows_(rows), k_(k), x_(static_cast<size_t>(rows * k)), panels_(static_cast<size_t>(panel_count)) {
    uint32_t state = 1;
    const auto number = [&] {
      state = state * 1664525u + 1013904223u;
      return static_cast<float>(static_cast<int32_t>(state) >> 16) * 0x1p-15f;
    };
    for (float& v : x_) v = number();
    element_ = type == kElementF32 ? 4 : 2;
    panel_bytes_ = static_cast<size_t>(kPanel * k * element_);
    memory_.resize(panel_bytes_ * panels_.size() + 64);
    char* first = memory_.data() + (64 - reinterpret_cast<size_t>(memory_.data()) % 64) % 64;
    constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
    for (size_t p = 0; p < panels_.size(); ++p) {
      panels_[p] = first + p * panel_bytes_;
      for (int64_t i = 0; i < kPanel * k; ++i) {
        const float v = number();
        convert(&v, DType::kF32, first + p * panel_bytes_ + static_cast<size_t>(i * element_), kTypes[type], 1);
      }
    }
  }

  std::vector<float> run(const ProductKernels& kernels, int repeats = 1) const {
    std::vector<char> a(static_cast<size_t>(packed_bytes(kernels, rows_, k_)) + 64);
    void* packed = a.data() + (64 - reinterpret_cast<size_t>(a.data()) % 64) % 64;
    kernels.pack_a(x_.data(), kElementF32, k_, rows_, k_, k_, packed);
    const auto ldc = static_cast<int64_t>(panels_.size()) * kPanel;
    std::vector<float> c(static_cast<size_t>(rows_ * ldc));
    for (int i = 0; i < repeats; ++i)
      kernels.multiply({.a = packed,
                        .rows = rows_,
                        .k = k_,
                        .panels = panels_.data(),
                        .panel_count = static_cast<int>(panels_.size()),
                        .k_stride = kPanel * element_ * (type_ == kElementBF16 ? 2 : 1),
                        .c = c.data(),
                        .ldc = ldc});
    return c;
  }

  /// Multiply-add pairs, as FLOP, a second: the best of several short runs.
  double flops(const ProductKernels& kernels) const {
    constexpr int kRuns = 6, kRepeats = 8;
    double best = 1e30;
    for (int i = 0; i < kRuns; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      run(kernels, kRepeats);
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    return 2.0 * kRepeats * static_cast<double>(rows_ * k_ * kPanel) * static_cast<double>(panels_.size()) / best;
  }

 private:
  Element type_;
  int64_t rows_, k_, element_ = 0;
  size_t panel_bytes_ = 0;
  std::vector<float> x_;
  std::vector<char> memory_;
  std::vector<const void*> panels_;
};

/// Sums of 70 products of numbers below 1: f32 rounding moves them by about 1e-5, a broken path by far more.
bool agrees_with_plain(const ProductKernels& kernels, Element type) {
  const Trial trial(type, 19, 70, 3);
  const std::vector<float> expected = trial.run(plain_kernels().products[type]), got = trial.run(kernels);
  for (size_t i = 0; i < got.size(); ++i)
    if (!(std::abs(got[i] - expected[i]) <= 1e-4f)) return false;
  return true;
}

std::string gflops_text(double flops) {
  char text[48];
  std::snprintf(text, sizeof text, "%.0f GFLOP/s a core", flops * 1e-9);
  return text;
}

/// Why a named set can't run here; empty when it can.
std::string missing(const std::string& isa, const CpuFeatures& features) {
  const auto lacks = [&](bool there) {
    return there ? std::string() : "this processor (" + features.model + ") does not offer it to this process";
  };
  if (isa == "avx2") return lacks(features.avx2);
  if (isa == "avx512") return lacks(features.avx512);
  if (isa == "avx512_bf16") return lacks(features.avx512_bf16);
  if (isa == "amx_bf16") return lacks(features.amx_bf16);
  return {};
}

std::vector<Candidate> candidates(Element type) {
  std::vector<Candidate> list;
#if defined(__x86_64__)
  if (type == kElementBF16) {
    list.push_back({"amx_bf16", amx_bf16_products()});
    list.push_back({"avx512_bf16", avx512_bf16_products()});
  }
  list.push_back({"avx512", avx512_kernels().products[type]});
  list.push_back({"avx2", avx2_kernels().products[type]});
#endif
  list.push_back({"plain", plain_kernels().products[type]});
  return list;
}

/// The set that serves products of `type` when `isa` is asked for by name: itself, or the next simpler one that has
/// products of that type.
const Candidate& forced(const std::vector<Candidate>& list, const std::string& isa) {
  const auto named = [&](const std::string& name) {
    return std::find_if(list.begin(), list.end(), [&](const Candidate& c) { return name == c.name; });
  };
  auto found = named(isa);
  if (found == list.end()) found = named("avx512");  // the bf16 sets' other products
  return found == list.end() ? list.back() : *found;
}

struct Chosen {
  ProductKernels kernels;
  KernelChoice choice;
};

Chosen choose_products(Element type, const std::string& isa, const CpuFeatures& features) {
  const std::vector<Candidate> list = candidates(type);
  if (isa != "auto") {
    const Candidate& c = forced(list, isa);
    return {c.kernels, {.kernel = c.name, .reason = "asked for by --isa " + isa}};
  }
  Chosen best;
  double best_flops = 0;
  const Trial trial(type, 48, 512, 8);
  for (const Candidate& c : list) {
    std::string reason = missing(c.name, features);
    if (reason.empty() && std::string(c.name) != "plain" && !agrees_with_plain(c.kernels, type))
      reason = "its self-check against the plain kernel failed";
    double flops = 0;
    if (reason.empty()) {
      // What is certain is not measured: plain and AVX2 lose to anything wider.
      const bool measured = best_flops == 0 || (std::string(c.name) != "plain" && std::string(c.name) != "avx2");
      if (measured) flops = trial.flops(c.kernels);
      reason = measured ? gflops_text(flops) : "simpler";
    }
    if (flops <= best_flops) {
      best.choice.refused.emplace_back(c.name, reason);
      continue;
    }
    if (best_flops > 0) best.choice.refused.emplace_back(best.choice.kernel, best.choice.reason);
    best_flops = flops;
    best.kernels = c.kernels;
    best.choice.kernel = c.name;
    best.choice.reason = reason;
  }
  best.choice.reason = "fastest of those that are there and right: " + best.choice.reason;
  return best;
}

/// The kernels that do not multiply matrices: as wide as it goes.
KernelSet choose_rest(const std::string& isa, const CpuFeatures& features) {
  KernelSet set;
  std::string name = isa;
  if (isa == "avx512_bf16" || isa == "amx_bf16") name = "avx512";
  if (isa == "auto") name = features.avx512 ? "avx512" : features.avx2 ? "avx2" : "plain";
  set.leaf = plain_kernels();
#if defined(__x86_64__)
  if (name == "avx512") set.leaf = avx512_kernels();
  if (name == "avx2") set.leaf = avx2_kernels();
#endif
  set.rest.kernel = name;
  set.rest.reason = isa == "auto" ? "the widest that is there" : "asked for by --isa " + isa;
  for (const char* other : {"avx512", "avx2"})
    if (isa == "auto" && !missing(other, features).empty()) set.rest.refused.emplace_back(other, missing(other, features));
  return set;
}

}  // namespace

std::vector<ProductKernels> available_products(Element type, const CpuFeatures& features) {
  std::vector<ProductKernels> list;
  for (const Candidate& c : candidates(type))
    if (missing(c.name, features).empty()) list.push_back(c.kernels);
  return list;
}

Result<KernelSet> choose_kernels(const std::string& isa, const CpuFeatures& features) {
  if (std::find(isa_names().begin(), isa_names().end(), isa) == isa_names().end())
    return invalid_input("--isa is \"" + isa + "\"; expected auto, plain, avx2, avx512, avx512_bf16 or amx_bf16");
  if (const std::string reason = missing(isa, features); !reason.empty())
    return invalid_input("--isa " + isa + ": " + reason + "; choose auto");
  KernelSet set = choose_rest(isa, features);
  for (Element type : {kElementF32, kElementBF16, kElementF16}) {
    Chosen chosen = choose_products(type, isa, features);
    if (isa == "amx_bf16" && type == kElementBF16 && !agrees_with_plain(chosen.kernels, type))
      return invalid_input("--isa amx_bf16: its self-check against the plain kernel failed on this processor; choose auto");
    set.leaf.products[type] = chosen.kernels;
    set.products[type] = std::move(chosen.choice);
  }
  return set;
}

}  // namespace tessera::cpu
