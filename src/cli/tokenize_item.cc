#include "cli/tokenize_item.h"

#include "text/detokenizer.h"

namespace tessera::cli {
namespace {

Json ids_json(const std::vector<int32_t>& ids) {
  Json::Array list;
  list.reserve(ids.size());
  for (const int32_t id : ids) list.emplace_back(id);
  return Json(std::move(list));
}

}  // namespace

Result<TokenizeItem> parse_tokenize_item(std::string_view line, const Tokenizer& tokenizer) {
  TESSERA_ASSIGN_OR_RETURN(const Json json, Json::parse_lenient_surrogates(line));
  const Json* text = json.find("text");
  const Json* ids = json.find("ids");
  if (!json.is_object() || json.as_object().size() != 1 || !((text && text->is_string()) || (ids && ids->is_array())))
    return invalid_input("expected {\"text\": T} or {\"ids\": [...]}");
  TokenizeItem item;
  if (text) {
    item.text = text->as_string();
    return item;
  }
  for (const Json& value : ids->as_array()) {
    const int64_t id = value.fits_int64() ? value.as_int64() : -1;
    if (id < 0 || id >= tokenizer.vocab_size() || !tokenizer.has_piece(static_cast<int32_t>(id)))
      return invalid_input("id " + value.dump() + " is no token; expected ids of 0.." +
                           std::to_string(tokenizer.vocab_size() - 1));
    item.ids.push_back(static_cast<int32_t>(id));
  }
  return item;
}

Json tokenize_result(const TokenizeItem& item, const std::vector<int32_t>& ids, const Tokenizer& tokenizer) {
  Json result = Json::object();
  result.set("ids", ids_json(ids));
  if (item.text) {
    result.set("text", tokenizer.decode(ids));
    return result;
  }
  Detokenizer detokenizer(tokenizer);
  Json::Array pieces;
  std::string text;
  for (const int32_t id : ids) {
    std::string piece = detokenizer.push(id);
    text += piece;
    pieces.emplace_back(std::move(piece));
  }
  std::string rest = detokenizer.finish();
  text += rest;
  pieces.emplace_back(std::move(rest));
  result.set("text", std::move(text));
  result.set("pieces", Json(std::move(pieces)));
  return result;
}

}  // namespace tessera::cli
