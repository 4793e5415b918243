#include <algorithm>

#include "runtime/engine_core.h"

// The parts of EngineCore that give and take memory: arrivals, admission, prefixes, pictures, preemption.
namespace tessera {

// Puts a request on its client's account. Who comes new starts level with the others, not ahead of them by all that they
// had before; so does a client's kind of requests.
void EngineCore::enlist(RequestState& request) {
  const auto [client, added] = clients_.try_emplace(request.request.client);
  if (added) {
    bool first = true;
    for (const auto& [name, other] : clients_) {
      if (&other == &client->second) continue;
      client->second.served = first ? other.served : std::min(client->second.served, other.served);
      first = false;
    }
  }
  ++client->second.active;
  request.client = &client->second;
  Client& c = client->second;
  const bool pictures = !request.request.images.empty();
  request.kind = pictures ? &c.pictures : &c.texts;
  if (request.kind->active++ == 0) request.kind->served = (pictures ? c.texts : c.pictures).served;
}

void EngineCore::arrive(std::shared_ptr<RequestState> request) {
  enlist(*request);
  request->unfinished = request->request.n;
  counters_.prompt_tokens += static_cast<uint64_t>(request->prompt_length());
  auto s = std::make_unique<Sequence>();
  s->answers = request->request.n;
  s->edits = LogitEdits(request->request);
  s->request = std::move(request);
  waiting_.push_back(std::move(s));
  clear_ = true;
}

// The last answer of a request has ended.
void EngineCore::leave(RequestState& request) {
  ++(request.failed ? counters_.requests_failed : counters_.requests_finished);
  if (request.admitted_s < 0) inbox_.admitted(1);
  --request.kind->active;
  if (--request.client->active == 0) clients_.erase(request.request.client);
  ++ended_requests_;
}

void EngineCore::admit(double time) {
  const auto busy = [&] { return tower_busy(tiles_ahead(), memory_.shape.vision_batch); };
  if (held_back_ && !busy()) clear_ = true;
  while (!waiting_.empty() && clear_) {
    const bool tower_is_busy = busy();
    view_waiting(tower_is_busy);
    const int64_t next = pick_waiting(waiting_views_, tower_is_busy);
    held_back_ = next < 0;
    if (next < 0 || !try_admit(static_cast<size_t>(next), time)) clear_ = false;
  }
}

void EngineCore::view_waiting(bool tower_busy) {
  waiting_views_.clear();
  for (const SequencePtr& s : waiting_)
    waiting_views_.push_back({.length = s->length(),
                              .answers = s->answers,
                              .preempted = s->preempted,
                              .priority = s->request->request.priority,
                              .served = s->request->client->served,
                              .kind_served = s->request->kind->served,
                              .pictures = !s->request->request.images.empty(),
                              .needs_tower = tower_busy && needs_tower(*s),
                              .age = s->request->id});
}

// Whether a picture is neither encoded, or about to be, nor in the prefix cache, where its last block would be.
bool EngineCore::needs_tower(const Sequence& s) const {
  const RequestState& request = *s.request;
  return std::any_of(request.request.images.begin(), request.request.images.end(), [&](const PromptImage& image) {
    if (embeddings_.contains(image.key)) return false;
    const auto block = static_cast<size_t>((image.first + image.tokens - 1) / memory_.shape.block_size);
    return !options_.prefix_cache || block >= request.digests.size() || !pool_.contains(request.digests[block]);
  });
}

// Tiles that running requests wait for.
int64_t EngineCore::tiles_ahead() const {
  int64_t tiles = 0;
  for (const SequencePtr& s : running_)
    for (size_t i = 0; i < s->pins.size(); ++i) {
      const PromptImage& image = s->request->request.images[i];
      if (image.first + image.tokens > s->computed && !embeddings_.ready(image.key)) tiles += image.tiles;
    }
  return tiles;
}

bool EngineCore::try_admit(size_t index, double time) {
  Sequence& s = *waiting_[index];
  int64_t running = 0;
  for (const SequencePtr& other : running_) running += other->answers;
  if (running > 0 && running + s.answers > memory_.shape.max_sequences) return false;
  if (!make_constraint(s)) {
    waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(index));
    return true;
  }
  const int64_t found = claim_prefix(s);
  const WaitingView& view = waiting_views_[index];
  if (!can_admit(view, found,
                 {.running_sequences = running,
                  .max_sequences = memory_.shape.max_sequences,
                  .available_blocks = pool_.available(),
                  .block_size = memory_.shape.block_size})) {
    s.release();
    return false;
  }
  const int64_t own = admission_blocks(view, memory_.shape.block_size) - (s.answers - 1);
  while (static_cast<int64_t>(s.blocks.size()) < own) s.blocks.push_back(pool_.allocate());
  while (static_cast<int64_t>(s.spare.size()) < s.answers - 1) s.spare.push_back(pool_.allocate());
  s.pins.resize(s.request->request.images.size());
  s.tenure = ++last_tenure_;
  RequestState& request = *s.request;
  if (request.admitted_s < 0) {
    request.admitted_s = time;
    request.cached_tokens = s.computed;
    counters_.prefix_cache_queries_tokens += static_cast<uint64_t>(s.prompt_length());
    counters_.prefix_cache_hit_tokens += static_cast<uint64_t>(s.computed);
    inbox_.admitted(1);
  }
  running_.push_back(std::move(waiting_[index]));
  waiting_[index] = std::move(waiting_.back());
  waiting_.pop_back();
  return true;
}

