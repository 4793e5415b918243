#include "text/grammar_vocabulary.h"

#include <algorithm>

#include "text/unicode.h"

namespace tessera {
namespace {

constexpr int32_t kBuckets = 17;

// Code points of a piece that is plain inside a JSON string; -1 for others.
int32_t plain_length(std::string_view piece) {
  int32_t count = 0;
  for (size_t at = 0; at < piece.size(); ++count) {
    const Utf8Step step = read_utf8(piece, at);
    if (step.kind != Utf8Step::kCharacter || step.code < 0x20 || step.code == '"' || step.code == '\\') return -1;
    at += step.length;
  }
  return count;
}

PieceTree make_tree(std::vector<int32_t> ids, const std::vector<std::string>& pieces) {
  std::sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    const int order = pieces[static_cast<size_t>(a)].compare(pieces[static_cast<size_t>(b)]);
    return order != 0 ? order < 0 : a < b;
  });
  PieceTree tree;
  std::vector<int32_t> path;  // open nodes
  std::string_view last;
  const auto close_to = [&](size_t depth) {
    while (path.size() > depth) {
      tree.nodes[static_cast<size_t>(path.back())].end = static_cast<int32_t>(tree.nodes.size());
      path.pop_back();
    }
  };
  for (const int32_t id : ids) {
    const std::string_view piece = pieces[static_cast<size_t>(id)];
    size_t common = 0;
    while (common < piece.size() && common < last.size() && piece[common] == last[common]) ++common;
    close_to(common);
    while (path.size() < piece.size()) {
      path.push_back(static_cast<int32_t>(tree.nodes.size()));
      tree.nodes.push_back({.byte = static_cast<unsigned char>(piece[path.size() - 1]),
                            .depth = static_cast<int32_t>(path.size()),
                            .first_token = static_cast<int32_t>(tree.tokens.size())});
    }
    ++tree.nodes[static_cast<size_t>(path.back())].token_count;
    tree.tokens.push_back(id);
    last = piece;
  }
  close_to(0);
  return tree;
}

void set_bit(std::vector<uint32_t>* mask, int32_t id) { (*mask)[static_cast<size_t>(id) / 32] |= 1u << (id % 32); }

}  // namespace

GrammarVocabulary::GrammarVocabulary(const Tokenizer& tokenizer) : pieces_(static_cast<size_t>(tokenizer.vocab_size())) {
  std::vector<int32_t> all, special;
  plain_masks_.assign(kBuckets, std::vector<uint32_t>(words()));
  for (int32_t id = 0; id < size(); ++id) {
    if (!tokenizer.has_piece(id) || tokenizer.is_control(id) || tokenizer.token_bytes(id).empty()) continue;
    const std::string& piece = pieces_[static_cast<size_t>(id)] = tokenizer.token_bytes(id);
    longest_ = std::max(longest_, static_cast<int32_t>(piece.size()));
    all.push_back(id);
    const int32_t length = plain_length(piece);
    if (length < 0) special.push_back(id);
    if (length >= kBuckets) long_plain_.emplace_back(length, id);
    for (int32_t room = std::max(length, 0); length >= 0 && room < kBuckets; ++room)
      set_bit(&plain_masks_[static_cast<size_t>(room)], id);
  }
  std::sort(long_plain_.begin(), long_plain_.end());
  all_ = make_tree(std::move(all), pieces_);
  special_ = make_tree(std::move(special), pieces_);
}

void GrammarVocabulary::add_plain(int32_t room, std::vector<uint32_t>* mask) const {
  const auto& plain = plain_masks_[static_cast<size_t>(std::clamp(room, 0, kBuckets - 1))];
  for (size_t i = 0; i < plain.size(); ++i) (*mask)[i] |= plain[i];
  for (const auto& [length, id] : long_plain_) {
    if (length > room) break;
    set_bit(mask, id);
  }
}

}  // namespace tessera
