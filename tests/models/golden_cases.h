#pragma once

#include <string>
#include <vector>

#include "core/json.h"
#include "core/safetensors.h"
#include "tests/support/fixtures.h"
#include "vision/decode.h"
#include "vision/tile.h"

namespace tessera::testing {

/// One case of a golden.json.
struct GoldenCase {
  std::string name;
  std::vector<std::string> images;
  int max_dynamic_patch = 12;
  std::vector<std::pair<int, int>> grid;
  std::vector<int32_t> prompt_ids;
  int32_t image_id = -1;
  int64_t image_tokens = 0;
  std::vector<int32_t> greedy_ids;
  std::vector<std::vector<std::pair<int32_t, double>>> top_logprobs;
};

struct Golden {
  std::string folder;
  std::vector<int32_t> eos_ids;
  int64_t row_step = 1;
  std::vector<GoldenCase> cases;
  std::string tensors;  ///< path of golden.safetensors
};

inline std::vector<int32_t> ids_of(const Json& list) {
  std::vector<int32_t> ids;
  for (const Json& id : list.as_array()) ids.push_back(static_cast<int32_t>(id.as_int64()));
  return ids;
}

inline GoldenCase read_case(const Json& json, const std::string& folder) {
  GoldenCase c;
  c.name = json.find("name")->as_string();
  for (const Json& image : json.find("images")->as_array()) c.images.push_back(folder + "/" + image.as_string());
  c.max_dynamic_patch = static_cast<int>(json.find("max_dynamic_patch")->as_int64());
  for (const Json& g : json.find("grid")->as_array())
    c.grid.emplace_back(g.as_array()[0].as_int64(), g.as_array()[1].as_int64());
  c.prompt_ids = ids_of(*json.find("prompt_ids"));
  c.greedy_ids = ids_of(*json.find("greedy_ids"));
  c.image_tokens = json.find("image_tokens")->as_int64();
  const auto& runs = json.find("image_token_positions")->as_array();
  if (!runs.empty()) c.image_id = c.prompt_ids.at(static_cast<size_t>(runs[0].as_array()[0].as_int64()));
  for (const Json& step : json.find("top_logprobs")->as_array()) {
    c.top_logprobs.emplace_back();
    for (const Json& pair : step.as_array())
      c.top_logprobs.back().emplace_back(pair.as_array()[0].as_int64(), pair.as_array()[1].as_double());
  }
  return c;
}

inline Golden read_golden(const std::string& model) {
  Golden golden;
  golden.folder = fixture_path("models/" + model);
  const Json json = Json::parse_file(golden.folder + "/golden.json").value();
  golden.eos_ids = ids_of(*json.find("eos_ids"));
  golden.tensors = golden.folder + "/" + json.find("tensors")->as_string();
  const Safetensors tensors = Safetensors::open(golden.tensors).value();
  for (const auto& [key, value] : tensors.metadata())
    if (key == "row_step") golden.row_step = std::stoll(value);
  for (const Json& c : json.find("cases")->as_array()) golden.cases.push_back(read_case(c, golden.folder));
  return golden;
}

/// All tiles of a case, cut from its pictures.
inline std::vector<uint8_t> tiles_of(const GoldenCase& c, int image_size) {
  std::vector<uint8_t> tiles;
  for (size_t i = 0; i < c.images.size(); ++i) {
    const std::string file = read_file(c.images[i], size_t{64} << 20).value();
    const Image image = decode_image(std::as_bytes(std::span(file)), {}, ExifOrientation::kIgnore).value();
    const TiledImage cut =
        cut_tiles(image, {.image_size = image_size, .max_tiles = c.max_dynamic_patch}, ResizeIsa::kAuto).value();
    if (cut.grid.columns != c.grid[i].first || cut.grid.rows != c.grid[i].second)
      throw std::runtime_error(c.images[i] + ": another grid");
    tiles.insert(tiles.end(), cut.tiles.begin(), cut.tiles.end());
  }
  return tiles;
}

inline std::vector<float> floats_of(const Safetensors& file, const std::string& name) {
  const SafetensorsEntry* tensor = file.find(name);
  if (!tensor) throw std::runtime_error(file.path() + ": no " + name);
  std::vector<float> values(static_cast<size_t>(tensor->elements()));
  file.read(*tensor, 0, tensor->elements(), DType::kF32, values.data());
  return values;
}

}  // namespace tessera::testing
