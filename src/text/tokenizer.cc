#include "text/tokenizer.h"

#include <algorithm>
#include <filesystem>

#include "core/file.h"
#include "core/json.h"
#include "text/added_tokens.h"
#include "text/detokenizer.h"
#include "text/tokenizer_data.h"
#include "text/tokenizer_files.h"
#include "text/unicode.h"

namespace tessera {
namespace {
namespace fs = std::filesystem;

// Rules that make or use anything but text pieces are left out: so no text becomes a control token, also where a
// vocabulary spells control tokens as ordinary pieces.
MergeTable usable_merges(const TokenizerData& data) {
  const auto is_text = [&](int32_t id) {
    return id < 0 || data.pieces[static_cast<size_t>(id)].kind == PieceKind::kText;
  };
  std::vector<MergeRule> rules;
  rules.reserve(data.merges.size());
  for (const MergeRule& rule : data.merges)
    if (is_text(rule.left) && is_text(rule.right) && is_text(rule.result)) rules.push_back(rule);
  return MergeTable(rules);
}

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

Result<TokenizerData> read_files(const std::string& directory) {
  const fs::path root(directory);
  std::error_code error;
  if (!fs::is_directory(root, error))
    return invalid_input("tokenizer: " + shown(directory) + " is not a readable directory");
  TESSERA_ASSIGN_OR_RETURN(const TokenizerConfig config, read_tokenizer_config(directory));
  const JsonLimits limits{.max_bytes = kMaxTokenizerFileBytes};
  if (is_there(root / "tokenizer.json")) {
    TESSERA_ASSIGN_OR_RETURN(const Json json, Json::parse_file((root / "tokenizer.json").string(), limits));
    return read_tokenizer_json(json, config);
  }
  if (is_there(root / "vocab.json") && is_there(root / "merges.txt")) {
    TESSERA_ASSIGN_OR_RETURN(const Json vocab, Json::parse_file((root / "vocab.json").string(), limits));
    TESSERA_ASSIGN_OR_RETURN(const std::string merges,
                             read_file((root / "merges.txt").string(), kMaxTokenizerFileBytes));
    return read_vocab_and_merges(vocab, merges, config);
  }
  if (is_there(root / "tokenizer.model")) {
    TESSERA_ASSIGN_OR_RETURN(const std::string model,
                             read_file((root / "tokenizer.model").string(), kMaxTokenizerFileBytes));
    return read_sentencepiece_model(model, config);
  }
  return invalid_input("tokenizer: " + shown(directory) +
                       " holds no tokenizer.json, no vocab.json with merges.txt and no tokenizer.model");
}

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(TokenizerData from)
      : data(std::move(from)), merges(usable_merges(data)), raw_tokens(data.added, false),
        normalized_tokens(data.added, true) {
    data.merges = {};
    if (data.family == TokenizerFamily::kSentencePiece) index_characters();
    for (const AddedToken& token : data.added) {
      if (token.rstrip) strips_right.push_back(token.id);
      if (token.lstrip) strips_left.push_back(token.id);
    }
  }

  const Piece* piece(int32_t id) const {
    if (id < 0 || static_cast<size_t>(id) >= data.pieces.size()) return nullptr;
    return &data.pieces[static_cast<size_t>(id)];
  }

  void index_characters() {
    std::vector<AddedToken> user_defined;
    for (const auto& [spelling, id] : data.ids) {
      const PieceKind kind = data.pieces[static_cast<size_t>(id)].kind;
      if (kind == PieceKind::kUserDefined) user_defined.push_back({.id = id, .content = spelling});
      if (kind != PieceKind::kText) continue;
      const Utf8Step step = read_utf8(spelling, 0);
      if (step.length == spelling.size()) characters.emplace(step.code, id);
    }
    user_defined_pieces = AddedTokenFinder(user_defined, false);
  }

  void encode_run(std::string_view text, bool opens_prompt, std::vector<int32_t>* ids) const {
    if (data.family == TokenizerFamily::kByteLevel)
      encode_bytes(text, opens_prompt, ids);
    else
      encode_characters(text, opens_prompt, ids);
  }

  bool wants_prefix(std::string_view text, std::string_view prefix, bool opens_prompt) const {
    if (text.empty() || data.prefix == PrefixRule::kNever) return false;
    if (data.prefix == PrefixRule::kFirstText && !opens_prompt) return false;
    return !data.prefix_unless_there || text.substr(0, prefix.size()) != prefix;
  }

  void encode_bytes(std::string_view run, bool opens_prompt, std::vector<int32_t>* ids) const {
    std::string text = data.nfc ? normalize_nfc(run) : std::string(run);
    if (wants_prefix(text, " ", opens_prompt)) text.insert(0, 1, ' ');
    std::vector<int32_t> symbols;
    for (size_t at = 0, length = 0; at < text.size(); at += length) {
      length = next_cut(data.pre_tokenizer, text, at);
      const std::string_view cut = std::string_view(text).substr(at, length);
      if (data.ignore_merges) {
        const auto whole = data.ids.find(stand_ins_of_bytes(cut));
        if (whole != data.ids.end() && piece(whole->second)->kind == PieceKind::kText) {
          ids->push_back(whole->second);
          continue;
        }
      }
      symbols.clear();
      for (const char c : cut) symbols.push_back(data.byte_ids[static_cast<unsigned char>(c)]);
      merges.apply(&symbols);
      ids->insert(ids->end(), symbols.begin(), symbols.end());
    }
  }

