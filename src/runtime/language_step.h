#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "runtime/engine_memory.h"
#include "runtime/engine_state.h"
#include "runtime/scheduler.h"

namespace tessera {

/// Points of a step in the backend's time (Backend::mark). Steps take turns with them, as with the mirrors of StepBuffers.
enum StepMark : int { kStepBegin, kVisionEnd, kStepEnd, kStepMarks };
inline int mark_of(StepMark mark, int turn) { return mark + kStepMarks * turn; }
static_assert(2 * kStepMarks <= Backend::kMarks);

/// A new token of one answer. A step's tokens stand in the order of its plan's items, of an item that stands for several
/// answers one for each.
struct SampledToken {
  int32_t id = 0;
  float logprob = 0;
  const int32_t* top_ids = nullptr;  ///< valid until the next step but one
  const float* top_logprobs = nullptr;
};

/// Executes the language part of a step plan on one rank: inputs up, forward, copies of shared last blocks, sampling,
/// tokens down, then the mark kStepEnd. A step may be launched before the one ahead is collected: what that one samples is
/// then read on the device. Touches no bookkeeping: what it read and wrote is committed by the engine, or dropped.
/// Thread rule: the engine's thread.
class LanguageStep {
 public:
  LanguageStep(Backend& backend, EngineMemory& memory, int64_t valid_ids);

  /// Hands the step to the stream, with the mirrors of the turn that StepBuffers is at. Throws what an operator throws.
  /// Requires: every sequence of the plan has blocks for its tokens of this step; a token that is not known is sampled by the
  /// step before; while that one is not over, nobody who wants its tokens has edits or masks.
  void launch(std::span<const std::unique_ptr<Sequence>> running, const StepPlan& plan);
  /// The tokens of the step that was launched at this turn. Requires: its mark kStepEnd was waited for.
  std::span<const SampledToken> collect(int turn);

  /// Runs prompts and decode steps that write no keys, so that the first request finds made what a backend makes when it
  /// is first needed: loaded kernels, the library's algorithms, graphs of one sequence. Returns what the steps took.
  StepCosts warm_up();

 private:
  using Running = std::span<const std::unique_ptr<Sequence>>;
  /// Rows of one call of sample(): as many as their edits fit.
  struct Group {
    int64_t first = 0, rows = 0, edits = 0, masks = 0;
    bool greedy = true;
    int top = 0;
  };

  /// Where a row of the logits comes from.
  struct Row {
    int32_t sequence = 0;  ///< index into the running sequences
    int answer = 0;        ///< counted from the sequence's own index
  };

  StepShape fill_inputs(Running running, const StepPlan& plan);
  void fill_tokens(const Sequence& sequence, int64_t count, const StepBuffers::Inputs& in, int64_t at) const;
  static void pad_tokens(int64_t tokens, int64_t padded, const StepBuffers::Inputs& in);
  void pad_prompts(StepShape& shape, const StepBuffers::Inputs& in) const;
  void pad_decodes(StepShape& shape, const StepBuffers::Inputs& in) const;
  void fill_table(int64_t row, const Sequence& sequence, int64_t blocks);
  Group fill_sampling(Running running, int64_t first, SamplingRow* rows) const;
  StepInput input(const StepShape& shape) const;
  StepInput upload(const StepShape& shape);
  void forward(const StepInput& input);
  void sample_group(const Group& group);
  void replay(const StepShape& shape, const Group& group);
  void launch_decodes(StepShape shape, Group group, const StepBuffers::Inputs& in);
  void launch_batch(StepShape shape, Group group, const StepBuffers::Inputs& in, Running running);
  void copy_last_blocks(Running running, const StepPlan& plan);
  double time_prompt(int64_t tokens, int64_t length);
  double time_pair(int64_t tokens, int64_t length);
  double time_decode(int64_t length);
  double time_step(const StepShape& shape, bool capture);

  Backend& backend_;
  EngineMemory& memory_;
  int64_t valid_ids_;
  struct TableRow {
    uint64_t tenure = 0;
    int64_t filled = 0;
  };
  std::vector<TableRow> table_rows_;  ///< what the device's block tables hold
  std::vector<Row> rows_;  ///< of the step that is being launched
  std::array<std::vector<SampledToken>, 2> samples_;  ///< by turn
  Tensor logits_;
  FoundChoices choices_;  ///< of the logits, by the product that made them
};

/// The seed of answer `index` of a request: its own for the first, unrelated ones for the others.
uint64_t answer_seed(uint64_t seed, int index);

}  // namespace tessera
