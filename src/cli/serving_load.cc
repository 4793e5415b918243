#include "cli/serving_load.h"

#include <array>
#include <cmath>
#include <random>

#include "vision/jpeg_writer.h"

namespace tessera::cli {
namespace {

constexpr std::array<const char*, 24> kWords = {"the",   "house", "green", "water", "light", "small", "table", "river",
                                                "under", "round", "seven", "paper", "stone", "white", "glass", "music",
                                                "north", "plant", "chair", "field", "metal", "sound", "cloud", "bread"};

std::string random_words(int64_t count, std::mt19937_64& random) {
  std::string text;
  for (int64_t i = 0; i < count; ++i) {
    if (i > 0) text += ' ';
    text += kWords[random() % kWords.size()];
  }
  return text;
}

// Broad colour waves with fine noise: about as large as a photograph of this size when encoded.
Image random_picture(int width, int height, std::mt19937_64& random) {
  Image image;
  image.width = width;
  image.height = height;
  image.rgb.resize(size_t{3} * static_cast<size_t>(width) * static_cast<size_t>(height));
  double frequency[3], phase[3];
  for (int c = 0; c < 3; ++c) {
    frequency[c] = 2.0 + static_cast<double>(random() % 1000) / 100;
    phase[c] = static_cast<double>(random() % 628) / 100;
  }
  // The wave depends on x + (c + 1) * y alone: one sine for each value, not one for each sample, or a thousand pictures
  // would take a minute to make.
  std::vector<double> wave[3];
  for (int c = 0; c < 3; ++c)
    for (int at = 0; at < width + (c + 1) * height; ++at)
      wave[c].push_back(128 + 100 * std::sin(phase[c] + frequency[c] * at / width));
  uint8_t* out = image.rgb.data();
  uint32_t noise = static_cast<uint32_t>(random());
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      for (int c = 0; c < 3; ++c) {
        noise = noise * 1664525u + 1013904223u;
        *out++ = static_cast<uint8_t>(wave[c][static_cast<size_t>(x + (c + 1) * y)] + static_cast<double>(noise >> 28));
      }
  return image;
}

std::pair<int, int> picture_size(const std::string& kind, std::mt19937_64& random) {
  if (kind == "seven") return random() % 2 ? std::pair(1344, 896) : std::pair(896, 1344);
  static constexpr std::array<std::pair<int, int>, 6> kSizes = {
      {{448, 448}, {896, 448}, {896, 896}, {1344, 896}, {1792, 1344}, {448, 1792}}};
  return kSizes[random() % kSizes.size()];
}

}  // namespace

Result<std::vector<Request>> make_serving_load(const ServingMix& mix, const std::function<void(int64_t)>& made) {
  std::mt19937_64 random(mix.seed);
  const std::string shared = random_words(mix.text_tokens, random);
  std::vector<Request> load;
  for (int64_t i = 0; i < mix.requests; ++i) {
    Request request;
    request.id = std::to_string(i);
    Message user{"user", {}};
    if (mix.pictures != "none") {
      const auto [width, height] = picture_size(mix.pictures, random);
      TESSERA_ASSIGN_OR_RETURN(std::string jpeg, encode_jpeg(random_picture(width, height, random), 85));
      request.images.push_back({.bytes = std::move(jpeg), .name = "picture " + request.id});
      user.content.push_back({"", 0});
    }
    const bool common = static_cast<double>(random() % 10000) < mix.shared_prefix * 10000;
    if (common) request.messages.push_back({"system", {{shared, -1}}});
    user.content.push_back({random_words(mix.text_tokens, random), -1});
    request.messages.push_back(std::move(user));
    request.max_new_tokens = mix.new_tokens;
    request.ignore_eos = true;
    load.push_back(std::move(request));
    if (made) made(i + 1);
  }
  return load;
}

std::vector<double> arrival_times(int64_t requests, double rate, uint64_t seed) {
  std::vector<double> times(static_cast<size_t>(requests), 0.0);
  if (rate <= 0) return times;
  std::mt19937_64 random(seed);
  std::exponential_distribution<double> gap(rate);
  double now = 0;
  for (double& time : times) time = now += gap(random);
  return times;
}

}  // namespace tessera::cli
