#include "text/tokenizer_files.h"
#include "text/unicode.h"

namespace tessera {
namespace {

constexpr const char* kFile = "tokenizer.json";

Status refuse(const std::string& what) { return invalid_input("[tokenizer.json] " + what); }

std::string type_of(const Json& object) {
  const Json* type = object.find("type");
  return type && type->is_string() ? type->as_string() : "";
}

bool is_set(const Json& object, std::string_view key) {
  const Json* value = object.find(key);
  return value && value->is_bool() && value->as_bool();
}

bool is_string(const Json* value, std::string_view text) {
  return value && value->is_string() && value->as_string() == text;
}

const Json* present(const Json& object, std::string_view key) {
  const Json* value = object.find(key);
  return value && !value->is_null() ? value : nullptr;
}

// The parts of a "Sequence", or the object itself as its only part.
Result<std::vector<const Json*>> parts_of(const Json& object, const char* list_name) {
  if (type_of(object) != "Sequence") return std::vector<const Json*>{&object};
  const Json* list = object.find(list_name);
  if (!list || !list->is_array()) return refuse(std::string("a Sequence lacks its ") + list_name);
  std::vector<const Json*> parts;
  for (const Json& part : list->as_array()) parts.push_back(&part);
  return parts;
}

// Prepend and Replace are how SentencePiece's dummy prefix and visible spaces are written here.
Status read_normalizer(const Json& object, TokenizerData* data, bool* replaces_spaces) {
  TESSERA_ASSIGN_OR_RETURN(const auto parts, parts_of(object, "normalizers"));
  for (const Json* part : parts) {
    const std::string type = type_of(*part);
    const Json* pattern = part->find("pattern");
    if (type == "NFC") {
      data->nfc = true;
    } else if (type == "Prepend" && is_string(part->find("prepend"), kSpaceMark)) {
      data->prefix = PrefixRule::kEveryText;
    } else if (type == "Replace" && pattern && is_string(pattern->find("String"), " ") &&
               is_string(part->find("content"), kSpaceMark)) {
      *replaces_spaces = true;
    } else {
      return refuse("the normalizer " + shown(part->dump()) + " is not supported");
    }
  }
  return {};
}

Status read_metaspace(const Json& part, TokenizerData* data, bool* replaces_spaces) {
  if (part.find("replacement") && !is_string(part.find("replacement"), kSpaceMark))
    return refuse("Metaspace with another replacement than U+2581 is not supported");
  *replaces_spaces = true;
  data->prefix_unless_there = true;
  const Json* scheme = present(part, "prepend_scheme");
  if (is_string(scheme, "never") || (!scheme && part.find("add_prefix_space") && !is_set(part, "add_prefix_space")))
    data->prefix = PrefixRule::kNever;
  else if (!scheme || is_string(scheme, "always"))
    data->prefix = PrefixRule::kEveryText;
  else if (is_string(scheme, "first"))
    data->prefix = PrefixRule::kFirstText;
  else
    return refuse("Metaspace's prepend_scheme " + shown(scheme->dump()) + " is not supported");
  const Json* split = present(part, "split");
  data->cut_at_spaces = !split || is_set(part, "split");
  return {};
}

Status read_byte_level(const Json& part, TokenizerData* data, bool* byte_level) {
  *byte_level = true;
  const Json* use_regex = present(part, "use_regex");
  if (!use_regex || is_set(part, "use_regex")) {
    if (data->pre_tokenizer != PreTokenizer::kNone) return refuse("two pre-tokenizer expressions are not supported");
    data->pre_tokenizer = PreTokenizer::kGpt2;
  }
  const Json* prefix = present(part, "add_prefix_space");
  if (!prefix || is_set(part, "add_prefix_space")) {
    data->prefix = PrefixRule::kEveryText;
    data->prefix_unless_there = true;
  }
  return {};
}

Status read_split(const Json& part, TokenizerData* data) {
  const Json* pattern = part.find("pattern");
  const Json* regex = pattern ? pattern->find("Regex") : nullptr;
  const auto kind = regex && regex->is_string() ? pre_tokenizer_by_regex(regex->as_string()) : std::nullopt;
  if (!kind || is_set(part, "invert") || !is_string(part.find("behavior"), "Isolated"))
    return refuse("the pre-tokenizer " + shown(part.dump()) + " is not supported");
  if (data->pre_tokenizer != PreTokenizer::kNone) return refuse("two pre-tokenizer expressions are not supported");
  data->pre_tokenizer = *kind;
  return {};
}

Status read_pre_tokenizer(const Json& object, TokenizerData* data, bool* byte_level, bool* replaces_spaces) {
  TESSERA_ASSIGN_OR_RETURN(const auto parts, parts_of(object, "pretokenizers"));
  for (const Json* part : parts) {
    const std::string type = type_of(*part);
    if (type == "Split" && !*byte_level)
      TESSERA_RETURN_IF_ERROR(read_split(*part, data));
    else if (type == "ByteLevel" && !*byte_level)
      TESSERA_RETURN_IF_ERROR(read_byte_level(*part, data, byte_level));
    else if (type == "Metaspace" && parts.size() == 1)
      TESSERA_RETURN_IF_ERROR(read_metaspace(*part, data, replaces_spaces));
    else
      return refuse("the pre-tokenizer " + shown(part->dump()) + " is not supported");
  }
  return {};
}

// Only what changes text beyond the family's own rules: whether a leading space goes.
Status read_decoder(const Json& object, TokenizerData* data) {
  TESSERA_ASSIGN_OR_RETURN(const auto parts, parts_of(object, "decoders"));
  for (const Json* part : parts) {
    const std::string type = type_of(*part);
    if (type == "Strip" || type == "Metaspace") {
      data->drops_leading_space = type == "Strip" || data->prefix != PrefixRule::kNever;
    } else if (type != "ByteLevel" && type != "Replace" && type != "ByteFallback" && type != "Fuse") {
      return refuse("the decoder " + shown(part->dump()) + " is not supported");
    }
  }
  return {};
}

// The token that a TemplateProcessing puts in front of a single text.
Result<std::optional<std::string>> template_bos(const Json& object) {
  TESSERA_ASSIGN_OR_RETURN(const auto parts, parts_of(object, "processors"));
  std::optional<std::string> bos;
  for (const Json* part : parts) {
    const std::string type = type_of(*part);
    if (type == "ByteLevel") continue;
    const Json* single = part->find("single");
    if (type != "TemplateProcessing" || !single || !single->is_array())
      return refuse("the post_processor " + shown(part->dump()) + " is not supported");
    for (const Json& step : single->as_array()) {
      const Json* token = step.find("SpecialToken");
      if (!token) break;  // the text: what follows it is an ending, which a prompt does not have
      const Json* id = token->find("id");
      if (!id || !id->is_string() || bos) return refuse("post_processor has a prefix that is not one named token");
      bos = id->as_string();
    }
  }
  return bos;
}

Status read_bos(const Json& json, const TokenizerConfig& config, TokenizerData* data) {
  std::optional<std::string> bos;
  if (const Json* post = present(json, "post_processor")) {
    TESSERA_ASSIGN_OR_RETURN(bos, template_bos(*post));
  }
  if (config.add_bos_token.has_value()) bos = *config.add_bos_token ? config.bos_token : std::nullopt;
  if (!bos) return {};
  const auto found = data->ids.find(*bos);
  if (found == data->ids.end()) return refuse("the token " + shown(*bos) + " that begins prompts is not there");
  data->bos = found->second;
  return {};
}

Status read_character_vocab(const Json& vocab, TokenizerData* data) {
  if (!vocab.is_object()) return refuse("model.vocab is no object of tokens and ids");
  for (const auto& [spelling, value] : vocab.as_object()) {
    if (!value.fits_int64()) return refuse("the id of token " + shown(spelling) + " is no integer");
    Piece piece;
    if (const int byte = byte_piece_value(spelling); byte >= 0)
      piece = {std::string(1, static_cast<char>(byte)), PieceKind::kByte, false};
    else
      piece = {mark_to_space(spelling), PieceKind::kText, spelling.compare(0, kSpaceMark.size(), kSpaceMark) == 0};
    TESSERA_RETURN_IF_ERROR(add_piece(data, kFile, value.as_int64(), spelling, std::move(piece)));
  }
  return {};
}

Status read_merges(const Json& model, TokenizerData* data) {
  const Json* merges = model.find("merges");
  if (!merges || !merges->is_array()) return refuse("model.merges is no list");
  int64_t number = 0;
  for (const Json& merge : merges->as_array()) {
    const std::string where = "[tokenizer.json] merge " + std::to_string(number++);
    if (merge.is_array() && merge.as_array().size() == 2 && merge.as_array()[0].is_string() &&
        merge.as_array()[1].is_string()) {
      TESSERA_RETURN_IF_ERROR(
          add_merge(data, where, merge.as_array()[0].as_string(), merge.as_array()[1].as_string()));
      continue;
    }
    const std::string text = merge.is_string() ? merge.as_string() : "";
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
      return invalid_input(where + " is " + shown(merge.dump()) + "; expected two tokens");
    TESSERA_RETURN_IF_ERROR(add_merge(data, where, std::string_view(text).substr(0, space),
                                      std::string_view(text).substr(space + 1)));
  }
  return {};
}

Status check_model(const Json& model) {
  if (const std::string type = type_of(model); type != "BPE" && !(type.empty() && model.find("merges")))
    return refuse("model type " + shown(type) + " is not supported; expected BPE");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (const Json* value = present(model, key); value && !is_string(value, ""))
      return refuse(std::string("model.") + key + " is not supported");
  if (const Json* dropout = present(model, "dropout"); dropout && !(dropout->is_number() && dropout->as_double() == 0))
    return refuse("model.dropout is not supported");
  return {};
}

}  // namespace

Result<TokenizerData> read_tokenizer_json(const Json& json, const TokenizerConfig& config) {
  const Json* model = json.find("model");
  const Json* vocab = model ? model->find("vocab") : nullptr;
  if (!model || !model->is_object() || !vocab) return refuse("there is no model with a vocabulary");
  TESSERA_RETURN_IF_ERROR(check_model(*model));

  TokenizerData data;
  bool byte_level = false, replaces_spaces = false;
  if (const Json* part = present(json, "normalizer"))
    TESSERA_RETURN_IF_ERROR(read_normalizer(*part, &data, &replaces_spaces));
  if (const Json* part = present(json, "pre_tokenizer"))
    TESSERA_RETURN_IF_ERROR(read_pre_tokenizer(*part, &data, &byte_level, &replaces_spaces));
  if (byte_level == replaces_spaces)
    return refuse("it is neither a byte-level BPE nor one with SentencePiece's U+2581 for spaces");
  data.ignore_merges = is_set(*model, "ignore_merges");
  if (byte_level) {
    data.family = TokenizerFamily::kByteLevel;
    TESSERA_RETURN_IF_ERROR(read_byte_level_vocab(*vocab, kFile, &data));
  } else {
    data.family = TokenizerFamily::kSentencePiece;
    if (!is_set(*model, "byte_fallback")) return refuse("a model without byte_fallback is not supported");
    TESSERA_RETURN_IF_ERROR(read_character_vocab(*vocab, &data));
  }
  TESSERA_RETURN_IF_ERROR(read_merges(*model, &data));
  if (const Json* part = present(json, "decoder")) TESSERA_RETURN_IF_ERROR(read_decoder(*part, &data));

  if (const Json* list = present(json, "added_tokens")) {
    if (!list->is_array()) return refuse("added_tokens is no list");
    std::vector<AddedToken> added;
    for (const Json& entry : list->as_array()) {
      TESSERA_ASSIGN_OR_RETURN(AddedToken token, parse_added_token(entry, kFile, -1));
      added.push_back(std::move(token));
    }
    TESSERA_RETURN_IF_ERROR(apply_added_tokens(&data, kFile, added));
  }
  TESSERA_RETURN_IF_ERROR(apply_config_tokens(&data, config));
  TESSERA_RETURN_IF_ERROR(check_bytes(&data, kFile));
  TESSERA_RETURN_IF_ERROR(read_bos(json, config, &data));
  return data;
}

}  // namespace tessera
