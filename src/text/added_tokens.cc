#include "text/added_tokens.h"

#include <algorithm>

#include "text/unicode.h"

namespace tessera {
namespace {

bool stands_alone(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && is_word_character(read_utf8(text, character_before(text, begin)).code)) return false;
  return end >= text.size() || !is_word_character(read_utf8(text, end).code);
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(const std::vector<AddedToken>& added, bool normalized) {
  nodes_.emplace_back();
  for (const AddedToken& token : added) {
    if (token.normalized != normalized) continue;
    int32_t node = 0;
    for (const char c : token.content) {
      const auto byte = static_cast<unsigned char>(c);
      int32_t next = child(node, byte);
      if (next < 0) {
        next = static_cast<int32_t>(nodes_.size());
        nodes_.emplace_back();
        auto& edges = nodes_[static_cast<size_t>(node)].edges;
        edges.insert(std::upper_bound(edges.begin(), edges.end(), byte,
                                      [](unsigned char b, const Edge& edge) { return b < edge.byte; }),
                     {byte, next});
      }
      node = next;
    }
    first_bytes_[static_cast<unsigned char>(token.content[0])] = true;
    nodes_[static_cast<size_t>(node)].token = static_cast<int32_t>(tokens_.size());
    tokens_.push_back(token);
  }
}

int32_t AddedTokenFinder::child(int32_t node, unsigned char byte) const {
  const auto& edges = nodes_[static_cast<size_t>(node)].edges;
  const auto found = std::lower_bound(edges.begin(), edges.end(), byte,
                                      [](const Edge& edge, unsigned char b) { return edge.byte < b; });
  return found != edges.end() && found->byte == byte ? found->child : -1;
}

const AddedToken* AddedTokenFinder::longest_at(std::string_view text, size_t at) const {
  const AddedToken* found = nullptr;
  int32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    node = child(node, static_cast<unsigned char>(text[i]));
    if (node < 0) break;
    const int32_t token = nodes_[static_cast<size_t>(node)].token;
    if (token >= 0) found = &tokens_[static_cast<size_t>(token)];
  }
  return found;
}

std::vector<AddedTokenFinder::Stretch> AddedTokenFinder::cut(std::string_view text) const {
  std::vector<Stretch> stretches;
  size_t done = 0;
  const auto add_text = [&](size_t end) {
    if (end > done) stretches.push_back({done, end, -1});
  };
  for (size_t at = 0; at < text.size() && !tokens_.empty();) {
    const AddedToken* token = first_bytes_[static_cast<unsigned char>(text[at])] ? longest_at(text, at) : nullptr;
    const size_t end = token ? at + token->content.size() : at;
    if (!token || (token->single_word && !stands_alone(text, at, end))) {
      ++at;
      continue;
    }
    const size_t begin = token->lstrip ? begin_of_space_before(text, at, done) : at;
    add_text(begin);
    done = token->rstrip ? end_of_space_after(text, end) : end;
    stretches.push_back({begin, done, token->id});
    at = done;
  }
  add_text(text.size());
  return stretches;
}

}  // namespace tessera
