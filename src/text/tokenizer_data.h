#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/result.h"
#include "text/bpe_merges.h"
#include "text/pre_tokenizer.h"

namespace tessera {

/// Bounds on tokenizer files; far above every released one (the largest has about 201,000 ids and 446,000 merges).
inline constexpr int64_t kMaxTokenId = (int64_t{1} << 20) - 1;
inline constexpr size_t kMaxTokenizerFileBytes = size_t{128} << 20;
inline constexpr size_t kMaxPieceBytes = 2048;
inline constexpr size_t kMaxMerges = size_t{1} << 22;

enum class TokenizerFamily {
  kByteLevel,      ///< symbols begin as bytes
  kSentencePiece,  ///< symbols begin as characters, a space is U+2581, unknown characters become bytes
};

enum class PieceKind : uint8_t {
  kNone,         ///< an id without a piece
  kText,         ///< matched by text
  kByte,         ///< one byte of a character that is no piece
  kUserDefined,  ///< SentencePiece: matched first and never merged
  kUnmatched,    ///< has text, but no text becomes it
  kControl,      ///< no text becomes it, and it is left out of decoded text
};

struct Piece {
  std::string text;  ///< the bytes that it adds to text (a space where the file has U+2581)
  PieceKind kind = PieceKind::kNone;
  bool leading_mark = false;  ///< the file's spelling begins with U+2581
};

/// A token that is found in text as a whole, before anything else.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;  ///< a control token
  bool lstrip = false;
  bool rstrip = false;
  bool single_word = false;
  bool normalized = false;
};

/// What goes in front of a text before it is encoded (U+2581, or a space in byte-level files).
enum class PrefixRule {
  kNever,
  kFirstText,       ///< only where the text opens the prompt
  kEveryText,       ///< in front of each run between added tokens
};

/// Everything that tokenizer files say, in one form for all layouts. Plain data; Tokenizer works on it.
struct TokenizerData {
  TokenizerFamily family = TokenizerFamily::kByteLevel;
  std::vector<Piece> pieces;                      // by id
  std::unordered_map<std::string, int32_t> ids;   // spelling in the file -> id
  std::vector<MergeRule> merges;
  std::vector<AddedToken> added;
  PreTokenizer pre_tokenizer = PreTokenizer::kNone;
  bool nfc = false;
  bool ignore_merges = false;      ///< a cut that is itself a piece is taken whole
  PrefixRule prefix = PrefixRule::kNever;
  bool prefix_unless_there = false;  ///< no second prefix where the text already begins with one
  bool cut_at_spaces = false;      ///< SentencePiece by Metaspace with split: merges don't reach over a space
  bool drops_leading_space = false;
  std::array<int32_t, 256> byte_ids{};
  std::optional<int32_t> bos;
};

/// Sets the piece of an id. Errors: id above kMaxTokenId, text above kMaxPieceBytes, an id that has a piece.
Status add_piece(TokenizerData* data, const std::string& file, int64_t id, const std::string& spelling, Piece piece);

/// The 256 stand-in characters of byte-level BPE (GPT-2's map): printable Latin-1 stands for itself, the others for
/// U+0100 + their rank.
const std::array<char32_t, 256>& byte_stand_ins();
/// The bytes of a spelling in stand-ins; nullopt when a character is none.
std::optional<std::string> bytes_of_stand_ins(std::string_view spelling);
std::string stand_ins_of_bytes(std::string_view bytes);

/// "<0x00>" .. "<0xFF>" as a byte, else -1.
int byte_piece_value(std::string_view spelling);

/// U+2581, SentencePiece's visible space.
inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";
/// Replaces every U+2581 by a space.
std::string mark_to_space(std::string_view text);

/// A value from a file as it is shown in a message: cut short, control characters escaped.
std::string shown(std::string_view text);

}  // namespace tessera
