#include "text/tokenizer_config.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>

namespace tessera {
namespace {
namespace fs = std::filesystem;

constexpr const char* kInternVlTokens[] = {"<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>",
                                           "<ref>", "</ref>", "<box>",         "</box>"};

bool is_internvl_token(const std::string& content) {
  return std::find(std::begin(kInternVlTokens), std::end(kInternVlTokens), content) != std::end(kInternVlTokens);
}

bool looks_like_control(const std::string& content) {
  return content.size() > 4 && content.compare(0, 2, "<|") == 0 && content.compare(content.size() - 2, 2, "|>") == 0;
}

// "bos_token": "<s>" or {"content": "<s>", ...}; nullptr and other types are no token.
std::optional<std::string> token_content(const Json* value) {
  if (value && value->is_object()) value = value->find("content");
  if (value && value->is_string()) return value->as_string();
  return std::nullopt;
}

void collect_special_names(const Json& object, std::set<std::string>* names) {
  for (const char* key : {"bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token"})
    if (auto content = token_content(object.find(key))) names->insert(*content);
  if (const Json* list = object.find("additional_special_tokens"); list && list->is_array())
    for (const Json& entry : list->as_array())
      if (auto content = token_content(&entry)) names->insert(*content);
}

Result<std::vector<AddedToken>> parse_decoder_map(const Json& map) {
  std::vector<AddedToken> added;
  if (!map.is_object()) return invalid_input("[tokenizer_config.json] added_tokens_decoder is no object");
  for (const auto& [key, value] : map.as_object()) {
    int64_t id = -1;
    const auto end = std::from_chars(key.data(), key.data() + key.size(), id);
    if (end.ec != std::errc() || end.ptr != key.data() + key.size())
      return invalid_input("[tokenizer_config.json] added_tokens_decoder has the key " + shown(key) +
                           "; expected a token id");
    TESSERA_ASSIGN_OR_RETURN(AddedToken token, parse_added_token(value, "tokenizer_config.json", id));
    added.push_back(std::move(token));
  }
  return added;
}

}  // namespace

Result<AddedToken> parse_added_token(const Json& object, const std::string& file, int64_t id) {
  if (!object.is_object()) return invalid_input("[" + file + "] an added token is no object");
  const JsonReader reader(object, file);
  AddedToken token;
  if (id < 0) {
    TESSERA_ASSIGN_OR_RETURN(id, reader.integer("id", 0, kMaxTokenId));
  }
  if (id > kMaxTokenId)
    return invalid_input("[" + file + "] an added token has id " + std::to_string(id) + "; expected 0.." +
                         std::to_string(kMaxTokenId));
  token.id = static_cast<int32_t>(id);
  TESSERA_ASSIGN_OR_RETURN(token.content, reader.string("content"));
  if (token.content.empty() || token.content.size() > kMaxPieceBytes)
    return invalid_input("[" + file + "] the added token with id " + std::to_string(id) + " has " +
                         std::to_string(token.content.size()) + " bytes; expected 1.." +
                         std::to_string(kMaxPieceBytes));
  TESSERA_ASSIGN_OR_RETURN(token.special, reader.boolean_or("special", false));
  TESSERA_ASSIGN_OR_RETURN(token.lstrip, reader.boolean_or("lstrip", false));
  TESSERA_ASSIGN_OR_RETURN(token.rstrip, reader.boolean_or("rstrip", false));
  TESSERA_ASSIGN_OR_RETURN(token.single_word, reader.boolean_or("single_word", false));
  TESSERA_ASSIGN_OR_RETURN(token.normalized, reader.boolean_or("normalized", !token.special));
  token.special = token.special || is_internvl_token(token.content);
  return token;
}

Status parse_tokenizer_config(const Json& json, TokenizerConfig* config) {
  if (!json.is_object()) return invalid_input("[tokenizer_config.json] is no JSON object");
  const JsonReader reader(json, "tokenizer_config.json");
  TESSERA_ASSIGN_OR_RETURN(config->tokenizer_class, reader.string_or("tokenizer_class", ""));
  const auto boolean = [&](const char* key, std::optional<bool>* value) -> Status {
    const Json* found = json.find(key);
    if (!found || found->is_null()) return {};
    TESSERA_ASSIGN_OR_RETURN(*value, reader.boolean_or(key, false));
    return {};
  };
  TESSERA_RETURN_IF_ERROR(boolean("add_bos_token", &config->add_bos_token));
  TESSERA_RETURN_IF_ERROR(boolean("add_prefix_space", &config->add_prefix_space));
  TESSERA_RETURN_IF_ERROR(boolean("legacy", &config->legacy));
  config->bos_token = token_content(json.find("bos_token"));
  collect_special_names(json, &config->special_names);
  if (const Json* map = json.find("added_tokens_decoder"); map && !map->is_null()) {
    TESSERA_ASSIGN_OR_RETURN(config->added, parse_decoder_map(*map));
    config->flags_known = true;
  }
  return {};
}

Status parse_special_tokens_map(const Json& json, TokenizerConfig* config) {
  if (!json.is_object()) return invalid_input("[special_tokens_map.json] is no JSON object");
  collect_special_names(json, &config->special_names);
  if (!config->bos_token) config->bos_token = token_content(json.find("bos_token"));
  return {};
}

// added_tokens.json: {"content": id}, without flags.
Status parse_added_tokens(const Json& added, TokenizerConfig* config) {
  if (!added.is_object()) return invalid_input("[added_tokens.json] is no JSON object");
  std::map<std::string, int32_t> known;
  for (const AddedToken& token : config->added) known.emplace(token.content, token.id);
  for (const auto& [content, value] : added.as_object()) {
    const int64_t id = value.fits_int64() ? value.as_int64() : -1;
    if (id < 0 || id > kMaxTokenId)
      return invalid_input("[added_tokens.json] the id of " + shown(content) + " is " + shown(value.dump()) +
                           "; expected 0.." + std::to_string(kMaxTokenId));
    if (content.empty() || content.size() > kMaxPieceBytes)
      return invalid_input("[added_tokens.json] the token with id " + std::to_string(id) + " has " +
                           std::to_string(content.size()) + " bytes; expected 1.." + std::to_string(kMaxPieceBytes));
    const auto found = known.find(content);
    if (found != known.end() && found->second == id) continue;
    if (found != known.end())
      return invalid_input("[added_tokens.json] " + shown(content) + " has id " + std::to_string(id) +
                           ", in tokenizer_config.json " + std::to_string(found->second));
    const bool special = config->special_names.count(content) > 0 || is_internvl_token(content) ||
                         (!config->flags_known && looks_like_control(content));
    config->added.push_back({.id = static_cast<int32_t>(id), .content = content, .special = special});
  }
  return {};
}

Result<TokenizerConfig> read_tokenizer_config(const std::string& directory) {
  using Parse = Status (*)(const Json&, TokenizerConfig*);
  static constexpr std::pair<const char*, Parse> kFiles[] = {{"tokenizer_config.json", parse_tokenizer_config},
                                                             {"special_tokens_map.json", parse_special_tokens_map},
                                                             {"added_tokens.json", parse_added_tokens}};
  TokenizerConfig config;
  for (const auto& [name, parse] : kFiles) {
    const fs::path path = fs::path(directory) / name;
    std::error_code ignored;
    if (!fs::exists(path, ignored)) continue;
    TESSERA_ASSIGN_OR_RETURN(const Json json, Json::parse_file(path.string(), {.max_bytes = kMaxTokenizerFileBytes}));
    TESSERA_RETURN_IF_ERROR(parse(json, &config));
  }
  return config;
}

Status apply_added_tokens(TokenizerData* data, const std::string& file, const std::vector<AddedToken>& added) {
  std::map<int32_t, size_t> by_id;  // into data->added
  for (size_t i = 0; i < data->added.size(); ++i) by_id.emplace(data->added[i].id, i);
  for (const AddedToken& token : added) {
    if (const auto known = data->ids.find(token.content); known != data->ids.end() && known->second != token.id)
      return invalid_input("[" + file + "] the added token " + shown(token.content) + " has id " +
                           std::to_string(token.id) + ", in the vocabulary " + std::to_string(known->second));
    if (const auto found = by_id.find(token.id); found != by_id.end()) {
      AddedToken& earlier = data->added[found->second];
      if (earlier.content != token.content)
        return invalid_input("[" + file + "] id " + std::to_string(token.id) + " stands for two added tokens, " +
                             shown(earlier.content) + " and " + shown(token.content));
      earlier = token;
    } else {
      by_id.emplace(token.id, data->added.size());
      data->added.push_back(token);
    }
    const auto index = static_cast<size_t>(token.id);
    if (data->pieces.size() <= index) data->pieces.resize(index + 1);
    Piece& piece = data->pieces[index];
    if (token.special) {
      piece = {token.content, PieceKind::kControl, false};
    } else if (piece.kind == PieceKind::kNone || !data->ids.count(token.content)) {
      piece = {token.content, PieceKind::kUnmatched, false};
    }
    data->ids.emplace(token.content, token.id);
  }
  return {};
}

Status apply_config_tokens(TokenizerData* data, const TokenizerConfig& config) {
  TESSERA_RETURN_IF_ERROR(apply_added_tokens(data, "tokenizer_config.json", config.added));
  std::set<int32_t> known;
  for (const AddedToken& token : data->added) known.insert(token.id);
  std::vector<AddedToken> named;
  std::set<std::string> names = config.special_names;
  names.insert(std::begin(kInternVlTokens), std::end(kInternVlTokens));
  for (const std::string& name : names) {
    const auto found = data->ids.find(name);
    if (!name.empty() && found != data->ids.end() && !known.count(found->second))
      named.push_back({.id = found->second, .content = name, .special = true});
  }
  return apply_added_tokens(data, "tokenizer_config.json", named);
}

}  // namespace tessera
