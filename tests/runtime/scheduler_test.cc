#include "runtime/scheduler.h"

#include <gtest/gtest.h>

namespace tessera {
namespace {

SequenceView decoding(int64_t length, uint64_t age) {
  return {.length = length, .computed = length - 1, .ready = length, .blocks = (length + 15) / 16, .age = age};
}
SequenceView prompt(int64_t length, int64_t computed, uint64_t age) {
  return {.length = length, .computed = computed, .ready = length, .blocks = length / 16 + 1, .age = age};
}

StepPlan plan(const std::vector<SequenceView>& running, const VisionView& vision = {}, StepLimits limits = {.step_tokens = 512},
              StepCosts costs = {}) {
  StepPlan out;
  plan_step(running, vision, limits, costs, out);
  return out;
}

TEST(PlanStep, DecodesComeFirstAndAll) {
  const StepPlan p = plan({prompt(100, 0, 1), decoding(50, 2), decoding(60, 3)});
  ASSERT_EQ(p.items.size(), 3u);
  EXPECT_EQ(p.decodes, 2);
  EXPECT_EQ(p.items[0].sequence, 1);
  EXPECT_EQ(p.items[1].sequence, 2);
  EXPECT_TRUE(p.items[0].samples);
}

TEST(PlanStep, PromptsStayWithinTheBudget) {
  const StepPlan p = plan({prompt(1000, 0, 1), prompt(1000, 0, 2)});
  ASSERT_EQ(p.items.size(), 1u);
  EXPECT_EQ(p.items[0].tokens, 512);
  EXPECT_FALSE(p.items[0].samples);
  EXPECT_EQ(p.tokens, 512);
}

TEST(PlanStep, ShortPromptsPassLongOnes) {
  const StepPlan p = plan({prompt(3000, 0, 1), prompt(40, 0, 2)});
  ASSERT_EQ(p.items.size(), 2u);
  int64_t of_short = 0;
  for (const StepItem& item : p.items)
    if (item.sequence == 1) of_short = item.tokens;
  EXPECT_EQ(of_short, 40);
  EXPECT_EQ(p.tokens, 512);
}

TEST(PlanStep, StopsBeforeAPictureThatIsNotThere) {
  SequenceView s = prompt(100, 0, 1);
  s.ready = 7;
  StepPlan p = plan({s});
  ASSERT_EQ(p.items.size(), 1u);
  EXPECT_EQ(p.items[0].tokens, 7);
  EXPECT_FALSE(p.items[0].samples);
  s.computed = 7;
  EXPECT_TRUE(plan({s}).empty());
}

TEST(PlanStep, SlicesByCostBesideDecodes) {
  const StepCosts costs{.decode_step_s = 0.01, .prefill_token_s = 0.001, .tile_layer_s = 0.01};
  const StepLimits limits{.step_tokens = 512, .max_wait_s = 0.1};
  // 0.1 s less the 0.01 that the decode itself takes.
  EXPECT_EQ(plan({decoding(50, 1), prompt(1000, 0, 2)}, {}, limits, costs).tokens, 80) << "whole tiles of 16 rows";
  EXPECT_EQ(plan({prompt(1000, 0, 2)}, {}, limits, costs).tokens, 512) << "nobody waits";
  const VisionView vision{.waiting_tiles = 40, .layers = 24, .max_tiles = 13};
  const StepPlan p = plan({decoding(50, 1)}, vision, limits, costs);
  EXPECT_EQ(p.new_pass_tiles, 3) << "one layer of the pass fits a third of the wait, should a prompt come";
  EXPECT_EQ(p.vision_layers, 3);
  EXPECT_EQ(plan({}, vision, limits, costs).new_pass_tiles, 3) << "somebody may decode before it is over";
  const VisionView under_way{.pass_tiles = 2, .layers_left = 20, .waiting_tiles = 40, .layers = 24, .max_tiles = 13};
  EXPECT_EQ(plan({decoding(50, 1)}, under_way, limits, costs).vision_layers, 4);
}

TEST(PlanStep, LeavesAQuarterOfTheWaitToPromptsWhereDecodesTakeAllOfIt) {
  const StepCosts costs{.decode_step_s = 0.2, .prefill_token_s = 0.0005, .tile_layer_s = 0.01};
  const StepLimits limits{.step_tokens = 512, .max_wait_s = 0.1};
  EXPECT_EQ(plan({decoding(50, 1), prompt(1000, 0, 2)}, {}, limits, costs).tokens, 48);
}

TEST(PlanStep, PromptsFillUpWholeTilesOfRows) {
  const StepCosts costs{.decode_step_s = 0.01, .mixed_step_s = 0.02, .prefill_token_s = 0.0001, .overhead_s = 0.002};
  const StepLimits limits{.step_tokens = 4096, .row_multiple = 128, .max_wait_s = 0.1};
  // (0.1 - 0.022) s are 780 tokens; with two decodes the step is cut to 6 tiles of 128 rows.
  const StepPlan p = plan({decoding(50, 1), decoding(50, 2), prompt(4000, 0, 3)}, {}, limits, costs);
  EXPECT_EQ(p.tokens, 768);
  const StepLimits tight{.step_tokens = 4096, .row_multiple = 128, .max_wait_s = 0.026};
  EXPECT_EQ(plan({decoding(50, 1), prompt(4000, 0, 3)}, {}, tight, costs).tokens, 64) << "less than a tile: half of one";
  const StepLimits tighter{.step_tokens = 4096, .row_multiple = 256, .max_wait_s = 0.026};
  EXPECT_EQ(plan({decoding(50, 1), prompt(4000, 0, 3)}, {}, tighter, costs).tokens, 1 + 64) << "less than half of one: multiples of 16";
}

TEST(PlanStep, CountsTheKeysThatAPromptLooksBackTo) {
  const StepCosts costs{.decode_step_s = 0.01, .mixed_step_s = 0.02, .prefill_token_s = 0.0001, .prefill_pair_s = 1e-7};
  const StepLimits limits{.step_tokens = 4096, .row_multiple = 128, .max_wait_s = 0.1};
  // 0.08 s: 511 tokens at the begin take 0.0511 + 511 * 255 keys = 0.064, 639 would take 0.084.
  EXPECT_EQ(plan({decoding(50, 1), prompt(4000, 0, 2)}, {}, limits, costs).tokens, 512);
  // Behind 3000 tokens 127 take 0.0127 + 0.0389 s, 255 would take 0.105.
  const StepPlan late = plan({decoding(50, 1), prompt(4000, 3000, 2)}, {}, limits, costs);
  EXPECT_EQ(late.tokens, 128);
  EXPECT_DOUBLE_EQ(late.prompt_pairs, 127 * 3063.5);
}

// A third is kept for vision, or what its pass needs; prompts take whole tiles of rows of the rest, vision what is left.
TEST(PlanStep, SharesAStepBetweenPromptsAndVision) {
  const StepCosts costs{.decode_step_s = 0.01, .mixed_step_s = 0.01, .prefill_token_s = 0.0001, .tile_layer_s = 0.001};
  const StepLimits limits{.step_tokens = 4096, .row_multiple = 256, .max_wait_s = 0.1};
  VisionView vision{.pass_tiles = 7, .layers_left = 20, .layers = 24, .max_tiles = 13};
  const StepPlan both = plan({decoding(50, 1), prompt(4000, 0, 2)}, vision, limits, costs);
  EXPECT_EQ(both.tokens, 512) << "0.06 s of 0.09 are 600 tokens";
  EXPECT_EQ(both.vision_layers, 5) << "0.0389 s are left";
  vision.layers_left = 1;
  const StepPlan end = plan({decoding(50, 1), prompt(4000, 0, 2)}, vision, limits, costs);
  EXPECT_EQ(end.tokens, 768) << "the pass needs 0.007 s";
  EXPECT_EQ(end.vision_layers, 1);
  vision.layers_left = 20;
  const StepPlan little = plan({decoding(50, 1), prompt(100, 0, 2)}, vision, limits, costs);
  EXPECT_EQ(little.tokens, 101);
  EXPECT_EQ(little.vision_layers, 11) << "prompts want only 0.01 s";
}

TEST(StepCosts, LearnsBaseAndSlopeApart) {
  StepCosts costs;
  costs.learn_step(/*decodes=*/4, /*prompt_tokens=*/64, /*pairs=*/0, 0.1);
  EXPECT_DOUBLE_EQ(costs.prefill_token_s, 0.1 / 64) << "nothing else is known yet";
  costs = {};
  costs.learn_step(0, 1000, 0, 0.02);
  EXPECT_DOUBLE_EQ(costs.prefill_token_s, 2e-5);
  costs.learn_step(64, 500, 0, 0.013);
  EXPECT_NEAR(costs.mixed_step_s, 0.003, 1e-12);
  EXPECT_DOUBLE_EQ(costs.prefill_token_s, 2e-5) << "the slope is learned from prompts alone";
  costs.learn_step(64, 0, 0, 0.007);
  EXPECT_DOUBLE_EQ(costs.decode_step_s, 0.007);
  costs.prefill_pair_s = 1e-9;
  costs.mixed_step_s = -1;
  costs.learn_step(64, 500, /*pairs=*/1e6, 0.014);
  EXPECT_NEAR(costs.mixed_step_s, 0.003, 1e-12) << "less what keys take";
}

TEST(PlanStep, AlwaysTakesTheSmallestPiece) {
  const StepCosts costs{.decode_step_s = 1, .prefill_token_s = 10, .tile_layer_s = 10};
  const VisionView vision{.waiting_tiles = 3, .layers = 24, .max_tiles = 13};
  const StepPlan p = plan({decoding(50, 1), prompt(1000, 0, 2)}, vision, {.step_tokens = 512, .max_wait_s = 0.01}, costs);
  EXPECT_EQ(p.tokens, 1 + 16);
  EXPECT_EQ(p.new_pass_tiles, 1);
  EXPECT_EQ(p.vision_layers, 1);
}

TEST(Admission, OrderIsPriorityThenPreemptedThenShareThenAge) {
  std::vector<WaitingView> waiting(5);
  waiting[0] = {.length = 1, .served = 10, .age = 1};
  waiting[1] = {.length = 1, .served = 5, .age = 2};
  EXPECT_EQ(pick_waiting(std::span(waiting).first(2), false), 1);
  waiting[2] = {.length = 1, .preempted = true, .served = 99, .age = 3};
  EXPECT_EQ(pick_waiting(std::span(waiting).first(3), false), 2);
  waiting[3] = {.length = 1, .priority = 1, .served = 99, .age = 4};
  EXPECT_EQ(pick_waiting(std::span(waiting).first(4), false), 3);
  waiting[4] = {.length = 1, .priority = 1, .served = 99, .age = 5};
  EXPECT_EQ(pick_waiting(waiting, false), 3);
  EXPECT_EQ(pick_waiting({}, false), -1);
}

TEST(Admission, AClientsTextsAndPicturesTakeTurnsByTheirWork) {
  std::vector<WaitingView> waiting(3);
  waiting[0] = {.kind_served = 500, .pictures = true, .age = 1};
  waiting[1] = {.kind_served = 400, .age = 2};
  waiting[2] = {.kind_served = 400, .age = 3};
  EXPECT_EQ(pick_waiting(waiting, false), 1);
  waiting[1].kind_served = waiting[2].kind_served = 600;
  EXPECT_EQ(pick_waiting(waiting, false), 0);
  waiting[0].kind_served = 600;
  EXPECT_EQ(pick_waiting(waiting, false), 1) << "a text is over soon";
  waiting[0].served = -1;
  EXPECT_EQ(pick_waiting(waiting, false), 0) << "clients come before kinds";
}

TEST(Admission, WhatNeedsTheTowerStaysOutsideWhileItIsBusy) {
  std::vector<WaitingView> waiting(2);
  waiting[0] = {.priority = 5, .pictures = true, .needs_tower = true, .age = 1};
  EXPECT_EQ(pick_waiting(std::span(waiting).first(1), true), -1);
  EXPECT_EQ(pick_waiting(std::span(waiting).first(1), false), 0);
  waiting[1] = {.priority = -5, .pictures = true, .age = 2};
  EXPECT_EQ(pick_waiting(waiting, true), 1) << "its pictures are encoded";
  EXPECT_FALSE(tower_busy(7, 4));
  EXPECT_TRUE(tower_busy(8, 4)) << "a pass, and the next one full";
}

TEST(Admission, CountsBlocks) {
  EXPECT_EQ(admission_blocks({.length = 31}, 16), 2);
  EXPECT_EQ(admission_blocks({.length = 32}, 16), 3) << "the next token begins a block";
  EXPECT_EQ(admission_blocks({.length = 31, .answers = 4}, 16), 5);
  const AdmissionState state{.running_sequences = 3, .max_sequences = 4, .available_blocks = 10, .block_size = 16};
  EXPECT_TRUE(can_admit({.length = 100}, 0, state));
  EXPECT_FALSE(can_admit({.length = 112}, 0, state)) << "8 blocks and 3 to spare";
  EXPECT_TRUE(can_admit({.length = 112}, 1, state));
  EXPECT_FALSE(can_admit({.length = 10, .answers = 2}, 0, state));
}

TEST(Preemption, TakesLowPriorityThenYoungest) {
  std::vector<SequenceView> running = {decoding(5, 1), decoding(5, 3), decoding(5, 2)};
  EXPECT_EQ(pick_victim(running), 1);
  running[0].priority = -1;
  EXPECT_EQ(pick_victim(running), 0);
  EXPECT_EQ(decode_blocks({}, 16), 0);
  running[1] = {.length = 17, .computed = 16, .ready = 17, .blocks = 1};
  EXPECT_EQ(decode_blocks(running, 16), 1);
}

}  // namespace
}  // namespace tessera