  void encode_characters(std::string_view run, bool opens_prompt, std::vector<int32_t>* ids) const {
    const std::string text = data.nfc ? normalize_nfc(run) : std::string(run);
    std::string marked;
    marked.reserve(text.size() + kSpaceMark.size());
    for (const char c : text) {
      if (c == ' ')
        marked += kSpaceMark;
      else
        marked.push_back(c);
    }
    if (wants_prefix(marked, kSpaceMark, opens_prompt)) marked.insert(0, kSpaceMark);
    if (!data.cut_at_spaces) return encode_marked(marked, ids);
    for (size_t at = 0; at < marked.size();) {
      const size_t end = std::min(marked.find(kSpaceMark, at + 1), marked.size());
      encode_marked(std::string_view(marked).substr(at, end - at), ids);
      at = end;
    }
  }

  void encode_marked(std::string_view text, std::vector<int32_t>* ids) const {
    if (data.ignore_merges) {
      const auto whole = data.ids.find(std::string(text));
      if (whole != data.ids.end() && piece(whole->second)->kind == PieceKind::kText) {
        ids->push_back(whole->second);
        return;
      }
    }
    std::vector<int32_t> symbols;
    symbols.reserve(text.size());
    for (const auto& stretch : user_defined_pieces.cut(text)) {
      if (stretch.token >= 0) {
        symbols.push_back(stretch.token);
        continue;
      }
      for (size_t at = stretch.begin; at < stretch.end;) {
        const Utf8Step step = read_utf8(text, at);
        const auto found = characters.find(step.code);
        symbols.push_back(found != characters.end() ? found->second : -static_cast<int32_t>(step.code) - 1);
        at += step.length;
      }
    }
    merges.apply(&symbols);
    for (const int32_t symbol : symbols) {
      if (symbol >= 0) {
        ids->push_back(symbol);
        continue;
      }
      std::string bytes;
      append_utf8(&bytes, static_cast<char32_t>(-(symbol + 1)));
      for (const char c : bytes) ids->push_back(data.byte_ids[static_cast<unsigned char>(c)]);
    }
  }

  TokenizerData data;
  MergeTable merges;
  AddedTokenFinder raw_tokens;         // found in the text as it is
  AddedTokenFinder normalized_tokens;  // found after normalization, in what is left
  AddedTokenFinder user_defined_pieces;
  std::unordered_map<char32_t, int32_t> characters;
  std::vector<int32_t> strips_right, strips_left;
};

Tokenizer::Tokenizer(TokenizerData data) : impl_(std::make_unique<const Impl>(std::move(data))) {}
Tokenizer::~Tokenizer() = default;

Result<std::unique_ptr<Tokenizer>> Tokenizer::load(const std::string& directory) {
  TESSERA_ASSIGN_OR_RETURN(TokenizerData data, read_files(directory));
  return from_data(std::move(data));
}

std::unique_ptr<Tokenizer> Tokenizer::from_data(TokenizerData data) {
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(data)));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool opens_prompt) const {
  std::vector<int32_t> ids;
  if (is_valid_utf8(text))
    impl_->encode_run(text, opens_prompt, &ids);
  else
    impl_->encode_run(replace_invalid_utf8(text), opens_prompt, &ids);
  return ids;
}

std::vector<int32_t> Tokenizer::encode_with_special(std::string_view given) const {
  const std::string text = replace_invalid_utf8(given);
  std::vector<int32_t> ids;
  bool opens_prompt = true;
  for (const auto& stretch : impl_->raw_tokens.cut(text)) {
    if (stretch.token >= 0) {
      ids.push_back(stretch.token);
      opens_prompt = false;
      continue;
    }
    std::string run = text.substr(stretch.begin, stretch.end - stretch.begin);
    if (impl_->data.nfc && !impl_->normalized_tokens.empty()) run = normalize_nfc(run);
    for (const auto& part : impl_->normalized_tokens.cut(run)) {
      if (part.token >= 0)
        ids.push_back(part.token);
      else
        impl_->encode_run(std::string_view(run).substr(part.begin, part.end - part.begin), opens_prompt, &ids);
      opens_prompt = false;
    }
  }
  return ids;
}

std::optional<int32_t> Tokenizer::token_id(std::string_view token) const {
  const auto found = impl_->data.ids.find(std::string(token));
  if (found == impl_->data.ids.end()) return std::nullopt;
  return found->second;
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(impl_->data.pieces.size()); }

bool Tokenizer::has_piece(int32_t id) const {
  const Piece* piece = impl_->piece(id);
  return piece && piece->kind != PieceKind::kNone;
}

bool Tokenizer::is_control(int32_t id) const {
  const Piece* piece = impl_->piece(id);
  return piece && piece->kind == PieceKind::kControl;
}

const std::string& Tokenizer::token_bytes(int32_t id) const {
  static const std::string kNothing;
  const Piece* piece = impl_->piece(id);
  return piece ? piece->text : kNothing;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, const DecodeOptions& options) const {
  Detokenizer detokenizer(*this, options);
  std::string text;
  for (const int32_t id : ids) text += detokenizer.push(id);
  return text + detokenizer.finish();
}

std::optional<int32_t> Tokenizer::add_bos() const { return impl_->data.bos; }

bool Tokenizer::strips_right(int32_t id) const {
  return std::find(impl_->strips_right.begin(), impl_->strips_right.end(), id) != impl_->strips_right.end();
}

bool Tokenizer::strips_left(int32_t id) const {
  return std::find(impl_->strips_left.begin(), impl_->strips_left.end(), id) != impl_->strips_left.end();
}

bool Tokenizer::drops_leading_space(int32_t id) const {
  const Piece* piece = impl_->piece(id);
  return piece && impl_->data.drops_leading_space && piece->leading_mark;
}

bool Tokenizer::replaces_each_byte() const { return impl_->data.family == TokenizerFamily::kSentencePiece; }

}  // namespace tessera
