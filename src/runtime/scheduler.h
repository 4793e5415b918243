#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tessera {

/// What deciding needs to know of a running sequence.
struct SequenceView {
  int64_t length = 0;      ///< tokens that exist: prompt and generated
  int64_t computed = 0;    ///< of them with keys and values in the cache
  int64_t ready = 0;       ///< tokens whose inputs are there (a picture that is not encoded yet ends them); <= length
  int64_t blocks = 0;      ///< held
  int priority = 0;
  double served = 0;       ///< work its client has had
  uint64_t age = 0;        ///< smaller is older
};

/// What deciding needs to know of a request that waits.
struct WaitingView {
  int64_t length = 0;      ///< tokens to compute before its first new one
  int64_t answers = 1;     ///< sequences that it becomes
  bool preempted = false;  ///< was running before
  int priority = 0;
  double served = 0;
  double kind_served = 0;    ///< work its client has had for requests of its kind: with pictures, or without
  bool pictures = false;
  bool needs_tower = false;  ///< has pictures that are to be encoded first
  uint64_t age = 0;
};

struct AdmissionState {
  int64_t running_sequences = 0;  ///< answers of running requests
  int64_t max_sequences = 0;
  int64_t available_blocks = 0;
  int64_t block_size = 16;
};

/// The waiting request that is next: higher priority, then preempted ones, then the client that has had least, then of
/// one client's texts and pictures those that have had less, then the oldest. While the vision tower has enough to do,
/// requests that need it stay outside: they would only hold places of the batch that texts could use. -1 when none is left.
int64_t pick_waiting(std::span<const WaitingView> waiting, bool tower_busy);

/// Whether more pictures would only wait: a pass is under way or about to begin, and the next one is full. `tiles` are those
/// of running requests that are not encoded.
bool tower_busy(int64_t tiles, int64_t vision_batch);

/// Blocks that a request needs when it is admitted: its tokens, the first new token of each answer, and for each further
/// answer a copy of the last block that is not full.
int64_t admission_blocks(const WaitingView& request, int64_t block_size);

/// Whether it can be admitted now. `found` of its blocks were in the prefix cache and are claimed already. Besides its
/// own blocks one for each running sequence stays free, so that the next decodes don't preempt at once.
bool can_admit(const WaitingView& request, int64_t found, const AdmissionState& state);

/// Blocks that the next token of each decoding sequence takes.
int64_t decode_blocks(std::span<const SequenceView> running, int64_t block_size);

/// The sequence to preempt when blocks run out: lowest priority, then youngest. -1 when there is none.
int64_t pick_victim(std::span<const SequenceView> running);

/// Measured seconds; negative while unknown. They decide how much a step takes on, never what comes out. A step takes
/// decode_step_s, or with prompts mixed_step_s, prefill_token_s for each of their tokens and prefill_pair_s for each key that
/// one of these attends to.
struct StepCosts {
  double decode_step_s = -1;
  double mixed_step_s = -1;
  double prefill_token_s = -1;
  double prefill_pair_s = 0;
  double tile_layer_s = -1;
  double overhead_s = 0;  ///< between two steps: the host's

  /// Moves a figure towards a new sample, an eighth of the way by default.
  static void learn(double& figure, double sample, double weight = 1.0 / 8) {
    figure = figure < 0 ? sample : figure + (sample - figure) * weight;
  }
  /// What `tokens` prompt tokens that attend to `pairs` keys in all add to a step. Requires: prefill_token_s is known.
  double prompt_seconds(int64_t tokens, double pairs) const {
    return prefill_token_s * static_cast<double>(tokens) + prefill_pair_s * pairs;
  }
  /// Learns from a step of `decodes`, `prompt_tokens` and their `pairs` that took `seconds`.
  void learn_step(int64_t decodes, int64_t prompt_tokens, double pairs, double seconds);
};

/// The vision work at hand.
struct VisionView {
  int64_t pass_tiles = 0;    ///< in the pass under way; 0: none
  int64_t layers_left = 0;   ///< of it
  int64_t waiting_tiles = 0;
  int64_t layers = 0;        ///< of the tower
  int64_t max_tiles = 0;     ///< in one pass
};

struct StepLimits {
  int64_t step_tokens = 0;
  int64_t row_multiple = 16;  ///< products are computed in whole multiples of so many rows: prompts fill them up
  double max_wait_s = 0.025;  ///< a decoding sequence waits about this at most for its next token
};

struct StepItem {
  int32_t sequence = 0;  ///< index into the views
  int32_t tokens = 0;
  bool samples = false;  ///< computes its last known token: a new one follows
};

/// What a step does: a value, handed to every rank.
struct StepPlan {
  std::vector<StepItem> items;  ///< decodes (one token, the last) first
  int64_t decodes = 0;
  int64_t tokens = 0;
  double prompt_pairs = 0;      ///< keys that the prompts' tokens attend to, in all
  int64_t new_pass_tiles = 0;   ///< tiles of the vision pass that begins in this step
  int64_t vision_layers = 0;    ///< layers of the pass to run

  int64_t prompt_tokens() const { return tokens - decodes; }
  bool empty() const { return items.empty() && vision_layers == 0; }
};

/// Plans one step: every decoding sequence gets its token; prompts share what is left of the token budget, short ones
/// before long ones, else by priority, by their client's share and by age; vision gets a slice of layers. While
/// sequences decode, prefill and vision together take about what their own step leaves of max_wait_s, at least a quarter
/// of it, and always at least the smallest piece, so that nothing starves. Of that a third is kept for vision, or what its
/// pass still needs; prompts get the most whole tiles of rows that fit the rest; what these leave is vision's, too. Pure;
/// `plan` is reused for its storage. Requires: step_tokens >= the number of sequences.
void plan_step(std::span<const SequenceView> running, const VisionView& vision, const StepLimits& limits,
               const StepCosts& costs, StepPlan& plan);

}  // namespace tessera