// A grammar that can't be made ends its request alone.
bool EngineCore::make_constraint(Sequence& s) {
  const auto& make = s.request->request.constraint;
  if (!make || s.constraint) return true;
  try {
    s.constraint = make();
    return true;
  } catch (const std::exception& e) {
    end(s, FinishReason::kError, internal_error(std::string("the answer's grammar failed: ") + e.what()));
    return false;
  }
}

Digest EngineCore::block_digest(const Sequence& s, int64_t block, const Digest& previous) {
  const auto& digests = s.request->digests;
  return block < static_cast<int64_t>(digests.size())
             ? digests[static_cast<size_t>(block)]
             : hasher_.next(previous, s.request->request, s.generated, block * memory_.shape.block_size);
}

// Claims the leading blocks that are in the cache. The last token is always computed: its logits are wanted.
int64_t EngineCore::claim_prefix(Sequence& s) {
  s.blocks.reserve(static_cast<size_t>(memory_.shape.max_blocks_per_sequence()));
  s.chain = s.request->root;
  if (!options_.prefix_cache) return 0;
  const int64_t most = (s.length() - 1) / memory_.shape.block_size;
  while (s.published < most) {
    const Digest digest = block_digest(s, s.published, s.chain);
    BlockRef block = pool_.find(digest);
    if (!block) break;
    s.blocks.push_back(std::move(block));
    s.chain = digest;
    ++s.published;
  }
  s.computed = s.published * memory_.shape.block_size;
  return s.published;
}

// Publishes the full blocks of the first `computed` tokens: those of steps that are over. Who was preempted since has none.
void EngineCore::publish_blocks(Sequence& s, int64_t computed) {
  if (!options_.prefix_cache || s.blocks.empty()) return;
  for (; (s.published + 1) * memory_.shape.block_size <= computed; ++s.published) {
    s.chain = block_digest(s, s.published, s.chain);
    pool_.publish(s.blocks[static_cast<size_t>(s.published)], s.chain);
  }
}

void EngineCore::preempt(size_t index) {
  Sequence& s = *running_[index];
  s.release();
  s.preempted = true;
  ++counters_.preemptions;
  waiting_.push_back(std::move(running_[index]));
  running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(index));
}

void EngineCore::want_pictures() {
  for (const SequencePtr& s : running_)
    if (!s->pins.empty()) want_pictures(*s);
}

