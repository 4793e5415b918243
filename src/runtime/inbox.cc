#include "runtime/inbox.h"

#include <chrono>
#include <string>

namespace tessera {

Status Inbox::check(bool has_place) const {
  if (!why_closed_.ok()) return unavailable(why_closed_.message());
  if (closed_) return unavailable("the engine is stopping; send the request to another server or later");
  if (has_place || waiting_ < max_queue_) return {};
  return unavailable("the queue holds " + std::to_string(waiting_) + " of at most " + std::to_string(max_queue_) +
                     " waiting requests; try again later or raise --max-queue");
}

Status Inbox::reserve() {
  std::lock_guard lock(mutex_);
  TESSERA_RETURN_IF_ERROR(check(/*has_place=*/false));
  ++waiting_;
  return {};
}

void Inbox::give_back() {
  std::lock_guard lock(mutex_);
  --waiting_;
}

Result<RequestId> Inbox::add(std::shared_ptr<RequestState> request, bool reserved) {
  std::lock_guard lock(mutex_);
  TESSERA_RETURN_IF_ERROR(check(reserved));
  request->id = ++last_id_;
  const RequestId id = request->id;
  messages_.arrivals.push_back(std::move(request));
  waiting_ += !reserved;
  ++active_;
  arrived_.notify_one();
  return id;
}

void Inbox::close(const Status& why) {
  std::lock_guard lock(mutex_);
  closed_ = true;
  why_closed_ = why;
}

void Inbox::cancel(RequestId id) {
  std::lock_guard lock(mutex_);
  messages_.cancels.push_back(id);
  arrived_.notify_one();
}

bool Inbox::drain(double timeout_s) {
  std::unique_lock lock(mutex_);
  closed_ = true;
  return emptied_.wait_for(lock, std::chrono::duration<double>(timeout_s), [&] { return active_ == 0; });
}

bool Inbox::stop() {
  std::lock_guard lock(mutex_);
  if (stopped_) return false;
  closed_ = stopped_ = true;
  arrived_.notify_all();
  return true;
}

bool Inbox::wait_for_work(bool busy) {
  std::unique_lock lock(mutex_);
  arrived_.wait(lock, [&] { return stopped_ || busy || !messages_.arrivals.empty() || !messages_.cancels.empty(); });
  return !stopped_;
}

void Inbox::take(Messages& messages) {
  messages.arrivals.clear();
  messages.cancels.clear();
  std::lock_guard lock(mutex_);
  std::swap(messages, messages_);
}

void Inbox::admitted(int64_t requests) {
  std::lock_guard lock(mutex_);
  waiting_ -= requests;
}

void Inbox::ended(int64_t requests) {
  if (requests == 0) return;
  std::lock_guard lock(mutex_);
  active_ -= requests;
  if (active_ == 0) emptied_.notify_all();
}

int64_t Inbox::waiting() const {
  std::lock_guard lock(mutex_);
  return waiting_;
}

}  // namespace tessera
