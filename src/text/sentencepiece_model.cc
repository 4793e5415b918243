#include <algorithm>
#include <cmath>
#include <cstring>

#include "text/tokenizer_files.h"
#include "text/unicode.h"

// The model is one protobuf message (sentencepiece_model.proto). Fields read here:
//   ModelProto:     1 pieces (SentencePiece)*, 2 trainer_spec, 3 normalizer_spec
//   SentencePiece:  1 piece, 2 score (float), 3 type (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte)
//   TrainerSpec:    3 model_type (1 unigram, 2 BPE), 24 treat_whitespace_as_suffix, 35 byte_fallback
//   NormalizerSpec: 1 name, 2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces,
//                   5 escape_whitespaces
namespace tessera {
namespace {

constexpr const char* kFile = "tokenizer.model";

Status refuse(const std::string& what) { return invalid_input("[tokenizer.model] " + what); }

struct Field {
  uint32_t number = 0;
  uint32_t wire = 0;       // 0 varint, 1 eight bytes, 2 length-delimited, 5 four bytes
  uint64_t value = 0;      // of a varint
  std::string_view bytes;  // of the others
};

// Reads protobuf fields one after the other; every length is checked against what is left.
class FieldReader {
 public:
  explicit FieldReader(std::string_view text) : text_(text) {}
  bool done() const { return at_ == text_.size(); }

  bool next(Field* field) {
    uint64_t key = 0;
    if (!varint(&key) || key >> 3 == 0 || key >> 35 != 0) return false;
    field->number = static_cast<uint32_t>(key >> 3);
    field->wire = key & 7;
    switch (field->wire) {
      case 0:
        return varint(&field->value);
      case 1:
        return take(8, &field->bytes);
      case 5:
        return take(4, &field->bytes);
      case 2: {
        uint64_t length = 0;
        return varint(&length) && take(length, &field->bytes);
      }
      default:
        return false;
    }
  }

 private:
  bool varint(uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 64 && at_ < text_.size(); shift += 7) {
      const auto byte = static_cast<unsigned char>(text_[at_++]);
      *value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }
  bool take(uint64_t length, std::string_view* bytes) {
    if (length > text_.size() - at_) return false;
    *bytes = text_.substr(at_, length);
    at_ += length;
    return true;
  }