// Pins pictures in the order of the prompt, a little ahead of what is encoded: who holds any has the one it needs next,
// so everybody gets on; and nobody's album fills the queue.
void EngineCore::want_pictures(Sequence& s) {
  const auto& images = s.request->request.images;
  int64_t ahead = 0;
  bool needed = false;
  for (size_t i = 0; i < images.size(); ++i) {
    EmbeddingPin& pin = s.pins[i];
    if (images[i].first + images[i].tokens <= s.computed) {
      pin = {};
      continue;
    }
    needed = true;
    if (!pin) {
      if (ahead >= 2 * memory_.shape.vision_batch) break;
      ++counters_.picture_cache_queries;
      pin = embeddings_.find(images[i].key);
      counters_.picture_cache_hits += static_cast<bool>(pin);
      if (!pin) pin = embeddings_.insert(images[i].key, images[i].tiles);
      if (!pin) {
        --counters_.picture_cache_queries;  // no room yet: asked again in the next step
        break;
      }
    }
    if (pin->ready()) continue;
    ahead += images[i].tiles;
    vision_.want(pin.get(), images[i].pixels);
  }
  if (!needed) s.pins.clear();
}

int64_t EngineCore::ready_tokens(const Sequence& s) const {
  const auto& images = s.request->request.images;
  for (size_t i = 0; i < s.pins.size(); ++i)
    if (images[i].first + images[i].tokens > s.computed && !(s.pins[i] && s.pins[i]->ready()))
      return std::max(s.computed, images[i].first);
  return s.length();
}

// Whether an answer of this length, prompt included, ends.
bool EngineCore::is_full(const Sequence& s, int64_t length) const {
  return length - s.prompt_length() >= s.request->request.max_new_tokens || length >= memory_.shape.session_len;
}

// Who ends with the token that is on the way has nothing left to compute.
std::span<const SequenceView> EngineCore::views() {
  views_.clear();
  for (const SequencePtr& s : running_) {
    const bool ends = s->on_the_way > 0 && is_full(*s, s->length());
    views_.push_back({.length = ends ? s->computed : s->length(),
                      .computed = s->computed,
                      .ready = ends ? s->computed : ready_tokens(*s),
                      .blocks = static_cast<int64_t>(s->blocks.size()),
                      .priority = s->request->request.priority,
                      .served = s->request->client->served,
                      .age = s->request->id * kMaxAnswers + static_cast<uint64_t>(s->index)});
  }
  return views_;
}

std::vector<std::string> EngineCore::check_invariants() const {
  std::vector<int32_t> held(static_cast<size_t>(pool_.total()), 0);
  std::vector<std::string> wrong;
  int64_t answers = 0;
  for (const SequencePtr& s : running_) {
    answers += s->answers;
    for (const BlockRef& block : s->blocks) ++held[static_cast<size_t>(block.index())];
    for (const BlockRef& block : s->spare) ++held[static_cast<size_t>(block.index())];
    const std::string who = "request " + std::to_string(s->request->id) + "." + std::to_string(s->index);
    if (s->ended) wrong.push_back(who + " has ended and still runs");
    if (s->computed > static_cast<int64_t>(s->blocks.size()) * memory_.shape.block_size)
      wrong.push_back(who + " has computed more tokens than its blocks hold");
    if (s->computed >= s->length()) wrong.push_back(who + " has nothing left to compute");
    for (size_t b = static_cast<size_t>(s->computed / memory_.shape.block_size); b < s->blocks.size(); ++b)
      if (pool_.references(s->blocks[b].index()) != 1) wrong.push_back(who + " would write to a shared block");
  }
  for (const auto* sequences : {&running_, &waiting_})
    for (const SequencePtr& s : *sequences) {
      int64_t awaited = 0;
      for (const StepInFlight& step : steps_)
        for (const StepInFlight::Item& item : step.items) awaited += step.launched && item.sequence == s.get() && item.answers > 0;
      if (awaited != s->on_the_way) wrong.push_back("request " + std::to_string(s->request->id) + " awaits tokens that no step brings");
    }
  for (const SequencePtr& s : waiting_)
    if (!s->blocks.empty() || !s->spare.empty() || !s->pins.empty()) wrong.push_back("a waiting sequence holds memory");
  if (answers > memory_.shape.max_sequences)
    wrong.push_back(std::to_string(answers) + " answers run, at most " + std::to_string(memory_.shape.max_sequences));
  for (std::string& line : pool_.check(held)) wrong.push_back(std::move(line));
  for (std::string& line : embeddings_.check()) wrong.push_back(std::move(line));
  if (!has_work() && (!vision_.idle() || embeddings_.pinned_pictures() > 0))
    wrong.push_back("pictures are pinned while nothing runs");
  return wrong;
}

}  // namespace tessera
