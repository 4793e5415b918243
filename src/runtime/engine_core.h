#pragma once

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "runtime/block_pool.h"
#include "runtime/embedding_cache.h"
#include "runtime/engine_memory.h"
#include "runtime/engine_state.h"
#include "runtime/inbox.h"
#include "runtime/language_step.h"
#include "runtime/prefix_hash.h"
#include "runtime/scheduler.h"
#include "runtime/step_in_flight.h"
#include "runtime/token_engine.h"
#include "runtime/vision_encoder.h"

namespace tessera {

/// What the engine thread owns: waiting and running sequences, caches, the step and the one in flight. A step is a
/// transaction of named phases; a failing operator ends the sequences that it was computing for and nothing else. Listeners
/// are called from commit and from endings, one at a time.
/// Thread rule: one thread; now(), stats() and memory() from any.
class EngineCore {
 public:
  EngineCore(Backend& backend, EngineMemory memory, TokenEngineOptions options, Inbox& inbox);
  ~EngineCore();

  bool step();
  bool has_work() const { return !running_.empty() || !waiting_.empty() || steps_[0].launched || steps_[1].launched; }
  void cancel_all();
  /// The device failed for good in a step: no other can work. The step's failure is the reason.
  bool lost() const { return !loss_.empty(); }
  /// Ends all that waits or runs with the loss and returns it.
  Status give_up();

  double now() const;
  EngineStats stats() const;
  const EngineMemory& memory() const { return memory_; }
  std::vector<std::string> check_invariants() const;

 private:
  using SequencePtr = std::unique_ptr<Sequence>;

  // A request's answers are aged in order; no batch is wider.
  static constexpr uint64_t kMaxAnswers = 1 << 16;

  bool run_step();
  // Phases of a step, in their order.
  void take_inbox();
  void expire(double time);
  void admit(double time);
  void want_pictures();
  void make_room();
  void launch();
  void sweep();
  void publish_stats();

  bool can_go_on();
  void reserve();
  void encode_pictures(StepInFlight& step);
  void compute_language(StepInFlight& step);
  void hand_over(StepInFlight& step);

  // engine_commit.cc
  void finish(StepInFlight& step);
  void finish_language(StepInFlight& step);
  void charge_vision(StepInFlight& step);
  void learn_overhead(const StepInFlight& step);
  void charge(const StepInFlight& step, double seconds);
  void commit(const StepInFlight& step, std::span<const SampledToken> samples);
  void fork(Sequence& sequence);
  void accept(Sequence& sequence, const SampledToken& sample);
  bool tell(Sequence& sequence, const SampledToken& sample);

  // engine_admission.cc
  void arrive(std::shared_ptr<RequestState> request);
  void leave(RequestState& request);
  void enlist(RequestState& request);
  bool try_admit(size_t waiting, double time);
  void view_waiting(bool tower_busy);
  bool needs_tower(const Sequence& waiting) const;
  int64_t tiles_ahead() const;
  bool make_constraint(Sequence& sequence);
  int64_t claim_prefix(Sequence& sequence);
  Digest block_digest(const Sequence& sequence, int64_t block, const Digest& previous);
  void publish_blocks(Sequence& sequence, int64_t computed);
  void preempt(size_t running);
  void want_pictures(Sequence& sequence);
  int64_t ready_tokens(const Sequence& sequence) const;
  bool is_full(const Sequence& sequence, int64_t length) const;
  std::span<const SequenceView> views();

  // Endings.
  void end(Sequence& sequence, FinishReason reason, Status status);
  void end_request(RequestId id, FinishReason reason, const Status& status);
  void end_all(FinishReason reason, const Status& status);
  void fail_item(Sequence& sequence, const std::string& why);
  void fail_pictures(StepInFlight& step, const std::string& why);
  void note_failure(const std::string& why);
  void drop_ended_items();
  void drop_steps();

  Backend& backend_;
  EngineMemory memory_;
  TokenEngineOptions options_;
  Inbox& inbox_;
  BlockPool pool_;
  EmbeddingCache embeddings_;
  VisionEncoder vision_;
  LanguageStep language_;
  PrefixHasher hasher_;

  std::map<std::string, Client> clients_;  ///< those with active requests
  std::vector<SequencePtr> waiting_;       ///< any order; pick_waiting() chooses
  std::vector<SequencePtr> running_;       ///< order of admission
  std::vector<SequencePtr> born_;          ///< answers forked in this step
  uint64_t last_tenure_ = 0;
  std::string loss_;   ///< why the device is lost; empty: it is not
  bool clear_ = true;  ///< something changed since the head of the queue was refused
  bool held_back_ = false;  ///< requests wait for the vision tower to get on

  StepPlan plan_;
  std::array<StepInFlight, 2> steps_;  ///< by turn; at most one is in flight but while the next one is launched
  StepLimits limits_;
  StepCosts costs_;
  double last_end_s_ = -1;  ///< of the step before, where that computed something; on the engine's clock
  std::vector<SequenceView> views_;
  std::vector<WaitingView> waiting_views_;
  std::vector<Sequence*> targets_;
  Inbox::Messages messages_;
  TokenEvent event_;

  EngineStats counters_;  ///< the engine thread's
  int64_t ended_requests_ = 0;  ///< in this step
  mutable std::mutex stats_mutex_;
  EngineStats published_;
};

}  // namespace tessera
