#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace tessera {

struct TokenizerData;  // text/tokenizer_data.h: what the files say

/// How ids become text.
struct DecodeOptions {
  /// Control tokens are left out of text; these ids are printed nevertheless (grounding tokens, when asked for).
  std::vector<int32_t> visible_control;
};

/// Text to token ids and back, exactly as a checkpoint's tokenizer files say. Two families: byte-level BPE
/// (`tokenizer.json`, or `vocab.json` + `merges.txt`) and SentencePiece BPE (`tokenizer.model`, or its converted
/// `tokenizer.json`). The time of encode grows with the length of the text times its logarithm, whatever the text.
/// Immutable after load; all const members may be called from any number of threads.
class Tokenizer {
 public:
  /// Reads the tokenizer files of a checkpoint directory: `tokenizer.json` where it is there (a broken one is an
  /// error), else `tokenizer.model`, else `vocab.json` and `merges.txt`; `tokenizer_config.json`,
  /// `special_tokens_map.json` and `added_tokens.json` where there are any. Normalizers, pre-tokenizers and models
  /// that this class does not have are refused by name. Errors are kInvalidInput and name file and reason.
  static Result<std::unique_ptr<Tokenizer>> load(const std::string& directory);
  /// A tokenizer of what files said. Requires: `data` as one of the readers of text/tokenizer_files.h returns it.
  static std::unique_ptr<Tokenizer> from_data(TokenizerData data);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  /// Ids of plain text: nothing in it becomes an added or a control token. No BOS, no EOS. Invalid UTF-8 counts as
  /// U+FFFD, one for each longest beginning of a well-formed sequence (the doors refuse it before).
  /// `opens_prompt`: no token stands before this text; matters only to SentencePiece files whose dummy prefix
  /// belongs to the prompt's first text alone.
  std::vector<int32_t> encode(std::string_view text, bool opens_prompt = true) const;

  /// As encode, with added tokens (control tokens among them) recognised and their lstrip, rstrip, single_word and
  /// normalized flags honoured. For templates and `--parse-special`, never for a person's text.
  std::vector<int32_t> encode_with_special(std::string_view text) const;

  /// The id of an added token or, where there is none of that content, of a piece as the files spell it.
  std::optional<int32_t> token_id(std::string_view token) const;

  /// One more than the largest id that has a piece. Ids below it without a piece (holes) have has_piece() false.
  int32_t vocab_size() const;
  bool has_piece(int32_t id) const;

  /// True for special added tokens and for SentencePiece's control and unknown pieces. False out of range.
  bool is_control(int32_t id) const;

  /// The bytes that an id adds to text (may be part of a character; U+2581 as a space where the family says so).
  /// For a control token its spelling. Empty without a piece.
  const std::string& token_bytes(int32_t id) const;

  /// Text of ids, control tokens left out. The same as streaming them through a Detokenizer.
  std::string decode(std::span<const int32_t> ids, const DecodeOptions& options = {}) const;

  /// The token that the tokenizer's own files put in front of every prompt, if any.
  std::optional<int32_t> add_bos() const;

  /// Whether white space right after / right before this added token is swallowed (Phi-3's role tokens).
  bool strips_right(int32_t id) const;
  bool strips_left(int32_t id) const;

  /// True when this piece begins with a space that it loses as the first visible piece of a text (the encoder of such
  /// files puts one in front).
  bool drops_leading_space(int32_t id) const;
  /// True when each byte of a broken UTF-8 sequence becomes its own U+FFFD (SentencePiece), false when the sequence
  /// becomes one (byte-level BPE).
  bool replaces_each_byte() const;

 private:
  struct Impl;
  explicit Tokenizer(TokenizerData data);
  std::unique_ptr<const Impl> impl_;
};

}  // namespace tessera