  std::string_view text_;
  size_t at_ = 0;
};

struct ModelPiece {
  std::string spelling;
  float score = 0;
  uint64_t type = 1;
};

struct ModelSpec {
  std::vector<ModelPiece> pieces;
  uint64_t model_type = 1;
  bool whitespace_as_suffix = false;
  bool byte_fallback = false;
  std::string normalizer;
  bool has_charsmap = false;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

Status truncated() { return refuse("is damaged or truncated: its protobuf fields don't end where it does"); }

Status parse_piece(std::string_view bytes, ModelSpec* spec) {
  ModelPiece piece;
  Field field;
  for (FieldReader reader(bytes); !reader.done();) {
    if (!reader.next(&field)) return truncated();
    if (field.number == 1 && field.wire == 2) piece.spelling = std::string(field.bytes);
    if (field.number == 2 && field.wire == 5) std::memcpy(&piece.score, field.bytes.data(), 4);
    if (field.number == 3 && field.wire == 0) piece.type = field.value;
  }
  const std::string where = "piece " + std::to_string(spec->pieces.size());
  if (static_cast<int64_t>(spec->pieces.size()) > kMaxTokenId)
    return refuse("has more than " + std::to_string(kMaxTokenId + 1) + " pieces");
  if (piece.spelling.empty()) return refuse(where + " is empty");
  if (!is_valid_utf8(piece.spelling)) return refuse(where + " is not valid UTF-8");
  if (!std::isfinite(piece.score)) return refuse(where + " has a score that is no number");
  if (piece.type == 5) return refuse(where + " is of type UNUSED; restricted vocabularies are not supported");
  if (piece.type < 1 || piece.type > 6) return refuse(where + " has the unknown type " + std::to_string(piece.type));
  spec->pieces.push_back(std::move(piece));
  return {};
}

Status parse_trainer(std::string_view bytes, ModelSpec* spec) {
  Field field;
  for (FieldReader reader(bytes); !reader.done();) {
    if (!reader.next(&field)) return truncated();
    if (field.wire != 0) continue;
    if (field.number == 3) spec->model_type = field.value;
    if (field.number == 24) spec->whitespace_as_suffix = field.value != 0;
    if (field.number == 35) spec->byte_fallback = field.value != 0;
  }
  return {};
}

Status parse_normalizer(std::string_view bytes, ModelSpec* spec) {
  Field field;
  for (FieldReader reader(bytes); !reader.done();) {
    if (!reader.next(&field)) return truncated();
    if (field.number == 1 && field.wire == 2) spec->normalizer = std::string(field.bytes);
    if (field.number == 2 && field.wire == 2) spec->has_charsmap = !field.bytes.empty();
    if (field.wire != 0) continue;
    if (field.number == 3) spec->add_dummy_prefix = field.value != 0;
    if (field.number == 4) spec->remove_extra_whitespaces = field.value != 0;
    if (field.number == 5) spec->escape_whitespaces = field.value != 0;
  }
  return {};
}

Result<ModelSpec> parse_model(std::string_view model) {
  ModelSpec spec;
  Field field;
  for (FieldReader reader(model); !reader.done();) {
    if (!reader.next(&field)) return truncated();
    if (field.wire != 2) continue;
    if (field.number == 1) TESSERA_RETURN_IF_ERROR(parse_piece(field.bytes, &spec));
    if (field.number == 2) TESSERA_RETURN_IF_ERROR(parse_trainer(field.bytes, &spec));
    if (field.number == 3) TESSERA_RETURN_IF_ERROR(parse_normalizer(field.bytes, &spec));
  }
  return spec;
}

Status check_spec(const ModelSpec& spec) {
  if (spec.pieces.empty()) return refuse("holds no pieces");
  static constexpr const char* kTypes[] = {"0", "UNIGRAM", "BPE", "WORD", "CHAR"};
  if (spec.model_type != 2)
    return refuse(std::string("model type ") + (spec.model_type < 5 ? kTypes[spec.model_type] : "unknown") +
                  " is not supported; expected BPE");
  if (!spec.byte_fallback) return refuse("a model without byte_fallback is not supported");
  if (spec.has_charsmap)
    return refuse("the normalizer " + shown(spec.normalizer) + " is not supported; expected identity");
  if (spec.remove_extra_whitespaces) return refuse("remove_extra_whitespaces is not supported");
  if (!spec.escape_whitespaces) return refuse("escape_whitespaces off is not supported");
  if (spec.whitespace_as_suffix) return refuse("treat_whitespace_as_suffix is not supported");
  return {};
}

Status add_pieces(const ModelSpec& spec, TokenizerData* data) {
  for (size_t id = 0; id < spec.pieces.size(); ++id) {
    const ModelPiece& from = spec.pieces[id];
    Piece piece{mark_to_space(from.spelling), PieceKind::kText,
                from.spelling.compare(0, kSpaceMark.size(), kSpaceMark) == 0};
    if (from.type == 2 || from.type == 3) piece.kind = PieceKind::kControl;
    if (from.type == 4) piece.kind = PieceKind::kUserDefined;
    // SentencePiece 0.2.3 ignores a piece that is the NUL character; its text becomes <0x00>.
    if (from.spelling == std::string(1, '\0')) piece.kind = PieceKind::kUnmatched;
    if (from.type == 6) {
      const int byte = byte_piece_value(from.spelling);
      if (byte < 0) return refuse("the byte piece " + shown(from.spelling) + " names no byte");
      piece = {std::string(1, static_cast<char>(byte)), PieceKind::kByte, false};
    }
    TESSERA_RETURN_IF_ERROR(add_piece(data, kFile, static_cast<int64_t>(id), from.spelling, std::move(piece)));
  }
  return {};
}

// The symbol of a string: its piece, or a character that is no piece as a negative number, or nothing.
std::optional<int32_t> symbol_of(const TokenizerData& data, const std::string& spelling) {
  const auto found = data.ids.find(spelling);
  if (found != data.ids.end() && data.pieces[static_cast<size_t>(found->second)].kind == PieceKind::kText)
    return found->second;
  const Utf8Step step = read_utf8(spelling, 0);
  if (step.length == spelling.size()) return -static_cast<int32_t>(step.code) - 1;
  return std::nullopt;
}

// SentencePiece joins any two neighbours whose joined text is a piece, by the piece's score. As rules: every way to
// cut a piece in two symbols, ranked by the score of the whole; equal scores share a rank.
Status add_merges(const ModelSpec& spec, TokenizerData* data) {
  std::vector<float> scores;
  uint64_t work = 0;
  for (const ModelPiece& piece : spec.pieces) {
    scores.push_back(piece.score);
    work += piece.spelling.size() * piece.spelling.size();
  }
  if (work > uint64_t{1} << 30) return refuse("its pieces are too long: no tokenizer of a language looks like this");
  std::sort(scores.begin(), scores.end(), std::greater<>());
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());
  for (size_t id = 0; id < spec.pieces.size(); ++id) {
    if (data->pieces[id].kind != PieceKind::kText) continue;
    const std::string& whole = spec.pieces[id].spelling;
    const auto rank = std::lower_bound(scores.begin(), scores.end(), spec.pieces[id].score, std::greater<>());
    for (size_t cut = read_utf8(whole, 0).length; cut < whole.size(); cut += read_utf8(whole, cut).length) {
      const auto left = symbol_of(*data, whole.substr(0, cut)), right = symbol_of(*data, whole.substr(cut));
      if (!left || !right) continue;
      if (data->merges.size() >= kMaxMerges) return refuse("its pieces can be joined in too many ways");
      data->merges.push_back(
          {*left, *right, static_cast<int32_t>(rank - scores.begin()), static_cast<int32_t>(id)});
    }
  }
  return {};
}

}  // namespace

Result<TokenizerData> read_sentencepiece_model(std::string_view model, const TokenizerConfig& config) {
  TESSERA_ASSIGN_OR_RETURN(const ModelSpec spec, parse_model(model));
  TESSERA_RETURN_IF_ERROR(check_spec(spec));
  TokenizerData data;
  data.family = TokenizerFamily::kSentencePiece;
  TESSERA_RETURN_IF_ERROR(add_pieces(spec, &data));
  TESSERA_RETURN_IF_ERROR(apply_config_tokens(&data, config));
  TESSERA_RETURN_IF_ERROR(check_bytes(&data, kFile));
  TESSERA_RETURN_IF_ERROR(add_merges(spec, &data));
  // The Python classes put a prefix in front of every run of text, but with `legacy` false only in front of the first.
  if (spec.add_dummy_prefix && config.add_prefix_space.value_or(true))
    data.prefix = config.legacy.value_or(true) ? PrefixRule::kEveryText : PrefixRule::kFirstText;
  data.drops_leading_space = data.prefix != PrefixRule::kNever;
  if (config.add_bos_token.value_or(true)) {  // the default of LlamaTokenizer and InternLM2Tokenizer
    const auto found = data.ids.find(config.bos_token.value_or("<s>"));
    if (found != data.ids.end()) data.bos = found->second;
    else if (config.bos_token)
      return invalid_input("[tokenizer_config.json] bos_token " + shown(*config.bos_token) +
                           " is not in tokenizer.model");
  }
  return data;
}

}  // namespace tessera
