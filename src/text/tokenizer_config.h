#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/result.h"
#include "text/tokenizer_data.h"

namespace tessera {

/// What `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` say beside the tokenizer itself.
struct TokenizerConfig {
  std::string tokenizer_class;          ///< "" where absent
  std::optional<bool> add_bos_token;
  std::optional<bool> add_prefix_space;
  std::optional<bool> legacy;
  std::optional<std::string> bos_token;
  bool flags_known = false;             ///< there is an added_tokens_decoder
  std::set<std::string> special_names;  ///< tokens that the files call special
  std::vector<AddedToken> added;        ///< by id; tokenizer_config's flags, added_tokens.json's where it has none
};

/// Reads the files that are there. `added_tokens.json` has no flags: its tokens are control tokens when one of the
/// files names them as special, when they are InternVL's own, or when nothing is known and they look like <|this|>.
Result<TokenizerConfig> read_tokenizer_config(const std::string& directory);

/// The three files one by one, in this order; each may be absent.
Status parse_tokenizer_config(const Json& json, TokenizerConfig* config);
Status parse_special_tokens_map(const Json& json, TokenizerConfig* config);
Status parse_added_tokens(const Json& json, TokenizerConfig* config);

/// One entry of tokenizer.json's added_tokens or tokenizer_config.json's added_tokens_decoder.
Result<AddedToken> parse_added_token(const Json& object, const std::string& file, int64_t id);

/// Lays added tokens over the vocabulary: new ids get a piece, pieces of an id that is there are renamed, special
/// ones become control pieces. Of two entries for one token the later one counts. Errors: two tokens with one id, a
/// token whose id differs from the vocabulary's.
Status apply_added_tokens(TokenizerData* data, const std::string& file, const std::vector<AddedToken>& added);

/// Applies the configuration's added tokens; special ones that are only known by name and are pieces of the vocabulary
/// (Yi's `<img>`) become control tokens, too.
Status apply_config_tokens(TokenizerData* data, const TokenizerConfig& config);

}  // namespace tessera
