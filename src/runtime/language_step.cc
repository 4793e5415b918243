#include "runtime/language_step.h"

#include <algorithm>
#include <bit>

#include "core/check.h"
#include "ops/embedding.h"

namespace tessera {
namespace {

// Shapes that captured decode steps are rounded up to: few enough to capture, near enough to waste little.
int64_t bucket(int64_t sequences) {
  return sequences <= 8 ? static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(sequences)))
                        : (sequences + 7) / 8 * 8;
}

int64_t kv_bucket(int64_t length) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(length, 256))));
}

// Rows that steps with prompts are rounded up to.
constexpr int64_t kRowMultiple = 64;
int64_t round_up(int64_t rows) { return (rows + kRowMultiple - 1) / kRowMultiple * kRowMultiple; }

// Everything that decides which calls a decode step makes.
uint64_t capture_key(const StepShape& shape, bool greedy, int top, bool edits, bool masks) {
  return (static_cast<uint64_t>(shape.sequences) << 40) | (static_cast<uint64_t>(shape.max_kv) << 8) |
         (uint64_t{greedy} << 3) | (uint64_t{top > 0} << 2) | (uint64_t{edits} << 1) | uint64_t{masks};
}

}  // namespace

uint64_t answer_seed(uint64_t seed, int index) {
  if (index == 0) return seed;
  uint64_t z = seed + 0x9e3779b97f4a7c15 * static_cast<uint64_t>(index);  // splitmix64
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

LanguageStep::LanguageStep(Backend& backend, EngineMemory& memory, int64_t valid_ids)
    : backend_(backend), memory_(memory), valid_ids_(valid_ids), choices_(memory.step.choices(valid_ids)) {
  table_rows_.resize(static_cast<size_t>(memory.shape.max_sequences));
  rows_.reserve(static_cast<size_t>(memory.shape.max_sequences));
  for (auto& samples : samples_) samples.reserve(static_cast<size_t>(memory.shape.max_sequences));
}

void LanguageStep::fill_tokens(const Sequence& s, int64_t count, const StepBuffers::Inputs& in, int64_t at) const {
  const int64_t block_size = memory_.shape.block_size;
  const int64_t per_tile = memory_.model->config().tokens_per_tile();
  const auto& images = s.request->request.images;
  size_t image = 0;
  for (int64_t p = s.computed; p < s.computed + count; ++p, ++at) {
    while (image < images.size() && p >= images[image].first + images[image].tokens) ++image;
    in.token_ids[at] = p < s.known_length() ? s.token(p) : -1 - s.sampled_row;
    in.positions[at] = static_cast<int32_t>(p);
    in.rope_lengths[at] = static_cast<int32_t>(s.rope_length(p));
    in.slots[at] = static_cast<int32_t>(s.blocks[static_cast<size_t>(p / block_size)].index() * block_size + p % block_size);
    in.image_index[at] = -1;
    if (image == images.size() || p < images[image].first) continue;
    const int64_t row = p - images[image].first;
    in.image_index[at] = static_cast<int32_t>(s.pins[image]->slots[static_cast<size_t>(row / per_tile)] * per_tile + row % per_tile);
  }
}

void LanguageStep::fill_table(int64_t row, const Sequence& s, int64_t blocks) {
  TableRow& there = table_rows_[static_cast<size_t>(row)];
  const int64_t first = there.tenure == s.tenure ? there.filled : 0;
  if (first < blocks) {
    int32_t* host = memory_.step.table_row(row);
    for (int64_t b = first; b < blocks; ++b) host[b] = s.blocks[static_cast<size_t>(b)].index();
    memory_.step.change_table(row, first, blocks - first);
  }
  there = {s.tenure, std::max(first, blocks)};
}

StepShape LanguageStep::fill_inputs(Running running, const StepPlan& plan) {
  const int64_t block_size = memory_.shape.block_size;
  StepShape shape{.tokens = plan.tokens,
                  .sequences = static_cast<int64_t>(plan.items.size()),
                  .decodes = plan.decodes,
                  .logits_in_order = true};
  const StepBuffers::Inputs in = memory_.step.inputs(plan.tokens);
  rows_.clear();
  int64_t at = 0;
  for (size_t row = 0; row < plan.items.size(); ++row) {
    const StepItem& item = plan.items[row];
    const Sequence& s = *running[static_cast<size_t>(item.sequence)];
    const int64_t kv_length = s.computed + item.tokens;
    fill_tokens(s, item.tokens, in, at);
    fill_table(static_cast<int64_t>(row), s, (kv_length + block_size - 1) / block_size);
    in.query_offsets[row] = static_cast<int32_t>(at);
    in.kv_lengths[row] = static_cast<int32_t>(kv_length);
    at += item.tokens;
    shape.max_query = std::max<int64_t>(shape.max_query, item.tokens);
    shape.max_kv = std::max(shape.max_kv, kv_length);
    for (int answer = 0; item.samples && answer < s.answers; ++answer) {
      shape.logits_in_order = shape.logits_in_order && static_cast<int64_t>(rows_.size()) == at - 1;
      in.logit_rows[rows_.size()] = static_cast<int32_t>(at - 1);
      rows_.push_back({.sequence = item.sequence, .answer = answer});
    }
  }
  in.query_offsets[plan.items.size()] = static_cast<int32_t>(at);
  shape.logit_rows = static_cast<int64_t>(rows_.size());
  shape.logits_in_order = shape.logits_in_order && shape.logit_rows == shape.tokens;
  return shape;
}

// Adds surplus tokens: they write nothing and belong to no sequence.
void LanguageStep::pad_tokens(int64_t tokens, int64_t padded, const StepBuffers::Inputs& in) {
  for (int64_t i = tokens; i < padded; ++i) {
    in.token_ids[i] = in.positions[i] = 0;
    in.rope_lengths[i] = 1;
    in.slots[i] = in.image_index[i] = -1;
  }
}

// Rounds a step with prompts up to a multiple of rows, which costs nothing: products are computed in larger tiles. A library that
// chooses an algorithm for each number of rows then has few to choose, and to load. Rows with logits are rounded where
// they are too many for the kernels of few rows: the last layer is computed for them alone.
void LanguageStep::pad_prompts(StepShape& shape, const StepBuffers::Inputs& in) const {
  const int64_t padded = std::min(round_up(shape.tokens), memory_.shape.step_tokens);
  pad_tokens(shape.tokens, padded, in);
  shape.logits_in_order = shape.logits_in_order && padded == shape.tokens;
  shape.tokens = padded;
  if (shape.logit_rows <= kRowMultiple) return;
  const int64_t logit_rows = std::min(round_up(shape.logit_rows), memory_.shape.max_sequences);
  std::fill(in.logit_rows + shape.logit_rows, in.logit_rows + logit_rows, 0);
  shape.logit_rows = logit_rows;
}

// Rounds a decode step up to a shape that can be replayed.
void LanguageStep::pad_decodes(StepShape& shape, const StepBuffers::Inputs& in) const {
  const int64_t padded = std::min(bucket(std::max<int64_t>(shape.sequences, 1)), memory_.shape.max_sequences);
  pad_tokens(shape.sequences, padded, in);
  for (int64_t i = shape.sequences; i < padded; ++i) {
    in.query_offsets[i + 1] = static_cast<int32_t>(shape.tokens);
    in.kv_lengths[i] = 0;
    in.logit_rows[i] = static_cast<int32_t>(i);
    in.rows[i] = {};
  }
  shape.tokens = shape.sequences = shape.decodes = shape.logit_rows = padded;
  shape.max_kv = std::min(kv_bucket(shape.max_kv), memory_.shape.session_len);
}

LanguageStep::Group LanguageStep::fill_sampling(Running running, int64_t first, SamplingRow* rows) const {
  Group group{.first = first};
  for (; first + group.rows < static_cast<int64_t>(rows_.size()); ++group.rows) {
    const Row& place = rows_[static_cast<size_t>(first + group.rows)];
    const Sequence& s = *running[static_cast<size_t>(place.sequence)];
    const auto edits = s.edits.edits();
    if (group.edits + static_cast<int64_t>(edits.size()) > memory_.step.edit_capacity()) break;
    SamplingRow& row = rows[first + group.rows];
    row = s.request->request.sampling;
    row.seed = answer_seed(row.seed, s.index + place.answer);
    row.draw = static_cast<uint64_t>(s.length() - s.prompt_length());
    row.edits_begin = static_cast<int32_t>(group.edits);
    std::copy(edits.begin(), edits.end(), memory_.step.edits() + group.edits);
    group.edits += static_cast<int64_t>(edits.size());
    row.edits_end = static_cast<int32_t>(group.edits);
    row.mask_row = -1;
    if (s.constraint) {
      row.mask_row = static_cast<int32_t>(group.masks);
      s.constraint->fill_mask({memory_.step.mask_row(group.masks++), static_cast<size_t>(memory_.step.mask_words())});
    }
    group.greedy = group.greedy && row.temperature == 0;
    group.top = std::max(group.top, static_cast<int>(row.top_logprobs));
  }
  return group;
}

void LanguageStep::forward(const StepInput& input) { logits_ = memory_.model->forward(backend_.context(), input, memory_.kv); }

void LanguageStep::sample_group(const Group& group) {
  if (group.rows == 0) return;
  SampleArgs args = memory_.step.sampling(group.first, group.rows, group.edits > 0, group.masks > 0);
  args.valid_ids = valid_ids_;
  args.all_greedy = group.greedy;
  args.max_top_logprobs = group.top;
  args.logits = logits_.slice(group.first, group.rows);
  args.found = &choices_;
  sample(backend_.context(), args);
}

// What a capture holds: inputs up, from either mirror, forward, sampling, ids down. All other sizes and addresses follow from the key.
void LanguageStep::replay(const StepShape& shape, const Group& group) {
  StepInput input = this->input(shape);
  // Of greedy rows alone nobody reads the logits.
  if (group.greedy && group.edits == 0 && group.masks == 0 && group.top == 0) input.choices = &choices_;
  const uint64_t key = capture_key(shape, group.greedy, group.top, group.edits > 0, group.masks > 0);
  backend_.run_captured(key, memory_.step.take_pieces(shape), [&] {
    forward(input);
    sample_group(group);
    memory_.step.download_samples(backend_, group.rows, group.top > 0);
  });
  choices_.parts = 0;
}

void LanguageStep::copy_last_blocks(Running running, const StepPlan& plan) {
  int64_t pairs = 0;
  for (const StepItem& item : plan.items) {
    const Sequence& s = *running[static_cast<size_t>(item.sequence)];
    if (!item.samples) continue;
    for (const BlockRef& copy : s.spare) {
      memory_.step.copy_pairs()[2 * pairs] = s.blocks[static_cast<size_t>(s.length() / memory_.shape.block_size)].index();
      memory_.step.copy_pairs()[2 * pairs++ + 1] = copy.index();
    }
  }
  if (pairs == 0) return;
  const Tensor device = memory_.step.upload_pairs(backend_, pairs);
  for (int64_t layer = 0; layer < memory_.model->layers(); ++layer)
    copy_blocks(backend_.context(), {.base = memory_.kv.layer(layer).base,
                                     .block_bytes = memory_.kv.layout.block_bytes(),
                                     .pairs = device});
}

void LanguageStep::launch(Running running, const StepPlan& plan) {
  const StepShape shape = fill_inputs(running, plan);
  const StepBuffers::Inputs in = memory_.step.inputs(plan.tokens);
  samples_[static_cast<size_t>(memory_.step.turn())].resize(rows_.size());
  const Group group = fill_sampling(running, 0, in.rows);
  const bool decodes_only = plan.decodes == shape.sequences && group.rows == shape.sequences && shape.logits_in_order;
  if (decodes_only && backend_.captures()) {
    launch_decodes(shape, group, in);
  } else {
    launch_batch(shape, group, in, running);
    copy_last_blocks(running, plan);
  }
  backend_.mark(mark_of(kStepEnd, memory_.step.turn()));
}

void LanguageStep::launch_decodes(StepShape shape, Group group, const StepBuffers::Inputs& in) {
  pad_decodes(shape, in);
  group.rows = shape.logit_rows;
  if (group.top > 0) group.top = kMaxTopLogprobs;  // one capture for any number of them
  memory_.step.upload_edits(backend_, group.edits, group.masks);
  replay(shape, group);
}

void LanguageStep::launch_batch(StepShape shape, Group group, const StepBuffers::Inputs& in, Running running) {
  const int64_t rows = shape.logit_rows;
  if (backend_.captures()) pad_prompts(shape, in);
  forward(upload(shape));
  bool top = false;
  while (true) {
    memory_.step.upload_edits(backend_, group.edits, group.masks);
    sample_group(group);
    top = top || group.top > 0;
    const int64_t done = group.first + group.rows;
    if (done >= rows) break;
    backend_.synchronize();  // the mirrors of edits and masks are filled again
    group = fill_sampling(running, done, in.rows);
    TESSERA_CHECK(group.rows > 0, "sampling: the edits of one row exceed the buffer");
    memory_.step.upload_rows(backend_, done, group.rows);
  }
  memory_.step.download_samples(backend_, rows, top);
}

StepInput LanguageStep::input(const StepShape& shape) const {
  StepInput input = memory_.step.input(shape);
  input.image_rows = memory_.embedding_rows;
  return input;
}

StepInput LanguageStep::upload(const StepShape& shape) {
  backend_.upload_all(memory_.step.take_pieces(shape));
  return input(shape);
}

std::span<const SampledToken> LanguageStep::collect(int turn) {
  const StepBuffers::Samples results = memory_.step.samples(turn);
  std::vector<SampledToken>& samples = samples_[static_cast<size_t>(turn)];
  for (size_t i = 0; i < samples.size(); ++i)
    samples[i] = {.id = results.ids[i],
                  .logprob = results.logprobs[i],
                  .top_ids = results.top_ids + i * kMaxTopLogprobs,
                  .top_logprobs = results.top_logprobs + i * kMaxTopLogprobs};
  return samples;
}

// ---- Before the first request

StepCosts LanguageStep::warm_up() {
  constexpr int64_t kSlice = 512;
  constexpr int64_t kPrompts[] = {64, 128, 192, 256, 384, 512, 768, 1024, 2048};
  constexpr int64_t kLongestWarm = 8192;  // graphs of longer contexts are captured when they are met
  const int64_t tokens = std::min(memory_.shape.step_tokens, memory_.shape.session_len);
  for (const int64_t prompt : kPrompts) time_prompt(std::min(prompt, tokens), std::min(prompt, tokens));
  time_prompt(tokens, tokens);
  StepCosts costs;
  costs.prefill_pair_s = time_pair(std::min(kSlice, tokens), std::min(kLongestWarm, memory_.shape.session_len));
  const auto count = static_cast<double>(tokens);
  costs.prefill_token_s = std::max(time_prompt(tokens, tokens) - costs.prefill_pair_s * count * count / 2, 0.0) / count;
  for (int64_t length = 1; length <= std::min(kLongestWarm, memory_.shape.session_len); length = 2 * kv_bucket(length)) {
    time_decode(length);  // the first run of a key is not captured
    time_decode(length);
    costs.decode_step_s = time_decode(length);
  }
  return costs;
}

// What a key more for a prompt's token takes: the same slice at the end of a long context and alone.
double LanguageStep::time_pair(int64_t tokens, int64_t length) {
  const auto more = static_cast<double>(tokens * (length - tokens));
  for (const int64_t context : {tokens, length}) time_prompt(tokens, context);
  return more > 0 ? std::max(time_prompt(tokens, length) - time_prompt(tokens, tokens), 0.0) / more : 0;
}

// The last `tokens` of a prompt of `length`.
double LanguageStep::time_prompt(int64_t tokens, int64_t length) {
  const StepBuffers::Inputs in = memory_.step.inputs(tokens);
  for (int64_t i = 0; i < tokens; ++i) {
    in.token_ids[i] = 0;
    in.positions[i] = static_cast<int32_t>(length - tokens + i);
    in.rope_lengths[i] = static_cast<int32_t>(length);
    in.slots[i] = in.image_index[i] = -1;
  }
  in.query_offsets[0] = 0;
  in.query_offsets[1] = static_cast<int32_t>(tokens);
  in.kv_lengths[0] = static_cast<int32_t>(length);
  in.logit_rows[0] = static_cast<int32_t>(tokens - 1);
  const int64_t blocks = memory_.shape.max_blocks_per_sequence();
  std::fill_n(memory_.step.table_row(0), blocks, 0);
  memory_.step.change_table(0, 0, blocks);
  in.rows[0] = {};
  return time_step({.tokens = tokens, .sequences = 1, .max_query = tokens, .max_kv = length, .logit_rows = 1}, /*capture=*/false);
}

// A decode step of no sequence at all, padded to the shape of one whose context has this length.
double LanguageStep::time_decode(int64_t length) {
  StepShape shape{.max_kv = length, .logits_in_order = true};
  const StepBuffers::Inputs in = memory_.step.inputs(1);
  in.query_offsets[0] = 0;
  pad_decodes(shape, in);
  return time_step(shape, /*capture=*/true);
}

double LanguageStep::time_step(const StepShape& shape, bool capture) {
  const Group group{.rows = shape.logit_rows};
  backend_.mark(kStepBegin);
  if (capture) {
    replay(shape, group);
  } else {
    forward(upload(shape));
    sample_group(group);
  }
  backend_.mark(kStepEnd);
  return backend_.seconds_between(kStepBegin, kStepEnd);
}

}  // namespace tessera
