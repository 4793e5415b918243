#include "cli/bench_decode.h"

#include <algorithm>
#include <chrono>

namespace tessera::cli {

DecodeBench::DecodeBench(Backend& backend, EngineMemory& memory)
    : backend_(backend),
      memory_(memory),
      language_(backend, memory, memory.model->config().language.vocab),
      pool_(memory.shape.kv_blocks) {}

void DecodeBench::prepare(int64_t batch, int64_t context, int64_t steps) {
  running_.clear();
  plan_ = {.items = {}, .decodes = batch, .tokens = batch};
  const int64_t block = memory_.shape.block_size, vocab = std::min<int64_t>(memory_.model->config().language.vocab, 100000);
  for (int64_t i = 0; i < batch; ++i) {
    auto s = std::make_unique<Sequence>();
    s->request = std::make_shared<RequestState>();
    for (int64_t t = 0; t < context; ++t) s->request->request.prompt.push_back(static_cast<int32_t>((i * 104729 + t * 7919 + 13) % vocab));
    s->computed = context - 1;
    s->tenure = ++last_tenure_;
    while (static_cast<int64_t>(s->blocks.size()) * block < context + steps - 1) s->blocks.push_back(pool_.allocate());
    running_.push_back(std::move(s));
    plan_.items.push_back({.sequence = static_cast<int32_t>(i), .tokens = 1, .samples = true});
  }
}

void DecodeBench::launch() {
  memory_.step.next_step();
  language_.launch(running_, plan_);
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& s = *running_[i];
    ++s.computed;
    ++s.on_the_way;
    s.sampled_row = static_cast<int32_t>(i);
  }
}

void DecodeBench::collect(int turn) {
  const int end = mark_of(kStepEnd, turn);
  backend_.seconds_between(end, end);
  const std::span<const SampledToken> samples = language_.collect(turn);
  for (size_t i = 0; i < samples.size(); ++i) {
    running_[i]->generated.push_back(samples[i].id);
    --running_[i]->on_the_way;
  }
}

double DecodeBench::run(int64_t batch, int64_t context, int64_t steps) {
  using Clock = std::chrono::steady_clock;
  prepare(batch, context, steps);
  Clock::time_point first = Clock::now();
  for (int64_t step = 0; step < steps; ++step) {
    const int ahead = memory_.step.turn();
    launch();
    if (!backend_.asynchronous()) collect(memory_.step.turn());
    if (step == 0 || !backend_.asynchronous()) continue;
    collect(ahead);
    if (step == 1) first = Clock::now();
  }
  if (backend_.asynchronous()) collect(memory_.step.turn());
  return std::chrono::duration<double>(Clock::now() - first).count() / static_cast<double>(std::max<int64_t>(steps - backend_.asynchronous(), 1));
}

}  // namespace tessera::cli
