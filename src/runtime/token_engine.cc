#include "runtime/token_engine.h"

#include <thread>

#include "runtime/admission.h"
#include "runtime/engine_core.h"
#include "runtime/inbox.h"
#include "runtime/prefix_hash.h"

namespace tessera {

struct TokenEngine::Impl {
  Impl(Backend& backend, EngineMemory memory, TokenEngineOptions options)
      : own_thread(options.own_thread),
        on_lost(options.on_lost),
        inbox(options.max_queue),
        core(backend, std::move(memory), std::move(options), inbox) {
    if (own_thread)
      thread = std::thread([this, &backend] {
        backend.enter_thread();
        loop();
      });
  }

  void loop() {
    while (inbox.wait_for_work(core.has_work())) step();
    core.cancel_all();
  }

  bool step() {
    const bool busy = core.step();
    if (!core.lost() || told) return busy;
    told = true;
    const Status loss = core.give_up();
    inbox.close(loss);
    if (on_lost) on_lost(loss);
    return false;
  }

  const bool own_thread;
  const std::function<void(const Status&)> on_lost;
  bool told = false;  ///< of a lost device
  Inbox inbox;
  EngineCore core;
  std::thread thread;
};

TokenEngine::TokenEngine(Backend& backend, EngineMemory memory, TokenEngineOptions options)
    : impl_(std::make_unique<Impl>(backend, std::move(memory), std::move(options))) {}

TokenEngine::~TokenEngine() { stop(); }

Status TokenEngine::reserve(const TokenRequest& request) {
  const EngineMemory& memory = impl_->core.memory();
  TESSERA_RETURN_IF_ERROR(check_token_request(request, memory.shape, memory.model->config()));
  return impl_->inbox.reserve();
}

void TokenEngine::give_back() { impl_->inbox.give_back(); }

Result<RequestId> TokenEngine::submit(TokenRequest request, std::shared_ptr<TokenListener> listener, bool reserved) {
  const EngineMemory& memory = impl_->core.memory();
  if (!reserved) TESSERA_RETURN_IF_ERROR(check_token_request(request, memory.shape, memory.model->config()));
  auto state = std::make_shared<RequestState>();
  state->request = std::move(request);
  state->listener = std::move(listener);
  state->submitted_s = impl_->core.now();
  if (state->request.deadline_s) state->deadline_s = state->submitted_s + *state->request.deadline_s;
  // Hashed here, so that a long prompt costs its client's thread the time and not the engine's.
  PrefixHasher hasher(memory.model->config().language.rope, memory.shape.block_size);
  state->root = hasher.root(state->request.cache_salt);
  state->digests = hasher.prompt(state->request);
  return impl_->inbox.add(std::move(state), reserved);
}

void TokenEngine::cancel(RequestId id) { impl_->inbox.cancel(id); }

bool TokenEngine::drain(double timeout_s) { return impl_->inbox.drain(timeout_s); }

void TokenEngine::stop() {
  if (!impl_->inbox.stop()) return;
  if (impl_->thread.joinable())
    impl_->thread.join();
  else
    impl_->core.cancel_all();
}

EngineStats TokenEngine::stats() const { return impl_->core.stats(); }

const EngineShape& TokenEngine::shape() const { return impl_->core.memory().shape; }

int64_t TokenEngine::max_tiles_per_request() const {
  const EngineMemory& memory = impl_->core.memory();
  const int64_t tokens = std::min(memory.shape.session_len, memory.shape.kv_tokens()) - 2;
  return std::max<int64_t>(0, tokens / memory.model->config().tokens_per_tile());
}

bool TokenEngine::step() {
  TESSERA_CHECK(!impl_->own_thread, "TokenEngine::step: the engine steps on its own thread");
  return impl_->step();
}

std::vector<std::string> TokenEngine::check_invariants() const { return impl_->core.check_invariants(); }

}  // namespace tessera
