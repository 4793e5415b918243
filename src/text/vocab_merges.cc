#include "text/tokenizer_files.h"
#include "text/unicode.h"

namespace tessera {

Status read_byte_level_vocab(const Json& vocab, const std::string& file, TokenizerData* data) {
  if (!vocab.is_object()) return invalid_input("[" + file + "] the vocabulary is no object of tokens and ids");
  const Json::Object& entries = vocab.as_object();
  data->pieces.reserve(entries.size());
  data->ids.reserve(entries.size());
  for (const auto& [spelling, value] : entries) {
    if (!value.fits_int64())
      return invalid_input("[" + file + "] the id of token " + shown(spelling) + " is " + shown(value.dump()) +
                           "; expected an integer");
    Piece piece;
    if (auto bytes = bytes_of_stand_ins(spelling))
      piece = {std::move(*bytes), PieceKind::kText, false};
    else  // not in stand-ins: no text can become it
      piece = {spelling, PieceKind::kUnmatched, false};
    TESSERA_RETURN_IF_ERROR(add_piece(data, file, value.as_int64(), spelling, std::move(piece)));
  }
  return {};
}

Status add_merge(TokenizerData* data, const std::string& where, std::string_view left, std::string_view right) {
  if (data->merges.size() >= kMaxMerges)
    return invalid_input(where + ": more than " + std::to_string(kMaxMerges) + " merges are not supported");
  const auto id_of = [&](const std::string& spelling) {
    const auto found = data->ids.find(spelling);
    return found == data->ids.end() ? -1 : found->second;
  };
  MergeRule rule{.rank = static_cast<int32_t>(data->merges.size())};
  if (left.empty() || right.empty()) return invalid_input(where + " has an empty side");
  if (left.size() + right.size() > kMaxPieceBytes) return invalid_input(where + " makes too long a token");
  const std::string joined = std::string(left) + std::string(right);
  rule.left = id_of(std::string(left));
  rule.right = id_of(std::string(right));
  rule.result = id_of(joined);
  for (const auto& [id, spelling] : {std::pair(rule.left, std::string(left)), std::pair(rule.right, std::string(right)),
                                     std::pair(rule.result, joined)})
    if (id < 0) return invalid_input(where + " needs the token " + shown(spelling) + ", which the vocabulary lacks");
  data->merges.push_back(rule);
  return {};
}

Status check_bytes(TokenizerData* data, const std::string& file) {
  for (int byte = 0; byte < 256; ++byte) {
    std::string spelling;
    PieceKind kind = PieceKind::kText;
    if (data->family == TokenizerFamily::kByteLevel) {
      append_utf8(&spelling, byte_stand_ins()[static_cast<size_t>(byte)]);
    } else {
      constexpr char kHex[] = "0123456789ABCDEF";
      spelling = std::string("<0x") + kHex[byte / 16] + kHex[byte % 16] + ">";
      kind = PieceKind::kByte;
    }
    const auto found = data->ids.find(spelling);
    if (found == data->ids.end() || data->pieces[static_cast<size_t>(found->second)].kind != kind)
      return invalid_input("[" + file + "] the vocabulary lacks the byte piece " + shown(spelling) +
                           "; vocabularies without all 256 bytes are not supported");
    data->byte_ids[static_cast<size_t>(byte)] = found->second;
  }
  return {};
}

namespace {

// merges.txt: a "#version" line, then "left right", one rule a line.
Status read_merges_text(std::string_view text, TokenizerData* data) {
  int64_t number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    at = end + 1;
    ++number;
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.empty() || (number == 1 && line.substr(0, 8) == "#version")) continue;
    const std::string where = "[merges.txt] line " + std::to_string(number);
    const size_t space = line.find(' ');
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos)
      return invalid_input(where + " is " + shown(line) + "; expected two tokens and one space");
    TESSERA_RETURN_IF_ERROR(add_merge(data, where, line.substr(0, space), line.substr(space + 1)));
  }
  return {};
}

}  // namespace

Result<TokenizerData> read_vocab_and_merges(const Json& vocab, std::string_view merges,
                                            const TokenizerConfig& config) {
  TokenizerData data;
  data.family = TokenizerFamily::kByteLevel;
  const std::string& name = config.tokenizer_class;
  if (name.empty() || name == "Qwen2Tokenizer" || name == "Qwen2TokenizerFast") {
    data.pre_tokenizer = PreTokenizer::kQwen2;
    data.nfc = true;
  } else if (name == "GPT2Tokenizer" || name == "GPT2TokenizerFast") {
    data.pre_tokenizer = PreTokenizer::kGpt2;
  } else {
    return invalid_input("[tokenizer_config.json] tokenizer_class " + shown(name) +
                         " is not supported with vocab.json and merges.txt; expected Qwen2Tokenizer or GPT2Tokenizer");
  }
  if (!is_valid_utf8(merges)) return invalid_input("[merges.txt] is not valid UTF-8");
  if (config.add_prefix_space.value_or(false)) {
    data.prefix = PrefixRule::kEveryText;
    data.prefix_unless_there = true;
  }
  TESSERA_RETURN_IF_ERROR(read_byte_level_vocab(vocab, "vocab.json", &data));
  TESSERA_RETURN_IF_ERROR(read_merges_text(merges, &data));
  TESSERA_RETURN_IF_ERROR(apply_config_tokens(&data, config));
  TESSERA_RETURN_IF_ERROR(check_bytes(&data, "vocab.json"));
  if (config.add_bos_token.value_or(false) && config.bos_token) {
    const auto found = data.ids.find(*config.bos_token);
    if (found == data.ids.end())
      return invalid_input("[tokenizer_config.json] bos_token " + shown(*config.bos_token) +
                           " is not in the vocabulary");
    data.bos = found->second;
  }
  return data;
}

}  // namespace tessera
