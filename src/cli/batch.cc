#include "cli/batch.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <memory>

#include "cli/batch_file.h"
#include "cli/batch_lines.h"
#include "cli/batch_request.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "cli/session.h"

namespace tessera::cli {
namespace {

// A request on its way: submitted, or failed before that.
struct Pending {
  size_t position = 0;
  std::optional<Json> id;
  RequestId request = 0;
  bool logprobs = false;
  std::shared_ptr<Answer> answer;
  Status status;
};

class Batch {
 public:
  Batch(const BatchOptions& options, BatchLines lines, BatchFile file, Session session)
      : options_(options), lines_(std::move(lines)), file_(std::move(file)), session_(std::move(session)) {
    directory_ = options.input == "-" ? "." : std::filesystem::path(options.input).parent_path().string();
    // Enough to keep every place of a batch filled while pictures of the next ones are prepared.
    window_ = static_cast<size_t>(options.engine.max_batch_size) * 3 + 16;
  }

  int run() {
    size_t next = 0;
    Status status;
    while (status.ok() && !stopped_ && (next < lines_.size() || !pending_.empty())) {
      while (next < lines_.size() && pending_.size() < window_ && submit(next)) ++next;
      status = write_ready();
      show();
    }
    for (const Pending& left : pending_)
      if (left.request) session_.engine->cancel(left.request);
    progress_.clear();
    const Status closed = file_.finish(status.ok() && !stopped_);
    if (!status.ok()) return fail("run", status);
    if (!closed.ok()) return fail("run", closed);
    if (stopped_) return 130;
    if (failed_ == 0) return 0;
    std::fprintf(stderr, "tessera run: %zu of %zu requests failed; their lines have an \"error\"\n", failed_, lines_.size());
    return 2;
  }

 private:
  // False when the engine is full for now: the line is to be tried again.
  bool submit(size_t position) {
    if (file_.done(position)) {
      ++done_;
      return true;
    }
    Pending pending;
    pending.position = position;
    BatchLine line;
    if (auto text = lines_.read(position); text.ok())
      line = read_batch_line(*text, directory_, options_.sampling, options_.engine);
    else
      line.request = text.status();
    pending.id = std::move(line.id);
    pending.status = line.request.status();
    if (line.request.ok()) {
      pending.logprobs = line.request->logprobs >= 0;
      pending.answer = std::make_shared<Answer>();
      std::tie(pending.request, pending.status) = session_.engine->submit(std::move(*line.request), pending.answer);
    }
    if (pending.status.code() == StatusCode::kUnavailable && !pending_.empty()) return false;
    pending_.push_back(std::move(pending));
    return true;
  }

  // Writes finished results from the front, waiting briefly for the first.
  Status write_ready() {
    while (!pending_.empty()) {
      Pending& front = pending_.front();
      if (front.status.ok() && !front.answer->wait_for(0.1)) {
        stopped_ = interrupts() > 0;
        return {};
      }
      if (front.status.ok() && front.answer->finish().reason == FinishReason::kError)
        front.status = front.answer->finish().status;
      if (!front.status.ok()) ++failed_;
      TESSERA_RETURN_IF_ERROR(file_.write(front.position, result_line(front)));
      ++done_;
      pending_.pop_front();
    }
    return {};
  }

  std::string result_line(const Pending& pending) const {
    Json json;
    if (pending.id) json.set("id", *pending.id);
    if (!pending.status.ok()) {
      Json error;
      error.set("message", pending.status.message());
      json.set("error", std::move(error));
      return json.dump();
    }
    const Json result = pending.answer->to_json(session_.report.load_s, pending.logprobs);
    for (const auto& [key, value] : result.as_object()) json.set(key, value);
    json.set("memory", memory_json(session_));
    return json.dump();
  }

  // What the engine has done, written or not: a slow first line must not look like a standstill.
  void show() {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
    const EngineStats stats = session_.engine->stats();
    const auto ended = done_ + static_cast<size_t>(std::count_if(pending_.begin(), pending_.end(), [](const Pending& pending) {
                         return !pending.status.ok() || pending.answer->done();
                       }));
    char detail[128];
    std::snprintf(detail, sizeof detail, "%zu/%zu requests  %.1f tokens/s  %.1f tiles/s", ended, lines_.size(),
                  static_cast<double>(stats.generated_tokens) / seconds, static_cast<double>(stats.tiles_encoded) / seconds);
    progress_.update("batch", static_cast<double>(ended) / static_cast<double>(lines_.size()), detail);
  }

  BatchOptions options_;
  BatchLines lines_;
  BatchFile file_;
  Session session_;
  std::string directory_;
  size_t window_ = 0;
  std::deque<Pending> pending_;
  ProgressLine progress_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  size_t done_ = 0, failed_ = 0;  ///< lines that are written
  bool stopped_ = false;
};

}  // namespace

int run_batch(const BatchOptions& options) {
  auto lines = BatchLines::open(options.input);
  if (!lines.ok()) return fail("run", lines.status());
  std::vector<std::optional<Json>> ids;
  for (size_t i = 0; i < lines->size(); ++i) {
    const auto line = lines->read(i);
    if (!line.ok()) return fail("run", line.status());
    ids.push_back(batch_line_id(*line));
  }
  auto file = BatchFile::open(options.output, ids);
  if (!file.ok()) return fail("run", file.status());
  bool work = false;
  for (size_t i = 0; i < lines->size(); ++i) work = work || !file->done(i);
  if (!work) {
    const Status closed = file->finish(true);
    return closed.ok() ? 0 : fail("run", closed);
  }
  auto session = open_session(options.engine);
  if (!session.ok()) return fail("run", session.status());
  return Batch(options, std::move(*lines), std::move(*file), std::move(*session)).run();
}

}  // namespace tessera::cli
