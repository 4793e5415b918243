#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace tessera::server {

/// One line for each event, on stderr: `time level event key=value ...`, or one JSON object. Fields never
/// hold what users wrote or what the model answered; callers see to it. Thread-safe.
struct LogField {
  LogField(const char* k, std::string v) : key(k), text(std::move(v)) {}                 // NOLINT
  LogField(const char* k, const char* v) : key(k), text(v) {}                            // NOLINT
  LogField(const char* k, int64_t v) : key(k), text(std::to_string(v)), number(true) {}  // NOLINT
  LogField(const char* k, int v) : LogField(k, int64_t{v}) {}                            // NOLINT
  LogField(const char* k, double v);                                                     // NOLINT

  const char* key;
  std::string text;
  bool number = false;
};

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

/// Sets level and form for the process; before it is called, text at kInfo.
void configure_log(LogLevel level, bool json);

void log_event(LogLevel level, const char* event, const std::vector<LogField>& fields);

inline void log_debug(const char* event, const std::vector<LogField>& f) {
  log_event(LogLevel::kDebug, event, f);
}
inline void log_info(const char* event, const std::vector<LogField>& f) {
  log_event(LogLevel::kInfo, event, f);
}
inline void log_warning(const char* event, const std::vector<LogField>& f) {
  log_event(LogLevel::kWarning, event, f);
}
inline void log_error(const char* event, const std::vector<LogField>& f) {
  log_event(LogLevel::kError, event, f);
}

}  // namespace tessera::server
