#pragma once

#include <string>
#include <string_view>

#include "core/json.h"
#include "core/result.h"
#include "text/tokenizer_config.h"
#include "text/tokenizer_data.h"

namespace tessera {

/// `tokenizer.json` of the Hugging Face tokenizers library, model type BPE, of either family.
Result<TokenizerData> read_tokenizer_json(const Json& json, const TokenizerConfig& config);

/// `vocab.json` and `merges.txt` of the Python classes Qwen2Tokenizer and GPT2Tokenizer (byte-level BPE). Without a
/// tokenizer_class the files are read as Qwen2's, the one that InternVL checkpoints of this layout have.
Result<TokenizerData> read_vocab_and_merges(const Json& vocab, std::string_view merges,
                                            const TokenizerConfig& config);

/// `tokenizer.model`: a SentencePiece model of type BPE with byte fallback and the identity normalizer.
Result<TokenizerData> read_sentencepiece_model(std::string_view model, const TokenizerConfig& config);

/// Byte-level vocabularies ({spelling: id}) and merge lists, shared by the first two.
Status read_byte_level_vocab(const Json& vocab, const std::string& file, TokenizerData* data);
/// Adds "left right -> left+right" with the next rank; `where` names the rule in errors.
Status add_merge(TokenizerData* data, const std::string& where, std::string_view left, std::string_view right);

/// What every family needs to encode any text: 256 byte pieces. Fills byte_ids.
Status check_bytes(TokenizerData* data, const std::string& file);

}  // namespace tessera
