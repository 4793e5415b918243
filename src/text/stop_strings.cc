#include "text/stop_strings.h"

#include <algorithm>

namespace tessera {

StopStrings::StopStrings(const std::vector<std::string>& stops) {
  for (size_t i = 0; i < stops.size(); ++i) {
    if (stops[i].empty()) continue;
    Matcher matcher{stops[i], static_cast<int>(i), std::vector<size_t>(stops[i].size(), 0), 0};
    for (size_t end = 1, length = 0; end < stops[i].size(); ++end) {
      while (length > 0 && stops[i][end] != stops[i][length]) length = matcher.fallback[length - 1];
      if (stops[i][end] == stops[i][length]) ++length;
      matcher.fallback[end] = length;
    }
    matchers_.push_back(std::move(matcher));
  }
}

bool StopStrings::advance(Matcher* matcher, char byte) {
  size_t& matched = matcher->matched;
  while (matched > 0 && matcher->stop[matched] != byte) matched = matcher->fallback[matched - 1];
  if (matcher->stop[matched] == byte) ++matched;
  return matched == matcher->stop.size();
}

StopStrings::Result StopStrings::push(std::string_view piece) {
  const size_t before = held_.size();
  held_ += piece;
  for (size_t at = before; at < held_.size(); ++at) {
    const Matcher* found = nullptr;
    open_ = 0;
    for (Matcher& matcher : matchers_) {
      if (advance(&matcher, held_[at]) && (!found || matcher.stop.size() > found->stop.size())) found = &matcher;
      open_ = std::max(open_, matcher.matched);
    }
    if (found) {
      held_.resize(at + 1 - found->stop.size());
      return {std::move(held_), true, found->index};
    }
  }
  const size_t sure = held_.size() - open_;
  Result result{held_.substr(0, sure), false, -1};
  held_.erase(0, sure);
  return result;
}

std::string StopStrings::finish() {
  std::string rest = std::move(held_);
  held_.clear();
  open_ = 0;
  for (Matcher& matcher : matchers_) matcher.matched = 0;
  return rest;
}

}  // namespace tessera
