#include "tests/text/text_fixtures.h"

#include <lzma.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>

#include "tests/support/fixtures.h"
#include "text/tokenizer_data.h"

namespace tessera::testing {
namespace fs = std::filesystem;

std::string file_content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

void write_file(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

std::string xz_content(const std::string& path) {
  const std::string packed = file_content(path);
  lzma_stream stream = LZMA_STREAM_INIT;
  if (lzma_stream_decoder(&stream, UINT64_MAX, 0) != LZMA_OK) throw std::runtime_error("lzma");
  stream.next_in = reinterpret_cast<const uint8_t*>(packed.data());
  stream.avail_in = packed.size();
  std::string content;
  std::string buffer(1 << 16, '\0');
  lzma_ret state = LZMA_OK;
  while (state == LZMA_OK) {
    stream.next_out = reinterpret_cast<uint8_t*>(buffer.data());
    stream.avail_out = buffer.size();
    state = lzma_code(&stream, LZMA_FINISH);
    content.append(buffer, 0, buffer.size() - stream.avail_out);
  }
  lzma_end(&stream);
  if (state != LZMA_STREAM_END) throw std::runtime_error("damaged xz file " + path);
  return content;
}

std::vector<Json> json_lines(const std::string& path) {
  std::vector<Json> lines;
  const std::string content = file_content(path);
  for (size_t at = 0; at < content.size();) {
    const size_t end = std::min(content.find('\n', at), content.size());
    auto json = Json::parse_lenient_surrogates(std::string_view(content).substr(at, end - at));
    if (!json.ok()) throw std::runtime_error(path + ": " + json.status().message());
    lines.push_back(std::move(*json));
    at = end + 1;
  }
  return lines;
}

std::vector<int32_t> ids_of(const Json& list) {
  std::vector<int32_t> ids;
  for (const Json& id : list.as_array()) ids.push_back(static_cast<int32_t>(id.as_int64()));
  return ids;
}

namespace {

Json fixture_index() { return Json::parse_file(fixture_path("tokenizers/tokenizers.json")).value(); }

Json added_token(int64_t id, const std::string& content) {
  Json token = Json::object();
  token.set("id", id);
  token.set("content", content);
  token.set("special", true);
  token.set("normalized", false);
  return token;
}

// Splits tokenizer.json into the files of the older layout.
void write_vocab_layout(const std::string& directory, const Json& json) {
  const Json& model = *json.find("model");
  write_file(directory + "/vocab.json", model.find("vocab")->dump());
  std::string merges = "#version: 0.2\n";
  for (const Json& merge : model.find("merges")->as_array())
    merges += merge.as_array()[0].as_string() + " " + merge.as_array()[1].as_string() + "\n";
  write_file(directory + "/merges.txt", merges);
  Json added = Json::object();
  for (const Json& token : json.find("added_tokens")->as_array())
    added.set(token.find("content")->as_string(), token.find("id")->as_int64());
  write_file(directory + "/added_tokens.json", added.dump());
}

std::string make_directory(const Json& entry, const std::string& layout) {
  const std::string directory = scratch_dir();
  for (const auto& [name, source] : entry.find("files")->as_object()) {
    const std::string path = fixture_path("tokenizers/" + source.as_string());
    const bool packed = path.size() > 3 && path.compare(path.size() - 3, 3, ".xz") == 0;
    write_file(directory + "/" + name, packed ? xz_content(path) : file_content(path));
  }
  const std::string json_path = directory + "/tokenizer.json";
  if (!fs::exists(json_path)) return directory;
  Json json = Json::parse_file(json_path).value();
  for (auto& [key, value] : json.as_object())
    if (key == "added_tokens")
      for (const auto& [content, id] : entry.find("extra_special_tokens")->as_object())
        value.push_back(added_token(id.as_int64(), content));
  if (layout == "vocab.json") {
    write_vocab_layout(directory, json);
    fs::remove(json_path);
  } else {
    write_file(json_path, json.dump());
  }
  return directory;
}

void put_varint(std::string* out, uint64_t value) {
  for (; value >= 128; value >>= 7) out->push_back(static_cast<char>(value | 128));
  out->push_back(static_cast<char>(value));
}

void put_bytes(std::string* out, int field, const std::string& bytes) {
  put_varint(out, static_cast<uint64_t>(field) << 3 | 2);
  put_varint(out, bytes.size());
  *out += bytes;
}

void put_number(std::string* out, int field, uint64_t value) {
  put_varint(out, static_cast<uint64_t>(field) << 3);
  put_varint(out, value);
}

}  // namespace

std::string tokenizer_directory(const std::string& name, const std::string& layout) {
  static std::map<std::string, std::string> made;
  std::string& directory = made[name + "/" + layout];
  if (!directory.empty()) return directory;
  const Json index = fixture_index();
  for (const Json& entry : index.find("tokenizers")->as_array())
    if (entry.find("name")->as_string() == name) directory = make_directory(entry, layout);
  return directory;
}

const Tokenizer& fixture_tokenizer(const std::string& name, const std::string& layout) {
  static std::map<std::string, std::unique_ptr<Tokenizer>> loaded;
  auto& tokenizer = loaded[name + "/" + layout];
  if (!tokenizer) tokenizer = Tokenizer::load(tokenizer_directory(name, layout)).value();
  return *tokenizer;
}

std::vector<TokenizerFixture> tokenizer_fixtures() {
  std::vector<TokenizerFixture> fixtures;
  const Json index = fixture_index();
  for (const Json& entry : index.find("tokenizers")->as_array()) {
    TokenizerFixture fixture{entry.find("name")->as_string(), {}};
    for (const Json& layout : entry.find("layouts")->as_array()) fixture.layouts.push_back(layout.as_string());
    fixtures.push_back(std::move(fixture));
  }
  return fixtures;
}

Json small_tokenizer_json() {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte)
    vocab.as_object().emplace_back(stand_ins_of_bytes(std::string(1, static_cast<char>(byte))), Json(byte));
  int id = 256;
  for (const char* token : {"ab", "abc", "de", "Ġa"}) vocab.as_object().emplace_back(token, Json(id++));
  auto parsed = Json::parse(R"JSON({"version": "1.0", "added_tokens": [
    {"id": 260, "content": "<|end|>", "special": true, "lstrip": false, "rstrip": true, "single_word": false,
     "normalized": false},
    {"id": 261, "content": "<think>", "special": false, "lstrip": false, "rstrip": false, "single_word": false,
     "normalized": false}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
    "post_processor": null, "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {}, "merges": ["a b", "ab c", ["d", "e"], "Ġ a"]}})JSON");
  for (auto& [key, value] : parsed->as_object())
    if (key == "model") value.set("vocab", vocab);
  return *parsed;
}

Result<std::unique_ptr<Tokenizer>> load_files(const std::vector<std::pair<std::string, std::string>>& files) {
  const std::string directory = scratch_dir();
  for (const auto& [name, content] : files) write_file(directory + "/" + name, content);
  return Tokenizer::load(directory);
}

std::string sentencepiece_bytes(const std::vector<ModelPieceSpec>& pieces, bool dummy_prefix,
                                const std::string& extra_fields) {
  std::vector<ModelPieceSpec> all = {{"<unk>", 0, 2}, {"<s>", 0, 3}, {"</s>", 0, 3}};
  for (int byte = 0; byte < 256; ++byte) {
    char spelling[8];
    std::snprintf(spelling, sizeof spelling, "<0x%02X>", byte);
    all.push_back({spelling, 0, 6});
  }
  all.insert(all.end(), pieces.begin(), pieces.end());
  std::string model;
  for (const ModelPieceSpec& piece : all) {
    std::string message;
    put_bytes(&message, 1, piece.spelling);
    message.push_back(static_cast<char>(2 << 3 | 5));
    message.append(reinterpret_cast<const char*>(&piece.score), 4);
    put_number(&message, 3, static_cast<uint64_t>(piece.type));
    put_bytes(&model, 1, message);
  }
  std::string trainer, normalizer;
  put_number(&trainer, 3, 2);
  put_number(&trainer, 35, 1);
  put_bytes(&model, 2, trainer);
  put_bytes(&normalizer, 1, "identity");
  put_number(&normalizer, 3, dummy_prefix);
  put_number(&normalizer, 4, 0);
  put_bytes(&model, 3, normalizer);
  return model + extra_fields;
}

}  // namespace tessera::testing
