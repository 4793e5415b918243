#include "cli/session.h"

#include <cstdio>

#include "cli/interrupt.h"
#include "cli/progress.h"
#include "core/file.h"

namespace tessera::cli {

Result<Session> open_session(EngineOptions options) {
  ProgressLine progress;
  options.load_progress = [&progress](size_t done, size_t total) {
    const double share = total ? static_cast<double>(done) / static_cast<double>(total) : 1;
    progress.update("loading", share, format_bytes(static_cast<double>(done)));
  };
  Session session;
  auto [engine, status] = open_engine(options, &session.report);
  progress.clear();
  if (!status.ok()) return status;
  session.engine = std::move(engine);
  return session;
}

Result<ImageInput> read_image(const std::string& path, const EngineOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(std::string bytes, read_file(path, static_cast<size_t>(options.max_image_bytes)));
  ImageInput image;
  image.bytes = std::move(bytes);
  image.name = path;
  return image;
}

Status run_to_end(Engine& engine, const Request& request, const std::shared_ptr<Answer>& answer) {
  reset_interrupts();
  const auto [id, status] = engine.submit(request, answer);
  if (!status.ok()) return status;
  bool cancelled = false;
  while (!answer->wait_for(0.05)) {
    if (interrupts() > 0 && !cancelled) {
      engine.cancel(id);
      cancelled = true;
    }
  }
  return answer->finish().reason == FinishReason::kError ? answer->finish().status : Status();
}

Json memory_json(const Session& session) {
  const EngineStats stats = session.engine->stats();
  Json list = Json::array();
  for (const LoadReport::Device& device : session.report.devices) {
    Json item;
    item.set("device", device.name);
    item.set("planned_bytes", device.planned_bytes);
    for (const auto& [name, peak] : stats.device_peak_bytes)
      if (name == device.name) item.set("peak_bytes", peak);
    list.push_back(std::move(item));
  }
  return list;
}

std::string speed_line(const Answer& answer, double load_s) {
  const Timings& t = answer.finish().timings;
  const auto tokens = static_cast<double>(answer.completion_tokens());
  int64_t tiles = 0;
  for (const ImageInfo& image : answer.prompt().images) tiles += image.tiles;
  char text[256];
  std::snprintf(text, sizeof text,
                "load %.2f s | %lld tiles: picture %.3f s, vision %.3f s | prompt %lld tokens: %.3f s | %.0f tokens: "
                "%.3f s (%.0f tokens/s)",
                load_s, static_cast<long long>(tiles), t.preprocess_s, t.encode_s,
                static_cast<long long>(answer.prompt().prompt_tokens), t.prefill_s, tokens, t.decode_s,
                t.decode_s > 0 ? tokens / t.decode_s : 0.0);
  return text;
}

}  // namespace tessera::cli
