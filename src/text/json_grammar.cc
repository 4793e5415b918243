#include "text/json_grammar.h"

#include <algorithm>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "text/grammar_machine.h"

namespace tessera {
namespace {

using Mask = std::vector<uint32_t>;
using Threads = std::vector<GrammarThread>;

constexpr size_t kMaxThreads = 64;    // ways to read a text; ambiguous schemas have few
constexpr size_t kMaxCachedMasks = 512;  // at 150,000 ids 19 KB each

void add_pieces(const CompiledSchema& schema, const GrammarThread& start, const PieceTree& tree, Mask* mask) {
  std::vector<Threads> open(1, Threads{start});  // by depth
  for (int32_t at = 0; at < static_cast<int32_t>(tree.nodes.size());) {
    const PieceTree::Node& node = tree.nodes[static_cast<size_t>(at)];
    const auto depth = static_cast<size_t>(node.depth);
    if (open.size() <= depth) open.resize(depth + 1);
    open[depth].clear();
    for (const GrammarThread& thread : open[depth - 1]) {
      step_thread(schema, thread, node.byte, &open[depth]);
      if (open[depth].size() >= kMaxThreads) break;
    }
    if (open[depth].empty()) {
      at = node.end;
      continue;
    }
    for (int32_t i = 0; i < node.token_count; ++i) {
      const int32_t id = tree.tokens[static_cast<size_t>(node.first_token + i)];
      (*mask)[static_cast<size_t>(id) / 32] |= 1u << (id % 32);
    }
    ++at;
  }
}

}  // namespace

struct JsonGrammar::Impl {
  CompiledSchema schema;
  std::shared_ptr<const GrammarVocabulary> vocabulary;
  mutable std::mutex mutex;
  mutable std::unordered_map<std::string, std::shared_ptr<const Mask>> masks;  // by signature; guarded by mutex

  // The ids that may follow one thread. A token is allowed when any thread allows it, so masks add up.
  std::shared_ptr<const Mask> mask_of(const GrammarThread& thread) const {
    const std::string key = signature(schema, thread, vocabulary->longest());
    {
      const std::lock_guard lock(mutex);
      if (const auto found = masks.find(key); found != masks.end()) return found->second;
    }
    auto mask = std::make_shared<Mask>(vocabulary->words());
    if (thread.in_plain_string()) {
      vocabulary->add_plain(string_room(schema, thread), mask.get());
      add_pieces(schema, thread, vocabulary->special(), mask.get());
    } else {
      add_pieces(schema, thread, vocabulary->all(), mask.get());
    }
    const std::lock_guard lock(mutex);
    if (masks.size() >= kMaxCachedMasks) masks.clear();
    masks.emplace(key, mask);
    return mask;
  }
};

class JsonConstraint : public TokenConstraint {
 public:
  JsonConstraint(std::shared_ptr<const JsonGrammar> grammar, std::vector<int32_t> end_ids)
      : grammar_(std::move(grammar)), end_ids_(std::move(end_ids)), threads_{start_thread(impl().schema)} {}

  void fill_mask(std::span<uint32_t> words) override {
    std::fill(words.begin(), words.end(), 0u);
    if (finished_) return;
    for (const GrammarThread& thread : threads_) {
      const auto mask = impl().mask_of(thread);
      for (size_t i = 0; i < std::min(mask->size(), words.size()); ++i) words[i] |= (*mask)[i];
    }
    if (!complete()) return;
    for (const int32_t id : end_ids_)
      if (id >= 0 && static_cast<size_t>(id) / 32 < words.size()) words[static_cast<size_t>(id) / 32] |= 1u << (id % 32);
  }

  bool accept(int32_t token) override {
    if (finished_ || token < 0) return false;
    if (std::find(end_ids_.begin(), end_ids_.end(), token) != end_ids_.end()) return finished_ = complete();
    if (token >= impl().vocabulary->size() || impl().vocabulary->bytes(token).empty()) return false;
    Threads now = threads_, next;
    for (const char c : impl().vocabulary->bytes(token)) {
      next.clear();
      for (const GrammarThread& thread : now) {
        step_thread(impl().schema, thread, static_cast<unsigned char>(c), &next);
        if (next.size() >= kMaxThreads) break;
      }
      if (next.empty()) return false;
      remove_equals(&next);
      now.swap(next);
    }
    threads_ = std::move(now);
    return true;
  }

  bool finished() const override { return finished_; }
  std::unique_ptr<TokenConstraint> clone() const override { return std::make_unique<JsonConstraint>(*this); }

 private:
  const JsonGrammar::Impl& impl() const { return *grammar_->impl_; }

  bool complete() const {
    return std::any_of(threads_.begin(), threads_.end(),
                       [&](const GrammarThread& thread) { return is_complete(impl().schema, thread); });
  }

  void remove_equals(Threads* threads) const {
    if (threads->size() < 2) return;
    std::unordered_set<std::string> seen;
    std::erase_if(*threads, [&](const GrammarThread& thread) {
      return !seen.insert(signature(impl().schema, thread, 0)).second;
    });
  }

  std::shared_ptr<const JsonGrammar> grammar_;
  std::vector<int32_t> end_ids_;
  Threads threads_;
  bool finished_ = false;
};

JsonGrammar::JsonGrammar(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
JsonGrammar::~JsonGrammar() = default;

std::shared_ptr<const JsonGrammar> JsonGrammar::any_object(std::shared_ptr<const GrammarVocabulary> vocabulary) {
  auto impl = std::make_unique<Impl>();
  impl->schema = any_object_schema();
  impl->vocabulary = std::move(vocabulary);
  return std::shared_ptr<const JsonGrammar>(new JsonGrammar(std::move(impl)));
}

Result<std::shared_ptr<const JsonGrammar>> JsonGrammar::from_schema(
    const Json& schema, std::shared_ptr<const GrammarVocabulary> vocabulary) {
  auto impl = std::make_unique<Impl>();
  TESSERA_ASSIGN_OR_RETURN(impl->schema, compile_schema(schema));
  impl->vocabulary = std::move(vocabulary);
  return std::shared_ptr<const JsonGrammar>(new JsonGrammar(std::move(impl)));
}

std::unique_ptr<TokenConstraint> JsonGrammar::start(std::vector<int32_t> end_ids) const {
  return std::make_unique<JsonConstraint>(shared_from_this(), std::move(end_ids));
}

}  // namespace tessera
