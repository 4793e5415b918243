#include "cli/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace tessera::cli {

ProgressLine::ProgressLine(Elsewhere elsewhere)
    : terminal_(::isatty(STDERR_FILENO) == 1), lines_(elsewhere == Elsewhere::kLines) {
  // A terminal sees the first state at once; a log only hears of what takes long.
  if (!terminal_) last_ = std::chrono::steady_clock::now();
}

ProgressLine::~ProgressLine() { clear(); }

void ProgressLine::update(const std::string& title, double share, const std::string& detail) {
  const auto now = std::chrono::steady_clock::now();
  if (!terminal_ && !lines_) return;
  if (now - last_ < (terminal_ ? std::chrono::milliseconds(100) : std::chrono::seconds(10))) return;
  last_ = now;
  if (!terminal_) {
    std::fprintf(stderr, "%s %.0f %%  %s\n", title.c_str(), std::clamp(share, 0.0, 1.0) * 100, detail.c_str());
    return;
  }
  constexpr int kWidth = 30;
  const int filled = static_cast<int>(std::clamp(share, 0.0, 1.0) * kWidth);
  std::string bar(static_cast<size_t>(filled), '#');
  bar.append(static_cast<size_t>(kWidth - filled), ' ');
  std::fprintf(stderr, "\r\033[K%s [%s] %3.0f %%  %s", title.c_str(), bar.c_str(), std::clamp(share, 0.0, 1.0) * 100,
               detail.c_str());
  std::fflush(stderr);
  drawn_ = true;
}

void ProgressLine::clear() {
  if (drawn_) std::fputs("\r\033[K", stderr);
  drawn_ = false;
}

std::string format_bytes(double bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", bytes, kUnits[unit]);
  return text;
}

}  // namespace tessera::cli
