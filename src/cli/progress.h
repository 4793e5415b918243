#pragma once

#include <chrono>
#include <string>

namespace tessera::cli {

/// One line on stderr that is drawn over, on a terminal only: `loading [#####     ] 52 %  1.2 GB`.
class ProgressLine {
 public:
  /// `elsewhere`: what happens where stderr is no terminal: nothing, or a line every ten seconds.
  enum class Elsewhere { kSilent, kLines };
  explicit ProgressLine(Elsewhere elsewhere = Elsewhere::kSilent);
  ~ProgressLine();

  /// Shows a share done (0..1) with a text behind it. Draws at most ten times a second. One thread at a time.
  void update(const std::string& title, double share, const std::string& detail);
  /// Removes the line.
  void clear();

 private:
  const bool terminal_;
  const bool lines_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point last_{};
};

/// 1536 -> "1.5 KiB".
std::string format_bytes(double bytes);

}  // namespace tessera::cli
