#include "server/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>

#include "server/json_text.h"

namespace tessera::server {
namespace {

std::atomic<bool> g_json{false};

spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = [] {
    auto made =
        std::make_shared<spdlog::logger>("tessera", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%v");  // the line is made here, in either form
    made->set_level(spdlog::level::info);
    made->flush_on(spdlog::level::warn);
    return made;
  }();
  return *instance;
}

spdlog::level::level_enum spdlog_level(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
    case LogLevel::kOff:
      break;
  }
  return spdlog::level::off;
}

const char* level_name(LogLevel level) {
  static constexpr const char* kNames[] = {"debug", "info", "warning", "error", "off"};
  return kNames[static_cast<int>(level)];
}

std::string timestamp() {
  using namespace std::chrono;
  const auto now = system_clock::now();
  const std::time_t seconds = system_clock::to_time_t(now);
  const auto millis = duration_cast<milliseconds>(now.time_since_epoch()).count() % 1000;
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  char day[32], text[48];
  std::strftime(day, sizeof day, "%Y-%m-%dT%H:%M:%S", &utc);
  std::snprintf(text, sizeof text, "%s.%03dZ", day, static_cast<int>(millis));
  return text;
}

// Quotes what has spaces or could break a line; numbers and plain words stay bare.
void append_value(std::string& line, const LogField& field, bool json) {
  const bool plain = field.number || (!json && !field.text.empty() &&
                                      field.text.find_first_of(" \"=\\\n\r\t") == std::string::npos);
  if (plain)
    line += field.text;
  else
    append_json_string(line, field.text);
}

}  // namespace

LogField::LogField(const char* k, double v) : key(k), number(true) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.6g", std::isfinite(v) ? v : 0.0);
  text = buffer;
}

void configure_log(LogLevel level, bool json) {
  g_json = json;
  logger().set_level(spdlog_level(level));
}

void log_event(LogLevel level, const char* event, const std::vector<LogField>& fields) {
  if (!logger().should_log(spdlog_level(level))) return;
  const bool json = g_json;
  std::string line;
  if (json)
    line += "{\"time\":\"" + timestamp() + "\",\"level\":\"" + level_name(level) + "\",\"event\":\"" + event +
            "\"";
  else
    line += timestamp() + " " + level_name(level) + " " + event;
  for (const LogField& field : fields) {
    line += json ? std::string(",\"") + field.key + "\":" : std::string(" ") + field.key + "=";
    append_value(line, field, json);
  }
  if (json) line += '}';
  logger().log(spdlog_level(level), "{}", line);
}

}  // namespace tessera::server
