#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <string>
#include <vector>

#include "cli/serving_run.h"

namespace tessera::cli {
namespace {

constexpr double kLeft = 70, kTop = 40, kWidth = 560, kHeight = 300;

std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));
std::string format(const char* pattern, ...) {
  char text[512];
  va_list args;
  va_start(args, pattern);
  std::vsnprintf(text, sizeof text, pattern, args);
  va_end(args);
  return text;
}

struct Series {
  const char* name;
  const char* colour;
  std::vector<double> ms;  ///< one a point
};

// Milliseconds on a logarithmic axis of whole decades, load on an even one (its values are few and chosen).
struct Axes {
  double low = 0, high = 1;  ///< log10 ms
  size_t points = 1;
  double x(size_t i) const { return kLeft + kWidth * (points > 1 ? static_cast<double>(i) / static_cast<double>(points - 1) : 0.5); }
  double y(double ms) const { return kTop + kHeight * (1 - (std::log10(std::max(ms, 1e-3)) - low) / (high - low)); }
};

std::string draw_series(const Series& series, const Axes& axes, size_t rank) {
  std::string path, dots;
  for (size_t i = 0; i < series.ms.size(); ++i) {
    path += format("%s%.1f,%.1f", i ? " " : "", axes.x(i), axes.y(series.ms[i]));
    dots += format("<circle cx='%.1f' cy='%.1f' r='3' fill='%s'/>\n", axes.x(i), axes.y(series.ms[i]), series.colour);
  }
  const double y = kTop + 14.0 + 18.0 * static_cast<double>(rank);
  return format("<polyline fill='none' stroke='%s' stroke-width='2' points='", series.colour) + path + "'/>\n" + dots +
         format("<text x='%.0f' y='%.0f' fill='%s'>%s</text>\n", kLeft + kWidth + 12, y, series.colour, series.name);
}

// Short enough for the margin.
std::string time_label(double ms) { return ms < 999 ? format("%g ms", ms) : format("%g s", ms / 1000); }

std::string draw_frame(const Axes& axes, const std::vector<LoadPoint>& points, const std::string& label) {
  std::string svg;
  for (double decade = axes.low; decade <= axes.high + 0.5; ++decade) {
    const double y = axes.y(std::pow(10, decade));
    svg += format("<line x1='%.0f' x2='%.0f' y1='%.1f' y2='%.1f' stroke='#ccc'/><text x='%.0f' y='%.1f' text-anchor='end'>%s</text>\n",
                  kLeft, kLeft + kWidth, y, y, kLeft - 8, y + 4, time_label(std::pow(10, decade)).c_str());
  }
  for (size_t i = 0; i < points.size(); ++i)
    svg += format("<text x='%.1f' y='%.0f' text-anchor='middle'>%g</text>\n", axes.x(i), kTop + kHeight + 20, points[i].load);
  return svg + format("<text x='%.0f' y='%.0f' text-anchor='middle'>%s</text>\n", kLeft + kWidth / 2, kTop + kHeight + 42, label.c_str());
}

}  // namespace

std::string latency_plot_svg(const std::vector<LoadPoint>& points, const std::string& load_label) {
  std::vector<Series> series = {{"first token p50", "#1f77b4", {}},
                                {"first token p99", "#0b3d66", {}},
                                {"between tokens p50", "#ff7f0e", {}},
                                {"between tokens p99", "#a34a00", {}}};
  for (const LoadPoint& point : points) {
    const Percentiles first = percentiles(point.result.first_token_s), gap = percentiles(point.result.inter_token_s);
    const double values[] = {first.p50, first.p99, gap.p50, gap.p99};
    for (size_t i = 0; i < series.size(); ++i) series[i].ms.push_back(values[i] * 1e3);
  }
  Axes axes;
  axes.points = points.size();
  double least = 1e9, most = 1e-3;
  for (const Series& one : series)
    for (double ms : one.ms) {
      least = std::min(least, std::max(ms, 1e-3));
      most = std::max(most, ms);
    }
  axes.low = std::floor(std::log10(least));
  axes.high = std::max(axes.low + 1, std::ceil(std::log10(most)));
  std::string svg =
      "<svg xmlns='http://www.w3.org/2000/svg' width='820' height='400' font-family='sans-serif' font-size='12'>\n"
      "<rect width='100%' height='100%' fill='white'/>\n<text x='70' y='24' font-size='15'>Latency against load</text>\n";
  svg += draw_frame(axes, points, load_label);
  for (size_t i = 0; i < series.size(); ++i) svg += draw_series(series[i], axes, i);
  return svg + "</svg>\n";
}

}  // namespace tessera::cli
